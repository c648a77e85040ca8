"""What one training is made of: checked values, and the parts that the configuration names by class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import read_label_map
from flare.core.classes import ClassList
from flare.core.errors import FlareError, Rule, check_values, choice, optional, rules_of
from flare.data.settings import PatchSettings
from flare.inference.settings import SECTION, InferenceSettings
from flare.models.names import PARTIAL_LOSSES
from flare.runs.folders import plain_config, public_config

MONITOR = "val/dsc_mean"
MEASURES = ("dsc", "nsd", "ema_dsc")  # of validation cases; the last by the moving average of the weights
STEPS = "trainer.limit_train_batches"
# samples are a function of the step, so gradients are not accumulated: a larger batch is data.batch_size
RULES = rules_of("training") | {
    "model.optimizer": Rule(lambda value: False, "the key optimizer instead, a group of its own"),
    "model.scheduler": Rule(lambda value: False, "the key scheduler instead, a group of its own"),
    "loss.partial": choice(*PARTIAL_LOSSES),
    "callbacks.ema.decay": optional(Rule(lambda x: isinstance(x, float) and 0 < x < 1, "a share below 1")),
}
EACH_EPOCH = ("lr", "train/loss", "train/dice", "train/ce", "patches_per_s", "gpu_memory_mb")


def table_columns(classes: ClassList, *, averaged: Any = None) -> list[str]:
    """What `training.csv` tells of an epoch; scores only of those with a validation."""
    measures = MEASURES if averaged else MEASURES[:2]
    scores = [f"val/{measure}/{name}" for measure in measures for name in classes.names]
    return [*EACH_EPOCH, *scores, *(f"val/{measure}_mean" for measure in measures)]


def option(callbacks: Mapping[str, Any], name: str, key: str) -> Any:
    """A key of one of `callbacks`; None where that is off or left out."""
    return (callbacks.get(name) or {}).get(key)


@dataclass(frozen=True)
class TrainingSettings:
    """What one training is made of."""

    classes: ClassList
    targets: str  # `organs`, `tumor` or `organs_tumor`
    round: str | None  # its name, None for `round=all`
    init: str  # where the weights start: `fresh` or `teacher`
    net: Mapping[str, Any]  # `model.net`; it and the following are plain sections, with a `_target_` each
    loss: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    trainer: Mapping[str, Any]
    callbacks: Mapping[str, Mapping[str, Any]]  # by name, as are the loggers
    loggers: Mapping[str, Mapping[str, Any]]
    patches: PatchSettings
    inference: InferenceSettings  # how validation cases are predicted
    interpolation: str  # how images were resampled: `linear`, `cubic` or `nnunet`
    label_map: Mapping[Any, int] | None
    nsd: bool  # whether validation scores surfaces as well
    objective: str | None  # the column of `training.csv` that a sweep optimises, if any
    public: Mapping[str, Any]  # the whole configuration without a path of the machine

    @property
    def is_shared(self) -> bool:
        """Whether all processes that train run the script, as Slurm starts them (`trainer=ddp_slurm`)."""
        return self.trainer.get("strategy") in ("ddp", "ddp_find_unused_parameters_true")

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "TrainingSettings":
        """Read the configuration of `train`; refuse a value that means nothing, naming the key."""
        check_values(cfg, RULES)
        plain = plain_config(cfg)
        for key in ("model", "loss", "optimizer", "scheduler", "trainer"):
            SECTION.require(key, plain.get(key))
        callbacks = plain.get("callbacks") or {}
        SECTION.require("callbacks.checkpoint", callbacks.get("checkpoint"))  # or nothing would be left
        RULES[STEPS].require(STEPS, plain["trainer"].get("limit_train_batches"))
        classes = ClassList.from_config(plain["classes"])
        columns = table_columns(classes, averaged=option(callbacks, "ema", "decay"))
        if cfg.objective is not None and cfg.objective not in columns:
            raise FlareError(f"objective={cfg.objective}: expected null or one of {', '.join(columns)}")
        patches, inference = PatchSettings.from_config(cfg, classes), InferenceSettings.from_config(cfg)
        inference.tell_flips(patches.mirror_axes)
        return cls(
            classes=classes,
            targets=str(cfg.labels.targets),
            round=cfg.round.name,
            init=cfg.round.init,
            net=plain["model"]["net"],
            **{part: plain[part] for part in ("loss", "optimizer", "scheduler", "trainer")},
            callbacks=callbacks,
            loggers=plain.get("logger") or {},
            patches=patches,
            inference=inference,
            interpolation=str(cfg.data.interpolation),
            label_map=read_label_map(cfg.data.label_map, classes),
            nsd=cfg.validation.nsd,
            objective=cfg.objective,
            public=public_config(cfg),
        )
