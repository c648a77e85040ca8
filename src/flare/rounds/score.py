"""Trained rounds on cases they have never seen: predictions, scores, component fit; the ablation table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.files import config_hash, read_json, sha256
from flare.evaluation.published import PHANTOM
from flare.evaluation.scores import failed_cases, score_folder
from flare.evaluation.summary import read_scores, summarise
from flare.evaluation.tables import AblationRow, table5, write_round_tables
from flare.inference.components import fit_components, write_fit
from flare.inference.predict import Predicted, predict_cases, segmentation_path
from flare.prepare.cohort import Cohort
from flare.rounds.graph import plan_rounds, tell_starts
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RunFolder
from flare.runs.journal import Journal
from flare.runs.work import Executor, Outcome, stop_on_faults

log = logging.getLogger(__name__)
Summary = dict[str, Any]
# of held-out cases into `<folder>/predictions`; returns the cases that failed
Predict = Callable[[Sequence[Case], Path], list[Outcome]]


def held_out(cases: Sequence[Case], split: str) -> list[Case]:
    """The labelled cases of a split; only those can be scored."""
    return [c for c in cases if c.split == split and c.is_labeled]


def finish_round(settings: RoundSettings, cases: Sequence[Case], executor: Executor) -> list[Outcome]:
    """Predict and score the validation cases with the round's last checkpoint, and fit its components.

    Post-processing is off here (paper, section 2.3): the fit is for the pseudo labels that the round will
    make. Returns the cases that failed; stops the run as `stop_on_faults` does.
    """
    chosen = held_out(cases, "validation")
    if not chosen:
        log.info("no labelled validation case: no validation score, and no fit of largest components")
        return []
    refused = predict_split(settings, chosen, "validation", executor).failures
    step = f"round={settings.name}, predicting validation cases"
    stop_on_faults(refused, step, [c.id for c in chosen], settings.max_failed)
    folder = settings.folder.root / "validation"
    _, failures = score_split(settings, chosen, folder, executor, refused)
    learnt = set(settings.classes.outputs(settings.labels.targets))
    if settings.labels.inference.components == "fitted" and learnt & set(settings.classes.organs):
        failures += _fit(settings, _without(chosen, failures), executor)
    return failures


def _without(cases: Sequence[Case], failures: Sequence[Outcome]) -> list[Case]:
    """The cases that have not failed."""
    failed = {f.case_id for f in failures}
    return [c for c in cases if c.id not in failed]


def predict_split(
    settings: RoundSettings, cases: Sequence[Case], split: str, executor: Executor
) -> Predicted:
    """Predict held-out cases with the round's last checkpoint into `<split>/predictions`."""
    folder = settings.folder
    return predict_cases(
        folder.last,
        {c.id: c.image for c in cases},
        folder.root / split / "predictions",
        settings=settings.training.inference,
        executor=executor,
        journal=Journal(folder.journal(f"predict-{split}")),
        classes=settings.classes,
    )


def score_split(
    settings: RoundSettings,
    cases: Sequence[Case],
    folder: Path,
    executor: Executor,
    refused: Sequence[Outcome] = (),
) -> tuple[Summary, list[Outcome]]:
    """Score `<folder>/predictions` against the annotations of labelled cases, if anything changed.

    The folder gets `metrics.csv` and `summary.json`, which stay if scoring stops the run (`stop_on_faults`).
    `refused` are cases that could not be predicted.

    Returns:
        The summary, and the cases that could not be predicted or scored; all are scored again the next time
        if one could not be scored by no fault of its files.
    """
    references, inputs = _compared(_without(cases, refused), folder)
    config = settings.score.identity()
    journal = Journal(folder / "journal.jsonl")
    outputs = {"metrics": folder / "metrics.csv", "summary": folder / "summary.json"}
    if not journal.is_current("score", inputs, config):
        predictions = folder / "predictions"
        found = score_folder(
            predictions, references, output=folder, settings=settings.score, executor=executor
        )
        if not found["faults"]:
            journal.record("score", inputs, config, outputs)
    summary = read_json(outputs["summary"])
    return summary, [*refused, *failed_cases(summary)]


def _compared(cases: Sequence[Case], folder: Path) -> tuple[dict[str, Path], dict[str, Path | str]]:
    """Annotations by case, and what their comparison with the predictions that are there depends on."""
    paths = [segmentation_path(folder / "predictions", c.id) for c in cases]
    references = {c.id: c.label for c in cases if c.label is not None}
    digest = config_hash([sha256(p) if p.exists() else None for p in paths])
    return references, {**references, "predictions": digest}


