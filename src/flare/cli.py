"""Console commands of the installed package: the same scripts as in the checkout, with `conf/` packaged."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"

# script -> module and function that does its work, imported when it runs
WORK = {
    "prepare": ("flare.prepare.cohort", "prepare"),
    "train": ("flare.rounds.train", "train"),
    "infer": ("flare.inference.infer", "infer"),
    "merge_labels": ("flare.merging.folders", "merge"),
    "evaluate": ("flare.evaluation.scores", "evaluate"),
    "iterate": ("flare.rounds.iterate", "iterate"),
}
# as above, of `python -m flare.<command>`
MODULES = {
    "convert": ("flare.convert.foreign", "main"),
    "dashboard": ("flare.dashboard", "main"),
    "sweeps": ("flare.sweeps.rerun", "main"),
}


def task(script: str) -> Callable[[DictConfig], Any]:
    """What a script or command does with its configuration, under its name."""

    def work(cfg: DictConfig) -> Any:
        module, name = (WORK | MODULES)[script]
        result = getattr(importlib.import_module(module), name)(cfg)
        return result["objective"] if script == "train" else result  # a sweep optimises a number

    work.__name__ = script
    return work


def run(script: str) -> Any:
    """Compose `conf/<script>.yaml` with the command line and do the work of the script or command."""
    return hydra.main(version_base="1.3", config_path=str(CONF), config_name=script)(task(script))()


def prepare() -> None:
    """Index, check, analyse and cache a cohort."""
    run("prepare")


def train() -> None:
    """Train one round."""
    run("train")


def infer() -> None:
    """Segment images."""
    run("infer")


def merge_labels() -> None:
    """Build hybrid labels."""
    run("merge_labels")


def evaluate() -> None:
    """Score predictions."""
    run("evaluate")


def iterate() -> None:
    """Carry a cohort through all rounds."""
    run("iterate")
