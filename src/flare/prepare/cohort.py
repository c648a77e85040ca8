"""The step from folders of files to a cohort ready for training: index, labels, checks, cache, statistics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from flare.core.cases import Case, write_index
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.preprocessing import Intensity
from flare.prepare.analysis import Analysis, analyse_labels, print_label_analysis, write_label_analysis
from flare.prepare.gone import require_present
from flare.prepare.index import Index, build_index, check_folders
from flare.prepare.read import (
    FAILED,
    OK,
    REFUSED,
    WARNING,
    Finding,
    read_cases,
    recorded_warnings,
    write_integrity,
)
from flare.prepare.settings import Settings
from flare.prepare.statistics import pool, write_statistics
from flare.runs.folders import PreparedFolder, lock
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome, report_failures, stop_on_faults
from flare.runs.work import console

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """A prepared cohort.

    Args:
        folder: Where everything lies.
        cases: The cases that can be used, by split and id.
        failures: The cases that were refused or failed, and why.
        intensity: Statistics of the labelled training cases; None without any.
        processed: Ids of the cases that were read in this call; the others were unchanged.
    """

    folder: PreparedFolder
    cases: list[Case]
    failures: list[Outcome]
    intensity: Intensity | None
    processed: list[str]

    def require_intensity(self) -> Intensity:
        """The statistics, without which no image can be normalised.

        Raises:
            FlareError: If there are none: naming the cases that failed, which may be why.
        """
        if self.intensity is None:
            report_failures(self.failures, "no labelled training case is left, so nothing can be trained")
            raise FlareError("data.labels: no labelled training case, so there are no intensity statistics")
        return self.intensity


def prepare(cfg: DictConfig) -> Cohort:
    """Prepare a cohort; refuse at the end, after all else is done, if any case was refused.

    Args:
        cfg: Groups `classes`, `data` and `executor`.

    Raises:
        FlareError: If a case was refused, with every such case and reason; or as `prepare_cohort`.
    """
    cohort = prepare_cohort(cfg)
    if not cohort.processed:
        print_label_analysis(cohort.cases, ClassList.from_config(cfg.classes))
    report_failures(cohort.failures, "prepare")
    return cohort


def prepare_cohort(cfg: DictConfig) -> Cohort:
    """Index, analyse, check and cache a cohort; only what is new or changed is read.

    Args:
        cfg: As for `prepare`.

    Returns:
        The cohort; refused cases are in `failures`, the rest is complete.

    Raises:
        FlareError: If a configuration cannot be; if files are gone that the last start saw; or if a step
            failed in general, see `outcomes.stop_on_faults`: index and statistics stay as they were.
    """
    settings = Settings.from_config(cfg)
    check_folders(settings.data)
    with lock(settings.folder.root, wait=True):  # jobs of a sweep share it; the first prepares, the rest find
        return _prepare(settings)


def _prepare(settings: Settings) -> Cohort:
    """Do what `prepare_cohort` says, alone in the cache."""
    try:
        generate_if_phantom(settings)
        index = _list(settings)
        if settings.data["name"] != "phantom":  # whose files are made again
            accept_removed = bool(settings.data.get("accept_removed"))
            require_present(index, settings.folder.seen, accept_removed=accept_removed)
        analysis = _analyse(settings, index, settings.folder.journal("analysis"))
        failures = [*_index_failures(index), *analysis.failures]
        labelled = {e.id for e in index.entries if e.label is not None}
        stop_on_faults(failures, "prepare, label analysis", labelled, settings.max_failed, index.groups)
        outcomes = read_cases(settings, analysis.cases)
    finally:
        settings.executor.close()
    unreadable = [o for o in outcomes if o.error is not None]
    refused = {o.case_id for o in unreadable}
    kept = replace(analysis, cases=[c for c in analysis.cases if c.id not in refused])
    failures += unreadable
    write_integrity(settings.folder.integrity, _findings(settings.folder, index, kept, failures))
    for step, is_trained in (("checking held-out cases", False), ("caching", True)):
        read = {c.id for c in analysis.cases if (c.split == "train") == is_trained}
        stop_on_faults(failures, f"prepare, {step}", read, settings.max_failed, index.groups)
    write_index(settings.folder.index, kept.cases)
    write_label_analysis(settings.folder.label_analysis, kept, settings.classes)
    intensity = _statistics(settings, kept.cases, failures)
    if outcomes:
        print_label_analysis(kept.cases, settings.classes)
    return Cohort(settings.folder, kept.cases, failures, intensity, sorted(o.case_id for o in outcomes))


def analyse(cfg: DictConfig) -> list[Case]:
    """List the cases of a cohort with their kinds, from folder listings and label files alone.

    Writes nothing. The embedded cohort is told from its plan, whether it is made or not.

    Args:
        cfg: As for `prepare`.

    Returns:
        The cases whose label file, if any, can be used.
    """
    settings = Settings.from_config(cfg)
    if settings.data["name"] == "phantom":
        from flare.phantom.cohort import planned_cases

        return planned_cases(_phantom_root(settings), **settings.data["phantom"])
    try:
        index = _list(settings)
        analysis = _analyse(settings, index, settings.folder.journal("analysis", is_kept=False))
    finally:
        settings.executor.close()
    for failure in _index_failures(index) + analysis.failures:
        # on the console only: reasons name files, and log files hold case ids alone
        console.print(f"case {failure.case_id} is left out: {failure.error}", markup=False)
    print_label_analysis(analysis.cases, settings.classes)
    return analysis.cases


def generate_if_phantom(settings: Settings) -> None:
    """Make the embedded cohort before it is indexed, if it is the one that was asked for."""
    if settings.data["name"] == "phantom":
        from flare.phantom.cohort import generate_cohort

        generate_cohort(_phantom_root(settings), **settings.data["phantom"], executor=settings.executor)


def _phantom_root(settings: Settings) -> Path:
    return Path(settings.data["root"]).expanduser()


def _list(settings: Settings) -> Index:
    """List the files."""
    index = build_index(settings.data, settings.classes)
    if not index.entries and not index.problems:
        raise FlareError(
            f"data.root: no image in any of the cohort's folders below {settings.data.get('root')}"
        )
    return index


def _analyse(settings: Settings, index: Index, journal: Journal) -> Analysis:
    """Look into the labels."""
    return analyse_labels(
        index.entries,
        settings.classes,
        settings.label_map,
        journal=journal,
        executor=settings.executor,
    )


def _index_failures(index: Index) -> list[Outcome]:
    """The cases refused for their names, once each."""
    reasons = {p.id: p.reason for p in index.problems}
    return [Outcome(case, error=reason, kind=reason.split(":")[0]) for case, reason in reasons.items()]


def _findings(
    folder: PreparedFolder, index: Index, kept: Analysis, failures: Sequence[Outcome]
) -> list[Finding]:
    """Rows of `integrity.csv`: what became of every file that was found."""
    found = [Finding(p.id, p.path, REFUSED, p.reason) for p in index.problems]
    images = {e.id: e.image for e in index.entries}
    found += [
        Finding(f.case_id, images[f.case_id], FAILED if f.is_fault else REFUSED, f.error or "")
        for f in failures
        if f.case_id in images
    ]
    seen = recorded_warnings(folder, kept.cases)
    for case in kept.cases:
        reasons = dict.fromkeys([*kept.warnings.get(case.id, []), *seen[case.id]])
        found.append(Finding(case.id, case.image, WARNING if reasons else OK, "; ".join(reasons)))
    return found


def _statistics(settings: Settings, cases: Sequence[Case], failures: Sequence[Outcome]) -> Intensity | None:
    """Pool the intensities of the labelled training cases."""
    path = settings.folder.statistics
    labelled = [c for c in cases if c.split == "train" and c.present]
    if not labelled:
        log.warning("no labelled training case: there are no intensity statistics")
        if not any(f.is_fault for f in failures):  # else they may be as good as ever
            path.unlink(missing_ok=True)
        return None
    histogram = pool(settings.folder.histogram(c.id) for c in labelled)
    return write_statistics(path, histogram, len(labelled), settings.data["percentiles"])
