"""The step from folders of files to a cohort ready for training: index, labels, checks, cache, statistics."""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import Case, Entry, read_index, write_index
from flare.core.class_files import own_classes, write_classes
from flare.core.classes import ClassList
from flare.core.errors import FlareError, some
from flare.core.files import read_csv, read_json, remove_partial, write_csv, write_json
from flare.core.paths import settle_paths
from flare.core.preprocessing import Intensity
from flare.core.series import is_there
from flare.prepare.analysis import Analysis, analyse_labels, print_label_analysis, write_label_analysis
from flare.prepare.index import Finding, Index, build_index, source_group
from flare.prepare.intensity import pool, write_statistics
from flare.prepare.read import count_cases, explain_cases, read_cases, read_header
from flare.prepare.settings import FAILED, OK, REFUSED, STATUSES, WARNING, PrepareSettings, Values
from flare.runs.changes import NEW, members_told
from flare.runs.folders import PreparedFolder
from flare.runs.locks import lock
from flare.runs.work import Outcome, console, naming, report_failures, run_cases, stop_on_faults

log = logging.getLogger(__name__)
NAMED = 10  # paths that a message names
COLUMNS = ("case", "path", "status", "reason")


@dataclass(frozen=True)
class Cohort:
    """A prepared cohort."""

    folder: PreparedFolder
    cases: list[Case]  # the cases that can be used, by split and id
    failures: list[Outcome]  # the cases that were refused or failed, and why
    intensity: Intensity | None  # statistics of the labelled training cases; None without any
    processed: list[str]  # ids of the cases that were read in this call; the others were unchanged

    def require_intensity(self) -> Intensity:
        """The statistics, or a refusal that names the cases that failed, which may be why there are none."""
        with naming(self.failures):
            if self.intensity is None:
                raise FlareError("data.labels: no labelled training case is left, so nothing can be trained")
        return self.intensity


def prepare(cfg: DictConfig) -> Cohort:
    """Prepare a cohort, see `prepare_cohort`; refuse at the end, with reasons, if any case was refused."""
    settle_paths(cfg)
    cfg = own_classes(cfg)
    cohort = prepare_cohort(cfg)
    if not cohort.processed:
        sources = read_csv(cohort.folder.label_sources)
        print_label_analysis(cohort.cases, ClassList.from_config(cfg.classes), sources)
    report_failures(cohort.failures, "prepare")
    return cohort


def prepare_cohort(cfg: DictConfig) -> Cohort:
    """Index, analyse, check and cache a cohort, all but its `failures`; only what is new or changed is read.

    A configuration that cannot be is refused, and that files are gone which the last start saw. A step that
    failed in general, see `stop_on_faults`, stops the start: index and statistics stay as they were.
    """
    settings = PrepareSettings.from_config(cfg)
    with lock(settings.folder.root, wait=True):  # jobs of a sweep share it; the first prepares, the rest find
        return _prepare(settings, settings.folder)


def _prepare(settings: PrepareSettings, folder: PreparedFolder) -> Cohort:
    """Do what `prepare_cohort` says, alone in the cache."""
    remove_partial(folder.root, below=True)
    try:
        _make(settings)
        index = _list(settings)
        if settings.generator is None:  # one's files are made again
            _require_present(index, folder.seen, accept_removed=settings.accept_removed)
        failures, ids = index.failures, [e.id for e in index.entries]
        stop_on_faults(failures, "prepare, listing files", ids, settings.max_failed, index.groups)
        read = read_cases(settings, index.entries)
    finally:
        settings.executor.close()
    analysis = analyse_labels(index.entries, read.values, settings.classes)
    failures += read.failures
    for doubt in analysis.doubts:
        log.warning(doubt)
    _write_integrity(folder.integrity, index, analysis, read.values, failures)
    for step, is_trained in (("caching", True), ("checking held-out cases", False)):
        chosen = [e.id for e in index.entries if (e.split == "train") == is_trained]
        stop_on_faults(failures, f"prepare, {step}", chosen, settings.max_failed, index.groups)
    write_classes(folder.root, settings.classes)
    if folder.index.exists():
        before = [case.id for case in read_index(folder.index)]
        for told in _members(before, [case.id for case in analysis.cases]):
            log.info("cohort: %s since the last start", told)
    write_index(folder.index, analysis.cases)
    write_label_analysis(folder.label_analysis, analysis, settings.classes)
    intensity = _statistics(settings, analysis.cases, failures)
    tried = sorted([*read.processed, *(f.case_id for f in read.failures)])
    if tried:
        print_label_analysis(analysis.cases, settings.classes, analysis.table)
    return Cohort(folder, analysis.cases, failures, intensity, tried)


