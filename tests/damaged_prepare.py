"""Thousands of damaged files in a cohort with good ones, through `prepare.py` as a user starts it."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import warm
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
                    most = max([most, *map(int, re.findall(r"VmHWM:\s+(\d+)", status))])
    return most


def prepare(root: Path, *more: str) -> tuple[int, str, str, int]:
    """Prepare a cohort in a process of its own: exit code, Python's text, C's, most KiB of a process."""
    texts = {name: str(root / f"python.{name}") for name in ("out", "err")}
    line = [sys.executable, "-c", APART.format(**texts), *overrides(root, root / "out", workers=2), *more]
    process, most = warm.start(line, root), [0]

    def watch() -> None:
        while process.returncode is None:
            most.append(_memory_kib(process.pid))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    said = "".join(process.communicate(PATIENCE_S)).splitlines()  # else it hangs
    watcher.join()
    told = "".join(Path(path).read_text(errors="replace") for path in texts.values())
    return process.wait(), told, "\n".join(row for row in said if row and not OWN.match(row)), max(most)


def prepare_damaged(root: Path, seeds: range, label_seeds: range) -> tuple[Counter[str], list[str]]:
    """Prepare a cohort of damaged files; give what became of them, and what is wrong."""
    found = write_cohort(root, seeds, label_seeds)
    code, told, foreign, most = prepare(root, "executor.max_failed=1")
    wrong = [f"prepare ended with {code}: {told[-2000:]}"] * (code != 1)
    wrong += [f"a library writes to the console: {foreign[:2000]}"] * bool(foreign)
    wrong += ["a traceback on the console"] * ("Traceback" in told)
    wrong += [f"a process took {most} KiB"] * (most > MOST_KIB)
    rows = read_csv(root / "out/cache/flare23/integrity.csv", may_lack=True)
    counts, misjudged = judge(found, rows, root / "work")
    named = sum(re.search(rf"^  {case}(_\w{{8}})?: ", told, re.MULTILINE) is not None for case in found)
    if named != counts["refused"]:
        wrong.append(f"{named} of {counts['refused']} refused files are named on the console")
    counts["good cases"] = sum(d.kind == "good" for d in found.values())
    counts["files"] = sum(d.kind not in ("good", "skipped") for d in found.values())
    counts["MB of the largest process"] = most // 1000
    return counts, wrong + misjudged
