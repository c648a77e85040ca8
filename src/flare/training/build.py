"""From settings to the module that trains a round, with its first weights, and to its trainer."""

import logging
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.plugins import environments
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flare.core.classes import ClassList
from flare.core.errors import FlareError, build_part, refusing
from flare.core.preprocessing import Intensity
from flare.inference.engines import autocast_type, require_native
from flare.models.losses import AnyLoss, DeepSupervision
from flare.models.zoo import build, depths_under_kernel, head_axes
from flare.runs.checkpoints import Checkpoint
from flare.runs.folders import TrainingFolder, git_revision
from flare.training.callbacks import AtomicCheckpointIO, Messages, Stops, TrainingTable, hide_messages
from flare.training.loggers import Loggers
from flare.training.module import SegmentationModule
from flare.training.settings import TrainingSettings, option

log = logging.getLogger(__name__)
BROKEN_KERNEL, BROKEN_DEPTH = 3, 2  # slices, see is_bfloat16_broken
PRECISIONS = {None: "32-true", torch.float16: "16-mixed", torch.bfloat16: "bf16-mixed"}


def build_network(settings: TrainingSettings) -> nn.Module:
    """Build the network of a round with fresh weights; refuse a `model.net` that is no network."""
    return build(settings.net, classes=settings.classes.to_config(), targets=settings.targets)


def build_loss(settings: TrainingSettings) -> DeepSupervision:
    """Build the loss of a round; a loss of a single resolution is put over all of them."""
    loss = build_part(settings.loss, "loss")
    return loss if isinstance(loss, DeepSupervision) else AnyLoss(loss)


def check_optimizer(settings: TrainingSettings, network: nn.Module) -> None:
    """Refuse an optimizer or scheduler that cannot be built for a network's shapes, or is none."""
    # on the CPU, since some optimizers refuse `meta`; one number stands for all of a parameter
    parameters = [nn.Parameter(torch.zeros(()).expand(p.shape)) for p in network.parameters()]
    with refusing(settings.optimizer, "optimizer"):
        optimizer = instantiate(settings.optimizer)(parameters)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"expected an optimizer of torch, found {type(optimizer).__name__}")
    if option(settings.callbacks, "rescue", "epoch") is not None and "momentum" not in optimizer.defaults:
        raise FlareError("callbacks.rescue.epoch: expected null, the optimizer has no momentum to lower")
    with refusing(settings.scheduler, "scheduler"):
        scheduler = instantiate(settings.scheduler)(optimizer)
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"expected a schedule of torch, found {type(scheduler).__name__}")


def build_module(settings: TrainingSettings, intensity: Intensity) -> SegmentationModule:
    """Build the module of a round with fresh weights; the cohort's statistics go with every checkpoint."""
    carried = {
        "classes": settings.classes.to_config(),
        "targets": settings.targets,
        "spacing_mm": list(settings.patches.spacing_mm),
        "interpolation": settings.interpolation,
        "intensity": intensity.to_dict(),
        "patch_size": list(settings.patches.patch_size),
        "mirror_axes": list(settings.patches.mirror_axes),
        "round": settings.round,
        "config": dict(settings.public),
        "git_revision": git_revision(),
    }
    return SegmentationModule(settings, build_network(settings), build_loss(settings), carried)


def start_from_teacher(network: nn.Module, teacher: Checkpoint, *, classes: ClassList, targets: str) -> None:
    """Copy a teacher's weights into a network of the same architecture, in place; another is refused.

    A head has one row a class, which goes by the class's name: the two class lists may differ. Rows of
    classes that the teacher does not know stay fresh. `classes` and `targets` are the new round's.
    """
    check_architecture(network, teacher.state_dict, f"round.init=teacher: {teacher.path}")
    outputs, taught = (
        _output_names(*of) for of in ((classes, targets), (teacher.class_list, teacher.targets))
    )
    common = [name for name in outputs if name in taught]
    ours, theirs = ([names.index(name) for name in common] for names in (outputs, taught))
    fresh = ", ".join(name for name in outputs if name not in taught)
    log.info("the heads of %s start from the teacher's, afresh: %s", ", ".join(common), fresh or "none")
    axes = head_axes(network)
    with torch.no_grad():
        for key, weights in network.state_dict().items():
            if key in axes:
                rows = teacher.state_dict[key].movedim(axes[key], 0)[theirs]
                weights.movedim(axes[key], 0)[ours] = rows.to(weights)
            else:
                weights.copy_(teacher.state_dict[key])


def _output_names(classes: ClassList, targets: str) -> list[str]:
    """Name of each output, in small letters."""
    return ["background", *(classes.name_of(c).lower() for c in classes.outputs(targets)[1:])]


