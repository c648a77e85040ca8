"""Whether a case can be used: everything that reading its files can show, and the report of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.files import remove_partial, write_csv
from flare.core.geometry import Spacing, Volume
from flare.core.volumes import match_grid, read_image, read_labels
from flare.prepare.settings import Settings, estimate, require_room
from flare.runs.folders import PreparedFolder
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome
from flare.runs.work import run_cases

COLUMNS = ("case", "path", "status", "reason")
OK, WARNING, REFUSED, FAILED = "ok", "warning", "refused", "failed"


@dataclass(frozen=True)
class Finding:
    """One row of `integrity.csv`.

    Args:
        case: The case.
        path: Its image, or the file at fault.
        status: `ok`, `warning` (used all the same), `refused`, or `failed` (by no fault of its files: it is
            tried again).
        reason: What was found, empty if nothing.
    """

    case: str
    path: Path
    status: str
    reason: str = ""


def read_case(
    case: str, image: Path, label: Path | None, classes: ClassList, label_map: Mapping[str, int] | None
) -> tuple[Volume, Volume | None]:
    """Read a case whole, with every check.

    Args:
        case: The case id, for messages.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        classes: The class list.
        label_map: Renumbering of the label file's ids, see `sources.read_label_map`.

    Returns:
        The image, and its labels in the image's voxel order.

    Raises:
        CaseError: If the case must be refused: unreadable, not a finite 3D scalar volume, broken geometry,
            unknown label values, image and label on different grids.
    """
    volume = read_image(image, case)
    if label is None:
        return volume, None
    return volume, match_grid(read_labels(label, classes, label_map, case), volume, case)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Gather what this package warns of while the block runs, for the case's row of the report."""
    messages: list[str] = []

    class _Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    package, handler = logging.getLogger("flare"), _Collect(logging.WARNING)
    package.addHandler(handler)
    try:
        yield messages
    finally:
        package.removeHandler(handler)


def write_integrity(path: Path, findings: Sequence[Finding]) -> None:
    """Write `integrity.csv`, the refused first."""
    order = (REFUSED, FAILED, WARNING, OK)
    ranked = sorted(findings, key=lambda f: (order.index(f.status), f.case, str(f.path)))
    write_csv(path, [vars(f) for f in ranked], COLUMNS)


