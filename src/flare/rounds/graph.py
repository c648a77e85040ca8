"""The graph of rounds: which exist, what each is made of, and the checkpoints that teach it."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from rich.table import Table

from flare.core.cases import Case
from flare.core.class_files import own_classes
from flare.core.errors import CONF, FlareError
from flare.core.paths import settle_paths
from flare.models.names import describe_network
from flare.rounds.settings import RoundSettings
from flare.runs.folders import tell_kinds
from flare.runs.work import console
from flare.training.settings import option

if TYPE_CHECKING:
    from flare.runs.checkpoints import Checkpoint

log = logging.getLogger(__name__)
UNLABELED = "unlabeled_teacher"  # the key of the teacher of cases without ground truth
Row = dict[str, Any]


def compose_rounds(names: str | Sequence[str], overrides: Sequence[str]) -> list[RoundSettings]:
    """Compose the configuration of rounds, or of one, of `conf/round` and put teachers before their pupils.

    Keys of iterate alone are left out of the user's command line, `overrides`. A name that is no round is
    refused, and rounds that teach each other in a circle.
    """
    names = require_rounds("rounds", names)
    own = set(OmegaConf.load(CONF / "iterate.yaml")) - {"defaults"}  # unknown to train
    forwarded = [o for o in overrides if o.lstrip("+~").split("=")[0] not in own]
    is_within = GlobalHydra.instance().is_initialized()  # a Hydra application runs
    with nullcontext() if is_within else initialize_config_dir(str(CONF), version_base="1.3"):
        composed = {n: compose("train", [*forwarded, f"round={n}"]) for n in names}
    for cfg in composed.values():
        settle_paths(cfg)
    composed = {n: own_classes(cfg) for n, cfg in composed.items()}
    rounds = {n: RoundSettings.from_config(cfg) for n, cfg in composed.items()}
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


def require_rounds(key: str, names: str | Sequence[str]) -> list[str]:
    """The rounds that a key lists, or the one that it names; a name that is no round is refused."""
    names = [names] if isinstance(names, str) or not isinstance(names, Sequence) else list(names)
    known = sorted({p.stem for p in (CONF / "round").glob("*.yaml")} - {"all"})  # which names no round
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise FlareError(f"{key}: no round is named {', '.join(unknown)}; known: {', '.join(known)}")
    return names


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that a round learns from, by its key in `round`; a file named by hand has no round."""

    key: str
    round: str | None
    checkpoint: Path


def teachers_of(settings: RoundSettings) -> list[Teacher]:
    """A round's teachers: of its weights and most labels, then that of its cases without ground truth."""
    named = {"teacher": settings.teacher, UNLABELED: settings.unlabeled_teacher}
    found = [Teacher(k, name, checkpoint_of(settings, name)) for k, name in named.items() if name is not None]
    if settings.checkpoint is None:
        return found
    return [Teacher("checkpoint", None, settings.checkpoint), *(t for t in found if t.key == UNLABELED)]


def checkpoint_of(settings: RoundSettings, name: str) -> Path:
    """A round's checkpoint: the run's own, or else, for a job of a sweep, that of the run it names."""
    file = f"{settings.teacher_kind}.ckpt"
    own, outside = (run.round(name).checkpoints / file for run in (settings.run, settings.named_run))
    return outside if outside.is_file() and not own.is_file() else own


def present_teachers(settings: RoundSettings, planned: Sequence[str] = ()) -> list[Teacher]:
    """The teachers of a round's labels or weights but for those among rounds `planned` to run before it."""
    if not settings.is_hybrid and settings.training.init != "teacher":
        return []
    return [teacher for teacher in teachers_of(settings) if teacher.round not in planned]


def require_teacher(settings: RoundSettings, planned: Sequence[str] = ()) -> None:
    """Refuse, with the command that makes it, a teacher without checkpoint that is not `planned` before."""
    if not settings.is_hybrid:
        return
    name = settings.name
    if settings.checkpoint is None and settings.teacher is None:
        raise FlareError(f"round={name}: hybrid labels need a teacher: set round.teacher or round.checkpoint")
    for teacher in present_teachers(settings, planned):
        path = teacher.checkpoint
        if path.is_file():
            continue
        if teacher.round is None:
            raise FlareError(f"round.checkpoint={path}: no such file (round={name})")
        kind = settings.teacher_kind
        told = "" if kind == "last" else f", round.teacher_kind={kind}: {tell_kinds(path.parent, kind)}"
        raise FlareError(
            f"round={name} needs its teacher's checkpoint {path}, which does not exist "
            f"(round.{teacher.key}{told}): run `python train.py round={teacher.round} "
            f"name={settings.config.name}` with the same overrides first"
        )


