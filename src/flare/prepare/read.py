"""Reading a case once: all that its files can show, what training reads of it, and what that will take."""

import logging
import math
import shutil
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.cases import Entry
from flare.core.classes import IGNORE, ClassList
from flare.core.errors import FlareError
from flare.core.files import stat_key
from flare.core.geometry import Spacing, Volume, orientation_to
from flare.core.volumes import match_grid, read_grid, read_labels, read_scan
from flare.prepare.settings import PrepareSettings, Values
from flare.runs.folders import PreparedFolder
from flare.runs.journal import Journal, Resumed, resume_cases
from flare.runs.work import Outcome, run_cases

log = logging.getLogger(__name__)
EMPTY_LABEL = "label file without any foreground"

# ours, measured on the real scans at hand (docs/benchmarks.md); rather too little than too much, since work
# that would fit must not be refused, and a disk that fills up stops it later without loss
PACKED = (".gz", ".nrrd", ".mha")
BYTES_PER_VOXEL = {True: 1.0, False: 2.0}  # in a file, packed or not
VOXEL_MM3 = 1.6  # 0.8 x 0.8 x 2.5 mm
BODY_MM3 = 30e6  # of a whole abdomen, with the air around it
BYTES_PER_CACHED_VOXEL = 1.0
BYTES_PER_LABEL_VOXEL = 0.01  # of a map of organs, packed
SECONDS_PER_MEGAVOXEL = 0.05  # reading gzip, checking and resampling, one core
SECONDS_PER_CASE = 0.02


@dataclass(frozen=True)
class Estimate:
    """What is still to be done: cases to read, wall time, and room for what will be written."""

    cases: int
    seconds: float
    disk_bytes: int
    label_bytes: int = 0  # of a round's labels: predictions, merged maps, and those to train on


def estimate(images: Iterable[Path], spacing_mm: Spacing, workers: int, *, is_cached: bool) -> Estimate:
    """Estimate by file sizes what reading images takes, and caching if they are; unknown sizes count 0."""
    voxels = [_voxels(path) for path in images]
    on_grid = sum(min(count * VOXEL_MM3, BODY_MM3) for count in voxels) / math.prod(spacing_mm)
    seconds = sum(voxels) / 1e6 * SECONDS_PER_MEGAVOXEL + len(voxels) * SECONDS_PER_CASE
    disk = math.ceil(on_grid * BYTES_PER_CACHED_VOXEL) if is_cached else 0
    labels = math.ceil((2 * sum(voxels) + on_grid) * BYTES_PER_LABEL_VOXEL)
    return Estimate(len(voxels), seconds / max(1, workers), disk, labels)


def _voxels(path: Path) -> float:
    """About how many voxels an image has."""
    try:
        return stat_key(path)[0] / BYTES_PER_VOXEL[path.name.lower().endswith(PACKED)]
    except OSError:
        return 0.0


def require_room(folder: Path, needed: Estimate) -> None:
    """Say what the work will take; refuse it where the disk of the cache, made or not, cannot hold it."""
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


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Gather what this package warns of while the block runs, for the case's row of the report."""
    messages: list[str] = []
    own = threading.get_ident()  # an executor may work on other cases in other threads

    class _Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == own:
                messages.append(record.getMessage())

    package, handler = logging.getLogger("flare"), _Collect(logging.WARNING)
    package.addHandler(handler)
    try:
        yield messages
    finally:
        package.removeHandler(handler)


def count_labels(
    case: str, label: Path, classes: ClassList, label_map: Mapping[str, int] | None
) -> dict[str, Any]:
    """Count the voxels of each class in one label file, whose ids `label_map` renumbers.

    Gives plain values: `voxels` (class id or `IGNORE` as text -> count), `voxel_ml`, `warnings`. A file that
    is unreadable or holds values outside the class list refuses the case.
    """
    with collected_warnings() as warnings:
        counts = _counts(read_labels(label, classes, label_map, case), warnings)
    return {**counts, "warnings": warnings}


def _counts(labels: Volume, warnings: list[str]) -> dict[str, Any]:
    """What `count_labels` says of the voxels."""
    counts = np.bincount(labels.array.reshape(-1), minlength=1)
    voxels = {str(i): int(counts[i]) for i in np.flatnonzero(counts) if i > 0}
    if not voxels.keys() - {str(IGNORE)}:
        warnings.append(EMPTY_LABEL)
    return {"voxels": voxels, "voxel_ml": math.prod(labels.geometry.spacing_mm) / 1000}


