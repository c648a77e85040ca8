"""Trained rounds on cases they have never seen: predictions, scores, component fit; the ablation table."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.files import config_hash, read_json, sha256
from flare.evaluation.lesions import Lesion, detection, write_detection
from flare.evaluation.metrics import ScoreSettings
from flare.evaluation.published import PHANTOM
from flare.evaluation.scores import failed_cases, read_lesions, score_folder
from flare.evaluation.summary import read_scores, summarise
from flare.evaluation.tables import AblationRow, table5, write_round_tables
from flare.inference.components import fit_components, write_fit
from flare.inference.predict import Predicted, made_from, predict_cases, segmentation_path
from flare.prepare.cohort import Cohort
from flare.rounds.graph import plan_rounds, tell_frozen, tell_starts
from flare.rounds.settings import FIT, RoundSettings
from flare.runs.changes import cases_told, joined
from flare.runs.door import place
from flare.runs.folders import RunFolder
from flare.runs.journal import Journal, tell_again
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
    failures: list[Outcome] = []
    for split, chosen in _sets(settings, cases, "validation").items():
        if not chosen:
            log.info("no labelled case for %s (data.components_split=%s)", split, settings.components_split)
            continue
        refused = predict_split(settings, chosen, split, executor).failures
        step = f"round={settings.name}, predicting {split} cases"
        stop_on_faults(refused, step, [c.id for c in chosen], settings.max_failed)
        if split == "validation":
            refused = score_split(settings, chosen, settings.folder.root / split, executor, refused)[1]
        failures += refused
    split, fitted = settings.fit_cases(cases)
    config = fit_config(settings, sha256(settings.folder.last))
    if config is not None and fitted:
        failures += _fit(settings, _without(fitted, failures), split, executor, config)
    return failures


def _sets(settings: RoundSettings, cases: Sequence[Case], *splits: str) -> dict[str, list[Case]]:
    """Labelled cases by the folder of their predictions: those of splits, and of the components' fit."""
    found = {split: held_out(cases, split) for split in splits}
    return found | dict([settings.fit_cases(cases)] if settings.fits_components else [])


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
    `refused` are cases that could not be predicted. Gives the summary, and the cases that could not be
    predicted or scored; if one failed by no fault of its files, all are scored again the next time.
    """
    references, inputs = _compared(_without(cases, refused), folder)
    own = _score_settings(settings, cases)
    config = own.identity()
    journal = Journal(folder / "journal.jsonl")
    outputs = {"metrics": folder / "metrics.csv", "summary": folder / "summary.json"}
    if why := journal.why("score", inputs, config):
        tell_again(f"score {folder.name}", why if "score" in journal else "")
        predictions = folder / "predictions"
        found = score_folder(predictions, references, output=folder, settings=own, executor=executor)
        if not found["faults"]:
            journal.record("score", inputs, config, outputs)
    summary = read_json(outputs["summary"])
    return summary, [*refused, *failed_cases(summary)]


def _score_settings(settings: RoundSettings, cases: Sequence[Case]) -> ScoreSettings:
    """How cases are scored; those whose annotators looked for tumors may be controls."""
    answered = sorted(c.id for c in cases if settings.classes.tumor in c.annotated)
    return replace(settings.score, answered=tuple(answered))


def _compared(cases: Sequence[Case], folder: Path) -> tuple[dict[str, Path], dict[str, Path | str]]:
    """Annotations by case, and what their comparison with the predictions that are there depends on."""
    paths = [segmentation_path(folder / "predictions", c.id) for c in cases]
    references = {c.id: c.label for c in cases if c.label is not None}
    digest = config_hash([sha256(p) if p.exists() else None for p in paths])
    return references, {**references, "predictions": digest}


def _fit(
    settings: RoundSettings, cases: Sequence[Case], split: str, executor: Executor, config: Mapping[str, Any]
) -> list[Outcome]:
    """Decide for which organs the largest component helps, if anything changed; returns what failed."""
    classes, label_map, folder = settings.classes, settings.labels.merge.label_map, settings.folder
    references, inputs = _compared(cases, folder.root / split)
    journal = Journal(folder.journal("components"))
    why = journal.why("components", inputs, config)
    if not why:
        return []
    tell_again("fit components", why if "components" in journal else "")
    pairs = {
        case: (segmentation_path(folder.root / split / "predictions", case), label)
        for case, label in references.items()
    }
    fit, failures = fit_components(pairs, classes=classes, label_map=label_map, executor=executor)
    stop_on_faults(failures, f"round={settings.name}, fitting components", pairs, settings.max_failed)
    told = f"{len(cases)} {'held-out training' if split == FIT else split} cases"
    write_fit(folder.components, fit, config["checkpoint"], told)
    if not failures:
        journal.record("components", inputs, config, {"components": folder.components})
    return failures


def fit_config(settings: RoundSettings, checkpoint: str) -> dict[str, Any] | None:
    """What decides, beside predictions and annotations, of which organs the largest component is kept.

    None if there is no fit to make: none is used, no organ is learned, or the round is frozen with the fit of
    its weights, the hash of which is `checkpoint`: its pupils' labels are made with it.
    """
    classes, path = settings.classes, settings.folder.components
    if not settings.fits_components:
        return None
    if settings.is_frozen and path.exists() and read_json(path).get("checkpoint") == checkpoint:
        return None
    label_map = settings.labels.merge.label_map
    known = {"classes": classes.to_config(), "label_map": label_map, "checkpoint": checkpoint}
    return known | {"judged": "by the other half"}


def explain_scores(settings: RoundSettings, cases: Sequence[Case], checkpoint: Path) -> tuple[str, str]:
    """Say why a checkpoint predicts or scores held-out cases again, and why its fit is made anew."""
    folder, told, fit = settings.folder, [], ""
    digest = sha256(checkpoint)
    config = fit_config(settings, digest)
    fitted = settings.fit_cases(cases)[0]
    for split, chosen in _sets(settings, cases, "validation", settings.split).items():
        journal = Journal(folder.journal(f"predict-{split}"))
        made = {c.id: made_from(c.image, digest, settings.training.inference, ()) for c in chosen}
        again = {case: why for case, basis in made.items() if (why := journal.why(case, *basis))}
        _, inputs = _compared([c for c in chosen if c.id not in again], folder.root / split)
        noted = Journal(folder.root / split / "journal.jsonl")
        if again:
            told.append(f"predict {split}: {cases_told(again, len(chosen))}")
        elif chosen and split != FIT:
            why = noted.why("score", inputs, _score_settings(settings, chosen).identity())
            told += [f"score {split}: {why}"] if why else []
        if chosen and split == fitted and config is not None:
            noted = Journal(folder.journal("components"))
            fit = "of predictions made again" if again else noted.why("components", inputs, config)
    return joined(told), fit


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

    Each row is the mean of as many cases as are `compared`; `tumors` is its `detection`, where it has tumors.
    """

    table: list[dict[str, Any]]
    failures: list[Outcome]
    compared: int = 0
    tumors: dict[str, dict[str, Any]] = field(default_factory=dict)


