"""Folders of a run, and its lock."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flare.core.errors import FlareError
from flare.core.geometry import Spacing
from flare.runs.journal import Journal

log = logging.getLogger(__name__)
HOLDER = "process "
PATIENCE_S = 20  # processes that prepare patches notice within 5 s that their parent was killed


@dataclass(frozen=True)
class RoundFolder:
    """Everything one round leaves; shared by train, merge and iterate."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the round's trainings, a folder each, and of the names of the current one's files."""
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """The current training's last checkpoint: the teacher of later rounds."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The current training's checkpoint with the best validation DSC."""
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
        """The current training's loss, learning rate and validation scores by epoch."""
        return self.root / "training.csv"

    @property
    def components(self) -> Path:
        """Organs for which keeping the largest component helps, fitted on validation cases."""
        return self.root / "components.json"

    def journal(self, step: str) -> Journal:
        """What is done of one step of this round."""
        return Journal(self.root / "journal" / f"{step}.jsonl")


@dataclass(frozen=True)
class TrainingFolder:
    """Everything one training of a round leaves: `checkpoints/<training>`, where no other training writes."""

    root: Path

    @property
    def round(self) -> RoundFolder:
        """The folder of its round."""
        return RoundFolder(self.root.parent.parent)

    @property
    def last(self) -> Path:
        """The checkpoint from which it resumes."""
        return self.root / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation DSC."""
        return self.root / "best.ckpt"

    @property
    def training_csv(self) -> Path:
        """Loss, learning rate and validation scores by epoch."""
        return self.root / "training.csv"

    @property
    def logs(self) -> Path:
        """What its loggers write."""
        return self.root / "logs"

    @property
    def names(self) -> dict[Path, Path]:
        """Its files by the names that they have in the round while it is the current training."""
        return {
            self.round.last: self.last,
            self.round.best: self.best,
            self.round.training_csv: self.training_csv,
        }


def round_of(checkpoint: Path) -> RoundFolder:
    """The round whose checkpoint a file is, under whichever of its names."""
    folders = checkpoint.absolute().parents
    return RoundFolder(next((f.parent for f in folders if f.name == "checkpoints"), folders[1]))


@dataclass(frozen=True)
class RunFolder:
    """`outputs/<name>`: the rounds of one experiment."""

    root: Path

    def round(self, name: str | None) -> RoundFolder:
        """Folder of a round; `round=null` has `rounds/all`."""
        return RoundFolder(self.root / "rounds" / (name or "all"))


def run_folder(cfg: DictConfig) -> RunFolder:
    """The run's folder: `paths.run`, or a job's own folder below the sweep's in a multirun."""
    if HydraConfig.initialized() and is_job(HydraConfig.get()):
        return RunFolder(Path(HydraConfig.get().runtime.output_dir))
    return named_run(cfg)


def is_job(hydra: Any) -> bool:
    """Whether this is a job of a sweep: it has a number, also when it runs again alone."""
    return not OmegaConf.is_missing(hydra.job, "num")


def named_run(cfg: DictConfig) -> RunFolder:
    """The folder of the run that `name` names, in a multirun as well: where its jobs find earlier rounds."""
    return RunFolder(Path(cfg.paths.run))


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder while the block runs; the lock goes with the process, however it ends.

    Args:
        folder: Made if it is not there.
        wait: Whether to wait for another process that holds it.

    Raises:
        FlareError: If another process holds it and is not waited for, or this one holds it already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as stream:
        if not _take(stream, wait=wait):
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise FlareError(f"{folder} is in use by {holder}; wait for it, or choose another name=")
        stream.seek(0)
        stream.truncate()
        stream.write(f"{HOLDER}{os.getpid()}")
        stream.flush()
        yield


def _take(stream: IO[str], *, wait: bool) -> bool:
    """Take a lock; if its holder is dead, wait for what the holder had started and left."""
    deadline = time.monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            stream.seek(0)
            number = stream.read().strip().removeprefix(HOLDER)
            if not number.isdigit() or psutil.pid_exists(int(number)):
                if not wait or number == str(os.getpid()):
                    return False
                if not told:
                    log.info("process %s is at work in the same folder: waiting for it", number or "unknown")
                    told = True
                deadline = time.monotonic() + PATIENCE_S
            elif time.monotonic() > deadline:
                return False
            time.sleep(0.2)


@dataclass(frozen=True)
class PreparedFolder:
    """Everything `prepare` leaves of one cohort.

    Args:
        root: `data.cache`.
        spacing_mm: Voxel size of the cached arrays along Z, Y, X.
    """

    root: Path
    spacing_mm: Spacing

    @property
    def index(self) -> Path:
        """The cases that can be used."""
        return self.root / "index.csv"

    @property
    def integrity(self) -> Path:
        """What was found wrong with which file."""
        return self.root / "integrity.csv"

    @property
    def label_analysis(self) -> Path:
        """Volumes of each class in each case, and the case's kind; a plot of it has the suffix .png."""
        return self.root / "label_analysis.csv"

    @property
    def statistics(self) -> Path:
        """Intensity statistics of the training cohort."""
        return self.root / "statistics.json"

    @property
    def arrays(self) -> Path:
        """Folder of the arrays at this spacing."""
        return self.root / ("spacing-" + "x".join(f"{s:g}" for s in self.spacing_mm))

    @property
    def seen(self) -> Path:
        """The paths that the last start saw."""
        return self.root / "journal" / "paths.json"

    def image(self, case_id: str) -> Path:
        """A case's image in the chunked store, int16 HU."""
        return self.arrays / "images" / f"{case_id}.b2nd"

    def labels(self, case_id: str) -> Path:
        """A case's ground truth in the chunked store, uint8 class ids."""
        return self.arrays / "labels" / f"{case_id}.b2nd"

    def histogram(self, case_id: str) -> Path:
        """A case's foreground intensities."""
        return self.arrays / "histograms" / f"{case_id}.npz"

    def journal(self, step: str) -> Journal:
        """What is done of one step: `check`, or `cache` (one a spacing)."""
        name = f"{step}-{self.arrays.name}" if step == "cache" else step
        return Journal(self.root / "journal" / f"{name}.jsonl")


def prepared_folder(cfg: DictConfig) -> PreparedFolder:
    """The prepared cohort that a configuration names (`data.cache`, `data.spacing_mm`)."""
    z, y, x = (float(size) for size in cfg.data.spacing_mm)
    return PreparedFolder(Path(str(cfg.data.cache)).expanduser().absolute(), (z, y, x))
