"""A trained round on cases it has never seen: predict, score, and fit its post-processing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.files import config_hash, read_json, sha256
from flare.evaluation.scores import failed_cases, score_folder
from flare.inference.components import fit_components, write_fit
from flare.inference.predict import Predicted, predict_cases, segmentation_path
from flare.rounds.settings import RoundSettings
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome, stop_on_faults
from flare.runs.work import Executor

log = logging.getLogger(__name__)
Summary = dict[str, Any]


def held_out(cases: Sequence[Case], split: str) -> list[Case]:
    """The labelled cases of a split; only those can be scored."""
    return [c for c in cases if c.split == split and c.is_labeled]


def finish_round(settings: RoundSettings, cases: Sequence[Case], executor: Executor) -> list[Outcome]:
    """Predict and score the validation cases with the round's last checkpoint, and fit its components.

    Post-processing is off here (paper, section 2.3): the fit is for the pseudo labels that the round will
    make. Without labelled validation cases there is nothing to do.

    Args:
        settings: The round; its folder gets `validation/` and `components.json`.
        cases: The prepared cohort.
        executor: Where the cases are worked on.

    Returns:
        Cases that failed, and why.

    Raises:
        FlareError: If a step failed in general, see `outcomes.stop_on_faults`.
    """
    chosen = held_out(cases, "validation")
    if not chosen:
        log.info("no labelled validation case: no validation score, and no fit of largest components")
        return []
    predicted = predict_split(settings, chosen, "validation", executor)
    step = f"round={settings.name}, predicting validation cases"
    stop_on_faults(predicted.failures, step, [c.id for c in chosen], settings.max_failed)
    failed = {f.case_id for f in predicted.failures}
    scored = [c for c in chosen if c.id not in failed]
    _, failures = score_split(settings, scored, settings.folder.root / "validation", executor)
    classes = settings.classes
    if set(classes.organs) & set(classes.outputs(settings.labels.targets)):
        failed = {f.case_id for f in failures}
        failures += _fit(settings, [c for c in scored if c.id not in failed], executor)
    return [*predicted.failures, *failures]


def predict_split(
    settings: RoundSettings, cases: Sequence[Case], split: str, executor: Executor
) -> Predicted:
    """Predict held-out cases with the round's last checkpoint into `<split>/predictions`."""
    folder = settings.folder
    return predict_cases(
        folder.last,
        {c.id: c.image for c in cases},
        folder.root / split / "predictions",
        settings=settings.inference,
        executor=executor,
        journal=folder.journal(f"predict-{split}"),
    )


def score_split(
    settings: RoundSettings, cases: Sequence[Case], folder: Path, executor: Executor
) -> tuple[Summary, list[Outcome]]:
    """Score `<folder>/predictions` against the annotations of its cases, if anything changed.

    Args:
        settings: Of a round.
        cases: Labelled cases.
        folder: Gets `metrics.csv` and `summary.json`.
        executor: Where the cases are worked on.

    Returns:
        The summary, and the cases that could not be scored; all are scored again the next time if
        one failed by no fault of its files.

    Raises:
        FlareError: If scoring failed in general, see `outcomes.stop_on_faults`; what was scored before stays.
    """
    references = {c.id: c.label for c in cases if c.label is not None}
    inputs: dict[str, Path | str] = dict(references) | {"predictions": _digest(cases, folder)}
    config = settings.score.identity()
    journal = Journal(folder / "journal.jsonl")
    outputs = {"metrics": folder / "metrics.csv", "summary": folder / "summary.json"}
    if not journal.is_current("score", inputs, config):
        found = score_folder(
            folder / "predictions",
            references,
            output=folder,
            settings=settings.score,
            executor=executor,
        )
        if not found["faults"]:
            journal.record("score", inputs, config, outputs)
    summary = read_json(outputs["summary"])
    return summary, failed_cases(summary)


def _digest(cases: Sequence[Case], folder: Path) -> str:
    """Hash of the predictions that are there."""
    paths = [segmentation_path(folder / "predictions", c.id) for c in cases]
    return config_hash([sha256(p) if p.exists() else None for p in paths])


def _fit(settings: RoundSettings, cases: Sequence[Case], executor: Executor) -> list[Outcome]:
    """Decide for which organs the largest component helps, if anything changed; returns what failed."""
    classes, label_map, folder = settings.classes, settings.labels.merge.label_map, settings.folder
    journal = folder.journal("components")
    inputs: dict[str, Path | str] = {c.id: c.label for c in cases if c.label is not None}
    inputs["predictions"] = _digest(cases, folder.root / "validation")
    checkpoint = sha256(folder.last)
    config = {"classes": classes.to_config(), "label_map": label_map, "checkpoint": checkpoint}
    if journal.is_current("components", inputs, config):
        return []
    pairs = {
        c.id: (segmentation_path(folder.root / "validation" / "predictions", c.id), c.label)
        for c in cases
        if c.label is not None
    }
    fit, failures = fit_components(pairs, classes=classes, label_map=label_map, executor=executor)
    stop_on_faults(failures, f"round={settings.name}, fitting components", pairs, settings.max_failed)
    write_fit(folder.components, fit, checkpoint)
    if not failures:
        journal.record("components", inputs, config, {"components": folder.components})
    return failures
