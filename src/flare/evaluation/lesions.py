"""Lesion-wise detection: which tumors of the reference were found, and which found ones are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.geometry import Spacing, bounding_box
from flare.evaluation.metrics import mean
from flare.merging.maps import components, shell_of

SIZES_MM = (10.0, 20.0)  # limits between small, middle and large (ours)
OUTSIDE = "none"


@dataclass(frozen=True)
class Lesion:
    """One 26-connected tumor of the reference or of the prediction.

    Args:
        side: `reference` or `prediction`.
        volume_ml: Its volume.
        diameter_mm: Of the ball of this volume.
        organ: Short name of the organ that surrounds most of it, or `none`.
        matched: Whether it overlaps a tumor of the other side: a reference lesion is then detected; a
            predicted one that is not is a false positive.
        dsc: For a reference lesion, against all predicted ones that overlap it.
    """

    side: str
    volume_ml: float
    diameter_mm: float
    organ: str
    matched: bool
    dsc: float | None = None


def find_lesions(
    reference: np.ndarray, prediction: np.ndarray, *, spacing_mm: Spacing, classes: ClassList
) -> list[Lesion]:
    """List the tumors of both sides, matched by overlap (one voxel suffices).

    Both maps are `(Z, Y, X)` uint8 class ids. Without a tumor class the list is empty.

    Returns:
        The reference's lesions, then the predicted ones. Where the reference has no organ, the prediction
        says which organ surrounds a lesion.
    """
    if classes.tumor is None:
        return []
    box = bounding_box((reference == classes.tumor) | (prediction == classes.tumor), margin=(1, 1, 1))
    if box is None:
        return []
    sides = reference[box], prediction[box]
    tumors = [side == classes.tumor for side in sides]
    is_organ = np.isin(np.arange(256), classes.organs)
    organs = np.where(is_organ[sides[0]], *sides)
    predicted = list(components(tumors[1]))
    numbers = np.zeros(organs.shape, dtype=np.int64)
    for number, lesion in enumerate(predicted, start=1):
        numbers[lesion.box][lesion.mask] = number
    sizes = np.array([0, *(lesion.voxels for lesion in predicted)])
    found = []
    for side, own, lesions in (("reference", 0, components(tumors[0])), ("prediction", 1, predicted)):
        for lesion in lesions:
            volume_ml = float(lesion.voxels * np.prod(spacing_mm) / 1000)
            shared = lesion.mask & tumors[1 - own][lesion.box]
            dsc = None
            if side == "reference":
                partners = np.unique(numbers[lesion.box][shared])
                dsc = float(2 * np.count_nonzero(shared) / (lesion.voxels + sizes[partners].sum()))
            organ = shell_of(lesion, tumors[own], organs, is_organ).organ
            diameter_mm = float(np.cbrt(6 * volume_ml * 1000 / np.pi))
            around = classes.by_id(organ).short if organ else OUTSIDE
            found.append(Lesion(side, volume_ml, diameter_mm, around, bool(shared.any()), dsc))
    return found


def size_class(diameter_mm: float) -> str:
    """Name of the size class, as `<10 mm`."""
    for below, limit in zip((None, *SIZES_MM), SIZES_MM, strict=False):
        if diameter_mm < limit:
            return f"<{limit:g} mm" if below is None else f"{below:g}-{limit:g} mm"
    return f">={SIZES_MM[-1]:g} mm"


def detection(cases: Mapping[str, Sequence[Lesion]]) -> dict[str, Any]:
    """Sum up a cohort: sensitivity, false positives per scan, and both by size and bearing organ.

    Cases without any lesion count as scans.
    """
    lesions = [lesion for found in cases.values() for lesion in found]
    total, scans = _counts(lesions), len(cases)
    sizes = dict.fromkeys(size_class(x.diameter_mm) for x in sorted(lesions, key=lambda x: x.diameter_mm))
    organs = sorted({x.organ for x in lesions})
    return {
        "scans": scans,
        **total,
        "false_positives_per_scan": total["false_positives"] / scans if scans else None,
        "by_size": {
            size: _counts([x for x in lesions if size_class(x.diameter_mm) == size]) for size in sizes
        },
        "by_organ": {organ: _counts([x for x in lesions if x.organ == organ]) for organ in organs},
    }


def _counts(lesions: Sequence[Lesion]) -> dict[str, Any]:
    real, predicted = ([x for x in lesions if x.side == side] for side in ("reference", "prediction"))
    detected = sum(x.matched for x in real)
    return {
        "lesions": len(real),
        "detected": detected,
        "sensitivity": detected / len(real) if real else None,
        "mean_dsc": mean(x.dsc for x in real),
        "predicted": len(predicted),
        "false_positives": sum(not x.matched for x in predicted),
    }
