"""The data of one round: patches in batches, a function of (seed, step) alone, and whole validation cases."""

import math
from collections import UserList
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flare.core.cases import Case
from flare.core.classes import IGNORE
from flare.core.errors import FlareError
from flare.core.geometry import Shape
from flare.core.preprocessing import Intensity, normalise
from flare.data.augment import Augmenter, Boxes, draw_augmentation
from flare.data.cache import Stored, read_box
from flare.data.settings import CaseArrays, PatchSettings
from flare.runs.door import ignore_signals

# epochs: python-blosc2 never frees foreground voxels that it has read, 60 kB a patch centred on them (ours)
RENEWED = 20


class Batch(TypedDict):
    """What a training step gets."""

    image: Tensor  # `(B, 1, Z, Y, X)` float32, normalised and augmented
    target: Tensor  # `(B, Z, Y, X)` uint8, index of the right output of the network, or `IGNORE`
    known: Tensor  # `(B, K)` bool: whether a sample's labels tell where the class of each of the K outputs is
    case: list[str]  # the B case ids


class SampleKey(NamedTuple):
    """What decides a training sample, with the seed: its step, and its place in the batches of all processes.

    `step` counts the optimizer steps of the round before it; where batches repeat, before the first like it.
    """

    step: int
    sample: int


def choose_start(rng: np.random.Generator, position: int, label: Stored, settings: PatchSettings) -> Shape:
    """Choose a patch: the last of a batch around a foreground voxel of cached labels, the others anywhere.

    Of B patches `B - round((1 - oversample_foreground) B)` are centred on foreground. nnU-Net centres none at
    batch 1; ours then centres each patch with probability `oversample_foreground`. The class is drawn
    uniformly among those of the case, then a voxel of it. Equal generators give equal patches. `position` is
    that of the patch within its batch, from 0. Gives the first voxel along Z, Y, X, below 0 in small volumes.

    Reference: method section 7.
    """
    patch_size, tumor = settings.patch_size, settings.tumor
    count, share = settings.batch_size, settings.oversample_foreground
    is_centred = rng.random() < share if count == 1 else position >= round(count * (1 - share))
    present = [c for c in label.foreground_classes if c in settings.outputs[1:]]
    if not (is_centred and present):
        return uniform_start(rng, patch_size, label.shape)
    is_tumor = rng.random() < settings.tumor_fraction and tumor in present
    chosen = tumor if is_tumor and tumor is not None else present[rng.integers(len(present))]
    voxels = label.foreground(chosen)
    return centred_start(voxels[rng.integers(len(voxels))], patch_size, label.shape)


