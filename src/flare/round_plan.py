"""What a run of rounds is going to do, before it does it: a table on the console and in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from flare.cases import Case, select_cases
from flare.files import write_csv
from flare.models.names import describe_network
from flare.progress import console
from flare.rounds import Round

Row = dict[str, Any]


def plan_rounds(rounds: Sequence[Round], cases: Sequence[Case]) -> list[Row]:
    """Resolve model, teacher, targets, number of cases and inference settings of each round.

    Args:
        rounds: In the order in which they run.
        cases: The cohort, after label analysis.

    Returns:
        One row a round.
    """
    return [
        {
            "round": r.name,
            "cases": len(select_cases(cases, r.cfg.labels.cases)),
            "of": r.cfg.labels.cases,
            "labels": r.cfg.labels.source,
            "teacher": r.teacher,
            "unlabeled_teacher": r.unlabeled_teacher,
            "targets": r.cfg.labels.targets,
            "model": r.cfg.model.name,
            "network": describe_network(r.cfg.model.net),
            "init": r.cfg.round.init if r.teacher else "fresh",
            "epochs": r.cfg.trainer.max_epochs,
            "iterations": r.cfg.trainer.limit_train_batches,
            "patch": " ".join(map(str, r.cfg.data.patch_size)),
            "inference": r.cfg.inference.name,
            "tta": r.cfg.tta,
            "restore": r.cfg.restore,
        }
        for r in rounds
    ]


def iterations_behind(plan: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Count the iterations that led to each round's weights.

    Args:
        plan: As `plan_rounds` gives it, or as `plan.csv` reads back.

    Returns:
        Round -> its own iterations, and those behind its teacher where it starts from the teacher's weights;
        None where the teacher is not of this plan.
    """
    behind: dict[str, int | None] = {}
    for row in plan:
        own = int(row["epochs"]) * int(row["iterations"])
        before = behind.get(row["teacher"]) if row["init"] == "teacher" else 0
        behind[row["round"]] = None if before is None else before + own
    return behind


def tell_starts(plan: Sequence[Mapping[str, Any]]) -> str:
    """Say, for a table of scores, that rounds start from their teachers' weights; empty if none does."""
    warm = [row["round"].upper() for row in plan if row["init"] == "teacher"]
    if not warm:
        return ""
    counts = ", ".join(
        f"{k.upper()} {'unknown' if n is None else n}" for k, n in iterations_behind(plan).items()
    )
    return (
        f"Training went on from the teacher's weights in {', '.join(warm)} (round.init=teacher): a rise over "
        f"rounds is labels and training length together. Iterations behind each row: {counts}."
    )


def print_plan(plan: Sequence[Row]) -> None:
    """Show the plan."""
    hidden = ["network", "iterations", "patch", "restore"]
    if not any(row["unlabeled_teacher"] for row in plan):
        hidden.append("unlabeled_teacher")
    table = Table(title="rounds", title_justify="left")
    shown = [c for c in plan[0] if c not in hidden] if plan else []
    for column in shown:
        table.add_column(
            column.replace("_", " "), justify="right" if column in ("cases", "epochs") else "left"
        )
    for row in plan:
        table.add_row(*("-" if row[c] is None else str(row[c]) for c in shown))
    console.print(table)


def write_plan(folder: Path, plan: Sequence[Row]) -> None:
    """Write `plan.csv`."""
    write_csv(folder / "plan.csv", plan)
