"""Where a training starts: from the beginning, or exactly where it was interrupted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from omegaconf import DictConfig

from flare.errors import FlareError
from flare.files import config_hash, read_json, write_json
from flare.records import public_config
from flare.runs import RoundFolder

log = logging.getLogger(__name__)

# keys of the trainer that say what is shown and when, not what the weights become
NOT_IDENTITY = (
    "log_every_n_steps",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "enable_model_summary",
    "limit_val_batches",
)


def training_key(cfg: DictConfig, data_key: str) -> str:
    """Digest of everything that decides the weights: equal keys train equal networks.

    Args:
        cfg: Configuration of `train`.
        data_key: Digest of the images and labels, see `labelling.TrainingSet`.
    """
    config = public_config(cfg)
    trainer = {name: value for name, value in config["trainer"].items() if name not in NOT_IDENTITY}
    decisive = [config[name] for name in ("model", "loss", "data", "classes", "seed", "round")]
    return config_hash([*decisive, config["labels"]["targets"], trainer, data_key])


def starting_point(ckpt_path: str | None, folder: RoundFolder, key: str) -> Path | None:
    """Decide what a training resumes from.

    Args:
        ckpt_path: null starts from the beginning; `last` resumes the round; `auto` resumes it if what lies
            there is this very training, and starts from the beginning otherwise; else a path.
        folder: The round's folder.
        key: Of this training, see `training_key`.

    Returns:
        A checkpoint, or None to start from the beginning.

    Raises:
        FlareError: If there is nothing to resume.
    """
    if ckpt_path is None:
        return None
    is_same = _key_file(folder).exists() and read_json(_key_file(folder))["key"] == key
    if ckpt_path == "auto":
        return folder.last if is_same and folder.last.exists() else None
    path = folder.last if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        raise FlareError(f"ckpt_path={ckpt_path}: {path} does not exist; leave it out to start from scratch")
    if not is_same:
        log.warning("ckpt_path was trained on other data or with another configuration")
    return path


def start_afresh(folder: RoundFolder, key: str) -> None:
    """Note which training begins, and move checkpoints of an earlier one out of its way.

    Args:
        folder: The round's folder.
        key: Of the training that begins.
    """
    for path in (folder.last, folder.best):
        if path.exists():
            kept = path.with_name(f"{path.stem}.previous{path.suffix}")
            log.warning("a training of this round begins again; %s is kept as %s", path.name, kept.name)
            os.replace(path, kept)
    write_json(_key_file(folder), {"key": key})


def mark_trained(folder: RoundFolder, key: str) -> None:
    """Note that the training of this key is complete and what it left."""
    folder.journal("train").record("train", {"key": key}, {}, {"checkpoint": folder.last})


def is_trained(folder: RoundFolder, key: str) -> bool:
    """Whether the training of this key is complete and its last checkpoint is still what it left."""
    return folder.journal("train").is_current("train", {"key": key}, {})


def _key_file(folder: RoundFolder) -> Path:
    """Where the key of the training in a folder is noted."""
    return folder.checkpoints / "training.json"
