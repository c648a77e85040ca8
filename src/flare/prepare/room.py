"""How long the caching will take and how much room it needs, told before it starts."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flare.errors import CaseError, FlareError
from flare.geometry import Spacing, orientation_to_ras
from flare.headers import read_geometry
from flare.images import case_id
from flare.resampling import resampled_shape

logger = logging.getLogger(__name__)

# measured with benchmarks/cache.py on real CT, rounded up (ours): see docs/benchmarks.md
BYTES_PER_CACHED_VOXEL = 1.0
BYTES_OF_LABELS = 700_000  # label map and sampled foreground voxels, at most
SECONDS_PER_MEGAVOXEL = 0.05  # reading gzip, checking and resampling, one core
SECONDS_PER_CASE = 0.02


@dataclass(frozen=True)
class Estimate:
    """What is still to be done.

    Args:
        cases: Cases to read.
        seconds: Wall time.
        disk_bytes: Room for what will be written.
    """

    cases: int
    seconds: float
    disk_bytes: int


def estimate(
    to_cache: Iterable[Path], to_check: Iterable[Path], spacing_mm: Spacing, workers: int
) -> Estimate:
    """Estimate the work from image headers alone.

    Args:
        to_cache: Images that are read and cached.
        to_check: Images that are only read.
        spacing_mm: Voxel size of the cached arrays.
        workers: Processes that share the work.

    Returns:
        The estimate; an image whose header is unreadable counts nothing, it will be refused or fail.
    """
    cases, read_voxels, disk = 0, 0, 0
    for paths, cached in ((to_cache, True), (to_check, False)):
        for path in paths:
            cases += 1
            try:
                grid = read_geometry(path, case_id(path))
            except (CaseError, OSError):
                continue
            read_voxels += math.prod(grid.shape)
            if cached:
                ras = orientation_to_ras(grid).apply_geometry(grid)
                shape = resampled_shape(ras.shape, ras.spacing_mm, spacing_mm)
                image = math.prod(shape) * BYTES_PER_CACHED_VOXEL
                disk += round(image + min(image, BYTES_OF_LABELS))
    seconds = read_voxels / 1e6 * SECONDS_PER_MEGAVOXEL + cases * SECONDS_PER_CASE
    return Estimate(cases, seconds / max(1, workers), disk)


def require_room(folder: Path, needed: Estimate) -> None:
    """Say what the work will take, and refuse it where the disk cannot hold it.

    Args:
        folder: Where the cache will lie; it need not exist.
        needed: From `estimate`.

    Raises:
        FlareError: If less is free than needed.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    logger.info(
        "%d cases to read: about %s and %s of %s free",
        needed.cases,
        duration(needed.seconds),
        size(needed.disk_bytes),
        size(free),
    )
    if needed.disk_bytes > free:
        raise FlareError(
            f"data.cache: needs about {size(needed.disk_bytes)} for {needed.cases} cases, "
            f"{size(free)} are free in {existing}"
        )


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """A number of bytes as people say it."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
