"""Whole runs of a second: a coarse phantom, a network of few weights; and the scripts themselves."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import warm
from composed import composed
from flare.cli import CONF, iterate_rounds

ROOT = CONF.parent
NETWORK = [
    "model.net.features=[4,6,8]",
    "model.net.strides=[[1,1,1],[2,2,2],[2,2,2]]",
    "model.net.encoder_kernels=[[3,3,3],[3,3,3],[3,3,3]]",
    "model.net.decoder_kernels=[[3,3,3],[3,3,3]]",
]
# five voxels a finger: what is learned means nothing, what is done with it is the same
SETTINGS = [
    "experiment=demo",
    "data.phantom.grids.demo={in_plane_mm: [8, 9], slice_mm: [9, 10], matrix: null}",
    "data.spacing_mm=[10,9,9]",
    "data.patch_size=[8,16,16]",
    *NETWORK,
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.precision=32",
    "inference.precision=32",
    "executor.workers=0",
]


def counts(**cases: int) -> str:
    """Override of the phantom's number of cases of each kind."""
    kinds = ("organs_complete", "tumor", "partial", "unlabeled", "validation", "test", "extra", "control")
    none = dict.fromkeys(kinds, 0)
    return "data.phantom.counts={" + ", ".join(f"{k}: {v}" for k, v in (none | cases).items()) + "}"


FEW = counts(organs_complete=2, tumor=1, partial=1, validation=1, test=1)


def given(outputs: Path, *overrides: str) -> list[str]:
    """The command line of a tiny run below a folder."""
    return [*SETTINGS, FEW, "baselines=[]", f"paths.outputs={outputs}", *overrides]


def configuration(script: str, overrides: list[str]) -> DictConfig:
    """Compose a script's configuration."""
    return composed(script, *overrides)


def run_iterate(outputs: Path, *overrides: str) -> dict[str, Any]:
    """Call `iterate` in this process."""
    line = given(outputs, *overrides)
    return iterate_rounds(configuration("iterate", line), line)


def start(script: str, *arguments: str, cwd: Path) -> warm.Command:
    """Start one of the scripts as a user does."""
    return warm.start([sys.executable, ROOT / f"{script}.py", *arguments], cwd)


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the scripts to its end."""
    return warm.run([sys.executable, ROOT / f"{name}.py", *arguments], cwd, timeout=300)


def times(folder: Path, *patterns: str) -> dict[str, int]:
    """When each file below a folder was last written."""
    found = {path for pattern in patterns for path in folder.rglob(pattern)}
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(found)}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Files that are new or were written again."""
    return {name for name, time in after.items() if before.get(name) != time}