def write_ablation(trained: Trained, baselines: Mapping[str, Predict] | None = None) -> Results:
    """Score all rounds and baselines on `data.scoring.split`; write `table5` and `tumors` (csv, md, tex).

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
        earlier = [*run.root.glob("table[4-8].*"), *run.root.glob("tumors.*")]
        for path in [path for path in earlier if not path.stem.endswith(".previous")]:
            os.replace(path, path.with_name(f"{path.stem}.previous{path.suffix}"))
        return Results([], [])
    scores: dict[str, list[dict[str, Any]]] = {}
    lesions: dict[str, dict[str, list[Lesion]]] = {}
    failures: list[Outcome] = []
    for item in rounds:
        name, folder = str(item.name), item.folder.root / split
        with place(partial(str, f"round {name}")):
            predicted = predict_split(item, cases, split, executor)
            failures += score_split(item, cases, folder, executor, predicted.failures)[1]
        scores[name], lesions[name] = read_scores(folder / "metrics.csv"), read_lesions(folder)
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
        beside = run.root / "baselines" / name
        failures += score_split(last, cases, beside, executor, predict(cases, beside))[1]
        scores[name], lesions[name] = read_scores(beside / "metrics.csv"), read_lesions(beside)
    common = common_cases(scores)
    told = f"mean over {len(common)} cases"
    if len(common) < len(cases):
        told += f" of {len(cases)}, those that every row has"
        log.warning("table 5: %s; the others failed in some row", told)
    plan = plan_rounds(rounds, trained.cohort.cases)
    cohort = f"Ours are {split} cases of {last.config.data.name}."
    notes = [f"{told[0].upper()}{told[1:]}.", cohort, tell_starts(plan), tell_frozen(plan)]
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
    tumors = {
        row.round: detection({case: found for case, found in lesions[row.round].items() if case in common})
        for row in rows
        if classes.tumor in classes.outputs(row.targets)
    }
    write_detection(run.root / "tumors", tumors, str(last.name), note)
    return Results(table, failures, len(common), tumors)


def common_cases(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[str]:
    """The cases that all rows of a table, as of `metrics.csv`, have; an empty row takes none from others."""
    scored = [{row["Name"] for row in found} for found in scores.values() if found]
    return set.intersection(*scored) if scored else set()
