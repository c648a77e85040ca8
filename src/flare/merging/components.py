"""Connected components of tumors: what a dilated tumor overlaps, and which organ surrounds a component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cc3d
import edt
import numpy as np

Box = tuple[slice, slice, slice]

# headers keep spacing in single precision: five voxels of 0.6 mm must still count as 3 mm
_ROUNDING_MM = 1e-4


@dataclass(frozen=True)
class Component:
    """One 26-connected component, in its box with a margin of one voxel (less at the volume's border).

    Args:
        box: Where the box lies in the volume.
        mask: Boolean, of the box's shape.
    """

    box: Box
    mask: np.ndarray

    @property
    def voxels(self) -> int:
        """Size of the component."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Shell:
    """What surrounds a component: the voxels that touch it (26 neighbours) and are not tumor.

    Args:
        voxels: Size of the shell.
        organ_voxels: How many of them are organ.
        organ: The most frequent organ among them, ties to the lowest id; 0 if there is none.
    """

    voxels: int
    organ_voxels: int
    organ: int

    @property
    def organ_fraction(self) -> float:
        """Share of organ; 0 for an empty shell, which has nothing but tumor around it."""
        return self.organ_voxels / self.voxels if self.voxels else 0.0

    @property
    def fill(self) -> int:
        """Class id that replaces a dropped tumor: the organ if half of the shell is organ, else 0."""
        return self.organ if self.organ_fraction >= 0.5 else 0


def bounding_box(mask: np.ndarray, margin: Sequence[int] = (0, 0, 0)) -> Box | None:
    """Give the smallest box around a mask, grown by a margin in voxels within the volume.

    Args:
        mask: `(Z, Y, X)` boolean.
        margin: Voxels along Z, Y, X.

    Returns:
        Slices along Z, Y, X; None for an empty mask.
    """
    planes = np.any(mask, axis=(1, 2))
    if not planes.any():
        return None
    plane = np.any(mask, axis=0)
    used = (planes, np.any(plane, axis=1), np.any(plane, axis=0))
    ends = [(int(np.argmax(u)), len(u) - int(np.argmax(u[::-1]))) for u in used]
    z, y, x = (
        slice(max(0, first - m), min(n, last + m))
        for (first, last), m, n in zip(ends, margin, mask.shape, strict=True)
    )
    return z, y, x


def dilated(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> tuple[Box, np.ndarray] | None:
    """Dilate a mask by a ball in millimetres: voxels whose centre lies within `radius_mm` of one in the mask.

    Args:
        mask: `(Z, Y, X)` boolean.
        radius_mm: Radius of the ball, inclusive.
        spacing_mm: Voxel size along Z, Y, X, so that anisotropy does not change the ball.

    Returns:
        A box of the volume and the dilated mask in it; None for an empty mask.

    Reference: method section 4, step 1 ("ours": a ball of 3 mm).
    """
    box = bounding_box(mask, [int((radius_mm + _ROUNDING_MM) // s) for s in spacing_mm])
    if box is None:
        return None
    outside = np.ascontiguousarray(~mask[box])
    squared_mm = edt.edtsq(outside, anisotropy=tuple(float(s) for s in spacing_mm), black_border=False)
    return box, squared_mm <= (radius_mm + _ROUNDING_MM) ** 2


def components(mask: np.ndarray) -> Iterator[Component]:
    """Give the 26-connected components of a mask one by one, each in its own box.

    Args:
        mask: `(Z, Y, X)` boolean.
    """
    box = bounding_box(mask)
    if box is None:
        return
    # cc3d 4.1.1 fails on some masks that fill an axis of length one ("maximum length exception"): pad always
    numbered = cc3d.connected_components(np.pad(mask[box], 1), connectivity=26)
    for number, inner in enumerate(cc3d.statistics(numbered)["bounding_boxes"]):
        if number == 0:
            continue
        outer = [
            slice(max(0, b.start + s.start - 2), min(n, b.start + s.stop))
            for b, s, n in zip(box, inner, mask.shape, strict=True)
        ]
        local = tuple(
            slice(o.start - b.start + 1, o.stop - b.start + 1) for o, b in zip(outer, box, strict=True)
        )
        z, y, x = outer
        yield Component((z, y, x), numbered[local] == number)


def shell_of(component: Component, tumor: np.ndarray, organ_map: np.ndarray, is_organ: np.ndarray) -> Shell:
    """Describe what surrounds a component.

    Args:
        component: The component.
        tumor: `(Z, Y, X)` boolean, voxels that count as tumor and so are in no shell.
        organ_map: `(Z, Y, X)` uint8, the map in which the shell is read.
        is_organ: 256 booleans, by class id.

    Reference: method section 4.
    """
    touching = component.mask.copy()
    for axis in range(3):
        along = np.moveaxis(touching, axis, 0)
        before = along.copy()
        along[1:] |= before[:-1]
        along[:-1] |= before[1:]
    around = organ_map[component.box][touching & ~component.mask & ~tumor[component.box]]
    counts = np.bincount(around, minlength=256) * is_organ
    organ_voxels = int(counts.sum())
    return Shell(len(around), organ_voxels, int(np.argmax(counts)) if organ_voxels else 0)
