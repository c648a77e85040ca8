"""Sets of class ids as tables of 256 booleans, which index a whole uint8 map at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flare.core.classes import ClassList
from flare.core.errors import FlareError


def table(ids: Iterable[int]) -> np.ndarray:
    """256 booleans, true at these class ids."""
    found = np.zeros(256, dtype=bool)
    found[list(ids)] = True
    return found


def present(values: np.ndarray) -> np.ndarray:
    """256 booleans, true at the values that occur in a uint8 array."""
    found = np.zeros(256, dtype=bool)
    found[values.ravel()] = True
    return found


def annotated_classes(ground_truth: np.ndarray | None, declared: Collection[int] | None) -> frozenset[int]:
    """Class ids that a ground truth annotates: what its source declares, otherwise the classes present."""
    if ground_truth is None:
        return frozenset()
    if declared is not None:
        return frozenset(declared)
    return frozenset(np.flatnonzero(present(ground_truth)).tolist()) - {0}


def check_maps(ground_truth: np.ndarray | None, pseudo: np.ndarray, classes: ClassList) -> None:
    """Refuse maps that cannot be merged.

    Raises:
        FlareError: If one is not uint8 `(Z, Y, X)`, holds values outside the class list, or shapes differ.
    """
    known = table((0, *classes.ids))
    for name, volume in (("ground truth", ground_truth), ("pseudo labels", pseudo)):
        if volume is None:
            continue
        if volume.dtype != np.uint8 or volume.ndim != 3:
            raise FlareError(f"{name}: expected uint8 (Z, Y, X), given {volume.dtype} {volume.shape}")
        foreign = np.flatnonzero(present(volume) & ~known).tolist()
        if foreign:
            raise FlareError(f"{name}: values {foreign} are outside the class list {[0, *classes.ids]}")
    if ground_truth is not None and ground_truth.shape != pseudo.shape:
        raise FlareError(
            f"ground truth {ground_truth.shape} and pseudo labels {pseudo.shape} differ in shape"
        )


def tally(values: np.ndarray, ids: Iterable[int]) -> dict[int, int]:
    """How often each of these ids occurs among uint8 values; ids that do not occur are left out."""
    counts = np.bincount(values, minlength=256)
    return {c: int(counts[c]) for c in ids if counts[c]}


@dataclass(frozen=True)
class CaseMaps:
    """Ground truth and pseudo labels of one case, and what is asked of them.

    Args:
        truth: `(Z, Y, X)` uint8; all background where there is no ground truth.
        pseudo: `(Z, Y, X)` uint8, the teacher's prediction.
        classes: The class list.
        spacing_mm: Voxel size along Z, Y, X.
        annotated: Class ids that the ground truth annotates.
        tumor_is_target: Whether the round learns tumors.
    """

    truth: np.ndarray
    pseudo: np.ndarray
    classes: ClassList
    spacing_mm: Sequence[float]
    annotated: frozenset[int]
    tumor_is_target: bool

    @cached_property
    def is_organ(self) -> np.ndarray:
        """256 booleans, by class id."""
        return table(self.classes.organs)

    @cached_property
    def true_tumor(self) -> np.ndarray:
        """Where the ground truth has tumor."""
        return self.truth == self.tumor_id

    @cached_property
    def pseudo_tumor(self) -> np.ndarray:
        """Where the pseudo labels have tumor."""
        return self.pseudo == self.tumor_id

    @property
    def tumor_id(self) -> int:
        """Id of the tumor class; -1, which no voxel has, if there is none."""
        return -1 if self.classes.tumor is None else self.classes.tumor

    @cached_property
    def truth_answers_for_tumors(self) -> bool:
        """Whether the ground truth says where tumors are: it has some, or its source draws them."""
        return bool(self.true_tumor.any()) or self.tumor_id in self.annotated
