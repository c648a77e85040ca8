"""From a configuration to the module that trains a round, with its first weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from flare.data.draws import mirror_axes
from flare.errors import FlareError
from flare.inference.hardware import autocast_type
from flare.inference.predictor import Predictor
from flare.inference.settings import InferenceSettings
from flare.labels import LabelSet
from flare.losses import DiceCELoss
from flare.models.module import SegmentationModule
from flare.models.unet import UNet
from flare.prepare.sources import read_label_map
from flare.preprocessing import Intensity
from flare.records import git_revision, public_config


def build_network(cfg: DictConfig) -> UNet:
    """Build the network of a round with fresh weights.

    Raises:
        FlareError: If `model.net` is no network.
    """
    with own_refusals():
        return instantiate(cfg.model.net)


def build_loss(cfg: DictConfig) -> DiceCELoss:
    """Build the loss of a round.

    Raises:
        FlareError: If a value of `loss` is out of range.
    """
    with own_refusals():
        return instantiate(cfg.loss, classes=cfg.classes, targets=cfg.labels.targets)


@contextmanager
def own_refusals() -> Iterator[None]:
    """Let a refusal of ours through as it is, which Hydra would wrap into several lines."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, FlareError):
            raise error.__cause__ from None
        raise


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
        optimizer=instantiate(cfg.model.optimizer),
        scheduler=instantiate(cfg.model.scheduler),
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
