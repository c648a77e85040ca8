"""Match the voxels of two grids of the same extent along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def nearest_source(size: int, wanted: int) -> np.ndarray:
    """Give the voxel, of `size`, that holds each of `wanted` voxel centres; both span the same extent."""
    return np.minimum(((np.arange(wanted) + 0.5) * size / wanted).astype(int), size - 1)


def linear_source(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the two voxels, of `size`, around each of `wanted` voxel centres, and the second's weight."""
    position = np.maximum((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0)
    lower = np.minimum(position.astype(int), size - 1)
    return lower, np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32)


@dataclass(frozen=True)
class Axis:
    """How the wanted voxels along an axis lie among those of a box of maps.

    Attributes:
        span: The wanted voxels whose nearest voxel lies in the box.
        lower: For each of them the voxel of the box before it.
        upper: The one after it; the same one where nothing is interpolated.
        weight: The upper voxel's weight, float32.
        nearest: The nearest voxel of the box.
    """

    span: slice
    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray
    nearest: np.ndarray

    @classmethod
    def between(cls, size: int, wanted: int, interval: tuple[int, int], *, linear: bool) -> Axis:
        """Match two grids of the same extent; outside the box its edge goes on.

        Args:
            size: Voxels of the maps.
            wanted: Voxels of the wanted grid.
            interval: First voxel of the box and the voxel after its last.
            linear: Whether to interpolate, or to take the nearest voxel.
        """
        nearest = nearest_source(size, wanted)
        first, last = np.searchsorted(nearest, interval).tolist()
        span = slice(first, last)
        lower, upper, weight = (
            linear_source(size, wanted) if linear else (nearest, nearest, np.zeros(wanted, np.float32))
        )
        low, high = interval[0], interval[1] - 1
        lower, upper, nearest = (np.clip(source[span], low, high) - low for source in (lower, upper, nearest))
        return cls(span, lower, upper, weight[span], nearest)

    def __len__(self) -> int:
        return len(self.lower)

    def reach(self, first: int, last: int) -> slice:
        """Give the part of the span that sees any of the voxels `first` to `last` of the box."""
        return slice(
            int(np.searchsorted(self.upper, first)), int(np.searchsorted(self.lower, last, side="right"))
        )
