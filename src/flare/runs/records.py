"""What made a run: its configuration, the revision of the code, the versions of its libraries."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.core.files import write_json, write_text

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
                ["ls-files", "--error-unmatch", "records.py"],
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
    """Whether a setting may leave the machine: it is of no file or folder, by its key and by its value.

    Args:
        key: With dots, such as `round.checkpoint`.
        value: A plain value, or an override's text.
    """
    group, *inner = key.split(".")
    if group == "paths" or (group == "data" and inner and inner[0] not in PUBLIC_DATA):
        return False
    if not isinstance(value, str):
        return True
    if key == "objective" and MEASURE.fullmatch(value):
        return True
    return not FILE_KEY.search(key) and not FILE_VALUE.search(value)


def _without_paths(key: str, value: Any) -> Any:
    """Plain values with file names blanked: a teacher's checkpoint, a trainer's folder."""
    if isinstance(value, dict):
        return {k: _without_paths(f"{key}.{k}", v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(key, v) for v in value]
    return value if is_public(key, value) else None


def record_environment(folder: Path, cfg: DictConfig) -> None:
    """Store the configuration, code revision and library versions of a run."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    write_json(
        folder / "environment.json",
        {"git_revision": git_revision(), "python": platform.python_version(), "libraries": versions},
    )
