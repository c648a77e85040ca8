"""Folders of a run, and the record of what made it."""

import importlib.metadata
import os
import platform
import re
import runpy
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flare.core.errors import without_secrets
from flare.core.files import write_json, write_text

if TYPE_CHECKING:  # a complete cohort is recognised without arrays
    from flare.core.geometry import Spacing


class Place:
    """A path in a folder of a run, relative to the folder's `root`: an attribute of the folder's class."""

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
    confidence = Place("confidence")  # of the predictions: 255 times the probability of each voxel's label
    selection = Place("selection.csv")  # what `labels.select` kept, by teacher and class
    thresholds = Place("selection/thresholds.json")  # what it fitted, beside the maps that it needed
    components = Place("components.json")  # organs of which keeping the largest part helps, as fitted

    def cached(self, case_id: str) -> Path:
        """A case's merged labels on the training grid."""
        return self.training_labels / f"{case_id}.b2nd"

    def journal(self, step: str) -> Path:
        """Where it is noted what is done of one step of this round."""
        return self.root / "journal" / f"{step}.jsonl"


@dataclass(frozen=True)
class TrainingFolder:
    """Everything one training of a round leaves: `checkpoints/<training>`, where no other training writes."""

    root: Path

    last = Place("last.ckpt")  # from which it resumes
    best = Place("best.ckpt")  # with the best validation DSC
    ema = Place("ema.ckpt")  # the moving average of the weights, where `callbacks.ema` asks for it
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
        named = {self.round.checkpoints / name: self.root / name for name in kinds}
        return named | {self.round.training_csv: self.training_csv}


# what makes the kinds of checkpoints that not every training leaves
MADE_BY = {"best": "a labelled validation case makes it", "ema": "callbacks.ema.decay=0.999 makes it"}


def tell_kinds(folder: Path, kind: str) -> str:
    """Say which kinds of checkpoints a folder has, and what makes the one that it lacks."""
    there = ", ".join(sorted(path.stem for path in folder.glob("*.ckpt"))) or "none"
    return f"{there} there" + (f", {MADE_BY[kind]}" if kind in MADE_BY else "")


def round_of(checkpoint: Path) -> RoundFolder:
    """The round whose checkpoint a file is, under whichever of its names."""
    folders = checkpoint.absolute().parents
    return RoundFolder(next((f.parent for f in folders if f.name == "checkpoints"), folders[1]))


@dataclass(frozen=True)
class RunFolder:
    """`outputs/<name>`: the rounds of one experiment."""

    root: Path

    def round(self, name: str | None) -> RoundFolder:
        """Folder of a round; `round=all` has `rounds/all`."""
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


@dataclass(frozen=True)
class PreparedFolder:
    """Everything `prepare` leaves of one cohort in `data.cache`, arrays at one spacing along Z, Y, X."""

    root: Path
    spacing_mm: "Spacing"

    index = Place("index.csv")  # the cases that can be used
    integrity = Place("integrity.csv")  # what was found wrong with which file
    label_analysis = Place("label_analysis.csv")  # kinds and volumes by case; a plot has the suffix .png
    label_sources = Place("label_sources.csv")  # by source and class: what is declared, and what is present
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

    def journal(self, step: str) -> Path:
        """Where it is noted what is done of one step: `check`, or `cache` (one a spacing)."""
        name = f"{step}-{self.arrays.name}" if step == "cache" else step
        return self.root / "journal" / f"{name}.jsonl"


def prepared_folder(cfg: DictConfig) -> PreparedFolder:
    """The prepared cohort that a configuration names (`data.cache`, `data.spacing_mm`)."""
    z, y, x = (float(size) for size in cfg.data.spacing_mm)
    return PreparedFolder(Path(str(cfg.data.cache)).expanduser().absolute(), (z, y, x))


LIBRARIES = (
    *("torch", "pytorch-lightning", "hydra-core", "monai", "torchio"),
    *("SimpleITK", "numpy", "scipy", "blosc2"),
)