def _fit(settings: RoundSettings, cases: Sequence[Case], executor: Executor) -> list[Outcome]:
    """Decide for which organs the largest component helps, if anything changed; returns what failed."""
    classes, label_map, folder = settings.classes, settings.labels.merge.label_map, settings.folder
    validation = folder.root / "validation"
    references, inputs = _compared(cases, validation)
    checkpoint = sha256(folder.last)
    config = {"classes": classes.to_config(), "label_map": label_map, "checkpoint": checkpoint}
    journal = Journal(folder.journal("components"))
    if journal.is_current("components", inputs, config):
        return []
    pairs = {
        case: (segmentation_path(validation / "predictions", case), label)
        for case, label in references.items()
    }
    fit, failures = fit_components(pairs, classes=classes, label_map=label_map, executor=executor)
    stop_on_faults(failures, f"round={settings.name}, fitting components", pairs, settings.max_failed)
    write_fit(folder.components, fit, checkpoint)
    if not failures:
        journal.record("components", inputs, config, {"components": folder.components})
    return failures


@dataclass(frozen=True)
class Trained:
    """A run whose rounds, in the order in which they ran, are trained on a prepared cohort."""

    rounds: Sequence[RoundSettings]
    cohort: Cohort
    run: RunFolder
    executor: Executor


@dataclass(frozen=True)
class Results:
    """What a run came to: `table5.csv`, one row a name, and the cases that could not be predicted or scored.

    Each row is the mean of as many cases as are `compared`.
    """

    table: list[dict[str, Any]]
    failures: list[Outcome]
    compared: int = 0


def write_ablation(trained: Trained, baselines: Mapping[str, Predict] | None = None) -> Results:
    """Score all rounds and baselines on `data.scoring.split` and write `table5.csv`, `.md` and `.tex`.

    The last round gets the paper's other tables, 4 and 8, and where inference measured it, 6 and 7. Without
    a labelled case in the split there is no table, and one of an earlier start is kept as `.previous`. All
    rows are means over the same cases: one that failed in some row counts in none.
    """
    rounds, run, executor = trained.rounds, trained.run, trained.executor
    last = rounds[-1]
    split, classes = last.split, last.classes
    cases = held_out(trained.cohort.cases, split)
    if not cases:
        log.warning("data.scoring.split=%s: no labelled case, so there is no score and no table", split)
        _set_tables_aside(run.root)
        return Results([], [])
    scores: dict[str, list[dict[str, Any]]] = {}
    failures: list[Outcome] = []
    for item in rounds:
        name, folder = str(item.name), item.folder.root / split
        predicted = predict_split(item, cases, split, executor)
        failures += score_split(item, cases, folder, executor, predicted.failures)[1]
        scores[name] = read_scores(folder / "metrics.csv")
    write_round_tables(
        run.root,
        scores=scores[name],
        summary=summarise(scores[name], classes),
        inference=predicted.rows,
        classes=classes,
        targets=last.labels.targets,
        has_paper=last.score.has_paper,
    )
    for name, predict in (baselines or {}).items():
        place = run.root / "baselines" / name
        failures += score_split(last, cases, place, executor, predict(cases, place))[1]
        scores[name] = read_scores(place / "metrics.csv")
    common = common_cases(scores)
    told = f"mean over {len(common)} cases"
    if len(common) < len(cases):
        told += f" of {len(cases)}, those that every row has"
        log.warning("table 5: %s; the others failed in some row", told)
    plan = plan_rounds(rounds, trained.cohort.cases)
    notes = [f"{told[0].upper()}{told[1:]}.", tell_starts(plan)]
    if last.config.data.name == PHANTOM:
        notes.append("These are phantoms, not patients.")
    known = {row["round"]: {key: row[key] for key in ("cases", "targets")} for row in plan}
    rows = [
        AblationRow(
            name,
            summary=summarise([row for row in found if row["Name"] in common], classes),
            **known.get(name, {"cases": None}),
        )
        for name, found in scores.items()
    ]
    note = " ".join(filter(None, notes))
    table = table5(rows, classes, run.root / "table5", note=note, has_paper=last.score.has_paper)
    return Results(table, failures, len(common))


def common_cases(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[str]:
    """The cases that rows of a table, by name as in `metrics.csv`, can be compared over: those that all have.

    A row without any case stays empty and takes none from the others.
    """
    scored = [{row["Name"] for row in found} for found in scores.values() if found]
    return set.intersection(*scored) if scored else set()


def _set_tables_aside(folder: Path) -> None:
    """Rename the tables of an earlier start, which are not those of this one."""
    for path in folder.glob("table[4-8].*"):
        if not path.stem.endswith(".previous"):
            os.replace(path, path.with_name(f"{path.stem}.previous{path.suffix}"))
