"""Exact percentiles of values that are too many to hold: two passes count them by their bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cc3d
import numpy as np
from scipy import ndimage

from flare.core.files import read_json, write_json
from flare.core.geometry import Spacing
from flare.inference.body import find_body
from flare.inference.settings import BodyRule
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor, run_cases

SIGN = np.uint32(1 << 31)
HALF = 16  # bits: the first pass counts by the upper half, the second by the lower half where it matters
Counts = tuple[np.ndarray, np.ndarray]


def count_values(values: np.ndarray, uppers: Sequence[int] | None = None) -> Counts:
    """Count one piece of the values, small enough to hand on.

    Args:
        values: `(N,)` float32.
        uppers: What the first pass has found to matter (`Percentiles.uppers`); None in the first pass.

    Returns:
        Keys, ascending, and how often each occurs: upper halves in the first pass, whole keys in the second.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    keys = np.where(bits & SIGN, ~bits, bits | SIGN)  # in the order of the numbers
    if uppers is None:
        return np.unique(keys >> HALF, return_counts=True)
    return np.unique(keys[np.isin(keys >> HALF, uppers)], return_counts=True)


class Percentiles:
    """Percentiles of all pieces, as `numpy.percentile` gives them for the whole.

    `add` every piece, then read `uppers`, then `refine` every piece, then `read`. It holds half a megabyte,
    and as much for each of at most two upper halves a percentile, however many the values are.

    Args:
        percentiles: From 0 to 100.
    """

    def __init__(self, percentiles: Sequence[float]) -> None:
        self.percentiles = percentiles
        self._coarse = np.zeros(1 << HALF, np.int64)
        self._fine: dict[int, np.ndarray] = {}

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self._coarse.sum())

    def add(self, counts: Counts) -> None:
        """Take a piece of the first pass."""
        keys, numbers = counts
        self._coarse[keys] += numbers

    @property
    def uppers(self) -> list[int]:
        """Upper halves of the values that the percentiles lie between."""
        ranks = {r for p in self.percentiles for r in self._ranks(p)[:2]} if self.count else set()
        return sorted({self._place(rank)[0] for rank in ranks})

    def refine(self, counts: Counts) -> None:
        """Take a piece of the second pass."""
        keys, numbers = counts
        for upper in np.unique(keys >> HALF).tolist():
            chosen = keys >> HALF == upper
            row = self._fine.setdefault(upper, np.zeros(1 << HALF, np.int64))
            row[keys[chosen] & 0xFFFF] += numbers[chosen]

    def read(self) -> list[float]:
        """The percentiles."""
        found = []
        for percentile in self.percentiles:
            below, above, part = self._ranks(percentile)
            pair = np.array([self._value(below), self._value(above)], np.float32)
            found.append(float(np.quantile(pair, [part])[0]))
        return found

    def _ranks(self, percentile: float) -> tuple[int, int, float]:
        """Ranks of the two neighbours of a percentile, and how far it is from the lower to the upper."""
        place = (self.count - 1) * (percentile / 100)
        return int(place), min(int(place) + 1, self.count - 1), place - int(place)

    def _place(self, rank: int) -> tuple[int, int]:
        """Upper half of the value of a rank, and its rank among those with the same."""
        below = np.cumsum(self._coarse)
        upper = int(np.searchsorted(below, rank, "right"))
        return upper, rank - int(below[upper] - self._coarse[upper])

    def _value(self, rank: int) -> np.float32:
        upper, within = self._place(rank)
        lower = int(np.searchsorted(np.cumsum(self._fine[upper]), within, "right"))
        key = np.uint32(upper << HALF | lower)
        return (key ^ SIGN if key & SIGN else ~key).view(np.float32)


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


def measure_case(
    image: Path,
    labels: Path,
    classes: Sequence[int],
    spacing_mm: Spacing,
    uppers: Mapping[int, Sequence[int]] | None,
) -> dict[int, tuple[np.ndarray, Counts]]:
    """Measure one annotated case for the fit.

    Args:
        image: Cached HU image on the training grid.
        labels: Its cached labels.
        classes: Class ids.
        spacing_mm: Of that grid.
        uppers: Class id -> what the first pass has found to matter; None in the first pass.

    Returns:
        For each class that the case has: `(3, 2)` extent along Z, Y, X as fractions of the body's box, and
        the counts of its HU, see `count_values`.
    """
    from flare.data.cache import open_array  # only the workers need the store

    array, annotated = open_array(image)[:, :, :], open_array(labels)[:, :, :]
    box = np.array(body_box(array, spacing_mm), dtype=float)
    smooth = _smooth(array, spacing_mm)
    found = {}
    for class_id in classes:
        where = np.argwhere(annotated == class_id)
        if len(where):
            extent = np.stack([where.min(0), where.max(0) + 1], axis=1)
            place = (extent - box[:, :1]) / np.ptp(box, axis=1)[:, None]
            values = smooth[tuple(where.T)]
            found[class_id] = place, count_values(values, None if uppers is None else uppers[class_id])
    return found


def fit_priors(
    pairs: Mapping[str, tuple[Path, Path]],
    classes: Sequence[int],
    spacing_mm: Spacing,
    executor: Executor,
) -> tuple[dict[int, Prior], list[Outcome]]:
    """Learn windows and places from annotated cases, each read twice and none kept.

    Args:
        pairs: Case id to cached HU image and labels, on the training grid.
        classes: Class ids.
        spacing_mm: Of that grid.
        executor: Where the cases are measured.

    Returns:
        Class id -> prior, for classes that some case has, and the cases that failed; with any, no prior.
    """
    shared = {"classes": list(classes), "spacing_mm": spacing_mm}
    jobs = {case: {"image": i, "labels": known, **shared} for case, (i, known) in pairs.items()}
    values = {c: Percentiles(WINDOW) for c in classes}
    places: dict[int, list[np.ndarray]] = {c: [] for c in classes}
    uppers: dict[int, list[int]] | None = None
    for what in ("places", "windows"):
        work = {case: job | {"uppers": uppers} for case, job in jobs.items()}
        failures = []
        for outcome in run_cases(measure_case, work, executor=executor, description=f"thresholds, {what}"):
            if outcome.error is not None:
                failures.append(outcome)
                continue
            for class_id, (place, counts) in outcome.value.items():
                if uppers is None:
                    places[class_id].append(place)
                    values[class_id].add(counts)
                else:
                    values[class_id].refine(counts)
        if failures:
            return {}, failures
        uppers = {c: found.uppers for c, found in values.items()}
    return {c: _prior(places[c], values[c]) for c in classes if places[c]}, []


def _prior(places: Sequence[np.ndarray], values: Percentiles) -> Prior:
    """The prior of a class that some case has."""
    low, high = values.read()
    z, y, x = (
        (float(a), float(b)) for a, b in zip(np.min(places, 0)[:, 0], np.max(places, 0)[:, 1], strict=True)
    )
    return Prior((low, high), (z, y, x), values.count / len(places))


def write_priors(path: Path, priors: Mapping[int, Prior]) -> None:
    """Write a fit as JSON, atomically."""
    write_json(path, {str(class_id): asdict(prior) for class_id, prior in priors.items()})


def read_priors(path: Path) -> dict[int, Prior]:
    """Read what `write_priors` wrote."""
    return {int(class_id): Prior(**given) for class_id, given in read_json(path).items()}


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
