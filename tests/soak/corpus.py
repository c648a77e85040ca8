"""Thousands of damaged files in a cohort with good ones, through `prepare.py` as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from bad_cohort import overrides
from damaged_cohort import judge, write_cohort
from flare.core.files import read_csv

MOST_KIB = 1_500_000  # of a worker: 1.5 GB
PATIENCE_S = 3600
# Python's streams lie elsewhere than the descriptors that libraries in C write to; workers log by theirs
APART = """
import sys
sys.stdout, sys.stderr = open({out!r}, "w", 1), open({err!r}, "w", 1)
from flare.cli import run
sys.argv[0] = "prepare"
run("prepare")
"""
OWN = re.compile(r"(DEBUG|INFO|WARNING|ERROR):flare\b")


def _memory_kib(group: int) -> int:
    """The most memory that a process of a group has had."""
    most = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                if os.getpgid(int(entry.name)) == group:
                    status = (entry / "status").read_text()
                    most = max(most, *(int(n) for n in re.findall(r"VmHWM:\s+(\d+)", status)))
    return most


def prepare(root: Path, *more: str) -> tuple[int, str, str, int]:
    """Prepare a cohort in a process of its own: exit code, Python's text, C's, most KiB of a process."""
    texts = {name: str(root / f"python.{name}") for name in ("out", "err")}
    line = [sys.executable, "-c", APART.format(**texts), *overrides(root, root / "out", workers=2), *more]
    with (root / "c.txt").open("wb") as stream:
        process = subprocess.Popen(
            line, cwd=root, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
        )
        until, most = time.monotonic() + PATIENCE_S, 0
        while process.poll() is None and time.monotonic() < until:
            most = max(most, _memory_kib(process.pid))
            time.sleep(0.1)
        if process.poll() is None:
            process.kill()
            raise AssertionError(f"prepare hangs: not done after {PATIENCE_S} s")
    said = (root / "c.txt").read_text(errors="replace").splitlines()
    told = "".join(Path(path).read_text(errors="replace") for path in texts.values())
    foreign = "\n".join(row for row in said if row and not OWN.match(row))
    return process.returncode, told, foreign, most


def soak(root: Path, files: int, first: int) -> tuple[Counter[str], list[str]]:
    """Prepare a cohort of about so many damaged files; give what became of them, and what is wrong."""
    each = max(1, round(files / 14))  # 12 formats of images, 9 of label maps, which are a fifth as many
    found = write_cohort(root, range(first, first + each), range(first, first + max(1, each // 5)))
    code, told, foreign, most = prepare(root, "executor.max_failed=1")
    wrong = [f"prepare ended with {code}: {told[-2000:]}"] * (code != 1)
    wrong += [f"a library writes to the console: {foreign[:2000]}"] * bool(foreign)
    wrong += ["a traceback on the console"] * ("Traceback" in told)
    wrong += [f"a process took {most} KiB"] * (most > MOST_KIB)
    rows = read_csv(root / "out/cache/flare23/integrity.csv", may_lack=True)
    counts, misjudged = judge(found, rows, root / "work")
    named = sum(f"  {case}: " in told for case in found)
    wrong += [f"{named} of {counts['refused']} refused files are named on the console"] * (
        named != counts["refused"]
    )
    counts["files"] = sum(d.kind != "good" for d in found.values())
    counts["good cases"] = len(found) - counts["files"]
    counts["MB of the largest process"] = most // 1000
    return counts, wrong + misjudged
