"""Who teaches a round: the checkpoints that its labels and weights come from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.rounds.settings import RoundSettings

if TYPE_CHECKING:
    from flare.runs.checkpoints import Checkpoint

log = logging.getLogger(__name__)
UNLABELED = "unlabeled_teacher"  # the key of the teacher of cases without ground truth


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that a round learns from.

    Args:
        key: The key of `round` that names it.
        round: Whose checkpoint it is; None for a file named by hand, which may be of any round.
        checkpoint: Its path.
    """

    key: str
    round: str | None
    checkpoint: Path


def teachers_of(settings: RoundSettings) -> list[Teacher]:
    """The teachers of a round: of its weights and most labels, then that of its cases without ground truth.

    Returns:
        None, one or two; the first is `round.checkpoint`, or `round.teacher`'s of `round.teacher_kind`.
    """
    found = []
    if settings.checkpoint is not None:
        found.append(Teacher("checkpoint", None, settings.checkpoint))
    elif settings.teacher is not None:
        found.append(Teacher("teacher", settings.teacher, _checkpoint(settings, settings.teacher)))
    second = settings.unlabeled_teacher
    if second is not None:
        found.append(Teacher(UNLABELED, second, _checkpoint(settings, second)))
    return found


def _checkpoint(settings: RoundSettings, name: str) -> Path:
    """A round's checkpoint: the run's own, or else, for a job of a sweep, that of the run it names."""
    file = f"{settings.teacher_kind}.ckpt"
    own, outside = (run.round(name).checkpoints / file for run in (settings.run, settings.named_run))
    return outside if outside.is_file() and not own.is_file() else own


def present_teachers(settings: RoundSettings, planned: Sequence[str] = ()) -> list[Teacher]:
    """The teachers of a round's labels or weights whose checkpoint is there before the run starts.

    Args:
        settings: The round.
        planned: Rounds that will have run before this one.
    """
    if not settings.is_hybrid and settings.init != "teacher":
        return []
    return [teacher for teacher in teachers_of(settings) if teacher.round not in planned]


def require_teacher(settings: RoundSettings, planned: Sequence[str] = ()) -> None:
    """Refuse a round whose teachers have no checkpoint, before any work.

    Args:
        settings: The round.
        planned: Rounds that will have run before this one.

    Raises:
        FlareError: With the command that makes the teacher.
    """
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
        kind = "" if settings.teacher_kind == "last" else f", round.teacher_kind={settings.teacher_kind}"
        raise FlareError(
            f"round={name} needs its teacher's checkpoint {path}, which does not exist "
            f"(round.{teacher.key}{kind}): run `python train.py round={teacher.round} "
            f"name={settings.config.name}` with the same overrides first"
        )


def read_teacher(settings: RoundSettings, planned: Sequence[str] = ()) -> Checkpoint | None:
    """Read and check every checkpoint that a round learns from and that is there before the run starts.

    Args:
        settings: The round.
        planned: Rounds that will have run before this one.

    Returns:
        The main one, from which weights may start; None if there is none yet.

    Raises:
        FlareError: If one is missing, or of another round or class list; or if weights would start from one
            of another spacing.
    """
    main = None
    for teacher in present_teachers(settings, planned):
        name = teacher.round
        if name is not None and settings.run.root not in teacher.checkpoint.parents:
            run = settings.config.name
            log.info("round %s: its teacher %s is that of the run %s", settings.name, name, run)
        found = _read(settings, teacher)
        if teacher.key != UNLABELED:
            main = found
    return main


def _read(settings: RoundSettings, teacher: Teacher) -> Checkpoint:
    """Read one teacher's checkpoint and hold it against the round."""
    from flare.runs.checkpoints import load_checkpoint  # torch: only where a teacher is looked into

    path = teacher.checkpoint
    found = load_checkpoint(path)
    if teacher.round is not None and found.round != teacher.round:
        raise FlareError(
            f"round.{teacher.key}={teacher.round}: {path} is a checkpoint of round {found.round}"
        )
    ours = list(settings.prepared.spacing_mm)
    # labels live on the original grid, so that a teacher of labels alone may have another
    starts_weights = settings.init == "teacher" and teacher.key != UNLABELED
    if starts_weights and list(found.spacing_mm) != ours:
        raise FlareError(f"data.spacing_mm={ours}: the teacher {path} has {list(found.spacing_mm)}")
    names, theirs = (_names(c) for c in (settings.classes, found.class_list))
    if settings.is_hybrid and names != theirs:
        raise FlareError(f"classes: the teacher {path} has {theirs}, expected {names}")
    return found


def _names(classes: ClassList) -> str:
    """Ids and names, all that predictions depend on."""
    return ", ".join(f"{c.id} {c.name}" for c in classes.entries)
