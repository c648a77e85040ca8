"""The checkpoint that teaches a round: read, and refused if it is not the one that the round expects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flare.errors import FlareError
from flare.labels import LabelSet
from flare.merging.settings import PseudoSource
from flare.rounds import learns_from_teacher, teacher_checkpoint
from flare.runs import RunFolder

if TYPE_CHECKING:
    from flare.checkpoints import Checkpoint


def read_teacher(cfg: DictConfig, run: RunFolder, planned: Sequence[str] = ()) -> Checkpoint | None:
    """Read the checkpoint that a round learns from, by its labels or its weights; None if there is none yet.

    Args:
        cfg: The round's configuration.
        run: The run's folder.
        planned: Rounds that will have run before this one.

    Raises:
        FlareError: If it is missing, or of another round, spacing or class list.
    """
    from flare.checkpoints import load_checkpoint  # torch: only where a teacher is looked into

    if not learns_from_teacher(cfg, planned):
        return None
    path = Path(str(teacher_checkpoint(cfg, run)))
    teacher = load_checkpoint(path)
    if cfg.round.checkpoint is None and teacher.round != cfg.round.teacher:
        raise FlareError(
            f"round.teacher={cfg.round.teacher}: {path} is a checkpoint of round {teacher.round}"
        )
    if list(teacher.spacing_mm) != [float(size) for size in cfg.data.spacing_mm]:
        raise FlareError(
            f"data.spacing_mm={list(cfg.data.spacing_mm)}: the teacher {path} has {list(teacher.spacing_mm)}"
        )
    ours, theirs = (_names(labels) for labels in (LabelSet.from_config(cfg.classes), teacher.labels))
    if cfg.labels.source == "hybrid" and ours != theirs:
        raise FlareError(f"classes: the teacher {path} has {theirs}, expected {ours}")
    return teacher


def teacher_source(cfg: DictConfig, digest: str) -> PseudoSource:
    """Name who made a round's pseudo labels; a checkpoint named by hand may be of any round.

    Args:
        cfg: The round's configuration.
        digest: Hash of the teacher's checkpoint.
    """
    return PseudoSource(cfg.round.teacher if cfg.round.checkpoint is None else None, digest)


def _names(labels: LabelSet) -> str:
    """Ids and names, all that predictions depend on."""
    return ", ".join(f"{c.id} {c.name}" for c in labels.classes)