def read_teacher(settings: RoundSettings, planned: Sequence[str] = ()) -> "Checkpoint | None":
    """Read the checkpoints that a round learns from, but for those of rounds `planned` before it.

    Gives the main one, from which weights may start; None if there is none yet. One of another round or class
    list is refused, and where weights start from it of another spacing.
    """
    main = None
    for teacher in present_teachers(settings, planned):
        if teacher.round is not None and settings.run.root not in teacher.checkpoint.parents:
            told = settings.name, teacher.round, settings.config.name
            log.info("round %s: its teacher %s is that of the run %s", *told)
        found = _read(settings, teacher)
        if teacher.key != UNLABELED:
            main = found
    return main


def _read(settings: RoundSettings, teacher: Teacher) -> "Checkpoint":
    """Read one teacher's checkpoint and hold it against the round."""
    from flare.runs.checkpoints import load_checkpoint  # torch: only where a teacher is looked into

    path = teacher.checkpoint
    found = load_checkpoint(path)
    if teacher.round is not None and found.round != teacher.round:
        raise FlareError(
            f"round.{teacher.key}={teacher.round}: {path} is a checkpoint of round {found.round}"
        )
    spacing_mm = list(settings.prepared.spacing_mm)
    # labels live on the original grid, so that a teacher of labels alone may have another
    starts_weights = settings.training.init == "teacher" and teacher.key != UNLABELED
    if starts_weights and list(found.spacing_mm) != spacing_mm:
        raise FlareError(f"data.spacing_mm={spacing_mm}: the teacher {path} has {list(found.spacing_mm)}")
    ours, theirs = settings.classes, found.class_list
    if settings.is_hybrid and not ours.agrees(theirs):
        raise FlareError(f"classes: the teacher {path} has {theirs.told}, expected {ours.told}")
    return found


def check_rounds(rounds: Sequence[RoundSettings]) -> None:
    """Refuse, before any work, rounds whose teachers are neither among those before them nor there."""
    if not rounds:
        raise FlareError("rounds: expected at least one, given none")
    for number, item in enumerate(rounds):
        if not item.is_frozen:
            planned = planned_before(rounds, number)
            require_teacher(item, list(planned))
            for teacher in present_teachers(item) if item.teacher_kind == "ema" else ():
                taught = planned.get(str(teacher.round))
                if taught and option(taught.training.callbacks, "ema", "decay") is None:
                    raise FlareError(
                        f"round={item.name}: round.teacher_kind=ema, and round {teacher.round} leaves no "
                        "ema.ckpt; set callbacks.ema.decay=0.999"
                    )


def planned_before(rounds: Sequence[RoundSettings], number: int) -> dict[str, RoundSettings]:
    """The rounds that run before one and may come out anew; a frozen one is judged as it is."""
    return {str(r.name): r for r in rounds[:number] if not r.is_frozen}


def plan_rounds(rounds: Sequence[RoundSettings], cases: Sequence[Case]) -> list[Row]:
    """Resolve model, teacher, targets, number of cases and inference of each round, as `plan.csv` has it."""
    return [
        {
            "round": r.name,
            "cases": r.trained_cases or len(r.train_cases(cases)),
            "of": r.labels.cases,
            "labels": r.labels.source,
            "partial": None if (how := r.training.loss.get("partial", "none")) == "none" else how,
            "teacher": r.teacher,
            "unlabeled_teacher": r.unlabeled_teacher,
            "targets": r.labels.targets,
            "model": r.config.model.name,
            "network": describe_network(r.config.model.net),
            "init": r.training.init if r.teacher else "fresh",
            "epochs": r.config.trainer.max_epochs,
            "iterations": r.config.trainer.limit_train_batches,
            "patch": " ".join(map(str, r.config.data.patch_size)),
            "inference": r.training.inference.name,
            "tta": r.training.inference.tta,
            "restore": r.training.inference.restore,
            "frozen": "yes" if r.is_frozen else None,
        }
        for r in rounds
    ]


def iterations_behind(plan: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Count, by a plan or what `plan.csv` reads back, the iterations that led to each round's weights.

    Those behind its teacher count where it starts from the teacher's weights; None where that is of no plan.
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


def tell_frozen(plan: Sequence[Mapping[str, Any]]) -> str:
    """Say, for a table of scores, which rounds are as they were trained; empty if none is frozen."""
    frozen = [row["round"].upper() for row in plan if row["frozen"]]
    if not frozen:
        return ""
    return (
        f"Frozen (freeze): {', '.join(frozen)}, with the weights and labels of an earlier training, whatever "
        "settings and cases are now; scored as the others."
    )


def print_plan(plan: Sequence[Row]) -> None:
    """Show the plan."""
    hidden = ["network", "iterations", "patch", "restore"]
    hidden += [key for key in ("partial", "unlabeled_teacher", "frozen") if not any(row[key] for row in plan)]
    table = Table(title="rounds", title_justify="left")
    shown = [c for c in plan[0] if c not in hidden] if plan else []
    for c in shown:
        table.add_column(c.replace("_", " "), justify="right" if c in ("cases", "epochs") else "left")
    for row in plan:
        table.add_row(*("-" if row[c] is None else str(row[c]) for c in shown))
    console.print(table)
