"""The two maps of one case as the merging rules see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flare.labels import LabelSet
from flare.merging.tables import table


@dataclass(frozen=True)
class CaseMaps:
    """Ground truth and pseudo labels of one case, and what is asked of them.

    Args:
        truth: `(Z, Y, X)` uint8; all background where there is no ground truth.
        pseudo: `(Z, Y, X)` uint8, the teacher's prediction.
        labels: The class list.
        spacing_mm: Voxel size along Z, Y, X.
        annotated: Class ids that the ground truth annotates.
        tumor_is_target: Whether the round learns tumors.
    """

    truth: np.ndarray
    pseudo: np.ndarray
    labels: LabelSet
    spacing_mm: Sequence[float]
    annotated: frozenset[int]
    tumor_is_target: bool

    @cached_property
    def is_organ(self) -> np.ndarray:
        """256 booleans, by class id."""
        return table(self.labels.organs)

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
        return -1 if self.labels.tumor is None else self.labels.tumor

    @cached_property
    def truth_answers_for_tumors(self) -> bool:
        """Whether the ground truth says where tumors are: it has some, or its source draws them."""
        return bool(self.true_tumor.any()) or self.tumor_id in self.annotated
