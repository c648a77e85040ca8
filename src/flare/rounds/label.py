"""A round's training labels: ground truth as it is, or predict with the teacher, merge, select and cache."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from flare.core.cases import Case, read_index
from flare.core.class_files import agreed_classes, write_classes
from flare.core.errors import FlareError, refusing
from flare.core.files import config_hash, read_json, remove_partial, sha256, write_json
from flare.core.paths import settle_paths
from flare.data.settings import CaseArrays
from flare.inference.predict import one_by_one, report_coverage
from flare.merging.merge import FOLDERS, FolderSettings, merge_folders, merged_files, tell_merged
from flare.merging.provenance import GROUND_TRUTH, NONE, SUMMARY, TABLE
from flare.rounds.graph import UNLABELED, Teacher, read_teacher, require_teacher, teachers_of
from flare.rounds.label_case import LabelJob, judge_case, label_case
from flare.rounds.score import held_out
from flare.rounds.selection import built, fit
from flare.rounds.settings import RoundSettings, TrainingSet
from flare.rounds.views import dropped_cases, further_maps, lineage, write_selection
from flare.runs.journal import Journal, Resumed, refuse_foreign, resume_cases
from flare.runs.locks import lock
from flare.runs.work import Executor, Outcome, build_executor, console, report_failures, stop_on_faults

log = logging.getLogger(__name__)
CHANGED = "its files changed after they were cached: start again"


def build_training_set(settings: RoundSettings, cases: Sequence[Case], executor: Executor) -> TrainingSet:
    """Make the labels of a round of the cohort, or find them made; only what is new or changed is done again.

    A round without a case is refused, or whose teacher has no checkpoint; a general fault stops the run.
    """
    chosen = settings.train_cases(cases)
    if not chosen:
        raise FlareError(
            f"round={settings.name}: no training case is {settings.labels.cases!r} (labels.cases); "
            "see the label analysis of the cohort"
        )
    require_teacher(settings)
    if not makes_labels(settings):
        return training_set(settings, chosen, None, [])
    done = label_cases(settings, chosen, executor, held_out(cases, "validation"))
    moved = [Outcome(c, error=CHANGED, is_fault=True) for c, v in done.values.items() if not v["cached"]]
    return training_set(settings, chosen, done.values, [*done.failures, *moved])


def makes_labels(settings: RoundSettings) -> bool:
    """Whether a round has labels of its own, not the ground truth as it is cached."""
    return settings.is_hybrid or settings.labels.select is not None


def training_set(
    settings: RoundSettings,
    cases: Sequence[Case],
    values: Mapping[str, Mapping[str, Any]] | None,
    failures: list[Outcome],
) -> TrainingSet:
    """What a round trains on, by what `label_case` gave (None: ground truth); refuse that no case is left."""
    prepared = settings.prepared
    images = Journal(prepared.journal("cache"))
    if values is None:
        weights = dict.fromkeys((case.id for case in cases), 1.0)
        journal, step, place = images, "labels", prepared.labels
    else:
        dropped = dropped_cases(settings, values)
        weights = {case: v["weight"] * (case not in dropped) for case, v in values.items() if v["cached"]}
        journal, step, place = Journal(settings.folder.journal("label")), "cached", settings.folder.cached
    weights = {c.id: weights[c.id] for c in cases if weights.get(c.id, 0) > 0}  # in index order
    if not weights:
        why = failures[0].error if failures else "labels.select drops every case"
        raise FlareError(f"round={settings.name}: no training case could be labelled: {why}")
    known = known_classes(settings, [case for case in cases if case.id in weights])
    items = {c: CaseArrays(prepared.image(c), place(c), w, known.get(c)) for c, w in weights.items()}
    parts = [
        (case, images.output_hash(case, "image"), journal.output_hash(case, step), *told)
        for case, told in {c: (weight, *known.get(c, ())) for c, weight in weights.items()}.items()
    ]
    # the teacher also decides where the weights start, and statistics how images are normalised
    teachers = teachers_of(settings) if settings.training.init == "teacher" else []
    start = sha256(teachers[0].checkpoint) if teachers else None
    statistics = sha256(prepared.statistics)
    told = {"start": start, "statistics": statistics, "cases": {p[0]: config_hash(p) for p in parts}}
    return TrainingSet(items, config_hash([parts, start, statistics]), failures, told)


def known_classes(settings: RoundSettings, cases: Sequence[Case]) -> dict[str, tuple[int, ...]]:
    """Say of each case which class ids its labels of this round tell, as present or as absent.

    Ground truth tells what it annotates; a pseudo label what its teacher has learned and
    `labels.trust_pseudo` names. Empty for a loss that does not ask, to which every class is known.
    """
    loss = settings.training.loss
    with refusing(loss, "loss"):  # one of somebody else's is asked what it takes
        own = None if loss["_target_"].startswith("flare.") else get_object(loss["_target_"])
        takes = own is not None and "known" in signature(getattr(own, "forward", own)).parameters
    if loss.get("partial", "none") == "none" and not takes:
        return {}
    if not makes_labels(settings):
        return {case.id: case.annotated for case in cases}
    known: dict[str, tuple[int, ...]] = {}
    for teacher, members in by_teacher(settings, cases):
        taught: set[int] = set()
        if teacher is not None:
            from flare.runs.checkpoints import load_checkpoint  # torch: only where a teacher is looked into

            taught = {*load_checkpoint(teacher.checkpoint).outputs} & {*settings.labels.trusted}
        for case in members:
            told = read_json(merged_files(settings.folder.labels, case.id)["provenance"])["classes"].values()
            by_source: dict[str, Collection[int]] = {GROUND_TRUTH: case.annotated, NONE: ()}
            known[case.id] = tuple(e["id"] for e in told if e["id"] in by_source.get(e["source"], taught))
    return known


def label_cases(
    settings: RoundSettings, cases: Sequence[Case], executor: Executor, validation: Sequence[Case]
) -> Resumed:
    """Label a round's training cases, each in one go; only what is new or changed is done again.

    What a selection fits is fitted first, on labelled `validation` cases. Merged labels are left on the
    original grids. Gives of each case what `label_case` does. Stops as `stop_on_faults` does.
    """
    folder = settings.folder
    for place in (folder.labels, folder.training_labels, *([folder.predictions] * settings.is_hybrid)):
        write_classes(place, settings.classes)
    if "thresholds" in settings.labels.needs:
        fit_thresholds(settings, label_jobs(settings, validation), executor)
    jobs = label_jobs(settings, cases)
    fresh = {case: why for case, job in jobs.items() if job.labeller and (why := job.why_network())}
    predicted = {case: jobs[case].prediction for case in fresh}
    refuse_foreign([path for c, path in predicted.items() if jobs[c].note.is_foreign(c, path)])
    one = _resume(settings, {case: jobs[case] for case in fresh}, executor, fresh)
    other = _resume(settings, {c: jobs[c] for c in jobs if c not in fresh}, executor, {})
    values = one.values | other.values
    done = Resumed(
        {case.id: values[case.id] for case in cases if case.id in values},
        one.processed + other.processed,
        one.failures + other.failures,
    )
    stop_on_faults(done.failures, f"round={settings.name}, labelling", jobs, settings.max_failed)
    report_coverage([v["prediction"] for v in done.values.values() if v["prediction"] is not None])
    dropped = len(dropped_cases(settings, done.values))
    masked = sum(v["ignored"] > 0 for v in done.values.values())
    for count, what in ((dropped, "dropped"), (masked, "masked in part")):
        if count:
            log.info("labels.select: %d of %d cases %s", count, len(jobs), what)
    settings.folder.selection.unlink(missing_ok=True)
    if "pseudo" in settings.labels.needs:
        write_selection(settings, done.values)
    tell_merged(settings.folder.labels, done.values, settings.classes)
    return done


def fit_thresholds(settings: RoundSettings, jobs: Mapping[str, LabelJob], executor: Executor) -> None:
    """Predict labelled validation cases as a round's own, count how right they are, write the thresholds.

    That there is none is refused; a step that failed in general stops, see `stop_on_faults`.
    """
    if not jobs:
        raise FlareError(
            "labels.select: no labelled validation case to fit thresholds on; expected one in the cohort, or "
            "labels.select.threshold=<0 to 1>"
        )
    place = replace(settings.folder, root=settings.folder.root / "selection" / "validation")
    jobs = {case: replace(job, thresholds=None, folder=place) for case, job in jobs.items()}
    done = resume_cases(
        judge_case,
        {case: {"job": job} for case, job in jobs.items()},
        inputs={case: job.inputs for case, job in jobs.items()},
        config=lambda case: jobs[case].config,
        outputs=lambda _: {},
        journal=Journal(settings.folder.journal("judge")),
        executor=executor,
        description="judge pseudo labels of validation cases",
        alone=lambda count: count == 1 or one_by_one(settings.labels.inference),
    )
    stop_on_faults(done.failures, f"round={settings.name}, fitting labels.select", jobs, settings.max_failed)
    counts = [value["counts"] for value in done.values.values()]
    write_json(settings.folder.thresholds, fit(counts, built(settings.labels.select).right))


def label_jobs(settings: RoundSettings, cases: Sequence[Case]) -> dict[str, LabelJob]:
    """What labelling each case takes, the cases of one teacher together so that its network stays loaded."""
    images, fitted = Journal(settings.prepared.journal("cache")), settings.folder.thresholds
    limits = read_json(fitted) if "thresholds" in settings.labels.needs and fitted.exists() else None
    jobs: dict[str, LabelJob] = {}
    depth = None if settings.labels.views else 1
    for teacher, own in by_teacher(settings, cases):
        line = [] if teacher is None else list(islice(lineage(settings, teacher), depth))
        labeller, further = line[0] if line else None, further_maps(settings, line)
        for case in own:
            job = LabelJob(case, None, "", labeller, settings.labels, settings.folder)
            if images.is_current(case.id, job.files, None):
                digest = images.output_hash(case.id, "image")
                job = replace(job, cached=settings.prepared.image(case.id), cached_sha256=digest)
            others = {name: replace(job, **own) for name, own in further.items()}
            jobs[case.id] = replace(job, others=others, thresholds=limits)
    return jobs


def by_teacher(settings: RoundSettings, cases: Sequence[Case]) -> list[tuple[Teacher | None, list[Case]]]:
    """Share out cases to the teachers that have any; None takes the ground truth alone."""
    teachers = teachers_of(settings) if settings.is_hybrid else [None]
    shares = []
    for teacher in teachers:
        labels_rest = teacher is not None and teacher.key == UNLABELED
        own = [c for c in cases if len(teachers) == 1 or c.is_labeled != labels_rest]
        shares += [(teacher, own)] if own else []
    return shares


def _resume(
    settings: RoundSettings, jobs: Mapping[str, LabelJob], executor: Executor, fresh: Mapping[str, str]
) -> Resumed:
    """Do what is new or changed among cases of which all need the network, `fresh` with why, or none."""
    return resume_cases(
        label_case,
        {case: {"job": job} for case, job in jobs.items()},
        inputs={case: job.inputs for case, job in jobs.items()},
        config=lambda case: jobs[case].config,
        outputs=lambda case: jobs[case].outputs,
        journal=Journal(settings.folder.journal("label")),
        executor=executor,
        description="infer and merge labels" if fresh else "merge labels",
        again=fresh,
        # without a network, cases are done side by side on a machine with a GPU as well
        alone=lambda count: bool(fresh) and (count == 1 or one_by_one(settings.labels.inference)),
        before=lambda _: remove_partial(settings.folder.root, below=True),
    )


def merge(cfg: DictConfig) -> dict[str, Any]:
    """Merge ground truth and pseudo labels, of the cases of a `round`, or of plain folders.

    Gives `output` and `provenance` (paths), `merged` and `unchanged` (case ids), `summary` (Markdown). Both
    or neither is refused before any work; a case that failed is named at the end, as a refusal.
    """
    settle_paths(cfg)
    given = [key for key in FOLDERS if cfg[key] is not None]
    if (cfg.round.name is None) == (not given):
        what = f"given round={cfg.round.name} and {', '.join(given)}" if given else "given neither"
        raise FlareError(f"expected either round, or all of {', '.join(FOLDERS)}; {what}")
    if given and len(given) < len(FOLDERS):
        missing = ", ".join(key for key in FOLDERS if key not in given)
        raise FlareError(f"expected all of {', '.join(FOLDERS)}; missing: {missing}")
    cfg = agreed_classes(cfg, {k: Path(str(cfg[k])).expanduser().absolute() for k in given}, FOLDERS[:1])
    with closing(build_executor(cfg)) as executor:
        if given:
            plain = FolderSettings.from_config(cfg)
            output, done = plain.output, merge_folders(plain, executor)
        else:
            settings = RoundSettings.from_config(cfg, rules=cfg)
            output, done = settings.folder.labels, _merge_round(settings, executor)
    summary = (output / SUMMARY).read_text(encoding="utf-8")
    console.print(summary, markup=False, soft_wrap=True)
    report_failures(done.failures, "merge_labels")
    processed = set(done.processed)
    return {
        "output": output,
        "provenance": output / TABLE,
        "merged": done.processed,
        "unchanged": [case for case in done.values if case not in processed],
        "summary": summary,
    }


def _merge_round(settings: RoundSettings, executor: Executor) -> Resumed:
    """Label the training cases of a round."""
    if not settings.is_hybrid:
        raise FlareError(
            f"round={settings.name} trains on the ground truth alone "
            f"(labels.source={settings.labels.source}): there is nothing to merge"
        )
    require_teacher(settings)
    read_teacher(settings)
    cases = read_index(settings.prepared.index)
    chosen = settings.train_cases(cases)
    with lock(settings.folder.root):
        return label_cases(settings, chosen, executor, held_out(cases, "validation"))
