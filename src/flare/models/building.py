"""From a configuration to the module that trains a round, with its first weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flare.checking.parts import build_part, refusing
from flare.data.draws import mirror_axes
from flare.inference.hardware import autocast_type
from flare.inference.predictor import Predictor
from flare.inference.settings import InferenceSettings
from flare.labels import LabelSet
from flare.losses import AnyLoss, DeepSupervision
from flare.models.module import SegmentationModule
from flare.models.zoo import build
from flare.prepare.sources import read_label_map
from flare.preprocessing import Intensity
from flare.records import git_revision, public_config


def build_network(cfg: DictConfig) -> nn.Module:
    """Build the network of a round with fresh weights.

    Raises:
        FlareError: If `model.net` is no network.
    """
    net, classes = (OmegaConf.to_container(node, resolve=True) for node in (cfg.model.net, cfg.classes))
    return build(net, classes=classes, targets=cfg.labels.targets)  # type: ignore[arg-type]


def build_loss(cfg: DictConfig) -> DeepSupervision:
    """Build the loss of a round; a loss of a single resolution is put over all of them.

    Raises:
        FlareError: If a value of `loss` is out of range, or makes no loss.
    """
    loss = build_part(cfg.loss, "loss")
    return loss if isinstance(loss, DeepSupervision) else AnyLoss(loss)


def check_optimizer(cfg: DictConfig, network: nn.Module) -> None:
    """Build optimizer and scheduler of a network as the training will, without its memory.

    Args:
        cfg: Configuration of `train`; `optimizer` and `scheduler`.
        network: Of which the shapes count alone.

    Raises:
        FlareError: If one of them cannot be built, or is none.
    """
    # on the CPU, since some optimizers refuse `meta`; one number stands for all of a parameter
    parameters = [nn.Parameter(torch.zeros(()).expand(p.shape)) for p in network.parameters()]
    with refusing(cfg.optimizer, "optimizer"):
        optimizer = instantiate(cfg.optimizer)(parameters)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"expected an optimizer of torch, found {type(optimizer).__name__}")
    with refusing(cfg.scheduler, "scheduler"):
        scheduler = instantiate(cfg.scheduler)(optimizer)
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"expected a schedule of torch, found {type(scheduler).__name__}")


def build_module(cfg: DictConfig, intensity: Intensity) -> SegmentationModule:
    """Build the module of a round with fresh weights.

    Args:
        cfg: Configuration of `train`.
        intensity: Statistics of the cohort; they go with every checkpoint.
    """
    carried = {
        "classes": LabelSet.from_config(cfg.classes).to_config(),
        "targets": str(cfg.labels.targets),
        "spacing_mm": [float(size) for size in cfg.data.spacing_mm],
        "interpolation": str(cfg.data.interpolation),
        "intensity": intensity.to_dict(),
        "patch_size": [int(size) for size in cfg.data.patch_size],
        "mirror_axes": list(mirror_axes(cfg.data.augmentation)),
        "round": cfg.round.name,
        "config": public_config(cfg),
        "git_revision": git_revision(),
    }
    return SegmentationModule(
        build_network(cfg),
        build_loss(cfg),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        predictor=partial(make_predictor, carried=carried, settings=InferenceSettings.from_config(cfg)),
        carried=carried,
        label_map=read_label_map(cfg.data.label_map, LabelSet.from_config(cfg.classes)),
        nsd=bool(cfg.validation.nsd),
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
    labels = LabelSet.from_config(carried["classes"])
    predictor = Predictor(
        network,
        labels=labels,
        outputs=labels.outputs(carried["targets"]),
        spacing_mm=tuple(carried["spacing_mm"]),
        interpolation=carried["interpolation"],
        intensity=Intensity.from_dict(carried["intensity"]),
        patch_size=tuple(carried["patch_size"]),
        mirror_axes=tuple(carried["mirror_axes"]),
        settings=settings,
    )
    # a predictor looks for a GPU of its own; here the network is where the trainer has put it
    predictor.device = device
    predictor.autocast_type = autocast_type(settings.precision, device)
    return predictor
