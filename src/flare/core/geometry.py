"""Voxel grids: orientation, padding, and the exact inverse of each.

Arrays are `(Z, Y, X)`. The only module, with `images.py`, that knows another axis order: origins and
directions are ITK's, `(x, y, z)` in LPS millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in space.

    Args:
        shape: Voxels along Z, Y, X.
        spacing_mm: Voxel size along Z, Y, X.
        origin_mm: Centre of the first voxel, (x, y, z), LPS.
        direction: Nine numbers, row-major; column i is the direction of index axis i (i, j, k = X, Y, Z).
    """

    shape: Shape
    spacing_mm: Spacing
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def matrix(self) -> np.ndarray:
        """`(3, 3)` direction cosines, columns the index axes i, j, k."""
        return np.asarray(self.direction, dtype=float).reshape(3, 3)

    def to_mm(self, index_zyx: Any) -> np.ndarray:
        """Position (x, y, z) in LPS millimetres of an index (Z, Y, X)."""
        ijk = np.asarray(index_zyx, dtype=float)[::-1] * np.asarray(self.spacing_mm)[::-1]
        return np.asarray(self.origin_mm) + self.matrix @ ijk

    @property
    def corners(self) -> np.ndarray:
        """`(8, 3)` positions of the corner voxels, (x, y, z) in LPS millimetres."""
        return np.array([self.to_mm(index) for index in product(*((0, n - 1) for n in self.shape))])

    def differences(self, other: Geometry, tolerance_mm: float = 1e-3) -> list[str]:
        """What differs from another grid, in words with both values; empty if they are equal.

        Grids are equal if they have the same size and no corner voxel of one is further than the tolerance
        from that of the other: then no voxel is. A spacing or direction that is off by little in itself
        moves the last of many slices by much.
        """
        found = []
        if self.shape != other.shape:
            found.append(f"size {self.shape} and {other.shape} (z, y, x)")
        distance = float(np.linalg.norm(self.corners - other.corners, axis=1).max())
        if not found and distance <= tolerance_mm:
            return []
        for name, order in (("spacing", "mm (z, y, x)"), ("origin", "mm (x, y, z)"), ("direction", "")):
            field = name if name == "direction" else f"{name}_mm"
            ours, theirs = getattr(self, field), getattr(other, field)
            if not np.allclose(ours, theirs, rtol=0, atol=1e-9):
                found.append(f"{name} {_text(ours, theirs)} and {_text(theirs, ours)} {order}".rstrip())
        return [*found, f"corner voxels up to {distance:.3g} mm apart, expected {tolerance_mm:g} at most"]


def _text(values: Sequence[float], others: Sequence[float]) -> str:
    """Numbers as people read them, with as many digits as tell them from others."""

    def shown(digits: int, numbers: Sequence[float]) -> str:
        return "(" + ", ".join(f"{v:.{digits}g}" for v in numbers) + ")"

    digits = next((d for d in (6, 9) if shown(d, values) != shown(d, others)), 17)
    return shown(digits, values)


@dataclass(frozen=True)
class Volume:
    """An array with its grid; `array.shape == geometry.shape`."""

    array: np.ndarray
    geometry: Geometry


@dataclass(frozen=True)
class Orientation:
    """A lossless reordering of voxels: axes permuted, then some flipped, all in (Z, Y, X) order."""

    permutation: Shape
    flips: tuple[bool, bool, bool]

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(a for a in range(3) if self.flips[a])

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the original order into the new one (a view)."""
        return np.flip(np.transpose(array, self.permutation), self._flipped)

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the new order back into the original one (a view)."""
        return np.transpose(np.flip(array, self._flipped), np.argsort(self.permutation))

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        """The same points in space, addressed in the new voxel order."""
        corner = [
            geometry.shape[a] - 1 if f else 0 for a, f in zip(self.permutation, self.flips, strict=True)
        ]
        first = [0, 0, 0]
        for axis, index in zip(self.permutation, corner, strict=True):
            first[axis] = index
        # column i of the direction belongs to index axis i = 2 - (axis in Z, Y, X order)
        columns = [
            geometry.matrix[:, 2 - a] * (-1 if f else 1)
            for a, f in zip(self.permutation, self.flips, strict=True)
        ]
        return Geometry(
            shape=tuple(geometry.shape[a] for a in self.permutation),  # type: ignore[arg-type]
            spacing_mm=tuple(geometry.spacing_mm[a] for a in self.permutation),  # type: ignore[arg-type]
            origin_mm=tuple(float(v) for v in geometry.to_mm(first)),  # type: ignore[arg-type]
            direction=tuple(float(v) for v in np.stack(columns[::-1], axis=1).ravel()),
        )


RAS = np.diag([-1.0, -1.0, 1.0])  # in LPS, x grows to the left and y to posterior


def orientation_to_ras(geometry: Geometry) -> Orientation:
    """The reordering after which X runs to the patient's right, Y to anterior, Z to superior.

    An oblique grid is taken to its nearest axes: the assignment of axes with the largest sum of cosines.
    """
    return orientation_to(geometry, RAS)


def orientation_to(geometry: Geometry, directions: np.ndarray) -> Orientation:
    """The reordering after which the axes of a grid run as nearly as can be along given directions.

    Args:
        geometry: The grid.
        directions: `(3, 3)`, columns the wanted directions of X, Y, Z in LPS.
    """
    # row a, column k: cosine between our axis a and the wanted axis k, both in Z, Y, X order
    cosines = (geometry.matrix.T @ directions)[::-1, ::-1]
    best = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[k], k]) for k in range(3)))
    flips = tuple(bool(cosines[best[k], k] < 0) for k in range(3))
    return Orientation(permutation=best, flips=flips)  # type: ignore[arg-type]


def reorient_to_ras(volume: Volume) -> tuple[Volume, Orientation]:
    """Bring a volume to RAS voxel order without touching a value (paper, section 2.1).

    Returns:
        The volume in RAS order, and the orientation that `invert`s arrays back.
    """
    orientation = orientation_to_ras(volume.geometry)
    array = np.ascontiguousarray(orientation.apply(volume.array))
    return Volume(array, orientation.apply_geometry(volume.geometry)), orientation


def pad_to(array: np.ndarray, shape: Shape, value: float = 0) -> tuple[np.ndarray, Shape]:
    """Pad an array, centred (floor before), until it is at least `shape`.

    Returns:
        The padded array, and the index of the original's first voxel in it.
    """
    missing = [max(0, wanted - have) for have, wanted in zip(array.shape, shape, strict=True)]
    before = tuple(m // 2 for m in missing)
    if not any(missing):
        return array, before
    widths = [(b, m - b) for b, m in zip(before, missing, strict=True)]
    return np.pad(array, widths, constant_values=value), before


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
