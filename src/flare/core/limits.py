"""Which rule holds for which key, of all scripts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flare.core import checks
from flare.core.checks import (
    COUNT,
    FLAG,
    NOT_NEGATIVE,
    SHARE,
    Rule,
    choice,
    limits,
    optional,
    several,
    whole,
)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_transforms(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(t, dict) and "_target_" in t for t in value)


def _are_axes(value: Any) -> bool:
    return isinstance(value, list) and all(axis in ("z", "y", "x") for axis in value)


AUGMENTATIONS = {  # ranges of each section of data.augmentation
    "rotation": {},
    "scaling": {"range": limits(0)},
    "elastic": {"alpha": limits(0), "alpha_2d": limits(0), "sigma": limits(0)},
    "noise": {"std": limits(0)},
    "blur": {"sigma": limits(0)},
    "brightness": {"range": limits(0)},
    "contrast": {"range": limits(0)},
    "low_resolution": {"zoom": limits(0, 1)},
    "gamma_inverted": {"range": limits(0)},
    "gamma": {"range": limits(0)},
    "mirror": {},
}

# key -> rule; `*` stands for any key; a key that a configuration lacks is not asked for
RULES: dict[str, Rule] = {
    "seed": whole(0, 2**32 - 1),
    "allow": Rule(_are_names, "a list of dotted names"),
    "dry_run": FLAG,
    "round.init": choice("fresh", "teacher"),
    "validation.nsd": FLAG,
    "data.patch_size": several(3, COUNT),
    "data.batch_size": COUNT,
    "data.oversample_foreground": SHARE,
    "data.tumor_fraction": SHARE,
    "data.workers": whole(0),
    "data.augmentation.dummy_2d": FLAG,
    "data.augmentation.image_interpolation": choice("cubic", "linear"),
    "data.augmentation.label_interpolation": choice("nearest", "linear"),
    "data.augmentation.rotation.degrees": NOT_NEGATIVE,
    "data.augmentation.rotation.degrees_2d": NOT_NEGATIVE,
    "data.augmentation.blur.channel_probability": SHARE,
    "data.augmentation.low_resolution.channel_probability": SHARE,
    "data.augmentation.extra": Rule(
        _are_transforms, "a list of transforms such as {_target_: torchio.RandomGhosting}"
    ),
    "data.augmentation.mirror.axes": Rule(_are_axes, "a list of some of z, y, x"),
    **{f"data.augmentation.{name}.probability": SHARE for name in AUGMENTATIONS},
    **{f"data.augmentation.{n}.{key}": r for n, rules in AUGMENTATIONS.items() for key, r in rules.items()},
    "labels.dilation_mm": NOT_NEGATIVE,
    "labels.tumor_inside_fraction": SHARE,
    "labels.constrain_unlabeled": FLAG,
    "dilation_mm": NOT_NEGATIVE,  # of merge_labels
    "tumor_inside_fraction": SHARE,
    "constrain_unlabeled": FLAG,
    "loss.dice_weight": NOT_NEGATIVE,
    "loss.ce_weight": NOT_NEGATIVE,
    "loss.smooth": NOT_NEGATIVE,
    "loss.batch_dice": FLAG,
    "loss.supervise_lowest": FLAG,
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.precision": choice("auto", "32", "32-true", "16-mixed", "bf16-mixed"),
    "trainer.max_epochs": COUNT,
    "trainer.limit_train_batches": COUNT,
    # samples are a function of the step: a larger batch is data.batch_size
    "trainer.accumulate_grad_batches": choice("1"),
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.gradient_clip_val": optional(NOT_NEGATIVE),
    "trainer.log_every_n_steps": whole(0),
    "trainer.num_sanity_val_steps": whole(-1),
    "model.optimizer": Rule(lambda value: False, "the key optimizer instead, a group of its own"),
    "model.scheduler": Rule(lambda value: False, "the key scheduler instead, a group of its own"),
    "optimizer.lr": NOT_NEGATIVE,
    "optimizer.momentum": SHARE,
    "optimizer.nesterov": FLAG,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "scheduler.power": NOT_NEGATIVE,
    "scheduler.decay_epochs": COUNT,
    "scheduler.T_max": COUNT,
    "scheduler.eta_min": NOT_NEGATIVE,
    "callbacks.checkpoint.every_n_epochs": COUNT,
    "callbacks.overlays.every_n_epochs": COUNT,
    "callbacks.overlays.cases": whole(0),
}


def check_values(cfg: Mapping[str, Any], groups: Collection[str] | None = None) -> None:
    """Refuse a value that means nothing, see `checks.check_values`; of `groups` alone, if given."""
    rules = {k: rule for k, rule in RULES.items() if groups is None or k.split(".")[0] in groups}
    checks.check_values(cfg, rules)
