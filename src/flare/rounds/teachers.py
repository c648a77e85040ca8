"""The checkpoints that teach a round: which they are, and refused if not those that the round expects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.runs.folders import RunFolder, named_run

if TYPE_CHECKING:
    from flare.runs.checkpoints import Checkpoint

log = logging.getLogger(__name__)
UNLABELED = "unlabeled_teacher"  # the key of the teacher of cases without ground truth


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that a round learns from.

    Args:
        key: The key of `cfg.round` that names it.
        round: Whose last checkpoint it is; None for one named by hand, which may be of any round.
        checkpoint: Its path.
    """

    key: str
    round: str | None
    checkpoint: Path


def unlabeled_teacher(cfg: DictConfig) -> str | None:
    """The round that labels a round's cases without ground truth, where that is not `round.teacher`."""
    has_unlabeled = cfg.labels.source == "hybrid" and cfg.labels.cases == "all"
    name = cfg.round.unlabeled_teacher if has_unlabeled else None
    return None if name == cfg.round.teacher and cfg.round.checkpoint is None else name


def teachers_of(cfg: DictConfig, run: RunFolder) -> list[Teacher]:
    """The teachers of a round: of its weights and most labels, then that of its cases without ground truth.

    Args:
        cfg: The round's configuration.
        run: The run's folder.

    Returns:
        None, one or two; the first is `round.checkpoint`, or the last checkpoint of `round.teacher`.
    """
    found = []
    if cfg.round.checkpoint is not None:
        found.append(Teacher("checkpoint", None, Path(str(cfg.round.checkpoint))))
    elif cfg.round.teacher is not None:
        found.append(Teacher("teacher", cfg.round.teacher, _last(cfg, run, cfg.round.teacher)))
    second = unlabeled_teacher(cfg)
    if second is not None:
        found.append(Teacher(UNLABELED, second, _last(cfg, run, second)))
    return found


def _last(cfg: DictConfig, run: RunFolder, name: str) -> Path:
    """A round's last checkpoint: the run's own, or else, for a job of a sweep, that of the run it names."""
    own, outside = run.round(name).last, named_run(cfg).round(name).last
    return outside if outside.is_file() and not own.is_file() else own


def present_teachers(cfg: DictConfig, run: RunFolder, planned: Sequence[str] = ()) -> list[Teacher]:
    """The teachers of a round's labels or weights whose checkpoint is there before the run starts.

    Args:
        cfg: The round's configuration.
        run: The run's folder.
        planned: Rounds that will have run before this one.
    """
    if cfg.labels.source != "hybrid" and cfg.round.init != "teacher":
        return []
    return [teacher for teacher in teachers_of(cfg, run) if teacher.round not in planned]


def require_teacher(cfg: DictConfig, run: RunFolder, planned: Sequence[str] = ()) -> None:
    """Refuse a round whose teachers have no checkpoint, before any work.

    Args:
        cfg: The round's configuration.
        run: The run's folder.
        planned: Rounds that will have run before this one.

    Raises:
        FlareError: With the command that makes the teacher.
    """
    if cfg.labels.source != "hybrid":
        return
    if cfg.round.checkpoint is None and cfg.round.teacher is None:
        raise FlareError(
            f"round={cfg.round.name}: hybrid labels need a teacher: set round.teacher or round.checkpoint"
        )
    for teacher in present_teachers(cfg, run, planned):
        if teacher.checkpoint.is_file():
            continue
        if teacher.round is None:
            path = teacher.checkpoint
            raise FlareError(f"round.checkpoint={path}: no such file (round={cfg.round.name})")
        raise FlareError(
            f"round={cfg.round.name} needs its teacher's checkpoint {teacher.checkpoint}, which does not "
            f"exist (round.{teacher.key}): run `python train.py round={teacher.round} name={cfg.name}` "
            "with the same overrides first"
        )


def read_teacher(cfg: DictConfig, run: RunFolder, planned: Sequence[str] = ()) -> Checkpoint | None:
    """Read and check every checkpoint that a round learns from and that is there before the run starts.

    Args:
        cfg: The round's configuration.
        run: The run's folder.
        planned: Rounds that will have run before this one.

    Returns:
        The main one, from which weights may start; None if there is none yet.

    Raises:
        FlareError: If one is missing, or of another round, spacing or class list.
    """
    main = None
    for teacher in present_teachers(cfg, run, planned):
        if teacher.round is not None and teacher.checkpoint != run.round(teacher.round).last:
            log.info(
                "round %s: its teacher %s is that of the run %s", cfg.round.name, teacher.round, cfg.name
            )
        found = _read(cfg, teacher)
        if teacher.key != UNLABELED:
            main = found
    return main


def _read(cfg: DictConfig, teacher: Teacher) -> Checkpoint:
    """Read one teacher's checkpoint and hold it against the round's configuration."""
    from flare.runs.checkpoints import load_checkpoint  # torch: only where a teacher is looked into

    path = teacher.checkpoint
    found = load_checkpoint(path)
    if teacher.round is not None and found.round != teacher.round:
        raise FlareError(
            f"round.{teacher.key}={teacher.round}: {path} is a checkpoint of round {found.round}"
        )
    if list(found.spacing_mm) != [float(size) for size in cfg.data.spacing_mm]:
        raise FlareError(
            f"data.spacing_mm={list(cfg.data.spacing_mm)}: the teacher {path} has {list(found.spacing_mm)}"
        )
    ours, theirs = (_names(c) for c in (ClassList.from_config(cfg.classes), found.class_list))
    if cfg.labels.source == "hybrid" and ours != theirs:
        raise FlareError(f"classes: the teacher {path} has {theirs}, expected {ours}")
    return found


def _names(classes: ClassList) -> str:
    """Ids and names, all that predictions depend on."""
    return ", ".join(f"{c.id} {c.name}" for c in classes.entries)
