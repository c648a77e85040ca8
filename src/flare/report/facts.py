"""What a run has left in its folder, read once for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.files import read_csv, read_json
from flare.evaluation.summary import only_learned, read_scores
from flare.prepare.cohort import Cohort
from flare.rounds.score import held_out
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RoundFolder, RunFolder
from flare.runs.journal import Journal
from flare.runs.records import public_config

Row = dict[str, Any]


@dataclass(frozen=True)
class RoundFacts:
    """What one round came to.

    Args:
        name: `mo` ... `mot3`.
        teacher: The round that made its pseudo labels, if it has any.
        plan: Its row of `plan.csv`.
        curve: Rows of `training.csv`, one an epoch; numbers, None where there is none.
        scores: Rows of the scored split's `metrics.csv`, one a case; None for classes that it does not learn.
        provenance: Rows of `provenance.csv`, one a case; none for a round on ground truth.
        seconds: What the journal of prediction says, one row a held-out case.
        revision: Code revision that trained it.
        unlabeled_teacher: The round that labelled its cases without ground truth, where that is another one.
    """

    name: str
    teacher: str | None
    plan: dict[str, str]
    curve: list[dict[str, float | None]] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    provenance: list[dict[str, str]] = field(default_factory=list)
    seconds: list[Row] = field(default_factory=list)
    revision: str = "unknown"
    unlabeled_teacher: str | None = None

    @property
    def teachers(self) -> list[str]:
        """The rounds that made its pseudo labels, the main one first."""
        return [name for name in (self.teacher, self.unlabeled_teacher) if name is not None]


@dataclass(frozen=True)
class Facts:
    """Everything the page tells, less pictures.

    Args:
        name: The run.
        data: Name of the cohort.
        split: The split that was scored.
        protocol: How it was scored.
        classes: The class list.
        cases: The prepared cohort.
        scored: The cases that were scored.
        rounds: In the order in which they ran.
        table: Rows of `table5.csv`, numbers as such.
        failed: Cases that failed somewhere.
        environment: `environment.json`.
        config: The configuration, without a path of the machine.
        compared: How many of the scored cases each row of the table is the mean of.
    """

    name: str
    data: str
    split: str
    protocol: str
    classes: ClassList
    cases: list[Case]
    scored: list[Case]
    rounds: list[RoundFacts]
    table: list[Row]
    failed: list[str]
    environment: dict[str, Any]
    config: dict[str, Any]
    compared: int = 0

    @property
    def last(self) -> RoundFacts:
        """The round that the run ends with."""
        return self.rounds[-1]


def gather(
    cfg: DictConfig,
    rounds: Sequence[RoundSettings],
    cohort: Cohort,
    run: RunFolder,
    table: list[Row],
    failed: Sequence[str],
    compared: int,
) -> Facts:
    """Read what the page tells.

    Args:
        cfg: Configuration of `iterate`.
        rounds: The rounds, in the order in which they ran.
        cohort: The prepared cohort.
        run: The run's folder.
        table: Rows of the ablation table.
        failed: Ids of the cases that failed.
        compared: How many cases the table's rows are the means of.
    """
    split, labels = cfg.data.scoring.split, ClassList.from_config(cfg.classes)
    scored = held_out(cohort.cases, split)
    plan = {row["round"]: row for row in read_csv(run.root / "plan.csv")}
    return Facts(
        name=cfg.name,
        data=cfg.data.name,
        split=split,
        protocol=cfg.data.scoring.protocol,
        classes=labels,
        cases=cohort.cases,
        scored=scored,
        rounds=[_round(r, run.round(r.name), plan[str(r.name)], scored, split, labels) for r in rounds],
        table=table,
        failed=sorted(set(failed)),
        environment=_json(run.root / "environment.json"),
        config=public_config(cfg),
        compared=compared,
    )


def _round(
    item: RoundSettings,
    folder: RoundFolder,
    plan: dict[str, str],
    scored: Sequence[Case],
    split: str,
    classes: ClassList,
) -> RoundFacts:
    journal: Journal = folder.journal(f"predict-{split}")
    metrics = folder.root / split / "metrics.csv"
    scores = read_scores(metrics) if metrics.exists() else []
    return RoundFacts(
        name=str(item.name),
        teacher=item.teacher if item.is_hybrid else None,
        plan=plan,
        curve=[{k: _number(v) for k, v in row.items()} for row in _csv(folder.training_csv)],
        scores=only_learned(scores, classes, plan["targets"]),
        provenance=_csv(folder.labels / "provenance.csv"),
        seconds=[journal.values(c.id) for c in scored if c.id in journal],
        revision=_json(folder.root / "environment.json").get("git_revision", "unknown"),
        unlabeled_teacher=item.unlabeled_teacher,
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _csv(path: Path) -> list[dict[str, str]]:
    return read_csv(path) if path.exists() else []


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
