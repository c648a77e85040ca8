"""Ends a command's whole process group in the middle of a write or of a rename, chosen by kind and number.

The product knows nothing of it: a command is started with `code(...)`, which puts this around `os.replace`
and around streams that `Path.open` gives. With the number 0 nothing ends; the calls are counted into a file.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

# what is ended: a rename before and after it, half of a write by what the file is
POINTS = ("rename", "renamed", "checkpoint", "line", "report", "file")
SET_BACK_S = 30 * 86400.0


def kind_of(path: Path) -> str:
    """What is written, by its name; the temporary name has the same end."""
    kinds = {".ckpt": "checkpoint", ".jsonl": "line", ".html": "report"}
    return kinds.get(path.suffix, "file")


class _Half:
    """A stream that ends the process group in the middle of a write."""

    def __init__(self, stream: Any, passed: Any) -> None:
        self._stream, self._passed = stream, passed

    def write(self, data: Any) -> Any:
        if self._passed():
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            os.killpg(0, signal.SIGKILL)
        return self._stream.write(data)

    def __enter__(self) -> _Half:
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stream.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def arm(point: str, number: int, counts: str) -> None:
    """End this process group at the given call of a kind, counted from 1; with 0 count all kinds of calls."""
    met: Counter[str] = Counter()
    own = os.getpid()

    def passed(kind: str) -> bool:
        met[kind] += 1
        return kind == point and met[kind] == number

    unpatched_replace, unpatched_open = os.replace, Path.open

    def replace(source: Any, target: Any, **more: Any) -> None:
        if passed("rename"):
            os.killpg(0, signal.SIGKILL)
        unpatched_replace(source, target, **more)
        if passed("renamed"):
            os.killpg(0, signal.SIGKILL)

    def opened(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        stream = unpatched_open(path, mode, *arguments, **more)
        return _Half(stream, lambda: passed(kind_of(path))) if set(mode) & set("wax+") else stream

    def note() -> None:
        if os.getpid() == own:
            Path(counts).write_text(json.dumps(met))

    os.replace = replace
    Path.open = opened  # type: ignore[method-assign, assignment]
    if not number:
        atexit.register(note)


def set_back() -> None:
    """Let the clock of this process be thirty days behind."""
    import time

    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - SET_BACK_S
    time.time_ns = lambda: now_ns() - int(SET_BACK_S * 1e9)


def become(user: int) -> None:
    """Go on as another user, who obeys the modes of files as root does not."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def code(script: str, before: str = "") -> list[str]:
    """Arguments of `python` that run a script after some code, in which this module is `fault`."""
    lines = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import fault\n{before}\n"
    return ["-c", f"{lines}from flare.cli import run\nsys.argv[0] = {script!r}\nrun({script!r})"]
