"""Where a training starts: from the beginning, or exactly where it was interrupted."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

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
    # who labels the unlabelled cases reaches the weights by their labels alone, which are in `data_key`
    own = {name: value for name, value in config["round"].items() if name != "unlabeled_teacher"}
    decisive = [config[name] for name in ("model", "loss", "data", "classes", "seed")]
    return config_hash([*decisive, own, config["labels"]["targets"], trainer, data_key])


def starting_point(ckpt_path: str | None, folder: RoundFolder, key: str) -> Path | None:
    """Decide what a training resumes from; nothing is touched yet, see `begin`.

    Args:
        ckpt_path: null starts from the beginning; `last` resumes the round; `auto` resumes it if what lies
            there, or was set aside by the training after it, is this very training, and starts from the
            beginning otherwise; else a path.
        folder: The round's folder.
        key: Of this training, see `training_key`.

    Returns:
        A checkpoint, or None to start from the beginning.

    Raises:
        FlareError: If there is nothing to resume.
    """
    if ckpt_path is None:
        return None
    note = _read_note(folder)
    if ckpt_path == "auto":
        candidates = {"key": folder.last, "previous": previous(folder.last)}
        return next((p for name, p in candidates.items() if note.get(name) == key and p.exists()), None)
    path = folder.last if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        raise FlareError(f"ckpt_path={ckpt_path}: {path} does not exist; leave it out to start from scratch")
    if note.get("key") != key:
        log.warning(
            "ckpt_path was trained on other data or with another configuration: the round will not count as "
            "trained with this one, and ckpt_path=auto (iterate) will train it from the beginning"
        )
    return path


def begin(folder: RoundFolder, key: str, start: Path | None) -> Path | None:
    """Note which training begins and move what an earlier one left out of its way, or bring it back.

    Call it when everything that could refuse has been built.

    Args:
        folder: The round's folder.
        key: Of the training that begins.
        start: From `starting_point`.

    Returns:
        The checkpoint to resume from, where it lies now.
    """
    note = _read_note(folder)
    if start is None:
        _start_afresh(folder, key)
    elif start == previous(folder.last) and note.get("previous") == key:
        _bring_back(folder, key)
        return folder.last
    elif start != folder.last or note.get("key") != key:
        _write_note(folder, {**note, "key": None})  # its weights come from two trainings and are neither's
    return start


def previous(path: Path) -> Path:
    """Where a file of the training before this one is set aside."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _start_afresh(folder: RoundFolder, key: str) -> None:
    """Set the files of an earlier training aside; those set aside before are given up.

    Killed at any moment, no checkpoint is taken for one of another training.
    """
    note = _read_note(folder)
    if folder.last.exists():
        note = {"previous": note.get("key")}
        for path in _results(folder):
            previous(path).unlink(missing_ok=True)
        _write_note(folder, note)
        for path in _results(folder):
            if path.exists():
                kept = previous(path)
                log.warning("a training of this round begins again; %s is kept as %s", path.name, kept.name)
                os.replace(path, kept)
    folder.best.unlink(missing_ok=True)  # left alone by a training that was killed before its first last one
    _write_note(folder, {**note, "key": key})


def _bring_back(folder: RoundFolder, key: str) -> None:
    """Exchange the files of the training that was set aside and of the one that lies in its place."""
    log.warning("this training was set aside before; it is brought back")
    other = _read_note(folder).get("key")
    _write_note(folder, {})  # killed meanwhile, neither is known
    for path in _results(folder):
        between = path.with_name(f"{path.stem}.between{path.suffix}")
        for source, target in ((path, between), (previous(path), path), (between, previous(path))):
            if source.exists():
                os.replace(source, target)
    _write_note(folder, {"key": key, "previous": other})


def _results(folder: RoundFolder) -> tuple[Path, ...]:
    """The files that belong to one training, the checkpoint that a training resumes from first."""
    return folder.last, folder.best, folder.training_csv


def mark_trained(folder: RoundFolder, key: str) -> None:
    """Note that the training of this key is complete and what it left, unless it began as another's."""
    if _read_note(folder).get("key") != key:
        return
    folder.journal("train").record("train", {"key": key}, {}, {"checkpoint": folder.last})


def is_trained(folder: RoundFolder, key: str) -> bool:
    """Whether the training of this key is complete and its last checkpoint is still what it left."""
    return folder.journal("train").is_current("train", {"key": key}, {})


def _read_note(folder: RoundFolder) -> dict[str, Any]:
    """Keys of the training in a folder (`key`) and of the one set aside (`previous`), where known."""
    path = _note(folder)
    return read_json(path) if path.exists() else {}


def _write_note(folder: RoundFolder, note: dict[str, Any]) -> None:
    write_json(_note(folder), note)


def _note(folder: RoundFolder) -> Path:
    return folder.checkpoints / "training.json"