def check_architecture(network: nn.Module, state: dict[str, Tensor], whose: str) -> None:
    """Refuse weights of other layers, naming the first; both sides may be on the meta device."""
    axes = head_axes(network)
    ours, theirs = _shapes(network.state_dict(), axes), _shapes(state, axes)
    key = next((key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)), None)
    if key is not None:
        raise FlareError(
            f"{whose} has another architecture ({key} is {theirs.get(key)}, the model's is "
            f"{ours.get(key)}); choose its model, or start without it"
        )


def _shapes(state: dict[str, Tensor], axes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, of a head without its classes."""
    return {k: tuple(n for axis, n in enumerate(w.shape) if axis != axes.get(k)) for k, w in state.items()}


def build_trainer(
    settings: TrainingSettings, folder: TrainingFolder, *, has_validation: bool, ckpt_path: Path | None = None
) -> pl.Trainer:
    """Build the trainer of a round with its callbacks and loggers; no file is written.

    Callbacks find `folder` as the trainer's `default_root_dir`; trackers go on in the runs of `ckpt_path`,
    from which the training resumes. What this machine lacks, or a part that cannot be built, is refused.
    """
    hide_messages()
    environment = _environment(settings)
    accelerator = settings.trainer["accelerator"]
    wanted = {"gpu": (CUDAAccelerator, MPSAccelerator), "cuda": (CUDAAccelerator,), "mps": (MPSAccelerator,)}
    if accelerator in wanted and not any(kind.is_available() for kind in wanted[accelerator]):
        raise FlareError(f"trainer.accelerator={accelerator}: this machine has none; expected auto or cpu")
    callbacks = [build_part(part, f"callbacks.{name}") for name, part in settings.callbacks.items()]
    loggers = Loggers(settings.loggers, folder.logs, ckpt_path)
    table = TrainingTable(settings.classes, averaged=option(settings.callbacks, "ema", "decay"))
    callbacks += [Stops(), table, loggers, Messages()]
    arguments: dict[str, Any] = {} if has_validation else {"limit_val_batches": 0}
    trainer: pl.Trainer = build_part(
        settings.trainer,
        "trainer",
        callbacks=callbacks,
        logger=list(loggers.loggers.values()),
        plugins=[AtomicCheckpointIO(), environment],
        precision=choose_precision(settings),
        default_root_dir=str(folder.root),
        enable_progress_bar=False,  # ours is a callback
        **arguments,
    )
    if settings.is_shared:
        with refusing(settings.trainer, "trainer"):
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    return trainer


def _environment(settings: TrainingSettings) -> environments.ClusterEnvironment:
    """Say who starts the processes that train together: the trainer itself, unless they share the start.

    Slurm's variables alone, which Lightning reads, make no ranks out of the processes of one start.
    """
    if not settings.is_shared:
        return environments.LightningEnvironment()
    if environments.TorchElasticEnvironment.detect():
        return environments.TorchElasticEnvironment()
    if "SLURM_PROCID" not in os.environ:
        raise FlareError(
            "trainer.strategy=ddp: expected processes that srun (trainer=ddp_slurm) or torchrun started, one "
            "a device; trainer=ddp starts those of one machine itself"
        )
    return environments.SLURMEnvironment(auto_requeue=False)  # the same command resumes, whoever requeues


def choose_precision(settings: TrainingSettings) -> str:
    """Resolve `trainer.precision` to Lightning's name.

    `auto` is mixed with float16 on GPUs (as nnU-Net), with bfloat16 on CPUs that compute in it and are right,
    else float32. A type is refused that the device would emulate, for the training or its validation, or with
    which a CPU would read memory that it has not written.
    """
    precision, accelerator = str(settings.trainer["precision"]), settings.trainer["accelerator"]
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "mps" if accelerator == "mps" else "cpu")
    autocast_type(settings.inference.precision, device)
    if precision == "auto":
        chosen = autocast_type("auto", device)
        unfit = chosen is torch.bfloat16 and not on_gpu and is_bfloat16_broken(settings)
        return PRECISIONS[None if unfit else chosen]
    kind = {name: kind for kind, name in PRECISIONS.items()}.get(precision)
    require_native(f"trainer.precision={precision}", kind, device)
    if kind is torch.bfloat16 and not on_gpu and is_bfloat16_broken(settings):
        raise FlareError(
            f"trainer.precision={precision}: on a CPU bfloat16 is wrong where a convolution of "
            f"{BROKEN_KERNEL} slices reads {BROKEN_DEPTH} (follows from data.patch_size and model.net); "
            "expected 32 or auto"
        )
    return precision


def is_bfloat16_broken(settings: TrainingSettings) -> bool:
    """Whether a CPU's bfloat16 would spoil the training of this network on this patch, or nobody can tell.

    oneDNN 3.12's avx512_core_bf16 kernel leaves the weight gradients of a 3-kernel that reads 2 slices partly
    uninitialised: random, now and then NaN (found on Zen 5, torch 2.13). 1, 3 and more slices are right.
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
