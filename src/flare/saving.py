"""Checkpoints of a training: written whole or not at all, the last one and the best one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from flare.checkpoints import read_weights_file, write_weights_file
from flare.resuming import make_current
from flare.runs import TrainingFolder

MONITOR = "val/dsc_mean"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, under their final name only when they are complete.

    Lightning's own saving writes to the final name, or across file systems: a process killed meanwhile
    leaves half a file there, and nothing to resume from.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint to a temporary file and rename it.

        Raises:
            NoRoomError: If the disk is full.
        """
        write_weights_file(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as everything here does: tensors and plain values, on the CPU."""
        return read_weights_file(Path(path))


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, from which a round resumes and which teaches the next, and `best.ckpt`.

    The best is the one of the highest mean validation DSC; there is none without validation. Both lie in the
    trainer's `default_root_dir`, which is the folder of the training, and have names in the round's.

    Args:
        every_n_epochs: How often the last one is written; the end of a round always is.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.best = -math.inf
        self.is_validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the scores are of this epoch; Lightning keeps older ones among its metrics."""
        self.is_validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is due.

        The best comes first: killed in between, the resumed epoch finds the same score and saves it again.
        """
        folder = TrainingFolder(Path(trainer.default_root_dir))
        score = float(trainer.callback_metrics.get(MONITOR, -math.inf)) if self.is_validated else -math.inf
        self.is_validated = False
        if score > self.best:
            self.best = score
            trainer.save_checkpoint(folder.best)
        done = trainer.current_epoch + 1
        if done % self.every_n_epochs == 0 or done == trainer.max_epochs:
            trainer.save_checkpoint(folder.last)
        if trainer.is_global_zero:
            make_current(folder)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must remember."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the saved training was."""
        self.best = state_dict["best"]