def _make(settings: PrepareSettings) -> None:
    """Make what is missing of a cohort that is made, not found."""
    if settings.generator is not None:
        settings.generator.make(settings.executor)
        for _, place in settings.files.label_folders:
            write_classes(place, settings.classes)


def _require_present(index: Index, seen: Path, *, accept_removed: bool, is_dry: bool = False) -> None:
    """Refuse a cohort of which files are gone since the last start, which `seen` notes; note what is there.

    A case that the configuration no longer names is not gone, nor is one that was moved. After a refusal the
    note stays as it was, so that the next start refuses as well; a start that is dry notes nothing.
    """
    now = {e.id: {role: str(path) for role, path in e.files.items()} for e in index.entries}
    known: dict[str, dict[str, str]] = read_json(seen) if seen.exists() else {}
    # where a file has another place now, only that one counts
    wanted = {now.get(case, {}).get(role, p) for case, paths in known.items() for role, p in paths.items()}
    asked = wanted.union(*(paths.values() for paths in now.values()))
    there = {path for path in asked if is_there(Path(path), os.R_OK)}
    gone = sorted(wanted - there)
    if gone and not accept_removed:
        raise FlareError(
            f"data: {len(gone)} files that the last start saw are gone or may not be read: "
            f"{some(gone, NAMED)}. Is a disk or share away, or has access expired? Start again when it is "
            "back; if they were removed on purpose, say so once with data.accept_removed=true. Nothing in "
            "the cache was removed"
        )
    if gone:
        log.warning("%d files are gone since the last start, and the cohort goes without them", len(gone))
    noted = {case: {role: p for role, p in paths.items() if p in there} for case, paths in now.items()}
    if noted != known and not is_dry:
        write_json(seen, noted)


@dataclass(frozen=True)
class Foreseen:
    """What a start will find of a cohort."""

    cases: list[Case]  # the cases whose labels, if any, can be used, with their kinds
    pending: dict[str, str] = field(default_factory=dict)  # cases that are read again, and why
    members: list[str] = field(default_factory=list)  # what was added and removed since the last start
    # cases that the last start refused: each start tries them again, rounds go without
    tried: list[str] = field(default_factory=list)
    statistics: str = ""  # why the intensity statistics are made anew; empty if they stand


def analyse(cfg: DictConfig) -> Foreseen:
    """List the cases of a cohort without a look at images, and say what a start will read again, and why.

    Writes nothing, and refuses what a start does: a configuration that cannot be, and files that are gone. A
    cohort that is generated is told from its plan, whether it is made or not.
    """
    settings = PrepareSettings.from_config(cfg)
    if settings.generator is not None:
        planned = settings.generator.planned_cases()
        held_out = settings.files.split.assign(planned)
        planned = [replace(case, split=held_out.get(case.id, case.split)) for case in planned]
        entries = [Entry(case.id, case.split, case.image, case.label) for case in planned]
        # a generator may tell, but need not, which cases it makes again
        pending = explain_cases(settings, entries) | getattr(settings.generator, "explain", dict)()
        if settings.folder.index.exists():  # classes of what is made are known, a plan has none
            known = {case.id: case for case in read_index(settings.folder.index) if case.id not in pending}
            planned = [replace(known.get(case.id, case), split=case.split) for case in planned]
        return _foresee(settings.folder, planned, pending)
    try:
        index = _list(settings)
        _require_present(index, settings.folder.seen, accept_removed=settings.accept_removed, is_dry=True)
        pending = explain_cases(settings, index.entries)
        values, failures = count_cases(settings, index.entries, pending)
    finally:
        settings.executor.close()
    for failure in index.failures + failures:
        # on the console only: reasons name files, and log files hold case ids alone
        console.print(f"case {failure.case_id} is left out: {failure.error}", markup=False)
    analysis = analyse_labels(index.entries, values, settings.classes)
    for doubt in analysis.doubts:
        log.warning(doubt)
    print_label_analysis(analysis.cases, settings.classes, analysis.table)
    return _foresee(settings.folder, analysis.cases, pending)


