"""What every training does beside its steps: checkpoints, progress, throughput, the table of epochs."""

import logging
import logging.config
import math
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.progress import Progress

from flare.core.classes import ClassList
from flare.core.files import read_csv, write_csv
from flare.runs.checkpoints import read_weights_file, write_weights_file
from flare.runs.door import is_asked, listen, place, stop, wait_for_step
from flare.runs.folders import TrainingFolder, plain_config
from flare.runs.work import progress
from flare.training.resuming import make_current
from flare.training.settings import EACH_EPOCH, MONITOR, table_columns

log = logging.getLogger(__name__)
HIDDEN_WARNINGS = read_csv(Path(__file__).with_name("hidden_warnings.csv"))  # and why each is of no use


class Messages(Callback):
    """Lets every process that trains log as the first one does: a spawned one starts without any logging."""

    def __init__(self) -> None:
        self.logging = plain_config(HydraConfig.get().job_logging) if HydraConfig.initialized() else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set up the logging, once a process."""
        hide_messages()
        if self.logging is not None and not logging.getLogger().handlers:
            logging.config.dictConfig(self.logging)


def hide_messages() -> None:
    """Hide warnings that a user cannot act upon, and Lightning's notes on hardware and services."""
    for row in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=row["message"])
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, under their final name only when they are complete.

    Lightning's own saving writes to the final name, or across file systems: a process killed meanwhile
    leaves half a file there, and nothing to resume from.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, *_: Any, **__: Any) -> None:
        """Write a checkpoint to a temporary file and rename it; a full disk is a `NoRoomError`."""
        write_weights_file(Path(path), checkpoint)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint as everything here does: tensors and plain values, on the CPU."""
        return read_weights_file(Path(path))


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, from which a round resumes and which teaches the next, and `best.ckpt`.

    The last is written every few epochs and at the end of a round. The best is the one of the highest mean
    validation DSC; there is none without validation. Both lie in the trainer's `default_root_dir`, which is
    the folder of the training, and have names in the round's.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.best = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is due."""
        # the best comes first: killed in between, the resumed epoch finds the same score and saves it again
        folder = TrainingFolder(Path(trainer.default_root_dir))
        score = pl_module.means.get(MONITOR, -math.inf)  # type: ignore[operator, union-attr]
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


class Stops(Callback):
    """Ends a training that a signal stops after the step at hand, with a checkpoint of that moment.

    The last step of an epoch is followed by the first of the next: a checkpoint between them would resume
    without the epoch's validation. A validation is left at once, since it changes no weight.
    """

    def __init__(self) -> None:
        self.stack = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals from Lightning, which would train to the end of the epoch and exit with 0."""
        listen()
        wait_for_step(True)

        def tell() -> str:
            return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"

        self.stack.enter_context(place(tell))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save and stop, all processes after the same step."""
        if not trainer.is_last_batch and trainer.strategy.reduce_boolean_decision(is_asked(), all=False):
            folder = TrainingFolder(Path(trainer.default_root_dir))
            trainer.save_checkpoint(folder.last)
            if trainer.is_global_zero:
                make_current(folder)
                log.info("saved a checkpoint of step %d", trainer.global_step)
            stop()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once from here on."""
        self._stop_waiting()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a step again."""
        wait_for_step(True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once, the last checkpoint is there."""
        self._stop_waiting()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Forget the training."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the training."""
        wait_for_step(False)
        self.stack.close()

    def _stop_waiting(self) -> None:
        """No step is at hand: stop if a signal has asked for it since the last."""
        wait_for_step(False)
        if is_asked():
            stop()


class Throughput(Callback):
    """Logs an epoch's `patches_per_s` on all devices, less validation, and its own `gpu_memory_mb` (MiB)."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, also of an epoch that is resumed in its middle."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = self.stopped = time.perf_counter()
        self.patches = 0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *batch: Any) -> None:
        """Count a batch; the clock stops at the last one, so that validation is not timed."""
        self.patches += len(batch[0]["image"]) * trainer.world_size
        self.stopped = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's figures."""
        speed = self.patches / max(self.stopped - self.started, 1e-9)
        pl_module.log("patches_per_s", speed, rank_zero_only=True, sync_dist=False)
        if pl_module.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
            pl_module.log("gpu_memory_mb", memory, rank_zero_only=True, sync_dist=False)


class EpochProgress(Callback):
    """A progress bar over all steps of the round with an estimate of what is left, and a line an epoch."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar, at the step where a resumed training stands."""
        if trainer.is_global_zero:
            total = (trainer.max_epochs or 1) * int(trainer.num_training_batches)
            self.bar = self.stack.enter_context(progress("train", total=total, done=trainer.global_step))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.advance(self.bar.task_ids[0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell loss and, where there was a validation, score."""
        if self.bar is None:
            return
        metrics, shown = trainer.callback_metrics, {"loss": "train/loss", "dsc": MONITOR}
        text = " ".join(f"{name} {float(metrics[k]):.3f}" for name, k in shown.items() if k in metrics)
        self.bar.update(self.bar.task_ids[0], description=f"train {text}")
        log.info("epoch %d of %d: %s", trainer.current_epoch + 1, trainer.max_epochs, text)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        self.stack.close()
        self.bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close the bar: Lightning leaves `teardown` out after an exception."""
        self.teardown(trainer, pl_module, "fit")


class TrainingTable(Callback):
    """Writes `training.csv`, a row an epoch; a resumed training replaces rows of epochs it does again."""

    def __init__(self, classes: ClassList, *, averaged: Any = None) -> None:
        self.columns = ["epoch", "step", *table_columns(classes, averaged=averaged)]
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the rows of the epochs before this one."""
        self.path = TrainingFolder(Path(trainer.default_root_dir)).training_csv
        known = read_csv(self.path) if self.path.exists() else []
        self.rows = [row for row in known if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row and write the table."""
        metrics = trainer.callback_metrics
        told = {name: metrics[name] for name in EACH_EPOCH if name in metrics} | pl_module.means  # type: ignore[operator]
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        self.rows.append(row | {name: f"{float(value):.6g}" for name, value in told.items()})
        if trainer.is_global_zero:
            write_csv(self.path, self.rows, self.columns)
