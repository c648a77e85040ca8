"""Lightning's trainer for a round: precision, callbacks, loggers."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from flare.callbacks import TrainingTable
from flare.errors import FlareError
from flare.inference.hardware import CPU_BF16_FLAGS, autocast_type, cpu_flags
from flare.labels import LabelSet
from flare.messages import hide_messages
from flare.runs import RoundFolder
from flare.saving import AtomicCheckpointIO

PRECISIONS = {None: "32-true", torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}


def build_trainer(cfg: DictConfig, folder: RoundFolder, *, has_validation: bool) -> pl.Trainer:
    """Build the trainer of a round.

    Args:
        cfg: Configuration of `train`; groups `trainer`, `callbacks` and `logger`.
        folder: The round's folder; callbacks find it as the trainer's `default_root_dir`.
        has_validation: Whether there are labelled validation cases.
    """
    hide_messages()
    callbacks = [instantiate(settings) for settings in (cfg.callbacks or {}).values()]
    callbacks.append(TrainingTable(LabelSet.from_config(cfg.classes)))
    loggers = [instantiate(c, save_dir=str(folder.root / "logs")) for c in (cfg.logger or {}).values()]
    arguments: dict[str, Any] = {} if has_validation else {"limit_val_batches": 0}
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        precision=choose_precision(str(cfg.trainer.precision), str(cfg.trainer.accelerator)),
        default_root_dir=str(folder.root),
        enable_progress_bar=False,  # ours is a callback
        **arguments,
    )


def choose_precision(precision: str, accelerator: str) -> str:
    """Resolve the precision of a training.

    Args:
        precision: Lightning's name, or `auto`: mixed with float16 on GPUs (as nnU-Net), with bfloat16 on
            CPUs that compute in it, else float32.
        accelerator: Lightning's name.

    Returns:
        Lightning's name.

    Raises:
        FlareError: If bfloat16 is asked of a CPU that would emulate it, a hundred times slower.
    """
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "auto":
        return PRECISIONS[autocast_type("auto", torch.device("cuda" if on_gpu else "cpu"))]
    if precision.startswith("bf16") and not on_gpu and not cpu_flags() & CPU_BF16_FLAGS:
        raise FlareError(f"trainer.precision={precision}: this CPU has no bfloat16; expected 32 or auto")
    return precision
