"""Predict held-out cases with a baseline; what is done and unchanged is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flare.cases import Case, select_cases
from flare.errors import FlareError
from flare.executor import Executor, Outcome, run_cases
from flare.files import config_hash
from flare.geometry import Spacing
from flare.images import read_image, write_labels
from flare.inference.cohort import predict_cases, segmentation_path
from flare.inference.settings import InferenceSettings
from flare.journal import Journal
from flare.labels import LabelSet
from flare.prepare.layout import PreparedFolder, prepared_folder
from flare.preprocessing import Intensity, preprocess
from flare.resampling import resample

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


def predict_baseline(
    name: str,
    cfg: DictConfig,
    *,
    cohort: Sequence[Case],
    intensity: Intensity,
    held_out: Sequence[Case],
    folder: Path,
    executor: Executor,
) -> list[Outcome]:
    """Predict held-out cases with one baseline into `<folder>/predictions`.

    Args:
        name: `untrained` (the network of `cfg` with fresh weights), `thresholds` or `atlas`.
        cfg: Configuration of the last round.
        cohort: The prepared cohort; the latter two learn from its annotated training cases.
        intensity: Statistics of the cohort.
        held_out: Cases to predict.
        folder: The baseline's folder.
        executor: Where the cases are worked on.

    Returns:
        Cases that failed, and why.
    """
    check_baselines([name])
    if name == "untrained":
        return _untrained(cfg, intensity, held_out, folder, executor)
    prepared = prepared_folder(cfg)
    complete = select_cases(cohort, "organs_complete")
    known = complete if name == "atlas" else select_cases(cohort, "labeled")
    pairs = {c.id: (prepared.image(c.id), prepared.labels(c.id)) for c in known}
    if not pairs:
        raise FlareError(f"baselines: {name} needs annotated training cases, and there are none")
    return _from_pairs(name, cfg, pairs, prepared, held_out, folder, executor)


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
    journal = Journal(folder / "journal" / "predict.jsonl")
    config = {"name": name, "format": FORMAT, "spacing_mm": prepared.spacing_mm}
    inputs: dict[str, dict[str, Path | str]] = {c.id: {"image": c.image, "learned": learned} for c in cases}
    jobs: dict[str, dict[str, Any]] = {
        c.id: {
            "name": name,
            "case": c.id,
            "image": c.image,
            "target": segmentation_path(folder / "predictions", c.id),
            "pairs": list(pairs.values()),
            "classes": LabelSet.from_config(cfg.classes).to_config(),
            "spacing_mm": prepared.spacing_mm,
        }
        for c in cases
        if not journal.is_current(c.id, inputs[c.id], config)
    }
    failures = []
    for outcome in run_cases(predict_from_pairs, jobs, executor=executor, description=name):
        if outcome.error is None:
            case = outcome.case_id
            target = segmentation_path(folder / "predictions", case)
            journal.record(case, inputs[case], config, {"segmentation": target})
        else:
            failures.append(outcome)
    return failures


def predict_from_pairs(
    name: str,
    case: str,
    image: Path,
    target: Path,
    pairs: Sequence[Pair],
    classes: dict[str, Any],
    spacing_mm: Spacing,
) -> None:
    """Segment one case by thresholds or by the vote of atlases, and write it in its own geometry."""
    from flare.baselines.atlas import vote
    from flare.baselines.thresholds import fit_priors, segment_by_thresholds
    from flare.prepare.cache import open_array

    known: list[tuple[np.ndarray, np.ndarray]] = [
        (open_array(i)[:, :, :], open_array(labels)[:, :, :]) for i, labels in pairs
    ]
    volume = read_image(image, case)
    done = preprocess(volume, spacing_mm, "linear")
    if name == "atlas":
        found = vote(done.array, known, spacing_mm)
    else:
        priors = fit_priors(known, LabelSet.from_config(classes).ids, spacing_mm)
        found = segment_by_thresholds(done.array, priors, spacing_mm)
    native = done.orientation.invert(resample(found, done.ras.shape, "nearest"))
    write_labels(target, native, volume.geometry)
