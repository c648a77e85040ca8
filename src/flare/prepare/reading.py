"""The long part: every case that is new or changed is read once, checked, and cached if it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare.cases import Case
from flare.executor import Outcome, run_cases
from flare.files import remove_partial
from flare.journal import Journal
from flare.prepare.casework import cache_case, check_case
from flare.prepare.layout import PreparedFolder
from flare.prepare.room import estimate, require_room
from flare.prepare.settings import Settings


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
        "classes": settings.labels.to_config(),
        "label_map": settings.label_map,
    }


def _inputs(case: Case) -> dict[str, Path | str]:
    """The files that a case is made from."""
    return {"image": case.image} if case.label is None else {"image": case.image, "label": case.label}
