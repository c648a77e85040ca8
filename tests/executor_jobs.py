"""What worker processes run in the tests of the executor; a module of its own, light to import."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from flare.core.errors import CaseError, FlareError, NoRoomError


def double(number: int) -> int:
    return 2 * number


def misbehave(how: str) -> None:
    if how == "case":
        raise CaseError("case_1", "has one slice")
    if how == "config":
        raise FlareError("data.root: no such folder")
    if how == "exit":
        raise SystemExit("a library gave up")
    if how == "full":
        raise NoRoomError("a.b2nd cannot be written: make room and start again")
    if how == "full raw":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise KeyError("missing")


def fail_at(how: str, number: int) -> None:
    """Fail in one of several ways, each with the case's own number in its text."""
    if how == "memory" and number == 1:
        raise MemoryError("no 1 GiB")
    if how == "memory":
        np.empty(2**60, np.uint8)
    if how == "gone":
        Path(f"/nowhere/{number}.nii.gz").read_bytes()
    if how == "key":
        raise KeyError(number)
    if how == "case":
        raise CaseError("a", f"/data/{number}.nii.gz has {number} slice")
    raise CaseError("a", f"/data/{number}.nii.gz is no image")


def die(record: Path, times: int = 0, beside: Path | None = None) -> str:
    """Note the run in a file; kill the process in the first `times` runs.

    Args:
        record: Grows by one letter a run.
        times: How often to die.
        beside: Wait for the record of another job first, for a minute at most.
    """
    until = time.monotonic() + 60
    while beside is not None and not beside.exists():
        if time.monotonic() > until:
            raise TimeoutError(beside.name)
        time.sleep(0.02)
    with record.open("a") as stream:
        stream.write("x")
    if len(record.read_text()) <= times:
        os._exit(1)
    return f"process {os.getpid()}"


def die_later(after_s: float) -> str:
    """Return well, then kill the process while it has nothing to do."""
    threading.Timer(after_s, os._exit, [1]).start()
    return "well"


def threads() -> str:
    return os.environ["OMP_NUM_THREADS"]


def surroundings() -> tuple[dict[str, str], str]:
    """The environment and the folder in which a case is worked on."""
    return dict(os.environ), os.getcwd()


LOADED = set(sys.modules)  # when a worker imports this file


def look(name: str) -> dict[str, object]:
    """Say whether a worker had a module when it started, how many threads it may have, and its parent."""
    import torch

    said = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
    return {"loaded": name in LOADED, "threads": torch.get_num_threads(), **said, "parent": os.getppid()}