def git_revision() -> str:
    """Revision of the code, with `+changes` if the tree is not clean; `unknown` outside a checkout."""
    # a package installed below another project is no part of that project's history
    ours = _told("git", "ls-files", "--error-unmatch", Path(__file__).name)
    state = _told("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    return state[0] if ours and state else "unknown"


def _told(*command: str) -> list[str]:
    """What a command prints, started beside this file; nothing if it fails or is not there."""
    given: dict[str, Any] = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    try:
        return subprocess.run(command, check=True, timeout=10, **given).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def plain_config(cfg: Any) -> Any:
    """A configuration or a part of it, resolved, as plain values; None stays None."""
    return None if cfg is None else OmegaConf.to_container(cfg, resolve=True)


# everything of `data` that is a number or a choice; folders, sources and file names stay on the machine
PUBLIC_DATA = (
    *("name", "spacing_mm", "interpolation", "percentiles", "patch_size", "batch_size"),
    *("oversample_foreground", "tumor_fraction", "augmentation"),
)
# keys that name files or folders, whatever their values look like
FILE_KEY = re.compile(
    r"(^|[._])(checkpoint|ckpt|path|uri|url|dir|root|file|folder|input|output|predictions|references"
    r"|ground_truth|pseudo|compare)s?$"
)
# values that name them, whatever the key: a separator, or the extension of an image, a network or a table
FILE_VALUE = re.compile(r"[/\\]|^~|\.(nii|gz|nrrd|mha|mhd|dcm|ckpt|pth?|onnx|npz|b2nd|csv|json|ya?ml)$", re.I)
MEASURE = re.compile(r"\w+(/\w+)+")  # a column of training.csv such as val/dsc_mean, no file


def public_config(cfg: DictConfig) -> dict[str, Any]:
    """The configuration for trackers and checkpoints: no path of the machine is in it (privacy)."""
    config = plain_config(cfg)
    config.pop("paths", None)
    config["data"] = {k: v for k, v in config["data"].items() if k in PUBLIC_DATA}
    return {key: _without_paths(key, value) for key, value in config.items()}


def is_public(key: str, value: Any) -> bool:
    """Whether a setting may leave the machine, by its dotted key and value: it is no file and no secret."""
    group, *inner = key.split(".")
    if group == "paths" or (group == "data" and inner and inner[0] not in PUBLIC_DATA):
        return False
    if without_secrets(value, key) != value:
        return False
    if not isinstance(value, str) or (key == "objective" and MEASURE.fullmatch(value)):
        return True
    return not FILE_KEY.search(key) and not FILE_VALUE.search(value)


def _without_paths(key: str, value: Any) -> Any:
    """Plain values with file names and secrets blanked: a teacher's checkpoint, a tracker's password."""
    if isinstance(value, dict):
        return {k: _without_paths(f"{key}.{k}", v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(key, v) for v in value]
    return value if is_public(key, value) else None


def machine() -> dict[str, Any]:
    """Operating system, CPU, RAM, GPUs and torch's CUDA; nothing that names the machine or its owner."""
    import psutil

    os_name, cpu = platform.platform(terse=True), platform.processor()
    with suppress(OSError):  # no Linux
        os_name = platform.freedesktop_os_release()["PRETTY_NAME"]
        cpu = (re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) or [cpu])[0]
    torch = find_spec("torch")  # importing it would take seconds
    return {
        "os": os_name,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": _told("nvidia-smi", "--query-gpu=name,memory.total,power.limit", "--format=csv,noheader"),
        "cuda": torch and runpy.run_path(str(Path(str(torch.origin)).with_name("version.py")))["cuda"],
    }


def record_environment(folder: Path, cfg: DictConfig, **known: Any) -> None:
    """Store the configuration, revision, library versions and machine of a run, and what else is known."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(without_secrets(plain_config(cfg))))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    code = {"git_revision": git_revision(), "python": platform.python_version()}
    write_json(folder / "environment.json", code | {"libraries": versions} | machine() | known)
