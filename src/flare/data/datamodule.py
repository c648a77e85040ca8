"""The data of one round for Lightning: training patches from the cache and whole validation cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.geometry import Shape
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.loaders import CaseArrays, PatchDataset, StepLoader, StepSampler
from flare.data.patches import ForegroundSampling, PatchSampling


class FlareDataModule(pl.LightningDataModule):
    """Training patches and validation cases of one round.

    Every process trains on `data.batch_size` patches per step; with several processes the patches differ.
    An epoch is `trainer.limit_train_batches` steps, whatever the number of cases.

    Args:
        cfg: The resolved configuration of the round (`data`, `classes`, `labels.targets`, `seed`).
        training: Case id to its cached image and the labels of the round: the cache's ground truth, or
            what the round's `training_labels` holds.
        validation: Cases of the validation split; those without labels are left out.
        intensity: Statistics of the cohort.
        sampling: Another way of choosing patches than `foreground_sampling`.

    Raises:
        FlareError: If there is no training case or a value of `data` is out of range.
    """

    def __init__(
        self,
        cfg: DictConfig,
        training: Mapping[str, CaseArrays],
        *,
        validation: Sequence[Case],
        intensity: Intensity,
        sampling: PatchSampling | None = None,
    ) -> None:
        super().__init__()
        if not training:
            raise FlareError(f"labels.cases={cfg.labels.cases}: the cohort has no such training case")
        self.batch_size = int(cfg.data.batch_size)
        self.workers = int(cfg.data.workers)
        classes = ClassList.from_config(cfg.classes)
        self.dataset = PatchDataset(
            cases=[(case_id, CaseArrays(*training[case_id])) for case_id in sorted(training)],
            intensity=intensity,
            outputs=classes.outputs(cfg.labels.targets),
            sampling=sampling or foreground_sampling(cfg),
            augmenter=build_augmenter(cfg),
            seed=int(cfg.seed),
        )
        self.loader: StepLoader | None = None
        self.validation = [case for case in validation if case.is_labeled]

    def train_dataloader(self) -> StepLoader:
        """The batches from the trainer's current step on.

        Raises:
            FlareError: If the trainer's settings leave open what an epoch or a step is.
        """
        trainer = self._attached_trainer()
        length = trainer.limit_train_batches
        if not isinstance(length, int) or length < 1:
            raise FlareError(
                f"trainer.limit_train_batches: expected a number of steps per epoch, given {length!r}"
            )
        if trainer.accumulate_grad_batches != 1:
            raise FlareError(
                "trainer.accumulate_grad_batches: expected 1, because samples are a function of the step; "
                f"given {trainer.accumulate_grad_batches}; raise data.batch_size instead"
            )
        sampler = StepSampler(
            batch_size=self.batch_size,
            epoch_length=length,
            step=lambda: trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            distinct=int(trainer.overfit_batches) or None,  # type: ignore[attr-defined]
        )
        on_gpu = trainer.strategy.root_device.type == "cuda"
        self.loader = StepLoader(self.dataset, sampler, workers=self.workers, pin_memory=on_gpu)
        return self.loader

    def teardown(self, stage: str) -> None:
        """End the worker processes when Lightning is done with them."""
        if self.loader is not None:
            self.loader.close()

    def val_dataloader(self) -> CaseLoader | list[Any]:
        """This rank's validation cases; an empty list, which skips validation, where there are none."""
        trainer = self._attached_trainer()
        if not self.validation:
            return []
        return CaseLoader(self.validation, rank=trainer.global_rank, world_size=trainer.world_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors to the device; a `Case` stays what it is."""
        if isinstance(batch, Case):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _attached_trainer(self) -> pl.Trainer:
        """The trainer, which knows the step and the rank."""
        if self.trainer is None:
            raise FlareError("FlareDataModule: pass it to a Trainer, which knows the step and the rank")
        return self.trainer


class CaseLoader:
    """Whole cases, one after another, this rank's share of them.

    Args:
        cases: All cases, in the same order on every rank.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, cases: Sequence[Case], *, rank: int, world_size: int) -> None:
        self.cases = list(cases)[rank::world_size]

    def __iter__(self) -> Iterator[Case]:
        """Iterate over the cases."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Cases of this rank."""
        return len(self.cases)


def foreground_sampling(cfg: DictConfig) -> ForegroundSampling:
    """Build the paper's patch sampling for a round.

    Args:
        cfg: The resolved configuration.

    Raises:
        FlareError: If a share is not between 0 and 1.
    """
    for key in ("oversample_foreground", "tumor_fraction"):
        if not 0 <= cfg.data[key] <= 1:
            raise FlareError(f"data.{key}: expected a share between 0 and 1, given {cfg.data[key]}")
    classes = ClassList.from_config(cfg.classes)
    return ForegroundSampling(
        patch_size=_patch_size(cfg),
        batch_size=int(cfg.data.batch_size),
        oversample_foreground=float(cfg.data.oversample_foreground),
        tumor_fraction=float(cfg.data.tumor_fraction),
        classes=classes.outputs(cfg.labels.targets)[1:],
        tumor=classes.tumor,
    )


def build_augmenter(cfg: DictConfig) -> Augmenter:
    """Build the augmentation of a round's patches.

    Raises:
        FlareError: If a value of `data.augmentation` is out of range, or makes no transform.
    """
    z, y, x = (float(size) for size in cfg.data.spacing_mm)
    return Augmenter(_patch_size(cfg), _plain(cfg.data.augmentation), (z, y, x))


def _patch_size(cfg: DictConfig) -> Shape:
    """The patch of the configuration as a tuple."""
    z, y, x = (int(n) for n in cfg.data.patch_size)
    return (z, y, x)


def _plain(section: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A section of the configuration as plain values, which pickle and read fast."""
    values = OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]
