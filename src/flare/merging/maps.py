"""What merging asks of uint8 label maps: sets of class ids, components of tumors, and what surrounds them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cc3d
import edt
import numpy as np
from scipy import ndimage

from flare.core.classes import IGNORE, ClassList
from flare.core.errors import FlareError
from flare.core.geometry import Box, bounding_box

# headers keep spacing in single precision: five voxels of 0.6 mm must still count as 3 mm
_ROUNDING_MM = 1e-4


def table(values: np.ndarray | Sequence[int]) -> np.ndarray:
    """256 booleans, true at these class ids, or at what occurs in a map; they index a whole map at once."""
    found = np.zeros(256, dtype=bool)
    found[np.asarray(values, dtype=np.uint8).ravel()] = True
    return found


def drawn_classes(volume: np.ndarray) -> frozenset[int]:
    """Class ids that occur in a map."""
    return frozenset(np.flatnonzero(table(volume)).tolist()) - {0, IGNORE}


def check_maps(ground_truth: np.ndarray | None, pseudo: np.ndarray, classes: ClassList) -> None:
    """Refuse maps that are not uint8 `(Z, Y, X)` of one shape with known values (in truth also `IGNORE`)."""
    maps = (("ground truth", ground_truth, (IGNORE,)), ("pseudo labels", pseudo, ()))
    for name, volume, beside in maps:
        if volume is None:
            continue
        known = table((0, *classes.ids, *beside))
        if volume.dtype != np.uint8 or volume.ndim != 3:
            raise FlareError(f"{name}: expected uint8 (Z, Y, X), given {volume.dtype} {volume.shape}")
        if foreign := np.flatnonzero(table(volume) & ~known).tolist():
            raise FlareError(f"{name}: values {foreign} are outside the class list {[0, *classes.ids]}")
    if ground_truth is not None and ground_truth.shape != pseudo.shape:
        shapes = f"ground truth {ground_truth.shape} and pseudo labels {pseudo.shape}"
        raise FlareError(f"{shapes} differ in shape")


@dataclass(frozen=True)
class Component:
    """One 26-connected component: its mask in a box, which has a margin of one voxel."""

    box: Box
    mask: np.ndarray

    @property
    def voxels(self) -> int:
        """Size of the component."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, order=True)
class Shell:
    """What surrounds a component: the voxels that touch it (26 neighbours) and are not tumor."""

    voxels: int
    organ_voxels: int  # how many of them are organ
    organ: int  # the most frequent organ among them, ties to the lowest id; 0 if there is none

    @property
    def organ_fraction(self) -> float:
        """Share of organ; 0 for an empty shell, which has nothing but tumor around it."""
        return self.organ_voxels / self.voxels if self.voxels else 0.0

    @property
    def fill(self) -> int:
        """Class id that replaces a dropped tumor: the organ if half of the shell is organ, else 0."""
        return self.organ if self.organ_fraction >= 0.5 else 0


def dilated(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> tuple[Box, np.ndarray] | None:
    """Dilate a mask by a ball in millimetres: voxels whose centre lies within `radius_mm` of one in the mask.

    Gives a box of the volume and the dilated mask in it; None for an empty mask.

    Reference: method section 4, step 1 ("ours": a ball of 3 mm).
    """
    box = bounding_box(mask, [int((radius_mm + _ROUNDING_MM) // s) for s in spacing_mm])
    if box is None:
        return None
    outside = np.ascontiguousarray(~mask[box])
    squared_mm = edt.edtsq(outside, anisotropy=tuple(float(s) for s in spacing_mm), black_border=False)
    return box, squared_mm <= (radius_mm + _ROUNDING_MM) ** 2


def organ_hull(volume: np.ndarray, organs: Sequence[int]) -> np.ndarray:
    """Tell where a map `(Z, Y, X)` has an organ, or where one encloses a voxel in a plane of the grid."""
    hull = np.zeros(volume.shape, dtype=bool)
    for organ in organs:
        box = bounding_box(volume == organ)
        for axis in range(3) if box is not None else ():
            plane = np.moveaxis(ndimage.generate_binary_structure(2, 1)[None], 0, axis)
            hull[box] |= ndimage.binary_fill_holes(volume[box] == organ, plane)
    return hull


def components(mask: np.ndarray) -> Iterator[Component]:
    """Give the 26-connected components of a boolean mask one by one, each in its own box."""
    box = bounding_box(mask, (1, 1, 1))
    if box is None:
        return
    # cc3d 4.1.1 fails on some masks that fill an axis of length one ("maximum length exception"): pad always
    numbered = cc3d.connected_components(np.pad(mask[box], 1), connectivity=26)[1:-1, 1:-1, 1:-1]
    for number, found in enumerate(ndimage.find_objects(numbered), start=1):
        ends = zip(found, numbered.shape, strict=True)
        inner = [slice(max(0, s.start - 1), min(size, s.stop + 1)) for s, size in ends]
        z, y, x = (slice(b.start + s.start, b.start + s.stop) for b, s in zip(box, inner, strict=True))
        yield Component((z, y, x), numbered[tuple(inner)] == number)


def shell_of(component: Component, tumor: np.ndarray, organ_map: np.ndarray, is_organ: np.ndarray) -> Shell:
    """Describe what surrounds a component, read in `organ_map`, `(Z, Y, X)` uint8.

    `tumor`, `(Z, Y, X)` boolean, are voxels that are in no shell, `is_organ` 256 booleans by class id.

    Reference: method section 4.
    """
    touching = ndimage.binary_dilation(component.mask, np.ones((3, 3, 3)))
    around = organ_map[component.box][touching & ~component.mask & ~tumor[component.box]]
    counts = np.bincount(around, minlength=256) * is_organ
    organ_voxels = int(counts.sum())
    return Shell(len(around), organ_voxels, int(np.argmax(counts)) if organ_voxels else 0)
