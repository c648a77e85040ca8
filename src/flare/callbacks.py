"""What is told about a training while it runs: progress, speed, and the table of its epochs."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.progress import Progress

from flare.files import read_csv, write_csv
from flare.labels import LabelSet
from flare.progress import progress
from flare.runs import TrainingFolder
from flare.saving import MONITOR, Checkpoints

__all__ = ["Checkpoints", "EpochProgress", "Throughput", "TrainingTable"]

log = logging.getLogger(__name__)

MEBIBYTE = 2**20


class Throughput(Callback):
    """Logs the training speed of each epoch, validation apart, and the most GPU memory in use.

    `patches_per_s` counts the patches of all devices; `gpu_memory_mb` is this process's, in MiB.
    """

    def __init__(self) -> None:
        self.started = self.stopped = 0.0
        self.patches = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = self.stopped = time.perf_counter()
        self.patches = 0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; the clock stops at the last one, so that validation is not timed."""
        self.patches += len(batch["image"]) * trainer.world_size
        self.stopped = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's figures."""
        speed = self.patches / max(self.stopped - self.started, 1e-9)
        pl_module.log("patches_per_s", speed, rank_zero_only=True, sync_dist=False)
        if pl_module.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(pl_module.device) / MEBIBYTE
            pl_module.log("gpu_memory_mb", memory, rank_zero_only=True, sync_dist=False)


class EpochProgress(Callback):
    """A progress bar over all steps of the round with an estimate of what is left, and a line an epoch."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, at the step where a resumed training stands."""
        if not trainer.is_global_zero:
            return
        total = (trainer.max_epochs or 1) * int(trainer.num_training_batches)
        self.bar = self.stack.enter_context(progress("train", total=total, done=trainer.global_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.advance(self.bar.task_ids[0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell loss and, where there was a validation, score."""
        if self.bar is None:
            return
        shown = {"loss": "train/loss", "dsc": MONITOR}
        values = {name: trainer.callback_metrics.get(key) for name, key in shown.items()}
        text = " ".join(f"{name} {float(value):.3f}" for name, value in values.items() if value is not None)
        self.bar.update(self.bar.task_ids[0], description=f"train {text}")
        log.info("epoch %d of %d: %s", trainer.current_epoch + 1, trainer.max_epochs, text)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also after an exception."""
        self.stack.close()
        self.bar = None


class TrainingTable(Callback):
    """Writes `training.csv`: a row an epoch with loss, learning rate, speed and validation scores.

    A resumed training goes on in the same table; rows of epochs that it does again are replaced.

    Args:
        labels: The class list, for the columns.
    """

    def __init__(self, labels: LabelSet) -> None:
        self.scores = [f"val/{measure}/{name}" for measure in ("dsc", "nsd") for name in labels.names]
        self.scores += [MONITOR, "val/nsd_mean"]
        self.each_epoch = ["lr", "train/loss", "train/dice", "train/ce", "patches_per_s", "gpu_memory_mb"]
        self.rows: list[dict[str, Any]] = []
        self.is_validated = False

    @property
    def columns(self) -> list[str]:
        """What is told of an epoch."""
        return [*self.each_epoch, *self.scores]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the rows of the epochs before this one."""
        path = TrainingFolder(Path(trainer.default_root_dir)).training_csv
        known = read_csv(path) if path.exists() else []
        self.rows = [row for row in known if int(row["epoch"]) < trainer.current_epoch]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the scores are of this epoch; Lightning keeps older ones among its metrics."""
        self.is_validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row and write the table."""
        names = self.each_epoch + (self.scores if self.is_validated else [])
        self.is_validated = False
        metrics = trainer.callback_metrics
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.rows.append(row | {name: f"{float(metrics[name]):.6g}" for name in names if name in metrics})
        if trainer.is_global_zero:
            path = TrainingFolder(Path(trainer.default_root_dir)).training_csv
            write_csv(path, self.rows, ["epoch", "step", *self.columns])
