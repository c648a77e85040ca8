"""Predict held-out cases with a baseline; what is done and unchanged is left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from flare.runs.journal import Journal, resume_cases
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor

BASELINES = ("untrained", "thresholds", "atlas")
FORMAT = 2  # raised when a baseline changes, so that earlier predictions are redone
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
    cfg, cohort, executor = trained.rounds[-1].config, trained.cohort, trained.executor
    if name == "untrained":
        return _predict_untrained(cfg, cohort.require_intensity(), held_out, folder, executor)
    known = select_cases(cohort.cases, "organs_complete" if name == "atlas" else "labeled")
    pairs = {c.id: (cohort.folder.image(c.id), cohort.folder.labels(c.id)) for c in known}
    if not pairs:
        raise FlareError(f"baselines: {name} needs annotated training cases, and there are none")
    cache, spacing_mm = cohort.folder.journal("cache"), cohort.folder.spacing_mm
    learned = config_hash([[cache.output_hash(c, k) for k in ("image", "labels")] for c in pairs])
    function: Callable[..., None] = predict_by_atlas
    shared: dict[str, Any] = {"atlases": list(pairs.values())}
    if name == "thresholds":
        priors = folder / "priors.json"
        classes = ClassList.from_config(cfg.classes)
        learned, failures = _fit_once(priors, learned, pairs, classes, spacing_mm, executor)
        if failures:
            reason = f"thresholds could not be fitted, {len(failures)} training cases failed"
            return [*failures, *(Outcome(c.id, error=reason, is_fault=True) for c in held_out)]
        function, shared = predict_by_thresholds, {"priors": priors}
    targets = {c.id: segmentation_path(folder / "predictions", c.id) for c in held_out}
    done = resume_cases(
        function,
        {
            c.id: shared | {"image": c.image, "target": targets[c.id], "spacing_mm": spacing_mm}
            for c in held_out
        },
        inputs={c.id: {"image": c.image, "learned": learned} for c in held_out},
        config={"name": name, "format": FORMAT, "spacing_mm": spacing_mm},
        outputs=lambda case: {"segmentation": targets[case]},
        journal=Journal(folder / "journal" / "predict.jsonl"),
        executor=executor,
        description=name,
    )
    return done.failures


def _predict_untrained(
    cfg: DictConfig, intensity: Intensity, cases: Sequence[Case], folder: Path, executor: Executor
) -> list[Outcome]:
    """Predict with the weights a round would start from."""
    checkpoint = folder / "untrained.ckpt"
    journal = Journal(folder / "journal" / "weights.jsonl")
    config = {"model": dict(cfg.model.net), "seed": cfg.seed, "intensity": intensity.to_dict()}
    if not journal.is_current("untrained", {}, config):
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


def save_untrained(cfg: DictConfig, intensity: Intensity, path: Path) -> None:
    """Write a checkpoint with the weights that a round would start from, to predict like any other.

    Args:
        cfg: Configuration of the round.
        intensity: Statistics of the cohort.
        path: The checkpoint to write.
    """
    import pytorch_lightning as pl

    from flare.runs.checkpoints import KEY, write_weights_file
    from flare.training.build import build_module
    from flare.training.settings import TrainingSettings

    pl.seed_everything(int(cfg.seed), verbose=False)
    module = build_module(TrainingSettings.from_config(cfg), intensity)
    write_weights_file(path, {"state_dict": module.state_dict(), KEY: module.carried})


def _fit_once(
    path: Path,
    learned: str,
    pairs: Mapping[str, Pair],
    classes: ClassList,
    spacing_mm: Spacing,
    executor: Executor,
) -> tuple[str, list[Outcome]]:
    """Fit the thresholds into a file, if anything changed; returns its hash and the cases that failed."""
    journal = Journal(path.parent / "journal" / "fit.jsonl")
    inputs = {"learned": learned}
    config = {"format": FORMAT, "classes": list(classes.ids), "spacing_mm": spacing_mm}
    if not journal.is_current("fit", inputs, config):
        from flare.baselines.thresholds import fit_priors, write_priors

        priors, failures = fit_priors(pairs, classes.ids, spacing_mm, executor)
        if failures:
            return "", failures
        write_priors(path, priors)
        journal.record("fit", inputs, config, {"priors": path})
    return journal.output_hash("fit", "priors"), []


def predict_by_thresholds(image: Path, target: Path, priors: Path, spacing_mm: Spacing) -> None:
    """Segment one case by a fit that `write_priors` wrote, and write it in its own geometry."""
    from flare.baselines.thresholds import read_priors, segment_by_thresholds

    known = read_priors(priors)
    _segment(image, target, spacing_mm, lambda hu: segment_by_thresholds(hu, known, spacing_mm))


def predict_by_atlas(image: Path, target: Path, atlases: Sequence[Pair], spacing_mm: Spacing) -> None:
    """Segment one case by the vote of atlases, one in memory at a time, and write it in its own geometry."""
    from flare.baselines.atlas import vote
    from flare.data.cache import open_array

    read = ((open_array(i)[:, :, :], open_array(labels)[:, :, :]) for i, labels in atlases)
    _segment(image, target, spacing_mm, lambda hu: vote(hu, read, spacing_mm))


def _segment(
    image: Path, target: Path, spacing_mm: Spacing, segment: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Bring a case to the training grid, segment it there, and write the result in the case's geometry."""
    volume = read_image(image)
    done = preprocess(volume, spacing_mm, "linear")
    native = done.orientation.invert(resample(segment(done.array), done.ras.shape, "nearest"))
    write_labels(target, native, volume.geometry)
