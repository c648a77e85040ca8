"""Which run of a tracker a training is: kept in its checkpoints, so that it goes on in the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from flare.checking.parts import build_part
from flare.checkpoints import read_weights_file

KEY = "run_ids"  # entry of a Lightning checkpoint: name in `logger` -> id


class RunIds(Callback):
    """Adds the ids of the trackers' runs to every checkpoint.

    Args:
        loggers: By their names in the configuration; those with a `run_id` have one.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self.loggers = dict(loggers)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the ids."""
        ids = {name: getattr(logger, "run_id", None) for name, logger in self.loggers.items()}
        checkpoint[KEY] = {name: str(run_id) for name, run_id in ids.items() if run_id is not None}


def build_loggers(cfg: DictConfig, folder: Path, ckpt_path: Path | None) -> dict[str, Logger]:
    """Build the loggers of a configuration.

    Args:
        cfg: Group `logger`.
        folder: Where they write.
        ckpt_path: What the training resumes from; its runs are continued.

    Raises:
        FlareError: If one cannot be built, with its key.
    """
    configured: Mapping[str, Any] = cfg.logger or {}
    common = {"save_dir": str(folder)}
    loggers = {name: build_part(part, f"logger.{name}", **common) for name, part in configured.items()}
    remembering = {name for name, logger in loggers.items() if hasattr(type(logger), "run_id")}
    if ckpt_path is not None and remembering:
        known = read_weights_file(ckpt_path).get(KEY, {})
        for name in remembering & set(known):
            loggers[name] = build_part(configured[name], f"logger.{name}", **common, run_id=known[name])
    return loggers
