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


class Place:
    """A path in a folder of a run: an attribute of the folder's class.

    Args:
        path: Relative to the folder's `root`.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, folder: Any, owner: type | None = None) -> Path:
        """The path in one folder."""
        return folder.root / self.path


@dataclass(frozen=True)
class RoundFolder:
    """Everything one round leaves; shared by train, merge and iterate."""

    root: Path

    config = Place("config.yaml")  # the round's whole configuration
    predictions = Place("predictions")  # the teacher's pseudo labels for this round's cases, before merging
    labels = Place("labels")  # merged, on the original grids, with their sidecars and `provenance.csv`
    training_labels = Place("training_labels")  # the same on the training grid, in the chunked store
    checkpoints = Place("checkpoints")  # a folder for each training, and names of the current one's files
    last = Place("checkpoints/last.ckpt")  # the current training's: the teacher of later rounds
    best = Place("checkpoints/best.ckpt")  # the current training's with the best validation DSC
    training_csv = Place("training.csv")  # the current training's loss, learning rate, scores by epoch
    components = Place("components.json")  # organs of which keeping the largest part helps, as fitted

    def cached(self, case_id: str) -> Path:
        """A case's merged labels on the training grid."""
        return self.training_labels / f"{case_id}.b2nd"

    def journal(self, step: str) -> Journal:
        """What is done of one step of this round."""
        return Journal(self.root / "journal" / f"{step}.jsonl")


@dataclass(frozen=True)
class TrainingFolder:
    """Everything one training of a round leaves: `checkpoints/<training>`, where no other training writes."""

    root: Path

    last = Place("last.ckpt")  # from which it resumes
    best = Place("best.ckpt")  # with the best validation DSC
    training_csv = Place("training.csv")  # loss, learning rate and validation scores by epoch
    logs = Place("logs")  # what its loggers write

    @property
    def round(self) -> RoundFolder:
        """The folder of its round."""
        return RoundFolder(self.root.parent.parent)

    @property
    def names(self) -> dict[Path, Path]:
        """Its files by the names that they have in the round while it is the current training."""
        left = {path.name for path in self.round.checkpoints.glob("*/*.ckpt")}  # of any kind, see `Teacher`
        kinds = sorted(left | {"last.ckpt", "best.ckpt"})
        return {self.round.checkpoints / name: self.root / name for name in kinds} | {
            self.round.training_csv: self.training_csv
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

    index = Place("index.csv")  # the cases that can be used
    integrity = Place("integrity.csv")  # what was found wrong with which file
    label_analysis = Place("label_analysis.csv")  # kinds and volumes by case; a plot has the suffix .png
    statistics = Place("statistics.json")  # intensities of the training cohort
    seen = Place("journal/paths.json")  # the paths that the last start saw

    @property
    def arrays(self) -> Path:
        """Folder of the arrays at this spacing."""
        return self.root / ("spacing-" + "x".join(f"{s:g}" for s in self.spacing_mm))

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
