"""The ablation table of a run: every round and baseline on the same cases, the paper's figures beside."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.baselines import predict_baseline
from flare.cases import Case, select_cases
from flare.errors import FlareError
from flare.evaluation.round_tables import write_round_tables
from flare.evaluation.tables import AblationRow, table5
from flare.executor import Executor, Outcome
from flare.files import read_csv
from flare.labels import LabelSet
from flare.prepare.cohort import Cohort
from flare.rounds import Round
from flare.runs import RunFolder
from flare.scoring import Summary, held_out, predict_split, score_split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """What a run came to.

    Args:
        table: One row a name, as `table5.csv` has it.
        failures: Cases that could not be predicted or scored, and why.
    """

    table: list[dict[str, Any]]
    failures: list[Outcome]


def write_ablation(
    cfg: DictConfig, rounds: Sequence[Round], cohort: Cohort, run: RunFolder, executor: Executor
) -> Results:
    """Score all rounds and baselines on `data.scoring.split` and write `table5.csv`, `.md` and `.tex`.

    The last round gets the paper's other tables, 4 and 8, and where inference measured it, 6 and 7. Without
    a labelled case in the split there is no table, and one of an earlier start is kept as `.previous`.

    Args:
        cfg: Configuration of `iterate`.
        rounds: The rounds, trained.
        cohort: The prepared cohort.
        run: The run's folder; gets the tables.
        executor: Where cases are worked on.
    """
    split = cfg.data.scoring.split
    cases = held_out(cohort.cases, split)
    if not cases:
        log.warning("data.scoring.split=%s: no labelled case, so there is no score and no table", split)
        _set_tables_aside(run.root)
        return Results([], [])
    labels = LabelSet.from_config(cfg.classes)
    rows: list[AblationRow] = []
    failures: list[Outcome] = []
    for item in rounds:
        folder = run.round(item.name)
        predicted = predict_split(item.cfg, cases, folder, split, executor)
        summary, failed = _score(item.cfg, cases, predicted.failures, folder.root / split, executor)
        failures += failed
        trained = len(select_cases(cohort.cases, item.cfg.labels.cases))
        rows.append(AblationRow(item.name, trained, summary, item.cfg.labels.targets))
    write_round_tables(
        run.root,
        scores=read_csv(folder.root / split / "metrics.csv"),
        summary=summary,
        inference=predicted.rows,
        labels=labels,
        targets=rounds[-1].cfg.labels.targets,
    )
    for name in cfg.baselines:
        place = run.root / "baselines" / name
        refused = _predict_baseline(name, rounds[-1].cfg, cohort, cases, place, executor)
        summary, failed = _score(rounds[-1].cfg, cases, refused, place, executor)
        failures += failed
        rows.append(AblationRow(name, None, summary))
    return Results(table5(rows, labels, run.root / "table5"), failures)


def _set_tables_aside(folder: Path) -> None:
    """Rename the tables of an earlier start, which are not those of this one."""
    for path in folder.glob("table[4-8].*"):
        if not path.stem.endswith(".previous"):
            os.replace(path, path.with_name(f"{path.stem}.previous{path.suffix}"))


def _score(
    cfg: DictConfig, cases: Sequence[Case], refused: list[Outcome], folder: Path, executor: Executor
) -> tuple[Summary, list[Outcome]]:
    """Score the cases that were predicted; returns the failures of both steps."""
    failed = {f.case_id for f in refused}
    summary, failures = score_split(cfg, [c for c in cases if c.id not in failed], folder, executor)
    return summary, [*refused, *failures]


def _predict_baseline(
    name: str, cfg: DictConfig, cohort: Cohort, cases: Sequence[Case], folder: Path, executor: Executor
) -> list[Outcome]:
    if cohort.intensity is None:
        raise FlareError("data.labels: no labelled training case, so there are no intensity statistics")
    return predict_baseline(
        name,
        cfg,
        cohort=cohort.cases,
        intensity=cohort.intensity,
        held_out=cases,
        folder=folder,
        executor=executor,
    )