def uniform_start(rng: np.random.Generator, patch_size: Shape, shape: Shape) -> Shape:
    """Draw a patch anywhere within a volume; a volume smaller than the patch lies in its middle."""
    z, y, x = (
        int(rng.integers(n - p + 1)) if n >= p else -((p - n) // 2)
        for n, p in zip(shape, patch_size, strict=True)
    )
    return (z, y, x)


def centred_start(voxel: Sequence[int], patch_size: Shape, shape: Shape) -> Shape:
    """Put a patch around a voxel, moved into the volume at both ends (nnU-Net pads at the high one; ours)."""
    z, y, x = (
        min(max(int(v) - p // 2, 0), n - p) if n >= p else -((p - n) // 2)
        for v, p, n in zip(voxel, patch_size, shape, strict=True)
    )
    return (z, y, x)


@dataclass(frozen=True)
class PatchDataset(Dataset[dict[str, Any]]):
    """Augmented training patches, each a function of the seed and its key alone.

    A batch of its settings is that of all processes together. With `data.augmentation.device=gpu` a sample
    has `boxes` instead of `image` and `target`, of which the process that trains makes them. A case's weight
    that is negative or not finite is refused, and so are weights of which none is above 0.
    """

    cases: Sequence[tuple[str, CaseArrays]]
    settings: PatchSettings
    intensity: Intensity
    augmenter: Augmenter

    def __post_init__(self) -> None:
        weights = {case_id: arrays.weight for case_id, arrays in self.cases}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            raise FlareError(f"training cases: expected weights of 0 or more, some above 0, given {weights}")

    @cached_property
    def _shares(self) -> np.ndarray | None:
        """Probability of each case; None where all are as likely."""
        weights = np.array([arrays.weight for _, arrays in self.cases])
        return None if (weights == weights[0]).all() else weights / weights.sum()

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One patch: `image` `(1, Z, Y, X)`, `target` `(Z, Y, X)`, `known` `(K,)` and `case`; or `boxes`."""
        rng = np.random.default_rng((self.settings.seed, key.step, key.sample))
        count, outputs = len(self.cases), self.settings.outputs
        index = rng.integers(count) if self._shares is None else rng.choice(count, p=self._shares)
        case_id, arrays = self.cases[int(index)]
        image, label = Stored(arrays.image), Stored(arrays.label)
        start = choose_start(rng, key.sample, label, self.settings)
        channels = np.zeros(256, dtype=np.uint8)
        channels[list(outputs)] = range(len(outputs))
        channels[IGNORE] = IGNORE

        def read(lower: Shape, upper: Shape) -> tuple[np.ndarray, np.ndarray]:
            """Both arrays of a box counted from the start of the patch."""
            first, last = (tuple(np.add(corner, start).tolist()) for corner in (lower, upper))
            return (
                read_box(image, first, last, convert=lambda hu: normalise(hu, self.intensity)),
                read_box(label, first, last, convert=lambda ids: channels[ids]),
            )

        # a patch is too small to share: waiting for a second thread takes twenty times as long as the work;
        # with one, sums are the same in a worker and in the main process
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            drawn = draw_augmentation(rng, self.augmenter.settings)
            known = torch.tensor([arrays.known is None or c in (0, *arrays.known) for c in outputs])
            told = {"known": known, "case": case_id}
            if self.augmenter.settings.get("device") == "gpu":
                return {"boxes": self.augmenter.read(read, drawn), **told}
            voxels, target = self.augmenter.apply(read, drawn)
        finally:
            torch.set_num_threads(threads)
        return {"image": voxels[None].contiguous(), "target": target.contiguous(), **told}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of samples; boxes, which differ in size, stay a list."""
    boxes = [sample.pop("boxes") for sample in samples if "boxes" in sample]
    batch: dict[str, Any] = default_collate(samples)
    return {**batch, "boxes": boxes} if boxes else batch


@dataclass(frozen=True)
class StepSampler(Sampler[list[SampleKey]]):
    """The keys of an epoch's batches, from the step at which the training stands to the epoch's end.

    `step` tells the steps done, `batch_size` is a rank's; after `distinct` steps, if any, batches come again.
    """

    batch_size: int
    epoch_length: int
    step: Callable[[], int]
    rank: int
    distinct: int | None = None

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield one list of keys per batch."""
        first = self.step()
        for step in range(first, first + self.epoch_length - first % self.epoch_length):
            offset = self.rank * self.batch_size
            drawn = step % self.distinct if self.distinct else step
            yield [SampleKey(drawn, offset + position) for position in range(self.batch_size)]

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.epoch_length


class StepLoader:
    """Training batches that go on where the training stands, also in the middle of an epoch.

    Not a `DataLoader` to Lightning: its samples already differ between ranks, and nobody may replace the
    sampler. It counts as resumable because the step, which Lightning restores, is all its state. With 0
    `workers` patches are prepared when they are asked for, otherwise ahead. Workers end after `RENEWED`
    epochs, and new ones go on with the same patches.
    """

    def __init__(
        self, dataset: PatchDataset, sampler: StepSampler, *, workers: int, pin_memory: bool
    ) -> None:
        self.loader: DataLoader[dict[str, Any]] = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=ignore_signals if workers else None,  # the step that is stopped after needs them
        )
        self._begun = 0  # epochs

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over what remains of the epoch."""
        if self._begun and self._begun % RENEWED == 0:
            self.close()
        self._begun += 1
        return iter(self.loader)

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return len(self.loader)

    def close(self) -> None:
        """End the worker processes now; left to the garbage collector, each takes five seconds to end."""
        if isinstance(self.loader._iterator, _MultiProcessingDataLoaderIter):
            self.loader._iterator._shutdown_workers()
            self.loader._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step is the trainer's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""


class FlareDataModule(pl.LightningDataModule):
    """Training patches and validation cases of one round.

    Every process trains on `data.batch_size` patches per step; together they are those of one process at that
    size times the processes. An epoch is `trainer.limit_train_batches` steps, whatever the number of cases.
    `training` leads from case id to the cached image and the labels of the round: the cache's ground truth,
    or what the round's `training_labels` holds; none at all is refused. Validation cases without labels are
    left out.
    """

    def __init__(
        self,
        settings: PatchSettings,
        training: Mapping[str, CaseArrays],
        *,
        validation: Sequence[Case],
        intensity: Intensity,
    ) -> None:
        super().__init__()
        if not training:
            raise FlareError("labels.cases: the cohort has no such training case")
        augmenter = Augmenter(settings.patch_size, settings.augmentation, settings.spacing_mm)
        self.dataset = PatchDataset(sorted(training.items()), settings, intensity, augmenter)
        self.loader: StepLoader | None = None
        self.validation = [case for case in validation if case.is_labeled]

    def train_dataloader(self) -> StepLoader:
        """The batches from the trainer's current step on."""
        trainer = self.trainer
        assert trainer is not None  # Lightning's, which knows the step and the rank
        settings = self.dataset.settings
        sampler = StepSampler(
            batch_size=settings.batch_size,
            epoch_length=int(trainer.limit_train_batches),
            step=lambda: trainer.global_step,
            rank=trainer.global_rank,
            distinct=int(trainer.overfit_batches) or None,  # type: ignore[attr-defined]
        )
        on_gpu = trainer.strategy.root_device.type == "cuda"
        joint = replace(settings, batch_size=settings.batch_size * trainer.world_size)
        dataset = replace(self.dataset, settings=joint)
        self.loader = StepLoader(dataset, sampler, workers=settings.workers, pin_memory=on_gpu)
        return self.loader

    def teardown(self, stage: str) -> None:
        """End the worker processes when Lightning is done with them."""
        if self.loader is not None:
            self.loader.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the worker processes: Lightning leaves `teardown` out after an exception."""
        self.teardown("fit")

    def val_dataloader(self) -> Sequence[Case]:
        """This rank's share of the cases; an empty list, which skips validation, where there are none."""
        assert self.trainer is not None  # Lightning's, which knows the rank
        share = self.validation[self.trainer.global_rank :: self.trainer.world_size]
        return UserList(share) if self.validation else []  # a list would be one loader a case to Lightning

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors to the device, and augment there what is still boxes; a `Case` stays what it is."""
        if isinstance(batch, Case):
            return batch
        move = super().transfer_batch_to_device
        boxes = batch.pop("boxes", [])
        moved: dict[str, Any] = move(batch, device, dataloader_idx)
        if boxes:
            there = (Boxes._make((*move(b[:3], device, dataloader_idx), b.drawn)) for b in boxes)
            images, targets = zip(*map(self.dataset.augmenter.augment, there), strict=True)
            moved |= {"image": torch.stack(images)[:, None], "target": torch.stack(targets)}
        return moved
