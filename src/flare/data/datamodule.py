"""The data of one round for Lightning: training patches from the cache and whole validation cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from flare.core.cases import Case
from flare.core.errors import FlareError
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.loaders import CaseArrays, PatchDataset, StepLoader, StepSampler
from flare.data.patches import ForegroundSampling, PatchSampling
from flare.data.settings import PatchSettings


class FlareDataModule(pl.LightningDataModule):
    """Training patches and validation cases of one round.

    Every process trains on `data.batch_size` patches per step; with several processes the patches differ.
    An epoch is `trainer.limit_train_batches` steps, whatever the number of cases.

    Args:
        settings: How patches are chosen and augmented.
        training: Case id to its cached image and the labels of the round: the cache's ground truth, or
            what the round's `training_labels` holds.
        validation: Cases of the validation split; those without labels are left out.
        intensity: Statistics of the cohort.
        sampling: Another way of choosing patches than nnU-Net's oversampling of foreground.

    Raises:
        FlareError: If there is no training case, or a part of `data.augmentation` cannot be built.
    """

    def __init__(
        self,
        settings: PatchSettings,
        training: Mapping[str, CaseArrays],
        *,
        validation: Sequence[Case],
        intensity: Intensity,
        sampling: PatchSampling | None = None,
    ) -> None:
        super().__init__()
        if not training:
            raise FlareError("labels.cases: the cohort has no such training case")
        self.settings = settings
        self.dataset = PatchDataset(
            cases=sorted(training.items()),
            intensity=intensity,
            outputs=settings.outputs,
            sampling=sampling or ForegroundSampling(settings),
            augmenter=Augmenter(settings.patch_size, settings.augmentation, settings.spacing_mm),
            seed=settings.seed,
        )
        self.loader: StepLoader | None = None
        self.validation = [case for case in validation if case.is_labeled]

    def train_dataloader(self) -> StepLoader:
        """The batches from the trainer's current step on."""
        trainer = self.trainer
        assert trainer is not None  # Lightning's, which knows the step and the rank
        sampler = StepSampler(
            batch_size=self.settings.batch_size,
            epoch_length=int(trainer.limit_train_batches),
            step=lambda: trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            distinct=int(trainer.overfit_batches) or None,  # type: ignore[attr-defined]
        )
        on_gpu = trainer.strategy.root_device.type == "cuda"
        self.loader = StepLoader(self.dataset, sampler, workers=self.settings.workers, pin_memory=on_gpu)
        return self.loader

    def teardown(self, stage: str) -> None:
        """End the worker processes when Lightning is done with them."""
        if self.loader is not None:
            self.loader.close()

    def val_dataloader(self) -> CaseLoader | list[Any]:
        """This rank's validation cases; an empty list, which skips validation, where there are none."""
        trainer = self.trainer
        assert trainer is not None  # Lightning's, which knows the step and the rank
        if not self.validation:
            return []
        return CaseLoader(self.validation, rank=trainer.global_rank, world_size=trainer.world_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors to the device; a `Case` stays what it is."""
        if isinstance(batch, Case):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class CaseLoader:
    """Whole cases, one after another: of all, which have the same order on every rank, this rank's share."""

    def __init__(self, cases: Sequence[Case], *, rank: int, world_size: int) -> None:
        self.cases = list(cases)[rank::world_size]

    def __iter__(self) -> Iterator[Case]:
        """Iterate over the cases."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Cases of this rank."""
        return len(self.cases)
