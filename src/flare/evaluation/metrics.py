"""DSC and NSD of one case by the challenge's rules, per class; HD95 and volumes where asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from flare.core.classes import ClassList, LabelClass
from flare.core.errors import FlareError
from flare.core.geometry import Spacing
from flare.evaluation.surfaces import distances_mm, robust_hausdorff_mm, surface, surface_dice

MEASURES = ("DSC", "NSD")
PROTOCOLS = ("flare23", "corrected", "present")
LOWEST_DSC = 0.2  # below it the challenge's NSD is 0
DIGITS = 4
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in one case.

    Args:
        dsc: 0 to 1, four digits; None where the protocol does not score the class.
        nsd: As `dsc`.
        one_slice: The class is scored between the reference's first and last slice, and has only one.
        reference_ml: Volume of the reference, whole.
        prediction_ml: Volume of the prediction, whole.
        hd95_mm: 95th percentile of surface distances within the scored slices; None if not asked for or
            one side is empty.
    """

    dsc: float | None
    nsd: float | None
    one_slice: bool = False
    reference_ml: float | None = None
    prediction_ml: float | None = None
    hd95_mm: float | None = None


def score_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: Spacing,
    classes: ClassList,
    protocol: str = "flare23",
    details: bool = False,
    threads: int | None = None,
) -> dict[str, ClassScore]:
    """Score one prediction, class by class.

    Both empty scores 1, one empty 0, asked of the whole volume. Classes with `slice_range` are then cut to
    the reference's slices along the first array axis, the stored z.

    Args:
        reference: `(Z, Y, X)` uint8 class ids, in stored voxel order.
        prediction: `(Z, Y, X)` uint8 class ids, same grid.
        spacing_mm: Voxel size along Z, Y, X.
        classes: The classes to score.
        protocol: `flare23` (the official script to the digit: it leaves the last slice of the range out),
            `corrected` (keeps it) or `present` (corrected, and only classes that the reference has).
        details: Also HD95 and volumes.
        threads: Classes scored at once; by default OMP_NUM_THREADS, or all cores.

    Returns:
        Short class name -> its scores, in the order of ids.

    Raises:
        FlareError: If shapes differ or the protocol is unknown.

    Reference: JunMa11/FLARE, FLARE23/FLARE23_DSC_NSD_Eval.py.
    """
    if protocol not in PROTOCOLS:
        raise FlareError(f"protocol: expected one of {list(PROTOCOLS)}, given {protocol!r}")
    if reference.shape != prediction.shape:
        raise FlareError(f"reference and prediction differ in size: {reference.shape} and {prediction.shape}")
    highest = max(classes.ids)
    boxes_r = ndimage.find_objects(reference, max_label=highest)
    boxes_p = ndimage.find_objects(prediction, max_label=highest)

    def one(c: LabelClass) -> ClassScore:
        box_r, box_p = boxes_r[c.id - 1], boxes_p[c.id - 1]
        return _score_class(reference, prediction, box_r, box_p, c, spacing_mm, protocol, details)

    # the largest first, so that threads end together
    order = sorted(classes.entries, key=lambda c: -_voxels(boxes_r[c.id - 1]) - _voxels(boxes_p[c.id - 1]))
    threads = threads or _threads()
    if threads == 1:
        found = {c.short: one(c) for c in order}
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = dict(zip((c.short for c in order), pool.map(one, order), strict=True))
    return {c.short: found[c.short] for c in classes.entries}


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None of nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def rounded(value: float) -> float:
    """Four digits, as numpy rounds (by scaling), which the official script's values went through."""
    return float(np.round(value, DIGITS))


def _threads() -> int:
    """Threads that the environment allows: OpenMP's variable may list a number for each level of nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) else os.cpu_count() or 1


def _voxels(box: Box | None) -> int:
    return 0 if box is None else int(np.prod([s.stop - s.start for s in box]))


def _score_class(
    reference: np.ndarray,
    prediction: np.ndarray,
    box_r: Box | None,
    box_p: Box | None,
    c: LabelClass,
    spacing_mm: Spacing,
    protocol: str,
    details: bool,
) -> ClassScore:
    """Score a class, given the box of each side or None where it is absent."""
    ml = float(np.prod(spacing_mm)) / 1000
    volumes: dict[str, Any] = {}
    if details:
        sides = (("reference_ml", reference, box_r), ("prediction_ml", prediction, box_p))
        volumes = {k: 0.0 if b is None else float(np.count_nonzero(a[b] == c.id) * ml) for k, a, b in sides}
    if box_r is None and protocol == "present":
        return ClassScore(None, None, **volumes)
    if box_r is None or box_p is None:
        both = float(box_r is box_p)
        return ClassScore(both, both, **volumes)

    first, last = box_r[0].start, box_r[0].stop - 1
    one_slice = c.slice_range and first == last
    box: Box = tuple(
        slice(min(r.start, p.start), max(r.stop, p.stop)) for r, p in zip(box_r, box_p, strict=True)
    )  # type: ignore[assignment]
    if c.slice_range:
        box = (slice(first, last if protocol == "flare23" else last + 1), box[1], box[2])
    r, p = reference[box] == c.id, prediction[box] == c.id
    dsc, nsd, hd95 = _compare(r, p, c.tolerance_mm, spacing_mm, details)
    return ClassScore(rounded(dsc), rounded(nsd), one_slice, hd95_mm=hd95, **volumes)


def _compare(
    r: np.ndarray, p: np.ndarray, tolerance_mm: float, spacing_mm: Spacing, details: bool
) -> tuple[float, float, float | None]:
    """DSC, NSD and, if asked, HD95 of two masks of one box."""
    in_r, in_p = np.count_nonzero(r), np.count_nonzero(p)
    if not in_r or not in_p:
        both = float(in_r == in_p)
        return both, both, None
    dsc = 2 * np.count_nonzero(r & p) / (in_r + in_p)
    if dsc < LOWEST_DSC and not details:
        return dsc, 0.0, None
    start, end = surface(r, spacing_mm), surface(p, spacing_mm)
    to_p, to_r = (
        distances_mm(a, b, spacing_mm=spacing_mm, threshold_mm=tolerance_mm, beyond=details)
        for a, b in ((start, end), (end, start))
    )
    nsd = 0.0 if dsc < LOWEST_DSC else surface_dice(to_p, to_r, start, end, tolerance_mm)
    return dsc, nsd, robust_hausdorff_mm(to_p, to_r, start, end) if details else None
