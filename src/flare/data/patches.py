"""Where patches lie: foreground oversampling as in nnU-Net, and reading a box from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flare.core.geometry import Shape
from flare.data.cache import Stored
from flare.data.settings import PatchSettings


class PatchSampling(Protocol):
    """A strategy of choosing patches; another strategy needs only this method."""

    def start(self, rng: np.random.Generator, position: int, label: Stored) -> Shape:
        """Choose a patch of a case with these cached labels; equal generators give equal patches.

        `position` is that of the patch within its batch, from 0. The first voxel along Z, Y, X is given,
        negative where a volume is smaller than the patch.
        """


@dataclass(frozen=True)
class ForegroundSampling:
    """The last patches of a batch around a foreground voxel, the others anywhere.

    Of B patches `B - round((1 - oversample_foreground) B)` are centred on foreground. nnU-Net centres none at
    batch 1; ours then centres each patch with probability `oversample_foreground`. The class is drawn
    uniformly among those of the case, then a voxel of it.

    Reference: method section 7.
    """

    settings: PatchSettings

    def start(self, rng: np.random.Generator, position: int, label: Stored) -> Shape:
        """Choose a patch; see `PatchSampling`."""
        patch_size, tumor = self.settings.patch_size, self.settings.tumor
        count, share = self.settings.batch_size, self.settings.oversample_foreground
        is_centred = rng.random() < share if count == 1 else position >= round(count * (1 - share))
        present = [c for c in label.foreground_classes if c in self.settings.outputs[1:]]
        if not (is_centred and present):
            return uniform_start(rng, patch_size, label.shape)
        is_tumor = rng.random() < self.settings.tumor_fraction and tumor in present
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
    """Read a box of a volume, from a first voxel to the one after the last; outside of the volume it is 0.

    `convert` is applied to the voxels that are read, before zeros are set around them (normalisation, so that
    0 is the cohort's mean; or the mapping of labels).
    """
    first, last = (np.clip(corner, 0, stored.shape).tolist() for corner in (lower, upper))
    values = convert(stored[tuple(map(slice, first, last))])
    size = tuple(np.subtract(upper, lower).tolist())
    if values.shape == size:
        return values
    box = np.zeros(size, dtype=values.dtype)
    box[tuple(slice(f - a, n - a) for a, f, n in zip(lower, first, last, strict=True))] = values
    return box
