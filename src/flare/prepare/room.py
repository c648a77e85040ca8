"""How long the caching will take and how much room it needs, told before it starts.

Both come from the sizes of the files alone: what a header claims is not known before its case is read.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flare.errors import FlareError
from flare.files import stat_key
from flare.geometry import Spacing

logger = logging.getLogger(__name__)

# ours, measured on the real scans at hand (docs/benchmarks.md); rather too little than too much, since work
# that would fit must not be refused, and a disk that fills up stops it later without loss
PACKED = (".gz", ".nrrd", ".mha")
BYTES_PER_VOXEL = {True: 1.0, False: 2.0}  # in a file, packed or not
VOXEL_MM3 = 1.6  # 0.8 x 0.8 x 2.5 mm
BODY_MM3 = 30e6  # of a whole abdomen, with the air around it
BYTES_PER_CACHED_VOXEL = 1.0
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
    """Estimate the work from file sizes.

    Args:
        to_cache: Images that are read and cached.
        to_check: Images that are only read.
        spacing_mm: Voxel size of the cached arrays.
        workers: Processes that share the work.

    Returns:
        The estimate; an image whose size cannot be asked for counts nothing, it will be refused or fail.
    """
    cached, checked = [_voxels(p) for p in to_cache], [_voxels(p) for p in to_check]
    cases, voxels = len(cached) + len(checked), sum(cached) + sum(checked)
    mm3 = sum(min(count * VOXEL_MM3, BODY_MM3) for count in cached)
    disk = mm3 / math.prod(spacing_mm) * BYTES_PER_CACHED_VOXEL
    seconds = voxels / 1e6 * SECONDS_PER_MEGAVOXEL + cases * SECONDS_PER_CASE
    return Estimate(cases, seconds / max(1, workers), math.ceil(disk))


def _voxels(path: Path) -> float:
    """About how many voxels an image has."""
    try:
        return stat_key(path)[0] / BYTES_PER_VOXEL[path.name.lower().endswith(PACKED)]
    except OSError:
        return 0.0


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