def check_case(
    case: str,
    image: Path,
    label: Path | None,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Check a case of the validation or test split, of which nothing is cached.

    Args:
        case: The case id.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        classes: The class list.
        label_map: Renumbering of the label file's ids.

    Returns:
        Plain values: `warnings`.

    Raises:
        CaseError: If the case must be refused.
    """
    with collected_warnings() as warnings:
        read_case(case, image, label, classes, label_map)
    return {"warnings": warnings}


def cache_case(
    case: str,
    image: Path,
    label: Path | None,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
    outputs: Mapping[str, Path],
    spacing_mm: Spacing,
    interpolation: str,
) -> dict[str, Any]:
    """Check a training case and store all that training reads of it.

    Args:
        case: The case id.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        classes: The class list.
        label_map: Renumbering of the label file's ids.
        outputs: Where the `image`, and with a label the `labels` and `histogram`, shall lie.
        spacing_mm: Voxel size along Z, Y, X.
        interpolation: `linear`, `cubic` or `nnunet`.

    Returns:
        Plain values: `warnings`.

    Raises:
        CaseError: If the case must be refused; nothing is written for it.
    """
    # imported here: only the workers need the store
    from flare.data.cache import cache_image, cache_labels
    from flare.prepare.statistics import foreground_histogram, write_histogram

    with collected_warnings() as warnings:
        volume, target = read_case(case, image, label, classes, label_map)
        cache_image(
            volume, outputs["image"], spacing_mm=spacing_mm, interpolation=interpolation, case_id=case
        )
        if target is not None:
            cache_labels(target, outputs["labels"], image=outputs["image"], case_id=case)
            write_histogram(outputs["histogram"], foreground_histogram(volume.array, target.array))
    return {"warnings": warnings}


def read_cases(settings: Settings, cases: Sequence[Case]) -> list[Outcome]:
    """Check all cases that are new or changed, and cache those of the training split.

    Args:
        settings: The preparation, whose folder the caller holds.
        cases: The whole cohort.

    Returns:
        Outcomes of the cases that were read; unchanged cases have none.

    Raises:
        FlareError: If the disk has no room.
    """
    cache, check = settings.folder.journal("cache"), settings.folder.journal("check")
    to_cache = _pending([c for c in cases if c.split == "train"], cache, settings.cache_config)
    to_check = _pending([c for c in cases if c.split != "train"], check, settings.check_config)
    if not to_cache and not to_check:
        return []
    workers = getattr(settings.executor, "workers", 1)
    images = ([c.image for c in to_cache], [c.image for c in to_check])
    require_room(settings.folder.root, estimate(*images, settings.folder.spacing_mm, workers))
    for path in (settings.folder.image(""), settings.folder.labels(""), settings.folder.histogram("")):
        remove_partial(path.parent)
    checked = _check(settings, check, to_check)
    return checked + _cache(settings, cache, to_cache)


def recorded_warnings(folder: PreparedFolder, cases: Sequence[Case]) -> dict[str, list[str]]:
    """What was odd about each case when it was last read."""
    journals = {True: folder.journal("cache"), False: folder.journal("check")}
    return {c.id: journals[c.split == "train"].values(c.id)["warnings"] for c in cases}


def _pending(cases: Sequence[Case], journal: Journal, config: Mapping[str, Any]) -> list[Case]:
    """Cases whose files or settings are not those of the last time."""
    return [c for c in cases if not journal.is_current(c.id, _inputs(c), config)]


def _check(settings: Settings, journal: Journal, cases: Sequence[Case]) -> list[Outcome]:
    """Check held-out cases, noting each that is done."""
    jobs = {c.id: _job(settings, c) for c in cases}
    by_id, outcomes = {c.id: c for c in cases}, []
    for outcome in run_cases(
        check_case, jobs, executor=settings.executor, description="check held-out cases"
    ):
        if outcome.error is None:
            inputs = _inputs(by_id[outcome.case_id])
            journal.record(outcome.case_id, inputs, settings.check_config, {}, outcome.value)
        outcomes.append(outcome)
    return outcomes


def _cache(settings: Settings, journal: Journal, cases: Sequence[Case]) -> list[Outcome]:
    """Check and cache training cases, noting each that is done."""
    by_id, outcomes = {c.id: c for c in cases}, []
    outputs = {c.id: cached_files(settings.folder, c) for c in cases}
    arrays = {"spacing_mm": settings.folder.spacing_mm, "interpolation": settings.data["interpolation"]}
    jobs = {c.id: {**_job(settings, c), **arrays, "outputs": outputs[c.id]} for c in cases}
    for outcome in run_cases(cache_case, jobs, executor=settings.executor, description="check and cache"):
        case = outcome.case_id
        if outcome.error is None:
            journal.record(case, _inputs(by_id[case]), settings.cache_config, outputs[case], outcome.value)
        elif not outcome.is_fault:
            for path in outputs[case].values():  # of an earlier, readable state of its files
                path.unlink(missing_ok=True)
        outcomes.append(outcome)
    return outcomes


def cached_files(folder: PreparedFolder, case: Case) -> dict[str, Path]:
    """The files that are cached of a training case."""
    outputs = {"image": folder.image(case.id)}
    if case.label is not None:
        outputs |= {"labels": folder.labels(case.id), "histogram": folder.histogram(case.id)}
    return outputs


def _job(settings: Settings, case: Case) -> dict[str, Any]:
    """Arguments that checking and caching share, as plain values."""
    return {
        "case": case.id,
        "image": case.image,
        "label": case.label,
        "classes": settings.classes,
        "label_map": settings.label_map,
    }


def _inputs(case: Case) -> dict[str, Path | str]:
    """The files that a case is made from."""
    return {"image": case.image} if case.label is None else {"image": case.image, "label": case.label}
