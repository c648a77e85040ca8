"""Where a training starts: from the beginning, or exactly where it was interrupted.

Each training of a round has a folder of its own, named after its key. Finding it again is a lookup; no start
moves, replaces or deletes what another one has left. `checkpoints/last.ckpt`, `checkpoints/best.ckpt` and
`training.csv` of the round are names of the current training's files.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare.core.errors import FlareError
from flare.core.files import config_hash, is_same_file, name_file, remove_partial, sha256
from flare.runs.changes import joined, members_told, settings_told
from flare.runs.folders import RoundFolder, TrainingFolder
from flare.runs.journal import Journal
from flare.training.settings import TrainingSettings, option

log = logging.getLogger(__name__)
UNKNOWN = "unknown"  # trainings of which only files were found
# keys of the trainer that say what is shown and when, not what the weights become
NOT_IDENTITY = (
    *("log_every_n_steps", "check_val_every_n_epoch", "num_sanity_val_steps"),
    *("enable_model_summary", "limit_val_batches"),
)


def training_key(settings: TrainingSettings, data_key: str) -> str:
    """Digest of all that decides the weights, with the key of its data: equal keys train equal networks."""
    return config_hash([*decisive(settings.public).values(), data_key])


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights in a public configuration, by key, beside images and labels."""
    trainer = {name: value for name, value in config["trainer"].items() if name not in NOT_IDENTITY}
    # which checkpoint teaches reaches the weights by labels and start alone, which are in the data's key
    by_data = ("unlabeled_teacher", "teacher_kind")
    own = {name: value for name, value in config["round"].items() if name not in by_data}
    # trainings of before have no such key; they are those that take all classes as known
    loss = {name: value for name, value in config["loss"].items() if (name, value) != ("partial", "none")}
    whole = ("model", "optimizer", "scheduler", "loss", "data", "classes", "seed")
    parts = {name: config[name] for name in whole} | {"loss": loss}  # in the order of the key
    found = {**parts, "round": own, "labels.targets": config["labels"]["targets"], "trainer": trainer}
    for name, key in (("ema", "decay"), ("rescue", "epoch")):
        if (value := option(config.get("callbacks") or {}, name, key)) is not None:
            found[f"callbacks.{name}.{key}"] = value
    return {name: _as_before(part) for name, part in found.items()}


def _as_before(part: Any) -> Any:
    """A part as before there were keys of `classes` and `data.augmentation` that are off: trainings stand."""
    if not isinstance(part, Mapping):
        return part
    return {k: _as_before(v) for k, v in part.items() if (k, v) not in (("ignore", None), ("device", "cpu"))}


@dataclass(frozen=True)
class Start:
    """Where a training writes, and the checkpoint from which it goes on; None is the beginning."""

    training: TrainingFolder
    checkpoint: Path | None


def find_start(ckpt_path: str | None, folder: RoundFolder, key: str) -> Start:
    """Decide where a training starts; nothing is touched yet, see `begin`.

    `ckpt_path=auto` resumes the latest training of this `training_key`, and starts from the beginning where
    there is none; null starts from the beginning, in a folder of its own; `last` goes on from the round's
    current checkpoint, a path from that file, and what is not there is refused. What goes on from weights of
    another key is a training of its own, which `auto` does not take; the same command resumes it, too.
    """
    if ckpt_path is None:
        return Start(_unused(folder, key), None)
    if ckpt_path == "auto":
        return _go_on(folder, key, None)
    path = named_checkpoint(ckpt_path, folder)
    source = next((found for found in _trainings(folder) if is_same_file(path, found.last)), None)
    if source is not None and re.split(r"[.-]", source.root.name)[0] == key:
        return Start(source, source.last)
    log.warning(
        "ckpt_path was trained on other data or with another configuration: the round will not count as "
        "trained with this one, and ckpt_path=auto (iterate) will train it from the beginning"
    )
    origin = path if source is None else source.last
    return _go_on(folder, f"{key}-from-{sha256(path)[:8]}", origin)


def named_checkpoint(ckpt_path: str, folder: RoundFolder) -> Path:
    """The file that `ckpt_path` names, as `last` or by its path; refused if it is not there."""
    path = folder.last if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        raise FlareError(f"ckpt_path={ckpt_path}: {path} does not exist; leave it out to start from scratch")
    return path


def _go_on(folder: RoundFolder, name: str, origin: Path | None) -> Start:
    """Resume the latest training of a name, or begin one at `origin`."""
    training = find_training(folder, name)
    return Start(training, training.last) if training else Start(_unused(folder, name), origin)


def find_training(folder: RoundFolder, name: str) -> TrainingFolder | None:
    """The latest training of a name that has a checkpoint to resume from; the name is its key."""
    attempts = _attempts(folder, name)
    return next((attempts[n] for n in sorted(attempts, reverse=True) if attempts[n].last.exists()), None)


