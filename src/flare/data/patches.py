"""Where patches lie: foreground oversampling as in nnU-Net, and reading a box from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flare.core.geometry import Shape
from flare.data.cache import Stored


class PatchSampling(Protocol):
    """A strategy of choosing patches; another one needs this method alone."""

    def start(self, rng: np.random.Generator, position: int, label: Stored) -> Shape:
        """Choose a patch.

        Args:
            rng: Decides; equal generators give equal patches.
            position: Of the patch within its batch, from 0.
            label: The case's cached labels.

        Returns:
            First voxel along Z, Y, X; negative where a volume is smaller than the patch.
        """
        ...


@dataclass(frozen=True)
class ForegroundSampling:
    """The last patches of a batch around a foreground voxel, the others anywhere.

    Of B patches `B - round((1 - oversample_foreground) B)` contain foreground for sure. nnU-Net has none
    at batch 1; there every patch is centred with that probability instead (ours). The class is drawn
    uniformly among those of the case, then a voxel of it.

    Args:
        patch_size: Voxels along Z, Y, X.
        batch_size: Patches per batch.
        oversample_foreground: Share of a batch centred on foreground; nnU-Net 0.33.
        tumor_fraction: Share of those centred on the tumor where the case has one (ours; 0 treats the
            tumor as one class among others).
        classes: Ids of the classes that the round trains.
        tumor: Id of the tumor if the round trains it.

    Reference: method section 7.
    """

    patch_size: Shape
    batch_size: int
    oversample_foreground: float
    tumor_fraction: float
    classes: tuple[int, ...]
    tumor: int | None

    def start(self, rng: np.random.Generator, position: int, label: Stored) -> Shape:
        """Choose a patch; see `PatchSampling`."""
        present = [c for c in label.foreground_classes if c in self.classes]
        if not (self._wants_foreground(rng, position) and present):
            return uniform_start(rng, self.patch_size, label.shape)
        prefers_tumor = rng.random() < self.tumor_fraction
        chosen = (
            self.tumor if prefers_tumor and self.tumor in present else present[rng.integers(len(present))]
        )
        voxels = label.foreground(chosen)
        return centred_start(voxels[rng.integers(len(voxels))], self.patch_size, label.shape)

    def _wants_foreground(self, rng: np.random.Generator, position: int) -> bool:
        """Whether this patch of the batch is centred on foreground."""
        if self.batch_size == 1:
            return bool(rng.random() < self.oversample_foreground)
        return position >= round(self.batch_size * (1 - self.oversample_foreground))


def uniform_start(rng: np.random.Generator, patch_size: Shape, shape: Shape) -> Shape:
    """Draw a patch anywhere within a volume; a volume smaller than the patch lies in its middle."""
    z, y, x = (
        int(rng.integers(n - p + 1)) if n >= p else -((p - n) // 2)
        for n, p in zip(shape, patch_size, strict=True)
    )
    return (z, y, x)


def centred_start(voxel: Sequence[int], patch_size: Shape, shape: Shape) -> Shape:
    """Put a patch around a voxel, moved into the volume where it would leave it.

    nnU-Net moves it so at the low end of an axis and pads at the high end; here both ends are alike (ours).
    """
    z, y, x = (
        min(max(int(v) - p // 2, 0), n - p) if n >= p else -((p - n) // 2)
        for v, p, n in zip(voxel, patch_size, shape, strict=True)
    )
    return (z, y, x)


def read_box(
    stored: Stored, lower: Shape, upper: Shape, convert: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Read a box of a volume; 0 stands where it leaves the volume.

    Args:
        stored: The volume on disk.
        lower: First voxel along Z, Y, X; may be negative.
        upper: Voxel after the last.
        convert: Applied to what is read, before the zeros are set around it (normalisation, so that 0 is
            the cohort's mean; or the mapping of labels).

    Returns:
        `(Z, Y, X)` of the type that `convert` gives.
    """
    inside = tuple(
        slice(min(max(a, 0), n), min(max(b, 0), n))
        for a, b, n in zip(lower, upper, stored.shape, strict=True)
    )
    values = convert(stored[inside])
    before = [part.start - a for part, a in zip(inside, lower, strict=True)]
    size = tuple(b - a for a, b in zip(lower, upper, strict=True))
    if values.shape == size:
        return values
    box = np.zeros(size, dtype=values.dtype)
    box[tuple(slice(b, b + n) for b, n in zip(before, values.shape, strict=True))] = values
    return box
