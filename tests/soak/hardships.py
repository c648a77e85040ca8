"""A disk that fills, folders that cannot be written or read, two starts at once, a clock that is set back."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kills import Found, ended, judge, kill
from works import Stage, Work, named

NOBODY = 65534


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """Mount something at a place while the block runs."""
    place.mkdir(exist_ok=True)
    _mount(*arguments, str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def cannot_mount(place: Path) -> str:
    """Say why nothing can be mounted; empty if it can."""
    if os.geteuid():
        return "only root can mount"
    try:
        with mounted(place / "try", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no tmpfs can be mounted: {error.stderr.decode().strip()}"


def is_told(text: str, said: str) -> bool:
    """Whether a command ended with a message, and not as a crash."""
    return "Traceback" not in text and re.search(said, text) is not None


def full_disk(stage: Stage, times: int, dice: random.Random) -> Found:
    """Let the disk fill at some stage of a run; with room again it goes on."""
    counts, wrong = Counter[str](), []
    if reason := cannot_mount(stage.root):
        return Counter({f"skipped, {reason}": 1}), []
    for number in range(times):
        work = named(("iterate", "train", "prepare", "infer"))[number % 4]
        files = [p for p in stage.whole(work).rglob("*") if p.is_file() and not p.is_symlink()]
        needed = sum(-(-p.stat().st_size // 4096) * 4 for p in files)  # KiB in pages
        room = int(needed * dice.uniform(0.1, 0.9))
        stage.clear()
        with mounted(stage.run, "-t", "tmpfs", "-o", f"size={room}k", "tmpfs"):
            process = stage.start(work)
            out, err = process.communicate(900)
            if process.wait() == 0 or not is_told(
                out + err, "disk is full|needs about|is the disk full|is full"
            ):
                wrong.append(f"{work.name} in {room} of {needed} KiB: {process.wait()}: {err[-900:]}")
                continue
            counts["full disks"] += 1
            _mount("-o", "remount,size=256m", str(stage.run))
            judge((counts, wrong), ended(stage, work), f"{work.name} in {room} of {needed} KiB, gone on")
    stage.clear()
    return counts, wrong


def _half_done(stage: Stage, work: Work, dice: random.Random) -> None:
    """A run that was killed on its way."""
    stage.whole(work)
    stage.clear()
    process = stage.start(work)
    time.sleep(dice.uniform(0.4, 0.9) * stage.seconds[work.name])
    kill(process)


def read_only(stage: Stage, times: int, dice: random.Random) -> Found:
    """Make what a killed run left read-only, start, and make it writable again."""
    counts, wrong = Counter[str](), []
    if reason := cannot_mount(stage.root):
        return Counter({f"skipped, {reason}": 1}), []
    for number in range(times):
        work = named(("iterate", "train", "prepare", "infer"))[number % 4]
        _half_done(stage, work, dice)
        stage.run.mkdir(exist_ok=True)
        with mounted(stage.run, "--bind", str(stage.run)):
            _mount("-o", "remount,ro,bind", str(stage.run))
            done = stage.finish(work)
        if done.returncode == 0 or not is_told(done.stderr, "[Rr]ead-only|cannot be written to"):
            wrong.append(f"{work.name}, read-only: {done.returncode}: {done.stderr[-900:]}")
        counts["read-only folders"] += 1
        judge((counts, wrong), ended(stage, work), f"{work.name}, writable again")
    return counts, wrong


def unreadable(stage: Stage, dice: random.Random) -> Found:
    """Take the right to read a cohort's images from a user who is not root, and give it back."""
    counts, wrong = Counter[str](), []
    (work,) = named(("prepare in one process",))
    stage.whole(work)
    stage.clear()
    stage.run.mkdir()
    for path in (stage.root, *stage.root.rglob("*")):
        shutil.chown(path, NOBODY)
    as_nobody = f"import os; os.environ['HOME'] = {str(stage.run)!r}; fault.become({NOBODY})"
    images = stage.root / "cohort/imagesTr2200"
    first = stage.finish(work, as_nobody) if os.geteuid() == 0 else None
    if first is None or first.returncode:
        why = "only root can become another user" if first is None else "another user cannot run this Python"
        return Counter({f"skipped, {why}": 1}), []
    for place in (images, images / "case1_0000.nii.gz"):
        kept = place.stat().st_mode
        place.chmod(0)
        done = stage.finish(work, as_nobody)
        place.chmod(kept)
        if done.returncode == 0 or not is_told(done.stderr, "may not be read|cannot be searched|Permission"):
            wrong.append(f"prepare, unreadable {place.name}: {done.returncode}: {done.stderr[-900:]}")
        counts["unreadable folders and files"] += 1
        again = stage.finish(work, as_nobody)
        told = [again.stderr[-600:]] if again.returncode else ended(stage, work)
        judge((counts, wrong), told, "prepare, readable again")
    return counts, wrong


def two_starts(stage: Stage) -> Found:
    """Start a command twice at once: one is done, the other is refused or, of a cache alone, waits."""
    counts, wrong = Counter[str](), []
    for work in named(("iterate", "train", "infer")):
        stage.whole(work)
        stage.clear()
        pair = [stage.start(work), stage.start(work)]
        texts = ["".join(p.communicate(900)) for p in pair]
        codes = sorted(p.wait() for p in pair)
        refused = [text for process, text in zip(pair, texts, strict=True) if process.wait()]
        if codes != [0, 1] or not is_told(refused[0], "is in use by"):
            wrong.append(f"{work.name} twice: {codes}: {refused[0][-600:] if refused else 'none is refused'}")
        counts["two starts"] += 1
        judge((counts, wrong), ended(stage, work), f"{work.name} twice")
    return counts, wrong


def clock_set_back(stage: Stage, dice: random.Random) -> Found:
    """Kill a run, and let it go on thirty days earlier."""
    counts, wrong = Counter[str](), []
    for work in named(("iterate", "train", "prepare", "infer")):
        _half_done(stage, work, dice)
        done = stage.finish(work, "fault.set_back()")
        told = [done.stderr[-600:]] if done.returncode else ended(stage, work)
        counts["clocks set back"] += 1
        judge((counts, wrong), told, f"{work.name}, clock set back")
    return counts, wrong


def all_of_them(stage: Stage, times: int, dice: random.Random) -> Iterator[tuple[str, Callable[[], Found]]]:
    """Each hardship, by what it is."""
    yield "full disk", lambda: full_disk(stage, 4 * times, dice)
    yield "read-only", lambda: read_only(stage, 4 * times, dice)
    yield "unreadable", lambda: unreadable(stage, dice)
    yield "two starts", lambda: two_starts(stage)
    yield "clock", lambda: clock_set_back(stage, dice)
