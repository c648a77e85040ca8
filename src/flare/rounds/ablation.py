"""The ablation table of a run: every round and baseline on the same cases, the paper's figures beside."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.evaluation.summary import read_scores, summarise
from flare.evaluation.tables import AblationRow, table5, write_round_tables
from flare.prepare.cohort import Cohort
from flare.rounds.graph import plan_rounds, tell_starts
from flare.rounds.score import held_out, predict_split, score_split
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RunFolder
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor

log = logging.getLogger(__name__)
# of held-out cases into `<folder>/predictions`; returns the cases that failed
Predict = Callable[[Sequence[Case], Path], list[Outcome]]


@dataclass(frozen=True)
class Trained:
    """A run whose rounds are trained.

    Args:
        rounds: In the order in which they ran.
        cohort: The prepared cohort.
        run: The run's folder.
        executor: Where cases are worked on.
    """

    rounds: Sequence[RoundSettings]
    cohort: Cohort
    run: RunFolder
    executor: Executor


@dataclass(frozen=True)
class Results:
    """What a run came to.

    Args:
        table: One row a name, as `table5.csv` has it.
        failures: Cases that could not be predicted or scored, and why.
        compared: How many cases each row of the table is the mean of.
    """

    table: list[dict[str, Any]]
    failures: list[Outcome]
    compared: int = 0


def write_ablation(trained: Trained, baselines: Mapping[str, Predict] | None = None) -> Results:
    """Score all rounds and baselines on `data.scoring.split` and write `table5.csv`, `.md` and `.tex`.

    The last round gets the paper's other tables, 4 and 8, and where inference measured it, 6 and 7. Without
    a labelled case in the split there is no table, and one of an earlier start is kept as `.previous`. All
    rows are means over the same cases: one that failed in some row counts in none.

    Args:
        trained: The rounds; their run's folder gets the tables.
        baselines: Name of a row -> what predicts its cases.
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
        scores[name], failed = _score(item, cases, predicted.failures, folder, executor)
        failures += failed
    write_round_tables(
        run.root,
        scores=scores[name],
        summary=summarise(scores[name], classes),
        inference=predicted.rows,
        classes=classes,
        targets=last.labels.targets,
    )
    for name, predict in (baselines or {}).items():
        place = run.root / "baselines" / name
        scores[name], failed = _score(last, cases, predict(cases, place), place, executor)
        failures += failed
    common = common_cases(scores)
    told = f"mean over {len(common)} cases"
    if len(common) < len(cases):
        told += f" of {len(cases)}, those that every row has"
        log.warning("table 5: %s; the others failed in some row", told)
    plan = plan_rounds(rounds, trained.cohort.cases)
    notes = [f"{told[0].upper()}{told[1:]}.", tell_starts(plan)]
    rows = _rows(scores, common, plan, classes)
    table = table5(rows, classes, run.root / "table5", note=" ".join(filter(None, notes)))
    return Results(table, failures, len(common))


def _rows(
    scores: Mapping[str, Sequence[dict[str, Any]]],
    common: set[str],
    plan: Sequence[Mapping[str, Any]],
    classes: ClassList,
) -> list[AblationRow]:
    """Average what is common to all rows."""
    known = {row["round"]: row for row in plan}
    return [
        AblationRow(
            name,
            known[name]["cases"] if name in known else None,
            summarise([row for row in found if row["Name"] in common], classes),
            known[name]["targets"] if name in known else "organs_tumor",
        )
        for name, found in scores.items()
    ]


def common_cases(scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> set[str]:
    """The cases that rows of a table can be compared over: those that every row has.

    A row without any case stays empty and takes none from the others.

    Args:
        scores: Name of a row -> its rows of `metrics.csv`.
    """
    scored = [{row["Name"] for row in found} for found in scores.values() if found]
    return set.intersection(*scored) if scored else set()


def _set_tables_aside(folder: Path) -> None:
    """Rename the tables of an earlier start, which are not those of this one."""
    for path in folder.glob("table[4-8].*"):
        if not path.stem.endswith(".previous"):
            os.replace(path, path.with_name(f"{path.stem}.previous{path.suffix}"))


def _score(
    settings: RoundSettings, cases: Sequence[Case], refused: list[Outcome], folder: Path, executor: Executor
) -> tuple[list[dict[str, Any]], list[Outcome]]:
    """Score the cases that were predicted; returns their scores and the failures of both steps."""
    failed = {f.case_id for f in refused}
    _, failures = score_split(settings, [c for c in cases if c.id not in failed], folder, executor)
    return read_scores(folder / "metrics.csv"), [*refused, *failures]
