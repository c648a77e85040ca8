"""Intensity statistics of the training cohort's foreground, exact, from one histogram a case."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.errors import FlareError
from flare.core.files import atomic, read_json, write_json
from flare.core.preprocessing import Intensity

LOWEST_HU = -32768  # histograms hold one bin a whole HU over the range of int16
BINS = 65536


def foreground_histogram(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count the intensities under a label map, at native resolution.

    Args:
        image: `(Z, Y, X)` HU; what is not a whole number is rounded, what int16 cannot hold is clipped.
        labels: `(Z, Y, X)` class ids of the ground truth; every voxel above 0 counts.

    Returns:
        `(65536,)` int64, the first bin at -32768 HU.
    """
    values = image[labels > 0]
    if values.dtype.kind == "f":
        values = np.rint(np.clip(values, LOWEST_HU, LOWEST_HU + BINS - 1))
    return np.bincount(values.astype(np.int64) - LOWEST_HU, minlength=BINS)


def write_histogram(path: Path, histogram: np.ndarray) -> None:
    """Store a histogram without its empty bins."""
    bins = np.flatnonzero(histogram)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, bins=bins.astype(np.uint16), counts=histogram[bins])


def read_histogram(path: Path) -> np.ndarray:
    """Read what `write_histogram` stored."""
    histogram = np.zeros(BINS, dtype=np.int64)
    with np.load(path) as stored:
        histogram[stored["bins"]] = stored["counts"]
    return histogram


def pool(paths: Iterable[Path]) -> np.ndarray:
    """Add up the histograms of a cohort."""
    total = np.zeros(BINS, dtype=np.int64)
    for path in paths:
        total += read_histogram(path)
    return total


def intensity_of(histogram: np.ndarray, percentiles: Sequence[float]) -> Intensity:
    """Statistics of the voxels that a histogram counts, as if all of them were in memory.

    Args:
        histogram: `(65536,)` counts, see `foreground_histogram`.
        percentiles: Lower and upper, in percent.

    Returns:
        Clipping limits (numpy's linear interpolation between ranks), mean and standard deviation (ddof 0)
        before clipping.

    Raises:
        FlareError: If no voxel was counted.

    Reference: paper section 2.1; method section 5.
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
    intensity = intensity_of(histogram, percentiles)
    digest = hashlib.sha256(histogram.tobytes() + repr([float(p) for p in percentiles]).encode()).hexdigest()
    content: dict[str, Any] = {
        "intensity": intensity.to_dict(),
        "percentiles": [float(p) for p in percentiles],
        "cases": cases,
        "voxels": int(histogram.sum()),
        "hash": digest[:16],
    }
    if not path.exists() or read_json(path) != content:
        write_json(path, content)
    return intensity


def read_statistics(path: Path) -> Intensity:
    """Read the intensity statistics that `prepare` left.

    Raises:
        FlareError: If there are none.
    """
    if not path.exists():
        raise FlareError(
            f"{path}: no intensity statistics; run prepare.py with a labelled training case first"
        )
    return Intensity.from_dict(read_json(path)["intensity"])
