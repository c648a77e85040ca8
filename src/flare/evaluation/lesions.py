"""Lesion-wise detection: which tumors of the reference were found, and which found ones are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from scipy import ndimage

from flare.core.classes import ClassList
from flare.core.geometry import Spacing
from flare.evaluation.metrics import mean
from flare.merging.components import Component, bounding_box, shell_of

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

    Args:
        reference: `(Z, Y, X)` uint8 class ids.
        prediction: `(Z, Y, X)` uint8 class ids.
        spacing_mm: Voxel size along Z, Y, X.
        classes: The classes; without a tumor class the list is empty.

    Returns:
        The reference's lesions, then the predicted ones. Where the reference has no organ, the prediction
        says which organ surrounds a lesion.
    """
    if classes.tumor is None:
        return []
    tumors = (reference == classes.tumor, prediction == classes.tumor)
    box = bounding_box(tumors[0] | tumors[1], margin=(1, 1, 1))
    if box is None:
        return []
    is_organ = np.isin(np.arange(256), classes.organs)
    organs = np.where(is_organ[reference[box]], reference[box], prediction[box])
    # padded, since cc3d 4.1.1 fails on some masks that fill an axis of length one
    inner = (slice(1, -1),) * 3
    r, p = (cc3d.connected_components(np.pad(t[box], 1), connectivity=26)[inner] for t in tumors)
    sizes_r, sizes_p = np.bincount(r.ravel()), np.bincount(p.ravel())
    both = (r > 0) & (p > 0)
    pairs, overlaps = np.unique(np.stack([r[both], p[both]]), axis=1, return_counts=True)
    found = []
    for side, numbered, sizes, row in (("reference", r, sizes_r, 0), ("prediction", p, sizes_p, 1)):
        for number, where in enumerate(ndimage.find_objects(numbered), start=1):
            volume_ml = float(sizes[number] * np.prod(spacing_mm) / 1000)
            mine = pairs[row] == number
            dsc = None
            if side == "reference":
                dsc = float(2 * overlaps[mine].sum() / (sizes[number] + sizes_p[pairs[1][mine]].sum()))
            z, y, x = (slice(max(0, s.start - 1), s.stop + 1) for s in where)
            lesion = Component((z, y, x), numbered[z, y, x] == number)
            organ = shell_of(lesion, numbered > 0, organs, is_organ).organ
            found.append(
                Lesion(
                    side=side,
                    volume_ml=volume_ml,
                    diameter_mm=float(np.cbrt(6 * volume_ml * 1000 / np.pi)),
                    organ=classes.by_id(organ).short if organ else OUTSIDE,
                    matched=bool(mine.any()),
                    dsc=dsc,
                )
            )
    return found


def size_class(diameter_mm: float) -> str:
    """Name of the size class, as `<10 mm`."""
    for below, limit in zip((None, *SIZES_MM), SIZES_MM, strict=False):
        if diameter_mm < limit:
            return f"<{limit:g} mm" if below is None else f"{below:g}-{limit:g} mm"
    return f">={SIZES_MM[-1]:g} mm"


def detection(cases: Mapping[str, Sequence[Lesion]]) -> dict[str, Any]:
    """Sum up a cohort: sensitivity, false positives per scan, and both by size and bearing organ.

    Args:
        cases: Case id -> its lesions; cases without any count as scans.
    """
    lesions = [lesion for found in cases.values() for lesion in found]
    total = _counts(lesions)
    scans = len(cases)
    total["false_positives_per_scan"] = total["false_positives"] / scans if scans else None
    sizes = sorted({size_class(x.diameter_mm): x.diameter_mm for x in lesions}.items(), key=lambda s: s[1])
    return {
        "scans": scans,
        **total,
        "by_size": {s: _counts([x for x in lesions if size_class(x.diameter_mm) == s]) for s, _ in sizes},
        "by_organ": {
            o: _counts([x for x in lesions if x.organ == o]) for o in sorted({x.organ for x in lesions})
        },
    }


def _counts(lesions: Sequence[Lesion]) -> dict[str, Any]:
    real = [x for x in lesions if x.side == "reference"]
    detected = [x for x in real if x.matched]
    predicted = [x for x in lesions if x.side == "prediction"]
    return {
        "lesions": len(real),
        "detected": len(detected),
        "sensitivity": len(detected) / len(real) if real else None,
        "mean_dsc": mean(x.dsc for x in real),
        "predicted": len(predicted),
        "false_positives": sum(not x.matched for x in predicted),
    }
