"""Predict held-out cases with a baseline; what is done and unchanged is left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flare.core.cases import Case, select_cases
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import config_hash
from flare.core.geometry import Spacing
from flare.core.preprocessing import Intensity, preprocess, resample
from flare.core.volumes import read_image, write_labels
from flare.inference.predict import predict_cases, segmentation_path
from flare.inference.settings import InferenceSettings
from flare.rounds.ablation import Predict, Trained
from flare.runs.folders import PreparedFolder
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor, run_cases

BASELINES = ("untrained", "thresholds", "atlas")
FORMAT = 1  # raised when a baseline changes, so that earlier predictions are redone
Pair = tuple[Path, Path]


def check_baselines(names: Sequence[str]) -> None:
    """Refuse what is no baseline.

    Raises:
        FlareError: Naming it.
    """
    for name in names:
        if name not in BASELINES:
            raise FlareError(f"baselines: expected some of {list(BASELINES)}, given {name!r}")


def predictors(names: Sequence[str], trained: Trained) -> dict[str, Predict]:
    """What predicts held-out cases with each baseline, for `rounds.ablation.write_ablation`."""
    return {name: partial(predict_baseline, name, trained) for name in names}


def predict_baseline(name: str, trained: Trained, held_out: Sequence[Case], folder: Path) -> list[Outcome]:
    """Predict held-out cases with one baseline into `<folder>/predictions`.

    Args:
        name: `untrained` (the last round's network with fresh weights), `thresholds` or `atlas`.
        trained: The rounds; the latter two learn from the annotated training cases of their cohort.
        held_out: Cases to predict.
        folder: The baseline's folder.

    Returns:
        Cases that failed, and why.

    Raises:
        FlareError: If the cohort has no case to learn from.
    """
    cfg, executor, cohort = trained.rounds[-1].config, trained.executor, trained.cohort
    if name == "untrained":
        return _untrained(cfg, cohort.require_intensity(), held_out, folder, executor)
    known = select_cases(cohort.cases, "organs_complete" if name == "atlas" else "labeled")
    pairs = {c.id: (cohort.folder.image(c.id), cohort.folder.labels(c.id)) for c in known}
    if not pairs:
        raise FlareError(f"baselines: {name} needs annotated training cases, and there are none")
    return _from_pairs(name, cfg, pairs, cohort.folder, held_out, folder, executor)


def _untrained(
    cfg: DictConfig, intensity: Intensity, cases: Sequence[Case], folder: Path, executor: Executor
) -> list[Outcome]:
    """Predict with the weights a round would start from."""
    checkpoint = folder / "untrained.ckpt"
    journal = Journal(folder / "journal" / "weights.jsonl")
    config = {"model": dict(cfg.model.net), "seed": cfg.seed, "intensity": intensity.to_dict()}
    if not journal.is_current("untrained", {}, config):
        from flare.baselines.untrained import save_untrained

        save_untrained(cfg, intensity, checkpoint)
        journal.record("untrained", {}, config, {"checkpoint": checkpoint})
    predicted = predict_cases(
        checkpoint,
        {c.id: c.image for c in cases},
        folder / "predictions",
        settings=InferenceSettings.from_config(cfg),
        executor=executor,
        journal=Journal(folder / "journal" / "predict.jsonl"),
    )
    return predicted.failures


def _from_pairs(
    name: str,
    cfg: DictConfig,
    pairs: dict[str, Pair],
    prepared: PreparedFolder,
    cases: Sequence[Case],
    folder: Path,
    executor: Executor,
) -> list[Outcome]:
    """Predict with a baseline that learns from annotated training cases."""
    cache = prepared.journal("cache")
    learned = config_hash([[cache.output_hash(c, k) for k in ("image", "labels")] for c in pairs])
    shared: dict[str, Any] = {"spacing_mm": prepared.spacing_mm}
    function: Callable[..., None] = predict_by_atlas
    if name == "thresholds":
        priors = folder / "priors.json"
        classes = ClassList.from_config(cfg.classes).ids
        learned, failures = _fit_once(priors, learned, pairs, classes, prepared.spacing_mm, executor)
        if failures:
            reason = f"thresholds could not be fitted, {len(failures)} training cases failed"
            return [*failures, *(Outcome(c.id, error=reason, is_fault=True) for c in cases)]
        function = predict_by_thresholds
        shared["priors"] = priors
    else:
        shared["atlases"] = list(pairs.values())
    journal = Journal(folder / "journal" / "predict.jsonl")
    config = {"name": name, "format": FORMAT, "spacing_mm": prepared.spacing_mm}
    inputs: dict[str, dict[str, Path | str]] = {c.id: {"image": c.image, "learned": learned} for c in cases}
    targets = {c.id: segmentation_path(folder / "predictions", c.id) for c in cases}
    jobs: dict[str, dict[str, Any]] = {
        c.id: {"case": c.id, "image": c.image, "target": targets[c.id], **shared}
        for c in cases
        if not journal.is_current(c.id, inputs[c.id], config)
    }
    failures = []
    for outcome in run_cases(function, jobs, executor=executor, description=name):
        if outcome.error is None:
            case = outcome.case_id
            journal.record(case, inputs[case], config, {"segmentation": targets[case]})
        else:
            failures.append(outcome)
    return failures


def _fit_once(
    path: Path,
    learned: str,
    pairs: dict[str, Pair],
    classes: Sequence[int],
    spacing_mm: Spacing,
    executor: Executor,
) -> tuple[str, list[Outcome]]:
    """Fit the thresholds into a file, if anything changed; returns its hash and the cases that failed."""
    journal = Journal(path.parent / "journal" / "fit.jsonl")
    inputs = {"learned": learned}
    config = {"format": FORMAT, "classes": list(classes), "spacing_mm": spacing_mm}
    if not journal.is_current("fit", inputs, config):
        from flare.baselines.thresholds import fit_priors, write_priors

        priors, failures = fit_priors(pairs, classes, spacing_mm, executor)
        if failures:
            return "", failures
        write_priors(path, priors)
        journal.record("fit", inputs, config, {"priors": path})
    return journal.output_hash("fit", "priors"), []


def predict_by_thresholds(case: str, image: Path, target: Path, priors: Path, spacing_mm: Spacing) -> None:
    """Segment one case by a fit that `write_priors` wrote, and write it in its own geometry."""
    from flare.baselines.thresholds import read_priors, segment_by_thresholds

    known = read_priors(priors)
    _segment(case, image, target, spacing_mm, lambda hu: segment_by_thresholds(hu, known, spacing_mm))


def predict_by_atlas(
    case: str, image: Path, target: Path, atlases: Sequence[Pair], spacing_mm: Spacing
) -> None:
    """Segment one case by the vote of atlases, one in memory at a time, and write it in its own geometry."""
    from flare.baselines.atlas import vote
    from flare.data.cache import open_array

    read = ((open_array(i)[:, :, :], open_array(labels)[:, :, :]) for i, labels in atlases)
    _segment(case, image, target, spacing_mm, lambda hu: vote(hu, read, spacing_mm))


def _segment(
    case: str, image: Path, target: Path, spacing_mm: Spacing, segment: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Bring a case to the training grid, segment it there, and write the result in the case's geometry."""
    volume = read_image(image, case)
    done = preprocess(volume, spacing_mm, "linear")
    found = segment(done.array)
    native = done.orientation.invert(resample(found, done.ras.shape, "nearest"))
    write_labels(target, native, volume.geometry)
