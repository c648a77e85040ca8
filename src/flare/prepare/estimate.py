"""What reading a cohort will take, and whether the disk has room for it."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flare.core.errors import FlareError
from flare.core.files import stat_key
from flare.core.geometry import Spacing

log = logging.getLogger(__name__)

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


def estimate(images: Iterable[Path], spacing_mm: Spacing, workers: int, *, is_cached: bool) -> Estimate:
    """Estimate the work on images from their file sizes.

    Args:
        images: What is read; one whose size cannot be asked for counts nothing, it will be refused or fail.
        spacing_mm: Voxel size of the cached arrays.
        workers: Processes that share the work.
        is_cached: Whether arrays are cached, or the images only read.
    """
    voxels = [_voxels(path) for path in images]
    mm3 = sum(min(count * VOXEL_MM3, BODY_MM3) for count in voxels) if is_cached else 0.0
    seconds = sum(voxels) / 1e6 * SECONDS_PER_MEGAVOXEL + len(voxels) * SECONDS_PER_CASE
    disk = math.ceil(mm3 / math.prod(spacing_mm) * BYTES_PER_CACHED_VOXEL)
    return Estimate(len(voxels), seconds / max(1, workers), disk)


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
    free, disk = shutil.disk_usage(existing).free, size(needed.disk_bytes)
    time = duration(needed.seconds)
    log.info("%d cases to read: about %s and %s of %s free", needed.cases, time, disk, size(free))
    if needed.disk_bytes > free:
        raise FlareError(
            f"data.cache: needs about {disk} for {needed.cases} cases, {size(free)} are free in {existing}"
        )


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """A number of bytes as people say it."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