def read_case(
    case: str,
    image: Path,
    label: Path | None,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
    outputs: Mapping[str, Path],
    spacing_mm: Spacing,
    interpolation: str,
    label_interpolation: str,
) -> dict[str, Any]:
    """Read a case whole, with every check, count its labels and store what training reads of it.

    Outputs are where the `image`, and with a label the `labels` and `histogram`, shall lie at a voxel size
    along Z, Y, X; there are none for a case that is not trained on. Gives plain values, as `count_labels`;
    `warnings` alone without a label. A case is refused, and nothing written for it, that is unreadable, not a
    finite 3D scalar volume, of broken geometry or unknown label values, with image and label on different
    grids, or as the checks say.
    """
    # imported here: only the workers need the store
    from flare.data.cache import cache_image, cache_labels
    from flare.prepare.intensity import foreground_histogram, write_histogram

    counts, target = {}, None
    with collected_warnings() as warnings:
        if label is not None:  # first: it takes less time, and its refusal spares the image
            target = read_labels(label, classes, label_map, case)
            counts = _counts(target, warnings)
        volume, doubt = read_scan(image, case)
        if doubt:
            log.warning("case %s: %s", case, doubt)
        target = target and match_grid(target, volume, case)
        if outputs:
            place = outputs["image"]
            cache_image(volume, place, spacing_mm=spacing_mm, interpolation=interpolation, case_id=case)
            if target is not None:
                how = label_interpolation
                cache_labels(target, outputs["labels"], image=place, case_id=case, interpolation=how)
                write_histogram(outputs["histogram"], foreground_histogram(volume.array, target.array))
    return {**counts, "warnings": warnings}


def read_header(case: str, image: Path) -> dict[str, Any]:
    """Read `shape` (voxels) and `spacing_mm` along Z, Y, X, in RAS order; a bad header refuses the case."""
    grid = read_grid(image, case)
    grid = orientation_to(grid).apply_geometry(grid)
    return {"shape": grid.shape, "spacing_mm": grid.spacing_mm}


def _steps(
    settings: PrepareSettings, entries: Sequence[Entry]
) -> Iterator[tuple[bool, dict[str, Entry], Journal, dict[str, Any]]]:
    """The training cases, which are cached, first: only they need room; then those that are only checked.

    With each come the step's journal, and what decides beside the files.
    """
    for is_cached, name in ((True, "cache"), (False, "check")):
        chosen = {e.id: e for e in entries if (e.split == "train") == is_cached}
        journal = Journal(settings.folder.journal(name))
        yield is_cached, chosen, journal, settings.decisive(is_cached=is_cached)


def _outputs(folder: PreparedFolder, entry: Entry) -> dict[str, Path]:
    """What is cached of a training case."""
    outputs = {"image": folder.image, "labels": folder.labels, "histogram": folder.histogram}
    return {name: place(entry.id) for name, place in outputs.items() if name == "image" or entry.label}


def _make_room(
    settings: PrepareSettings, entries: Mapping[str, Entry], is_cached: bool, todo: Iterable[str]
) -> None:
    """Say what the work will take, refuse it where the disk cannot hold it."""
    folder, images = settings.folder, [entries[case].image for case in todo]
    needed = estimate(images, folder.spacing_mm, settings.executor.workers, is_cached=is_cached)
    require_room(folder.root, needed)


def read_cases(settings: PrepareSettings, entries: Sequence[Entry]) -> Resumed:
    """Read each new or changed case once; cache those of the training split. A full disk is refused."""
    found = Resumed({}, [], [])
    same: dict[str, Any] = {"classes": settings.classes, "label_map": settings.label_map}
    same |= settings.resampling
    for is_cached, chosen, journal, config in _steps(settings, entries):
        outputs = {c: _outputs(settings.folder, e) if is_cached else {} for c, e in chosen.items()}
        files = {c: {"image": e.image, "label": e.label, "outputs": outputs[c]} for c, e in chosen.items()}
        done = resume_cases(
            read_case,
            {case: {"case": case, **own, **same} for case, own in files.items()},
            inputs={case: e.files for case, e in chosen.items()},
            config=config,
            outputs=outputs.__getitem__,
            journal=journal,
            executor=settings.executor,
            description="check and cache" if is_cached else "check held-out cases",
            before=partial(_make_room, settings, chosen, is_cached),
        )
        found.values.update(done.values)
        found.processed.extend(done.processed)
        found.failures.extend(done.failures)
    return found


def explain_cases(settings: PrepareSettings, entries: Sequence[Entry]) -> dict[str, str]:
    """Say why cases will be read again, by id; those that are unchanged are left out. Nothing is read."""
    return {
        case: why
        for _, chosen, journal, config in _steps(settings, entries)
        for case, entry in chosen.items()
        if (why := journal.why(case, entry.files, config))
    }


def count_cases(
    settings: PrepareSettings, entries: Sequence[Entry], pending: Container[str]
) -> tuple[Values, list[Outcome]]:
    """Count the labels of `pending` cases, take what was noted of the others; and tell who failed."""
    values: dict[str, dict[str, Any]] = {}
    jobs, failures = {}, []
    for _, chosen, journal, _ in _steps(settings, entries):
        for case, entry in chosen.items():
            if entry.label is None:
                values[case] = {"warnings": []}
            elif case not in pending:
                values[case] = journal.values(case)
            else:
                given = {"classes": settings.classes, "label_map": settings.label_map}
                jobs[case] = {"case": case, "label": entry.label, **given}
    for outcome in run_cases(count_labels, jobs, executor=settings.executor, description="label analysis"):
        if outcome.error is None:
            values[outcome.case_id] = outcome.value
        else:
            failures.append(outcome)
    return values, failures
