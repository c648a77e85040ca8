"""What every step of one preparation shares, read from the configuration once."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.core.cases import read_label_map, read_sources
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import stat_key
from flare.core.geometry import Spacing
from flare.core.limits import check_values
from flare.runs.folders import PreparedFolder, prepared_folder
from flare.runs.work import Executor, build_executor, failed_share

STORE_FORMAT = 1  # raised when what is cached changes, so that old caches are redone


@dataclass(frozen=True)
class Settings:
    """Settings of one preparation.

    Args:
        data: `cfg.data` as plain values.
        classes: The class list.
        label_map: Renumbering of foreign label files.
        folder: Where results go.
        executor: Where the work on cases runs.
        max_failed: Share of a step's cases that may fail by no fault of their files.
    """

    data: dict[str, Any]
    classes: ClassList
    label_map: dict[str, int] | None
    folder: PreparedFolder
    executor: Executor
    max_failed: float

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Settings:
        """Read the groups `classes`, `data` and `executor`.

        Raises:
            FlareError: Before any work, if any value of the configuration means nothing.
        """
        check_values(cfg)
        data: dict[str, Any] = OmegaConf.to_container(cfg.data, resolve=True)  # type: ignore[assignment]
        classes = ClassList.from_config(cfg.classes)
        label_map = read_label_map(data.get("label_map"), classes)
        read_sources(data.get("sources"), classes)
        return cls(data, classes, label_map, prepared_folder(cfg), build_executor(cfg), failed_share(cfg))

    @property
    def check_config(self) -> dict[str, Any]:
        """What decides, beside the files, how a check ends."""
        return {"classes": self.classes.ids, "label_map": self.label_map}

    @property
    def cache_config(self) -> dict[str, Any]:
        """What decides, beside the files, what is cached of a case."""
        arrays = {"spacing_mm": self.folder.spacing_mm, "interpolation": self.data["interpolation"]}
        return {**self.check_config, **arrays, "format": STORE_FORMAT}


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
    log.info(
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
