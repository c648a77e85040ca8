"""Predict held-out cases with a baseline; what is done and unchanged is left alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flare.core import class_files, volumes
from flare.core.cases import Case, select_cases
from flare.core.errors import FlareError
from flare.core.files import config_hash, write_json
from flare.core.geometry import Spacing
from flare.core.preprocessing import Intensity, preprocess, resample
from flare.inference.predict import predict_cases, segmentation_path
from flare.rounds.score import Trained
from flare.runs.journal import Journal, resume_cases
from flare.runs.work import Outcome
from flare.training.settings import TrainingSettings

BASELINES = ("untrained", "thresholds", "atlas")
FORMAT = 2  # raised when a baseline changes, so that earlier predictions are redone
PRIORS = "priors.json"
Pair = tuple[Path, Path]  # image and labels
Pairs = Mapping[str, Pair]


def check_baselines(names: Sequence[str]) -> None:
    """Refuse what is no baseline, naming it."""
    if foreign := [name for name in names if name not in BASELINES]:
        raise FlareError(f"baselines: expected some of {list(BASELINES)}, given {foreign[0]!r}")


def predict_baseline(name: str, trained: Trained, held_out: Sequence[Case], folder: Path) -> list[Outcome]:
    """Predict held-out cases with one baseline into `<folder>/predictions`.

    `untrained` is the last round's network with fresh weights; `thresholds` and `atlas` learn from the
    annotated training cases of the cohort; one without any is refused. Returns the cases that failed.
    """
    if name == "untrained":
        return _predict_untrained(trained, held_out, folder)
    cohort = trained.cohort
    known = select_cases(cohort.cases, "organs_complete" if name == "atlas" else "labeled")
    pairs = {c.id: (cohort.folder.image(c.id), cohort.folder.labels(c.id)) for c in known}
    if not pairs:
        raise FlareError(f"baselines: {name} needs annotated training cases, and there are none")
    cache, spacing_mm = Journal(cohort.folder.journal("cache")), cohort.folder.spacing_mm
    learned = config_hash([[cache.output_hash(c, k) for k in ("image", "labels")] for c in pairs])
    function: Callable[..., None] = predict_by_atlas
    shared: dict[str, Any] = {"spacing_mm": spacing_mm, "atlases": list(pairs.values())}
    if name == "thresholds":
        learned, failures = _fit_once(folder, trained, pairs, learned)
        if failures:
            reason = f"thresholds could not be fitted, {len(failures)} training cases failed"
            return [*failures, *(Outcome(c.id, error=reason, is_fault=True) for c in held_out)]
        function, shared = predict_by_thresholds, {"spacing_mm": spacing_mm, "priors": folder / PRIORS}
    targets = {c.id: segmentation_path(folder / "predictions", c.id) for c in held_out}
    class_files.write_classes(folder / "predictions", trained.rounds[-1].classes)
    done = resume_cases(
        function,
        {c.id: {"image": c.image, "target": targets[c.id], **shared} for c in held_out},
        inputs={c.id: {"image": c.image, "learned": learned} for c in held_out},
        config={"name": name, "format": FORMAT, "spacing_mm": spacing_mm},
        outputs=lambda case: {"segmentation": targets[case]},
        journal=Journal(folder / "journal" / "predict.jsonl"),
        executor=trained.executor,
        description=name,
    )
    return done.failures


def _predict_untrained(trained: Trained, held_out: Sequence[Case], folder: Path) -> list[Outcome]:
    """Predict with the weights that the last round would start from."""
    last, intensity = trained.rounds[-1], trained.cohort.require_intensity()
    checkpoint = folder / "untrained.ckpt"
    journal = Journal(folder / "journal" / "weights.jsonl")
    seed = last.training.patches.seed
    config = {"model": last.training.net, "seed": seed, "intensity": intensity.to_dict()}
    if not journal.is_current("untrained", {}, config):
        save_untrained(last.training, intensity, checkpoint)
        journal.record("untrained", {}, config, {"checkpoint": checkpoint})
    predicted = predict_cases(
        checkpoint,
        {c.id: c.image for c in held_out},
        folder / "predictions",
        settings=last.training.inference,
        executor=trained.executor,
        journal=Journal(folder / "journal" / "predict.jsonl"),
        classes=last.classes,
    )
    return predicted.failures


def save_untrained(settings: TrainingSettings, intensity: Intensity, path: Path) -> None:
    """Write a checkpoint with the weights that a round would start from, to predict like any other."""
    import pytorch_lightning as pl

    from flare.runs.checkpoints import KEY, write_weights_file
    from flare.training.build import build_module

    pl.seed_everything(settings.patches.seed, verbose=False)
    module = build_module(settings, intensity)
    write_weights_file(path, {"state_dict": module.state_dict(), KEY: module.carried})


def _fit_once(folder: Path, trained: Trained, pairs: Pairs, learned: str) -> tuple[str, list[Outcome]]:
    """Fit the thresholds into a file, if anything changed; returns its hash and the cases that failed."""
    ids, spacing_mm = trained.rounds[-1].classes.ids, trained.cohort.folder.spacing_mm
    journal = Journal(folder / "journal" / "fit.jsonl")
    config = {"format": FORMAT, "classes": list(ids), "spacing_mm": spacing_mm}
    if not journal.is_current("fit", {"learned": learned}, config):
        from flare.baselines.methods import fit_priors

        priors, failures = fit_priors(pairs, ids, spacing_mm, trained.executor)
        if failures:
            return "", failures
        write_json(folder / PRIORS, {str(class_id): asdict(prior) for class_id, prior in priors.items()})
        journal.record("fit", {"learned": learned}, config, {"priors": folder / PRIORS})
    return journal.output_hash("fit", "priors"), []


def predict_by_thresholds(image: Path, target: Path, priors: Path, spacing_mm: Spacing) -> None:
    """Segment one case by a fit from `_fit_once`, and write it in its own geometry."""
    from flare.baselines.methods import read_priors, segment_by_thresholds

    known = read_priors(priors)
    _segment(image, target, spacing_mm, lambda hu: segment_by_thresholds(hu, known, spacing_mm))


def predict_by_atlas(image: Path, target: Path, atlases: Sequence[Pair], spacing_mm: Spacing) -> None:
    """Segment one case by the vote of atlases, one in memory at a time, and write it in its own geometry."""
    from flare.baselines.methods import vote
    from flare.data.cache import Stored

    read = ((Stored(i)[:, :, :], Stored(labels)[:, :, :]) for i, labels in atlases)
    _segment(image, target, spacing_mm, lambda hu: vote(hu, read, spacing_mm))


def _segment(
    image: Path, target: Path, spacing_mm: Spacing, segment: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Bring a case to the training grid, segment it there, and write the result in the case's geometry."""
    volume = volumes.read_image(image)
    done = preprocess(volume, spacing_mm, "linear")
    native = done.orientation.invert(resample(segment(done.array), done.ras.shape, "nearest"))
    volumes.write_labels(target, native, volume.geometry)
