"""Intensity statistics of the training cohort's foreground, exact, from one histogram a case."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import IGNORE
from flare.core.errors import FlareError
from flare.core.files import atomic, read_json, write_json
from flare.core.preprocessing import Intensity

LOWEST_HU = -32768  # histograms hold one bin a whole HU over the range of int16
BINS = 65536


def foreground_histogram(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count HU where labels have a class: `(65536,)` int64 from -32768 on, values rounded and clipped."""
    values = image[(labels > 0) & (labels != IGNORE)]
    if values.dtype.kind == "f":
        values = np.rint(np.clip(values, LOWEST_HU, LOWEST_HU + BINS - 1))
    return np.bincount(values.astype(np.int64) - LOWEST_HU, minlength=BINS)


def write_histogram(path: Path, histogram: np.ndarray) -> None:
    """Store a histogram without its empty bins."""
    bins = np.flatnonzero(histogram)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, bins=bins.astype(np.uint16), counts=histogram[bins])


def pool(paths: Iterable[Path]) -> np.ndarray:
    """Add up the histograms that `write_histogram` stored."""
    total = np.zeros(BINS, dtype=np.int64)
    for path in paths:
        with np.load(path) as stored:
            total[stored["bins"]] += stored["counts"]
    return total


def intensity_of(histogram: np.ndarray, percentiles: Sequence[float]) -> Intensity:
    """Statistics of all voxels that a `foreground_histogram` counts (paper section 2.1; method section 5).

    Limits are numpy's linear percentiles; mean and std (ddof 0) are unclipped. No voxel at all is refused.
    """
    voxels = int(histogram.sum())
    if voxels == 0:
        raise FlareError("data.labels: no labelled training case has foreground, so there are no statistics")
    bins = np.flatnonzero(histogram)
    hu, counts = (bins + LOWEST_HU).tolist(), histogram[bins].tolist()
    # python integers: exact, whatever the size of the cohort
    first = sum(v * n for v, n in zip(hu, counts, strict=True))
    second = sum(v * v * n for v, n in zip(hu, counts, strict=True))
    variance = (second * voxels - first * first) / (voxels * voxels)
    last_rank = np.cumsum(histogram[bins]) - 1
    lower, upper = (_percentile(bins + LOWEST_HU, last_rank, float(p)) for p in percentiles)
    return Intensity(lower=lower, upper=upper, mean=first / voxels, std=math.sqrt(variance))


def _percentile(hu: np.ndarray, last_rank: np.ndarray, percent: float) -> float:
    """Value at a percentile, interpolated linearly between the two nearest ranks."""
    rank = percent / 100 * last_rank[-1]
    below, above = (int(hu[np.searchsorted(last_rank, r)]) for r in (math.floor(rank), math.ceil(rank)))
    return float(below + (above - below) * (rank - math.floor(rank)))


def write_statistics(
    path: Path, histogram: np.ndarray, cases: int, percentiles: Sequence[float]
) -> Intensity:
    """Write `statistics.json`: intensity, what it was taken over, and a hash that changes with either."""
    intensity, percent = intensity_of(histogram, percentiles), [float(p) for p in percentiles]
    content: dict[str, Any] = {
        "intensity": intensity.to_dict(),
        "percentiles": percent,
        "cases": cases,
        "voxels": int(histogram.sum()),
        "hash": hashlib.sha256(histogram.tobytes() + repr(percent).encode()).hexdigest()[:16],
    }
    if not path.exists() or read_json(path) != content:
        write_json(path, content)
    return intensity
