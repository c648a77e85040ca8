"""The graph of rounds: which exist, who teaches whom, and what each is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from flare.core.cases import Case, select_cases
from flare.core.errors import CONF, FlareError
from flare.core.files import write_csv
from flare.models.names import describe_network
from flare.rounds.settings import RoundSettings
from flare.rounds.teachers import require_teacher
from flare.runs.work import console


def compose_rounds(names: str | Sequence[str], overrides: Sequence[str]) -> list[RoundSettings]:
    """Compose each round's configuration and put teachers before their pupils.

    Args:
        names: Rounds of `conf/round`, or a single one.
        overrides: The user's command line; iterate's own keys in it are left out.

    Raises:
        FlareError: If a name is no round, or rounds teach each other in a circle.
    """
    names = [names] if isinstance(names, str) else list(names)
    own = set(OmegaConf.load(CONF / "iterate.yaml")) - {"defaults"}  # unknown to train
    forwarded = [o for o in overrides if o.lstrip("+~").split("=")[0] not in own]
    known = sorted(p.stem for p in (CONF / "round").glob("*.yaml"))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FlareError(f"rounds: no round is named {', '.join(unknown)}; known: {', '.join(known)}")
    rounds = {n: RoundSettings.from_config(_compose([*forwarded, f"round={n}"])) for n in names}
    ordered: list[RoundSettings] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " <- ".join([*path, name])
            raise FlareError(f"round.teacher or round.unlabeled_teacher: {circle} is a circle")
        if rounds[name] in ordered:
            return
        for teacher in rounds[name].teachers:
            if teacher in rounds:
                visit(teacher, (*path, name))
        ordered.append(rounds[name])

    for name in rounds:
        visit(name, ())
    return ordered


def _compose(overrides: list[str]) -> DictConfig:
    """Compose `train`, inside a running Hydra application or outside of one."""
    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides)


def check_rounds(rounds: Sequence[RoundSettings]) -> None:
    """Refuse, before any work, rounds whose teachers are neither planned nor there.

    Raises:
        FlareError: With the command that makes the teacher.
    """
    if not rounds:
        raise FlareError("rounds: expected at least one, given none")
    for number, item in enumerate(rounds):
        require_teacher(item, [str(r.name) for r in rounds[:number]])


Row = dict[str, Any]


def plan_rounds(rounds: Sequence[RoundSettings], cases: Sequence[Case]) -> list[Row]:
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
            "cases": len(select_cases(cases, r.labels.cases)),
            "of": r.labels.cases,
            "labels": r.labels.source,
            "teacher": r.teacher,
            "unlabeled_teacher": r.unlabeled_teacher,
            "targets": r.labels.targets,
            "model": r.config.model.name,
            "network": describe_network(r.config.model.net),
            "init": r.init if r.teacher else "fresh",
            "epochs": r.config.trainer.max_epochs,
            "iterations": r.config.trainer.limit_train_batches,
            "patch": " ".join(map(str, r.config.data.patch_size)),
            "inference": r.inference.name,
            "tta": r.inference.tta,
            "restore": r.inference.restore,
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
