"""HU thresholds and components: what intensity and rough place alone tell of each organ (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from flare.geometry import Spacing
from flare.inference.body import find_body
from flare.inference.settings import BodyRule

BODY = BodyRule(threshold_hu=-500, opening_mm=6, minimum_ml=100)
WINDOW = (10, 90)  # percentiles of a class's HU that make its window
SMOOTHING_MM = 4.0  # noise would break an organ into crumbs

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Prior:
    """What the annotated training cases tell of a class.

    Args:
        window_hu: Lower and upper threshold.
        box: Extent along Z, Y, X as fractions of the body's box, over all cases.
        voxels: Mean size, to paint small classes over large ones.
    """

    window_hu: tuple[float, float]
    box: Box
    voxels: float


def body_box(image: np.ndarray, spacing_mm: Spacing) -> list[tuple[int, int]]:
    """First and last-but-one index of the body along Z, Y, X; of the image where there is none."""
    body = find_body(image, spacing_mm, BODY)
    if body is None:
        return [(0, n) for n in image.shape]
    planes = [np.flatnonzero(body.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return [(int(p[0]), int(p[-1]) + 1) for p in planes]


def fit_priors(
    cases: Sequence[tuple[np.ndarray, np.ndarray]], classes: Sequence[int], spacing_mm: Spacing
) -> dict[int, Prior]:
    """Learn windows and places from annotated cases.

    Args:
        cases: Pairs of HU image and labels, both `(Z, Y, X)` in RAS order on the training grid.
        classes: Class ids.
        spacing_mm: Of that grid.

    Returns:
        Class id -> prior, for classes that some case has.
    """
    seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {c: [] for c in classes}
    for image, labels in cases:
        box = np.array(body_box(image, spacing_mm), dtype=float)
        smooth = _smooth(image, spacing_mm)
        for class_id in classes:
            where = np.argwhere(labels == class_id)
            if len(where):
                place = (np.stack([where.min(0), where.max(0) + 1], axis=1) - box[:, :1]) / np.ptp(
                    box, axis=1
                )[:, None]
                seen[class_id].append((place, smooth[tuple(where.T)]))
    priors = {}
    for class_id, found in seen.items():
        if found:
            places, values = np.stack([p for p, _ in found]), np.concatenate([v for _, v in found])
            low, high = np.percentile(values, WINDOW)
            box3 = tuple((float(places[:, a, 0].min()), float(places[:, a, 1].max())) for a in range(3))
            priors[class_id] = Prior((float(low), float(high)), box3, len(values) / len(found))  # type: ignore[arg-type]
    return priors


def segment_by_thresholds(image: np.ndarray, priors: dict[int, Prior], spacing_mm: Spacing) -> np.ndarray:
    """Segment by window, place and largest component, large classes first.

    Args:
        image: HU, `(Z, Y, X)` RAS on the training grid.
        priors: From `fit_priors`.
        spacing_mm: Of the grid.

    Returns:
        `(Z, Y, X)` uint8 class ids.
    """
    box = body_box(image, spacing_mm)
    smooth = _smooth(image, spacing_mm)
    out = np.zeros(image.shape, np.uint8)
    for class_id, prior in sorted(priors.items(), key=lambda item: -item[1].voxels):
        place = tuple(
            slice(max(0, int(low + a * (high - low))), max(0, int(np.ceil(low + b * (high - low)))))
            for (low, high), (a, b) in zip(box, prior.box, strict=True)
        )
        piece = smooth[place]
        inside = (piece >= prior.window_hu[0]) & (piece <= prior.window_hu[1])
        if prior.voxels > 500:  # an opening would erase an adrenal gland
            inside = ndimage.binary_opening(inside)
        if inside.any():
            out[place][cc3d.largest_k(inside, k=1, connectivity=6) > 0] = class_id
    return out


def _smooth(image: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float32), [SMOOTHING_MM / s / 2 for s in spacing_mm])