def _foresee(folder: PreparedFolder, cases: list[Case], pending: dict[str, str]) -> Foreseen:
    """Compare the cases that are there with those of the last start."""
    if not folder.index.exists():
        return Foreseen(cases, pending, statistics="" if folder.statistics.exists() else NEW)
    before = {case.id: case for case in read_index(folder.index)}
    rows = read_csv(folder.integrity, may_lack=True)
    refused = {row["case"] for row in rows if row["status"] in (REFUSED, FAILED)} - before.keys()
    tried = [case for case in pending if case in refused]
    added = {case.id for case in cases} - before.keys()
    pending = {
        case: "added to the cohort" if case in added and why == NEW else why
        for case, why in pending.items()
        if case not in refused
    }
    cases = [case for case in cases if case.id not in refused]
    learned = [
        dict.fromkeys(c.id for c in some_cases if c.split == "train" and c.is_labeled)
        for some_cases in (before.values(), cases)
    ]
    statistics = _members(*learned)
    statistics += [f"{case}: {why}" for case, why in pending.items() if case in learned[1] and case in before]
    members = _members(before, [case.id for case in cases])
    return Foreseen(cases, pending, members, tried, "; ".join(statistics[:NAMED]))


def _members(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """Say which cases were added and removed."""
    return members_told(dict.fromkeys(before, 0), dict.fromkeys(now, 0))


def read_headers(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[Outcome]]:
    """Read the headers of all training cases, labelled or not; write nothing but a cohort that is made.

    Gives what `read_header` tells of each case whose header is sound, and the cases that failed. A wrong
    configuration and a cohort without a case are refused; a general fault stops, see `stop_on_faults`.
    """
    settings = PrepareSettings.from_config(cfg)
    try:
        with nullcontext() if settings.generator is None else lock(settings.folder.root, wait=True):
            _make(settings)
        index = _list(settings)
        jobs = {e.id: {"case": e.id, "image": e.image} for e in index.entries if e.split == "train"}
        read = list(run_cases(read_header, jobs, executor=settings.executor, description="read headers"))
    finally:
        settings.executor.close()
    failures = index.failures + [outcome for outcome in read if outcome.error is not None]
    stop_on_faults(failures, "reading headers", list(jobs), settings.max_failed, index.groups)
    return [outcome.value for outcome in read if outcome.error is None], failures


def _list(settings: PrepareSettings) -> Index:
    """What is on disk; nothing at all is refused."""
    files, index = settings.files, build_index(settings.files)
    if index.skipped:
        cases = sorted({f.case for f in index.skipped})
        log.warning("localizers and scouts are left out, see integrity.csv: %s", some(cases, NAMED))
    if not index.entries and not index.problems:
        raise FlareError(f"data.root: no image in any of the cohort's folders below {files.root}")
    idle = [n for n, source in enumerate(files.sources) if source_group(source) not in index.groups]
    if idle:
        # by its number: a pattern may have a patient's name
        told = ", ".join(f"data.sources[{n}].match" for n in idle)
        log.warning("%s: matches no case (of several that match a case the first counts)", told)
    return index


def _write_integrity(
    path: Path, index: Index, analysis: Analysis, values: Values, failures: Sequence[Outcome]
) -> None:
    """Write `integrity.csv`: what became of every file that was found, the refused first."""
    images = {e.id: e.image for e in index.entries}
    found = index.problems + index.skipped
    for f in failures:
        if f.case_id in images:
            status = FAILED if f.is_fault else REFUSED
            found.append(Finding(f.case_id, images[f.case_id], f.error or "", status))
    for case in analysis.cases:
        doubt = analysis.contradictions.get(case.id)
        reasons = dict.fromkeys([*values[case.id]["warnings"], *([doubt] if doubt else [])])
        found.append(Finding(case.id, case.image, "; ".join(reasons), WARNING if reasons else OK))
    ranked = sorted(found, key=lambda f: (STATUSES.index(f.status), f.case, str(f.path)))
    write_csv(path, [vars(f) for f in ranked], COLUMNS)


def _statistics(settings: PrepareSettings, cases: list[Case], failures: list[Outcome]) -> Intensity | None:
    """Pool the intensities of the labelled training cases."""
    path = settings.folder.statistics
    labelled = [c for c in cases if c.split == "train" and c.present]
    if not labelled:
        log.warning("no labelled training case: there are no intensity statistics")
        if not any(f.is_fault for f in failures):  # else they may be as good as ever
            path.unlink(missing_ok=True)
        return None
    histogram = pool(settings.folder.histogram(c.id) for c in labelled)
    return write_statistics(path, histogram, len(labelled), settings.percentiles)
