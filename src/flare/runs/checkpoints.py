"""What a checkpoint carries, and the one place where a file with weights is read or written."""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import GENERAL_FAULTS, NO_ACCESS, atomic, sha256, stand_in

ZIP, TEXT_BYTES = b"PK\x03\x04", 256
ADVICE = "Weights only load failed"  # to load it all the same, with whatever it runs
TRUNCATED = r"truncated|Ran out of input|EOF"  # as pickle and torch say it
KEY = "flare"  # entry of a Lightning checkpoint that holds what inference needs


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with everything that inference needs; plain values and tensors only."""

    path: Path
    sha256: str  # hash of the file: the provenance of pseudo labels names it
    state_dict: dict[str, torch.Tensor]  # of the bare network
    classes: dict[str, dict[str, Any]]  # the class list, as `ClassList.to_config` gives it
    targets: str  # `organs`, `tumor` or `organs_tumor`
    spacing_mm: tuple[float, float, float]  # training grid along Z, Y, X
    interpolation: str  # how images were resampled
    intensity: dict[str, float]  # the cohort's foreground statistics in HU
    patch_size: tuple[int, int, int]  # training patch along Z, Y, X
    mirror_axes: tuple[int, ...]  # axes (0 = Z, 1 = Y, 2 = X) along which patches were flipped in training
    round: str | None  # name of the round, None for `round=all`
    config: dict[str, Any]  # the run's configuration as plain values
    git_revision: str
    plan: dict[str, Any] | None = None  # what an exported file carries of a fitted plan of inference

    @property
    def class_list(self) -> ClassList:
        """The class list."""
        return ClassList.from_config(self.classes)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Class id of each output channel."""
        return self.class_list.outputs(self.targets)


# what the entry holds: all but what the file itself says
CARRIED = tuple(f.name for f in fields(Checkpoint) if f.name not in ("path", "sha256", "state_dict", "plan"))


def write_weights_file(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all."""
    # to a stream of ours: given a path, torch does not say why it could not write
    with atomic(Path(path)) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)


def read_weights_file(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values, or refuse it; nothing in it can run code."""
    path = Path(path)
    try:
        if not path.is_file():
            raise FlareError(f"checkpoint={path}: no such file")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FlareError:
        raise
    except Exception as error:  # torch raises nearly anything
        told = tell_unread(path, error, "a checkpoint of plain tensors")
        raise FlareError(f"checkpoint={path}: {told}") from None
    if not isinstance(content, dict):
        raise FlareError(f"checkpoint={path}: expected a dictionary, found {type(content).__name__}")
    return content


def tell_unread(path: Path, error: Exception, expected: str) -> str:
    """Say in one line why a file of weights, or a pickle, could not be read."""
    if isinstance(error, OSError) and error.errno in (*GENERAL_FAULTS, *NO_ACCESS):  # others are torch's
        return f"cannot be read: {error.strerror}"
    if told := stand_in(path):
        return told
    with path.open("rb") as stream:
        start = stream.read(TEXT_BYTES)
    said = " ".join(str(error).split())[:200] or type(error).__name__
    if (start.startswith(ZIP) and not zipfile.is_zipfile(path)) or re.search(TRUNCATED, said):
        return "is truncated; copy it again"
    if named := re.search(r"GLOBAL (\S+)", str(error)):  # what it would have run, at the end of a long text
        said = f"refuses {named[1]}"
    elif said.startswith(ADVICE):
        is_text = re.fullmatch(rb"[\s\x20-\x7e]+", start)
        begins = f"the text {start.decode()[:40]!r}" if is_text else f"{start[:4]!r}"
        said = f"torch did not write it, it begins with {begins}"
    return f"is not {expected}: {said}"


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of a round, or refuse a file that is none with what it lacks."""
    path = Path(path)
    content = read_weights_file(path)
    if KEY not in content or "state_dict" not in content:
        raise FlareError(
            f"checkpoint={path}: not a checkpoint of flare (no entry {KEY!r}); see flare.convert"
        )
    state = {k.removeprefix("net."): v for k, v in content["state_dict"].items() if k.startswith("net.")}
    return checkpoint_of(path, content[KEY], state)


def checkpoint_of(path: Path, carried: Mapping[str, Any], state: dict[str, torch.Tensor]) -> Checkpoint:
    """Make a checkpoint of what a file carries, and its weights; of an exported network they are not told.

    Raises:
        FlareError: If an entry is missing.
    """
    missing = [k for k in CARRIED if k not in carried]
    if missing:
        raise FlareError(f"checkpoint={path}: its entry {KEY!r} lacks {missing}")
    values = {k: carried[k] for k in CARRIED}
    values |= {k: tuple(carried[k]) for k in ("spacing_mm", "patch_size", "mirror_axes")}
    return Checkpoint(path=path, sha256=sha256(path), state_dict=state, plan=carried.get("plan"), **values)
