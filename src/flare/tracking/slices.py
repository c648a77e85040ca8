"""One axial slice of a validation case for a tracker: the CT, the reference and the segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flare.geometry import Volume, reorient_to_ras
from flare.labels import LabelSet
from flare.models.validation import Segmented
from flare.report.overlays import WINDOW_HU, find_view


@dataclass(frozen=True)
class Slice:
    """A picture and its labels, the patient's right on the left.

    Args:
        case: The case id.
        grey: `(rows, columns)` uint8, soft-tissue window.
        reference: `(rows, columns)` uint8 class ids.
        segmentation: `(rows, columns)` uint8 class ids.
    """

    case: str
    grey: np.ndarray
    reference: np.ndarray
    segmentation: np.ndarray


@runtime_checkable
class ShowsCases(Protocol):
    """A logger that shows more than numbers."""

    def log_slices(self, key: str, slices: Sequence[Slice], labels: LabelSet, step: int) -> None:
        """Show slices with their labels over them."""
        ...

    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""
        ...


def cut_slice(case: str, segmented: Segmented, labels: LabelSet) -> Slice:
    """Cut a case where its tumor is largest, or else where most is labelled.

    Args:
        case: The case id.
        segmented: The case on its original grid.
        labels: The class list.
    """
    image = segmented["image"]
    ct, truth, ours = (
        reorient_to_ras(Volume(array, image.geometry))[0]
        for array in (image.array, segmented["reference"], segmented["segmentation"])
    )
    centre, box = find_view(truth, ours.array, labels)
    low, high = WINDOW_HU
    hu, reference, segmentation = (
        np.ascontiguousarray(np.flip(v.array[centre[0], box[1], box[2]])) for v in (ct, truth, ours)
    )
    grey = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1) * 255
    return Slice(case, np.rint(grey).astype(np.uint8), reference, segmentation)
