"""Voxel grids: the checks of one that a header states, orientation and padding with their exact inverse.

Arrays are `(Z, Y, X)`. The readers and this module alone know ITK's order, `(x, y, z)` in LPS millimetres.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

import numpy as np

from flare.core.errors import BadFileError

log = logging.getLogger(__name__)
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
AXES = ("z", "y", "x")
Box = tuple[slice, slice, slice]
RAS = np.diag([-1.0, -1.0, 1.0])  # in LPS, x grows to the left and y to posterior
MOST_VOXELS = 2**31  # 2,048 slices of 1024 x 1024 (ours)
MOST_LITRES = 3000  # 1 m x 1 m x 3 m (ours): a wrong unit asks for petabytes when it is resampled
SNAP = 1e-3  # how far a direction may be from orthonormal (interface: bad input)


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in space."""

    shape: Shape  # voxels along Z, Y, X
    spacing_mm: Spacing  # voxel size along Z, Y, X
    origin_mm: tuple[float, float, float]  # centre of the first voxel, (x, y, z), LPS
    direction: tuple[float, ...]  # nine, row-major; column i is that of index axis i (i, j, k = X, Y, Z)
    # how the NIfTI header that it was read from states it, see `nifti`; empty for other formats
    forms: tuple[float, ...] = field(default=(), compare=False, repr=False)

    @property
    def matrix(self) -> np.ndarray:
        """`(3, 3)` direction cosines, columns the index axes i, j, k."""
        return np.asarray(self.direction, dtype=float).reshape(3, 3)

    def to_mm(self, index_zyx: Any) -> np.ndarray:
        """Position (x, y, z) in LPS millimetres of an index (Z, Y, X)."""
        ijk = np.asarray(index_zyx, dtype=float)[::-1] * np.asarray(self.spacing_mm)[::-1]
        return np.asarray(self.origin_mm) + self.matrix @ ijk

    def differences(self, other: "Geometry", tolerance_mm: float = 1e-3) -> list[str]:
        """What differs from another grid, in words with both values; empty if they are equal.

        Grids are equal if they have the same size and no corner voxel of one is further than the tolerance
        from that of the other: then no voxel is. A spacing off by little moves the last slice by much.
        """
        found = []
        if self.shape != other.shape:
            found.append(f"size {self.shape} and {other.shape} (z, y, x)")
        corners = [
            np.array([grid.to_mm(index) for index in product(*((0, n - 1) for n in grid.shape))])
            for grid in (self, other)
        ]
        distance = float(np.linalg.norm(corners[0] - corners[1], axis=1).max())
        if not found and distance <= tolerance_mm:
            return []
        units = {"spacing_mm": " mm (z, y, x)", "origin_mm": " mm (x, y, z)", "direction": ""}
        for name, unit in units.items():
            ours, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(ours, theirs, rtol=0, atol=1e-6):
                values = f"{_text(ours, theirs)} and {_text(theirs, ours)}"
                found.append(f"{name.removesuffix('_mm')} {values}{unit}")
        return [
            *found,
            f"corner voxels up to {distance:.3g} mm apart, expected {tolerance_mm:g} at most "
            "(data.checks.tolerance_mm)",
        ]


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

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the original order into the new one (a view)."""
        return np.flip(np.transpose(array, self.permutation), tuple(np.flatnonzero(self.flips)))

    def invert(self, array: np.ndarray) -> np.ndarray:
        """Bring an array of the new order back into the original one (a view)."""
        return np.transpose(np.flip(array, tuple(np.flatnonzero(self.flips))), np.argsort(self.permutation))

    def apply_geometry(self, geometry: Geometry) -> Geometry:
        """The same points in space, addressed in the new voxel order."""
        first, columns = [0, 0, 0], []
        for axis, flipped in zip(self.permutation, self.flips, strict=True):
            first[axis] = geometry.shape[axis] - 1 if flipped else 0
            # column i of the direction belongs to index axis i = 2 - (axis in Z, Y, X order)
            columns.append(geometry.matrix[:, 2 - axis] * (-1 if flipped else 1))
        return Geometry(
            shape=tuple(geometry.shape[a] for a in self.permutation),  # type: ignore[arg-type]
            spacing_mm=tuple(geometry.spacing_mm[a] for a in self.permutation),  # type: ignore[arg-type]
            origin_mm=tuple(float(v) for v in geometry.to_mm(first)),  # type: ignore[arg-type]
            direction=tuple(float(v) for v in np.stack(columns[::-1], axis=1).ravel()),
        )


def orientation_to(geometry: Geometry, directions: np.ndarray = RAS) -> Orientation:
    """The reordering after which X, Y, Z run along directions, the columns of a matrix in LPS.

    By default they run to the patient's right, to anterior, to superior. An oblique grid is taken to its
    nearest axes: the assignment of axes with the largest sum of cosines.
    """
    # row a, column k: cosine between our axis a and the wanted axis k, both in Z, Y, X order
    cosines = (geometry.matrix.T @ directions)[::-1, ::-1]
    best = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[k], k]) for k in range(3)))
    flips = tuple(bool(cosines[best[k], k] < 0) for k in range(3))
    return Orientation(permutation=best, flips=flips)  # type: ignore[arg-type]


def reorient_to_ras(volume: Volume) -> tuple[Volume, Orientation]:
    """Bring a volume to RAS voxel order (paper, section 2.1); with it comes what `invert`s arrays back."""
    orientation = orientation_to(volume.geometry)
    array = np.ascontiguousarray(orientation.apply(volume.array))
    return Volume(array, orientation.apply_geometry(volume.geometry)), orientation


def pad_to(array: np.ndarray, shape: Shape, value: float = 0) -> tuple[np.ndarray, Shape]:
    """Pad an array, centred (floor before), to at least `shape`; gives the index of its first voxel, too."""
    missing = [max(0, wanted - have) for have, wanted in zip(array.shape, shape, strict=True)]
    before = tuple(m // 2 for m in missing)
    if not any(missing):
        return array, before
    widths = [(b, m - b) for b, m in zip(before, missing, strict=True)]
    return np.pad(array, widths, constant_values=value), before


def bounding_box(mask: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> Box | None:
    """Give the smallest box (Z, Y, X) around a mask, grown by a margin (voxels) inside; None if empty."""
    plane = np.any(mask, axis=0)
    sides = [np.flatnonzero(side) for side in (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))]
    if not sides[0].size:
        return None
    z, y, x = (
        slice(max(0, int(side[0]) - m), min(n, int(side[-1]) + 1 + m))
        for side, m, n in zip(sides, margin, mask.shape, strict=True)
    )
    return z, y, x


def require_scalar(components: int) -> None:
    """Refuse voxels of several numbers: colours, vectors, complex numbers."""
    if components != 1:
        raise BadFileError(f"has {components} components a voxel; expected 1")


def checked_grid(
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float] | np.ndarray,
    directions: np.ndarray,
    case: str,
) -> Geometry:
    """The grid of a header of any format, after all checks of it: sizes and mm along x, y, z in LPS.

    Directions are columns of `(3, 3)`, those of x, y, z; as the header states them they must be orthonormal.
    What is no grid of a 3D image, or of one too large to be a CT, is a `BadFileError`.
    """
    if len(size) != 3:
        raise BadFileError(f"has {len(size)} dimensions {tuple(size)}; expected a 3D image")
    if min(size) < 2:
        raise BadFileError(f"has {tuple(size)} voxels (x, y, z); expected at least 2 along each axis")
    if min(spacing) <= 0 or not np.isfinite(spacing).all():
        raise BadFileError(f"has spacing {tuple(spacing)} mm (x, y, z); expected more than 0")
    if not np.isfinite(origin).all():
        raise BadFileError(f"has origin {tuple(origin)} mm (x, y, z); expected finite numbers")
    if math.prod(size) > MOST_VOXELS or math.prod(size) * math.prod(spacing) > MOST_LITRES * 1e6:
        raise BadFileError(
            f"has {tuple(size)} voxels of {tuple(spacing)} mm (x, y, z); expected at most {MOST_VOXELS} "
            f"voxels and {MOST_LITRES} litres"
        )
    error = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if not error <= SNAP:
        raise BadFileError(
            f"has directions that are not orthonormal (off by {error:.4g}, at most {SNAP:g}): "
            "gantry tilt or shear; resample it to a regular grid first"
        )
    if error > 1e-5:
        log.warning("case %s: directions are off orthonormal by %.2g, snapped", case, error)
    u, _, vt = np.linalg.svd(directions)
    is_exact = error < 1e-6
    x, y, z = (float(v) for v in origin)
    return Geometry(
        shape=tuple(size[::-1]),  # type: ignore[arg-type]
        spacing_mm=tuple(spacing[::-1]),  # type: ignore[arg-type]
        origin_mm=(x, y, z),
        direction=tuple(float(v) for v in (directions + 0.0 if is_exact else u @ vt).ravel()),
    )
