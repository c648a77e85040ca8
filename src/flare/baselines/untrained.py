"""A checkpoint with the weights that a round would start from, to predict like any other."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from flare.core.preprocessing import Intensity
from flare.runs.checkpoints import KEY, write_weights_file
from flare.training.build import build_module
from flare.training.settings import TrainingSettings


def save_untrained(cfg: DictConfig, intensity: Intensity, path: Path) -> None:
    """Write a checkpoint of fresh weights.

    Args:
        cfg: Configuration of a round.
        intensity: Statistics of the cohort.
        path: The checkpoint to write.
    """
    pl.seed_everything(int(cfg.seed), verbose=False)
    module = build_module(TrainingSettings.from_config(cfg), intensity)
    write_weights_file(path, {"state_dict": module.state_dict(), KEY: module.carried})