def _attempts(folder: RoundFolder, name: str) -> dict[int, TrainingFolder]:
    """The trainings of one name, numbered as they began: `name`, `name.2`, `name.3`, ..."""
    further = re.compile(re.escape(name) + r"(\.\d+)?")
    found = [training for training in _trainings(folder) if further.fullmatch(training.root.name)]
    return {int(training.root.suffix[1:] or 1): training for training in found}


def _trainings(folder: RoundFolder) -> list[TrainingFolder]:
    """All trainings of a round."""
    return [TrainingFolder(path) for path in folder.checkpoints.glob("[!.]*") if path.is_dir()]


def _unused(folder: RoundFolder, name: str) -> TrainingFolder:
    """The folder of a new training: that of one which left no weights, or a further one."""
    attempts = _attempts(folder, name)
    if not attempts:
        return TrainingFolder(folder.checkpoints / name)
    latest = max(attempts)
    has_weights = attempts[latest].last.exists() or attempts[latest].best.exists()
    return TrainingFolder(folder.checkpoints / f"{name}.{latest + 1}") if has_weights else attempts[latest]


def begin(start: Start) -> None:
    """Make the folder of a training that begins, and make it current if it has weights already.

    Call it when all that could refuse is built. Killed at any moment, each checkpoint keeps its name.
    """
    training = start.training
    remove_partial(training.round.checkpoints, below=True)
    remove_partial(training.round.root)
    _adopt(training.round)
    training.root.mkdir(parents=True, exist_ok=True)
    if start.checkpoint is not None and start.checkpoint != training.last:
        origin = TrainingFolder(start.checkpoint.resolve().parent)
        for name, file in ((training.training_csv, origin.training_csv), (training.best, origin.best)):
            if file.exists():
                name_file(name, file, link=False)
    make_current(training)


def _adopt(folder: RoundFolder) -> None:
    """Give files that are no training's, put under the round's names by hand, a folder of their own."""
    known = [training.names for training in _trainings(folder)]
    for name, file in _unused(folder, UNKNOWN).names.items():
        is_known = name.is_symlink() or any(is_same_file(name, files[name]) for files in known)
        if name.exists() and not is_known:
            log.warning("%s is of no training known here; it is kept as %s", name, file)
            name_file(file, name, link=False)


def make_current(training: TrainingFolder) -> None:
    """Let the round's names lead to a training's files, unless it cannot resume and the one before can."""
    if not training.last.exists() and training.round.last.exists():
        return
    for name, file in training.names.items():
        if file.exists():
            name_file(name, file)
        else:
            name.unlink(missing_ok=True)  # a name alone: the file is in the folder of its training


def mark_trained(training: TrainingFolder, made_from: Mapping[str, Any] | None = None) -> None:
    """Note that a training is complete, what it left, and what it was made from, see `made_from`."""
    _journal(training).record("train", {}, {}, {"checkpoint": training.last}, made_from)


def made_from(training: TrainingFolder) -> dict[str, Any]:
    """What a complete training was made from: its public `config`, and the `parts` of its training set.

    One of an earlier version noted nothing; its checkpoint holds the configuration alone.
    """
    noted = _journal(training).values("train")
    if noted:
        return noted
    from flare.runs.checkpoints import load_checkpoint  # torch: only for a training that is noted so

    return {"config": load_checkpoint(training.last).config}


def keys_told(training: TrainingFolder, settings: TrainingSettings) -> list[str]:
    """Name the keys that a complete training was made with another value of."""
    before, now = (
        {**decisive(config), **{f"labels.{key}": config["labels"][key] for key in ("source", "cases")}}
        for config in (made_from(training)["config"], settings.public)
    )
    return settings_told(before, now)


def why_again(training: TrainingFolder, settings: TrainingSettings, parts: Mapping[str, Any]) -> str:
    """Say what a complete training was made from that is another now: the keys, and the cases."""
    told, before = keys_told(training, settings), made_from(training).get("parts")
    if before is None:
        return joined(told) or "its cases or their labels changed"
    old, now = ({k: v for k, v in given.items() if k != "cases"} for given in (before, parts))
    told += [f"case {line}" for line in members_told(before["cases"], parts["cases"])]
    return joined(told + settings_told(old, now))


def whole_training(folder: RoundFolder) -> TrainingFolder | None:
    """The complete training that a round's names lead to, or else the latest complete one; None without."""
    complete = [training for training in _trainings(folder) if is_trained(training)]
    current = [training for training in complete if is_same_file(folder.last, training.last)]
    latest = max(complete, key=lambda training: training.last.stat().st_mtime_ns, default=None)
    return current[0] if current else latest


def is_trained(training: TrainingFolder) -> bool:
    """Whether a training is complete and its last checkpoint is still what it left."""
    return _journal(training).is_current("train", {}, {})


def _journal(training: TrainingFolder) -> Journal:
    return Journal(training.root / "journal.jsonl")
