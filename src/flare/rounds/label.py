"""A round's training labels: ground truth as it is, or predict with the teacher, merge, and cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import Case, read_label_map, select_cases
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import config_hash, sha256
from flare.inference.components import fitted_classes
from flare.inference.predict import Predicted, predict_cases
from flare.inference.settings import InferenceSettings
from flare.merging.merge import MergedCohort, merge_round
from flare.merging.rules import MergeRules, PseudoSource
from flare.rounds.teachers import UNLABELED, Teacher, require_teacher, teachers_of
from flare.runs.folders import PreparedFolder, RoundFolder, RunFolder, prepared_folder, round_of
from flare.runs.outcomes import Outcome, stop_on_faults
from flare.runs.work import Executor, failed_share, run_cases

FORMAT = 1  # raised when what is cached changes, so that labels cached before are redone


@dataclass(frozen=True)
class TrainingSet:
    """What a round trains on.

    Args:
        items: Case id -> (cached image, cached labels), in index order.
        key: Digest of all of it: equal keys train equal networks.
        failures: Cases that could not be labelled, and why.
    """

    items: dict[str, tuple[Path, Path]]
    key: str
    failures: list[Outcome]


def build_training_set(
    cfg: DictConfig, cases: Sequence[Case], run: RunFolder, executor: Executor
) -> TrainingSet:
    """Make the labels of a round, or find them made; only what is new or changed is done again.

    Args:
        cfg: The round's configuration.
        cases: The prepared cohort.
        run: The run's folder.
        executor: Where the cases are worked on.

    Raises:
        FlareError: If the round has no case, its teacher no checkpoint, or a general fault keeps cases
            away.
    """
    chosen = select_cases(cases, cfg.labels.cases)
    if not chosen:
        raise FlareError(
            f"round={cfg.round.name}: no training case is {cfg.labels.cases!r} (labels.cases); "
            "see the label analysis of the cohort"
        )
    require_teacher(cfg, run)
    prepared = prepared_folder(cfg)
    cache = prepared.journal("cache")
    failures: list[Outcome] = []
    if cfg.labels.source == "ground_truth":
        cached = {c.id: (prepared.labels(c.id), cache.output_hash(c.id, "labels")) for c in chosen}
    else:
        merged = label_cases(cfg, chosen, run, executor)
        cached, failed = _cache(merged, prepared, run.round(cfg.round.name), executor)
        failures = [*merged.failures, *failed]
        stop_on_faults(failed, f"round={cfg.round.name}, caching labels", merged.labels, failed_share(cfg))
    items = {c.id: (prepared.image(c.id), cached[c.id][0]) for c in chosen if c.id in cached}
    if not items:
        raise FlareError(f"round={cfg.round.name}: no training case could be labelled: {failures[0].error}")
    parts = [(case, cache.output_hash(case, "image"), cached[case][1]) for case in items]
    # the teacher also decides where the weights start, and statistics how images are normalised
    start = _teacher_hash(cfg, run) if cfg.round.init == "teacher" else None
    key = config_hash([parts, start, sha256(prepared.statistics)])
    return TrainingSet(items, key, failures)


def label_cases(
    cfg: DictConfig,
    cases: Sequence[Case],
    run: RunFolder,
    executor: Executor,
    rules: MergeRules | None = None,
) -> MergedCohort:
    """Predict cases with a round's teachers and merge the pseudo labels with their ground truth.

    Cases without ground truth may have a teacher of their own (`round.unlabeled_teacher`). The
    post-processing fitted on the very teacher (`components.json`) is applied to what it predicts.

    Args:
        cfg: The round's configuration.
        cases: The round's training cases.
        run: The run's folder.
        executor: Where the cases are worked on.
        rules: How to merge, if not as `cfg.labels` says.

    Returns:
        The merged labels on the original grids; `failures` holds those of both steps.

    Raises:
        FlareError: If either step failed in general, see `outcomes.stop_on_faults`.
    """
    classes = ClassList.from_config(cfg.classes)
    folder = run.round(cfg.round.name)
    failures: list[Outcome] = []
    sources: dict[str, PseudoSource] = {}
    for teacher, pupils in _assign(cases, teachers_of(cfg, run)):
        digest = sha256(teacher.checkpoint)
        failures += _predict(cfg, teacher, digest, pupils, folder, executor).failures
        sources |= {case.id: PseudoSource(teacher.round, digest) for case in pupils}
    step, ids = f"round={cfg.round.name}", [case.id for case in cases]
    stop_on_faults(failures, f"{step}, predicting", ids, failed_share(cfg))
    failed = {f.case_id for f in failures}
    merged = merge_round(
        [c for c in cases if c.id not in failed],
        folder,
        classes=classes,
        label_map=read_label_map(cfg.data.label_map, classes),
        rules=rules or MergeRules.from_config(cfg.labels),
        teachers=sources,
        executor=executor,
    )
    stop_on_faults(merged.failures, f"{step}, merging labels", ids, failed_share(cfg))
    merged.failures[:0] = failures
    return merged


def _assign(cases: Sequence[Case], teachers: Sequence[Teacher]) -> list[tuple[Teacher, list[Case]]]:
    """Give each case to its teacher: one without ground truth to that of its own, where there is one."""
    taught: dict[str, list[Case]] = {teacher.key: [] for teacher in teachers}
    for case in cases:
        key = UNLABELED if UNLABELED in taught and not case.is_labeled else teachers[0].key
        taught[key].append(case)
    return [(teacher, taught[teacher.key]) for teacher in teachers if taught[teacher.key]]


def _predict(
    cfg: DictConfig,
    teacher: Teacher,
    digest: str,
    cases: Sequence[Case],
    folder: RoundFolder,
    executor: Executor,
) -> Predicted:
    """Predict cases with one teacher, post-processed as was fitted on it in its own round."""
    fitted = round_of(teacher.checkpoint).components
    return predict_cases(
        teacher.checkpoint,
        {c.id: c.image for c in cases},
        folder.predictions,
        settings=InferenceSettings.from_config(cfg),
        executor=executor,
        journal=folder.journal("predict"),
        components=fitted_classes(fitted, digest, ClassList.from_config(cfg.classes)),
    )


def _teacher_hash(cfg: DictConfig, run: RunFolder) -> str | None:
    """Hash of the checkpoint from which weights may start."""
    teachers = teachers_of(cfg, run)
    return sha256(teachers[0].checkpoint) if teachers else None


def _cache(
    merged: MergedCohort, prepared: PreparedFolder, folder: RoundFolder, executor: Executor
) -> tuple[dict[str, tuple[Path, str]], list[Outcome]]:
    """Bring merged labels to the training grid; returns path and hash of each, and what failed."""
    journal, images = folder.journal("cache"), prepared.journal("cache")
    config = {"format": FORMAT, "spacing_mm": prepared.spacing_mm}
    inputs = {
        case: {"labels": digest, "image": images.output_hash(case, "image")}
        for case, digest in merged.hashes.items()
    }
    targets = {case: folder.training_labels / f"{case}.b2nd" for case in inputs}
    jobs: dict[str, dict[str, Any]] = {
        case: {"case": case, "labels": merged.labels[case], "image": prepared.image(case), "target": target}
        for case, target in targets.items()
        if not journal.is_current(case, inputs[case], config)
    }
    failures = []
    for outcome in run_cases(cache_merged, jobs, executor=executor, description="cache labels"):
        if outcome.error is None:
            case = outcome.case_id
            journal.record(case, inputs[case], config, {"labels": targets[case]})
        else:
            failures.append(outcome)
    failed = {f.case_id for f in failures}
    done = {c: (target, journal.output_hash(c, "labels")) for c, target in targets.items() if c not in failed}
    return done, failures


def cache_merged(case: str, labels: Path, image: Path, target: Path) -> None:
    """Store a merged label map on the grid of its cached image.

    Args:
        case: The case id.
        labels: Merged labels on the original grid, class ids.
        image: The cached image.
        target: The file to write.
    """
    from flare.core.volumes import read_image
    from flare.data.cache import cache_labels

    cache_labels(read_image(labels, case), target, image=image, case_id=case)
