"""Lightning's trainer for a round: precision, callbacks, loggers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from flare.callbacks import TrainingTable
from flare.errors import FlareError
from flare.inference.hardware import CPU_BF16_FLAGS, autocast_type, cpu_flags
from flare.labels import LabelSet
from flare.messages import hide_messages
from flare.runs import RoundFolder
from flare.saving import AtomicCheckpointIO
from flare.tracking.identity import RunIds, build_loggers

BROKEN_DEPTH = 2
PRECISIONS = {None: "32-true", torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}


def build_trainer(
    cfg: DictConfig, folder: RoundFolder, *, has_validation: bool, ckpt_path: Path | None = None
) -> pl.Trainer:
    """Build the trainer of a round.

    Args:
        cfg: Configuration of `train`; groups `trainer`, `callbacks` and `logger`.
        folder: The round's folder; callbacks find it as the trainer's `default_root_dir`.
        has_validation: Whether there are labelled validation cases.
        ckpt_path: What the training resumes from; trackers go on in its runs.
    """
    hide_messages()
    callbacks = [instantiate(settings) for settings in (cfg.callbacks or {}).values()]
    loggers = build_loggers(cfg, folder.root / "logs", ckpt_path)
    callbacks += [TrainingTable(LabelSet.from_config(cfg.classes)), RunIds(loggers)]
    arguments: dict[str, Any] = {} if has_validation else {"limit_val_batches": 0}
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=list(loggers.values()),
        plugins=[AtomicCheckpointIO()],
        precision=choose_precision(
            str(cfg.trainer.precision), str(cfg.trainer.accelerator), lowest_depth=lowest_depth(cfg)
        ),
        default_root_dir=str(folder.root),
        enable_progress_bar=False,  # ours is a callback
        **arguments,
    )


def check_trainer(cfg: DictConfig) -> None:
    """Refuse, before any work, a trainer that this machine cannot have.

    Args:
        cfg: Configuration of `train`; group `trainer`.

    Raises:
        FlareError: Naming the key, or in Lightning's words.
    """
    hide_messages()
    accelerator = str(cfg.trainer.accelerator)
    wanted = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
    if accelerator in wanted and not any(kind.is_available() for kind in wanted[accelerator]):
        raise FlareError(f"trainer.accelerator={accelerator}: this machine has none; expected auto or cpu")
    precision = choose_precision(str(cfg.trainer.precision), accelerator, lowest_depth=lowest_depth(cfg))
    try:
        instantiate(
            cfg.trainer,
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise FlareError(f"trainer: Lightning refuses it: {reason}") from None


def lowest_depth(cfg: DictConfig) -> int:
    """Slices of a patch at the network's lowest resolution."""
    return int(cfg.data.patch_size[0]) // math.prod(int(stride[0]) for stride in cfg.model.net.strides)


def choose_precision(precision: str, accelerator: str, *, lowest_depth: int) -> str:
    """Resolve the precision of a training.

    Args:
        precision: Lightning's name, or `auto`: mixed with float16 on GPUs (as nnU-Net), with bfloat16 on
            CPUs that compute in it, else float32.
        accelerator: Lightning's name.
        lowest_depth: Slices of a patch at the network's lowest resolution.

    Returns:
        Lightning's name.

    Raises:
        FlareError: If bfloat16 is asked of a CPU that would emulate it, a hundred times slower, or that
            would read memory it has not written.
    """
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    # oneDNN 3.12's avx512_core_bf16 kernel leaves weight gradients of a 3-kernel over 2 slices partly
    # uninitialised: random, now and then NaN (found on Zen 5, torch 2.13; 1, 3 and 4 slices are right)
    is_broken = not on_gpu and lowest_depth == BROKEN_DEPTH
    if precision == "auto":
        chosen = autocast_type("auto", torch.device("cuda" if on_gpu else "cpu"))
        return PRECISIONS[None if is_broken else chosen]
    if precision.startswith("bf16") and is_broken:
        raise FlareError(
            f"trainer.precision={precision}: on a CPU bfloat16 is wrong where {BROKEN_DEPTH} slices are left "
            "at the lowest resolution (data.patch_size over model.net.strides along z); expected 32 or auto"
        )
    if precision.startswith("bf16") and not on_gpu and not cpu_flags() & CPU_BF16_FLAGS:
        raise FlareError(f"trainer.precision={precision}: this CPU has no bfloat16; expected 32 or auto")
    return precision
