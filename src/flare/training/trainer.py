"""Lightning's trainer for a round: precision, callbacks, loggers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator

from flare.core.errors import FlareError, build_part
from flare.inference.engines import CPU_BF16_FLAGS, autocast_type, cpu_flags
from flare.models.depths import depths_under_kernel
from flare.runs.folders import TrainingFolder
from flare.training.build import build_network
from flare.training.callbacks import AtomicCheckpointIO, TrainingTable, hide_messages
from flare.training.loggers import RunIds, build_loggers
from flare.training.settings import TrainingSettings

log = logging.getLogger(__name__)
BROKEN_KERNEL, BROKEN_DEPTH = 3, 2  # slices, see is_bfloat16_broken
PRECISIONS = {None: "32-true", torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}


def build_trainer(
    settings: TrainingSettings,
    folder: TrainingFolder,
    *,
    has_validation: bool,
    ckpt_path: Path | None = None,
) -> pl.Trainer:
    """Build the trainer of a round with its callbacks and loggers; no file is written.

    Args:
        settings: Of the training.
        folder: The training's folder; callbacks find it as the trainer's `default_root_dir`.
        has_validation: Whether there are labelled validation cases.
        ckpt_path: What the training resumes from; trackers go on in its runs.

    Raises:
        FlareError: If this machine cannot have it, or a part of it cannot be built, with its key.
    """
    hide_messages()
    accelerator = settings.trainer["accelerator"]
    wanted = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
    if accelerator in wanted and not any(kind.is_available() for kind in wanted[accelerator]):
        raise FlareError(f"trainer.accelerator={accelerator}: this machine has none; expected auto or cpu")
    callbacks = [build_part(part, f"callbacks.{name}") for name, part in settings.callbacks.items()]
    loggers = build_loggers(settings.loggers, folder.logs, ckpt_path)
    callbacks += [TrainingTable(settings.classes), RunIds(loggers)]
    arguments: dict[str, Any] = {} if has_validation else {"limit_val_batches": 0}
    return build_part(
        settings.trainer,
        "trainer",
        callbacks=callbacks,
        logger=list(loggers.values()),
        plugins=[AtomicCheckpointIO()],
        precision=choose_precision(settings),
        default_root_dir=str(folder.root),
        enable_progress_bar=False,  # ours is a callback
        **arguments,
    )


def choose_precision(settings: TrainingSettings) -> str:
    """Resolve the precision of a training.

    Args:
        settings: Of the training. `trainer.precision` is Lightning's name, or `auto`: mixed with float16 on
            GPUs (as nnU-Net), with bfloat16 on CPUs that compute in it and are right, else float32.

    Returns:
        Lightning's name.

    Raises:
        FlareError: If bfloat16 is asked of a CPU that would emulate it, a hundred times slower, or that
            would read memory it has not written.
    """
    precision, accelerator = str(settings.trainer["precision"]), settings.trainer["accelerator"]
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "auto":
        chosen = autocast_type("auto", torch.device("cuda" if on_gpu else "cpu"))
        if chosen is torch.bfloat16 and not on_gpu and is_bfloat16_broken(settings):
            chosen = None
        return PRECISIONS[chosen]
    if precision.startswith("bf16") and not on_gpu:
        if not cpu_flags() & CPU_BF16_FLAGS:
            raise FlareError(f"trainer.precision={precision}: this CPU has no bfloat16; expected 32 or auto")
        if is_bfloat16_broken(settings):
            raise FlareError(
                f"trainer.precision={precision}: on a CPU bfloat16 is wrong where a convolution of "
                f"{BROKEN_KERNEL} slices reads {BROKEN_DEPTH} (follows from data.patch_size and model.net); "
                "expected 32 or auto"
            )
    return precision


def is_bfloat16_broken(settings: TrainingSettings) -> bool:
    """Whether a CPU's bfloat16 would spoil the training of this network on this patch.

    oneDNN 3.12's avx512_core_bf16 kernel leaves the weight gradients of a 3-kernel that reads 2 slices partly
    uninitialised: random, now and then NaN (found on Zen 5, torch 2.13). 1, 3 and more slices are right.

    Returns:
        True also for a network that cannot be followed without data.
    """
    with torch.device("meta"):  # shapes alone: no memory, no initialisation
        network = build_network(settings)
    try:
        depths = depths_under_kernel(network, settings.patches.patch_size, kernel=BROKEN_KERNEL)
    except FlareError:
        raise
    except Exception as error:  # the network may be anybody's: whatever it raises, its depths stay unknown
        log.warning("model.net cannot be followed without data (%s): taken as unfit for bfloat16", error)
        return True
    return BROKEN_DEPTH in depths
