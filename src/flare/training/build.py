"""From a configuration to the module that trains a round, with its first weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flare.core.classes import ClassList
from flare.core.errors import FlareError, build_part, refusing
from flare.core.preprocessing import Intensity
from flare.inference.engines import torch_engine
from flare.inference.predictor import Predictor
from flare.inference.settings import InferenceSettings
from flare.models.losses import AnyLoss, DeepSupervision
from flare.models.zoo import build, head_axes
from flare.runs.checkpoints import Checkpoint
from flare.runs.records import git_revision
from flare.training.module import SegmentationModule
from flare.training.settings import TrainingSettings


def build_network(settings: TrainingSettings) -> nn.Module:
    """Build the network of a round with fresh weights.

    Raises:
        FlareError: If `model.net` is no network.
    """
    return build(settings.net, classes=settings.classes.to_config(), targets=settings.targets)


def build_loss(settings: TrainingSettings) -> DeepSupervision:
    """Build the loss of a round; a loss of a single resolution is put over all of them.

    Raises:
        FlareError: If `loss` makes no loss.
    """
    loss = build_part(settings.loss, "loss")
    return loss if isinstance(loss, DeepSupervision) else AnyLoss(loss)


def check_optimizer(settings: TrainingSettings, network: nn.Module) -> None:
    """Build optimizer and scheduler of a network, of which the shapes alone count, as the training will.

    Raises:
        FlareError: If one of them cannot be built, or is none.
    """
    # on the CPU, since some optimizers refuse `meta`; one number stands for all of a parameter
    parameters = [nn.Parameter(torch.zeros(()).expand(p.shape)) for p in network.parameters()]
    with refusing(settings.optimizer, "optimizer"):
        optimizer = instantiate(settings.optimizer)(parameters)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"expected an optimizer of torch, found {type(optimizer).__name__}")
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
    return SegmentationModule(
        build_network(settings),
        build_loss(settings),
        optimizer=instantiate(settings.optimizer),
        scheduler=instantiate(settings.scheduler),
        predictor=partial(make_predictor, carried=carried, settings=settings.inference),
        carried=carried,
        label_map=settings.label_map,
        nsd=settings.nsd,
    )


def make_predictor(
    network: nn.Module, device: torch.device, *, carried: Mapping[str, Any], settings: InferenceSettings
) -> Predictor:
    """Make the predictor of validation cases, the same that later predicts from the checkpoint.

    Args:
        network: With its current weights, in `eval()` mode when it is called.
        device: Where the network is.
        carried: What the checkpoint will carry.
        settings: How to predict.
    """
    engine = torch_engine(network, device=device, precision=settings.precision)
    return Predictor.from_carried(engine, carried, replace(settings, device=str(device)))


def start_from_teacher(network: nn.Module, teacher: Checkpoint, *, classes: ClassList, targets: str) -> None:
    """Copy a teacher's weights into a network of the same architecture, in place.

    A head has one row a class; the rows of classes that the teacher does not know keep their fresh
    initialisation.

    Args:
        network: Freshly initialised.
        teacher: Checkpoint of the round's teacher.
        classes: The class list of the new round.
        targets: What the new round trains.

    Raises:
        FlareError: If architecture or class list are others.
    """
    check_teacher(network, teacher, classes=classes, targets=targets)
    outputs = classes.outputs(targets)
    pairs = [(outputs.index(c), teacher.outputs.index(c)) for c in outputs if c in teacher.outputs]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    axes = head_axes(network)
    with torch.no_grad():
        for key, weights in network.state_dict().items():
            if key in axes:
                rows = teacher.state_dict[key].movedim(axes[key], 0)[theirs]
                weights.movedim(axes[key], 0)[ours] = rows.to(weights)
            else:
                weights.copy_(teacher.state_dict[key])


def check_teacher(network: nn.Module, teacher: Checkpoint, *, classes: ClassList, targets: str) -> None:
    """Refuse a teacher whose weights cannot be copied; heads may differ in their number of classes.

    Args:
        network: Of the new round; its weights are not looked at and may be on the meta device.
        teacher: Checkpoint of the round's teacher.
        classes: The class list of the new round.
        targets: What the new round trains.

    Raises:
        FlareError: If it has other layers, or another name for an id that both train.
    """
    check_architecture(network, teacher.state_dict, str(teacher.path))
    for class_id in set(classes.outputs(targets)[1:]) & set(teacher.outputs):
        name, theirs_name = classes.name_of(class_id), teacher.class_list.name_of(class_id)
        if name != theirs_name:
            raise FlareError(
                f"round.init=teacher: class {class_id} is {theirs_name} in {teacher.path}, {name} in classes"
            )


def check_architecture(network: nn.Module, state: dict[str, Tensor], teacher: str) -> None:
    """Refuse weights of other layers; heads may differ in their number of classes.

    Args:
        network: Of the new round.
        state: The teacher's weights; they, too, may be on the meta device.
        teacher: What it is called in the refusal.

    Raises:
        FlareError: Naming the first layer that differs.
    """
    axes = head_axes(network)
    ours, theirs = _shapes(network.state_dict(), axes), _shapes(state, axes)
    different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if different:
        key = different[0]
        raise FlareError(
            f"round.init=teacher: {teacher} has another architecture ({key} is {theirs.get(key)}, the "
            f"model's is {ours.get(key)}); choose the teacher's model or round.init=fresh"
        )


def _shapes(state: dict[str, Tensor], axes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, of a head without its classes."""
    return {k: tuple(n for axis, n in enumerate(w.shape) if axis != axes.get(k)) for k, w in state.items()}
