"""Folders of a run, its lock, and the record of what made it."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flare.errors import FlareError
from flare.files import write_json, write_text
from flare.journal import Journal

HOLDER = "process "
PATIENCE_S = 20  # processes that prepare patches notice within 5 s that their parent was killed

LIBRARIES = (
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "monai",
    "torchio",
    "SimpleITK",
    "numpy",
    "scipy",
    "blosc2",
)


@dataclass(frozen=True)
class RoundFolder:
    """Everything one round leaves; shared by train, merge and iterate."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of `last.ckpt` and `best.ckpt`."""
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """The last checkpoint: the teacher of later rounds."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation DSC."""
        return self.checkpoints / "best.ckpt"

    @property
    def predictions(self) -> Path:
        """The teacher's pseudo labels for this round's cases, before merging."""
        return self.root / "predictions"

    @property
    def labels(self) -> Path:
        """Merged labels on the original grids, their sidecars and `provenance.csv`."""
        return self.root / "labels"

    @property
    def training_labels(self) -> Path:
        """Merged labels on the training grid, in the chunked store."""
        return self.root / "training_labels"

    @property
    def config(self) -> Path:
        """The round's whole configuration."""
        return self.root / "config.yaml"

    @property
    def training_csv(self) -> Path:
        """Loss, learning rate and validation scores by epoch."""
        return self.root / "training.csv"

    @property
    def components(self) -> Path:
        """Organs for which keeping the largest component helps, fitted on validation cases."""
        return self.root / "components.json"

    def journal(self, step: str) -> Journal:
        """What is done of one step of this round."""
        return Journal(self.root / "journal" / f"{step}.jsonl")


@dataclass(frozen=True)
class RunFolder:
    """`outputs/<name>`: the rounds of one experiment."""

    root: Path

    def round(self, name: str | None) -> RoundFolder:
        """Folder of a round; `round=null` has `rounds/all`."""
        return RoundFolder(self.root / "rounds" / (name or "all"))


def run_folder(cfg: DictConfig) -> RunFolder:
    """The run's folder: `paths.run`, or a job's own folder below the sweep's in a multirun."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return RunFolder(Path(HydraConfig.get().runtime.output_dir))
    return RunFolder(Path(cfg.paths.run))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs; the lock goes with the process, however it ends.

    Raises:
        FlareError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as stream:
        if not _take(stream):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise FlareError(f"{folder} is in use by {holder}; wait for it, or choose another name=")
        stream.seek(0)
        stream.truncate()
        stream.write(f"{HOLDER}{os.getpid()}")
        stream.flush()
        yield


def _take(stream: IO[str]) -> bool:
    """Take a lock; if its holder is dead, wait for what the holder had started and left."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            stream.seek(0)
            number = stream.read().strip().removeprefix(HOLDER)
            if not number.isdigit() or _is_running(int(number)) or time.monotonic() > deadline:
                return False
            time.sleep(0.2)


def _is_running(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def git_revision() -> str:
    """Revision of the code, with `+changes` if the tree is not clean; `unknown` outside a checkout."""
    folder = Path(__file__).parent
    try:
        # a package installed below another project is no part of that project's history
        _, revision, changes = (
            subprocess.run(
                ["git", *a], cwd=folder, capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for a in (
                ["ls-files", "--error-unmatch", "runs.py"],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision.strip() + ("+changes" if changes.strip() else "")


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


# everything of `data` that is a number or a choice; folders, sources and file names stay on the machine
PUBLIC_DATA = (
    "name",
    "spacing_mm",
    "interpolation",
    "percentiles",
    "patch_size",
    "batch_size",
    "oversample_foreground",
    "tumor_fraction",
    "augmentation",
)


def public_config(cfg: DictConfig) -> dict[str, Any]:
    """The configuration for trackers and checkpoints: no path of the machine is in it (privacy)."""
    config = plain_config(cfg)
    config.pop("paths", None)
    config["data"] = {k: v for k, v in config["data"].items() if k in PUBLIC_DATA}
    return _without_paths(config)


def _without_paths(value: Any) -> Any:
    """Plain values with file names blanked: a teacher's checkpoint, a trainer's folder."""
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    is_path = isinstance(value, str) and ("/" in value or "\\" in value)
    return None if is_path else value


def record_environment(folder: Path, cfg: DictConfig) -> None:
    """Store the configuration, code revision and library versions of a run."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    write_json(
        folder / "environment.json",
        {"git_revision": git_revision(), "python": platform.python_version(), "libraries": versions},
    )
