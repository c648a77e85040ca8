"""`make soak`: thousands of damaged files, runs killed anywhere, and other hardships; prints counts.

    PYTHONPATH=tests python tests/soak [--only corpus kills writes hardships fuzz] [--kills 50] [--files 2200]

It ends with 1 if anything is not as it must be, which is listed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fuzz
import hardships
import kills
from kills import Found
from works import Stage

from damaged_prepare import prepare_damaged

PARTS = ("corpus", "kills", "writes", "workers", "hardships", "fuzz")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description="Damaged files, kills and hardships.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kills", type=int, default=50, help="at random moments")
    parser.add_argument("--writes", type=int, default=3, help="kills in each kind of write")
    parser.add_argument("--workers", type=int, default=6, help="kills of one process that a run has started")
    parser.add_argument("--override", action="append", default=[], help="for every command, as executor=dask")
    parser.add_argument("--hardships", type=int, default=2, help="times that each kind of command meets each")
    parser.add_argument("--files", type=int, default=2200, help="damaged files")
    parser.add_argument("--fuzz", type=int, default=300, help="seconds for each format")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def fuzzed(folder: Path, seconds: int) -> Found:
    """Fuzz the reader of each format for a time."""
    if importlib.util.find_spec("atheris") is None:
        return Counter({"skipped, atheris is not installed (pip install atheris)": 1}), []
    counts, wrong = Counter[str](), []
    for which in fuzz.NAMES:
        line = [sys.executable, fuzz.__file__, which, str(folder / which), f"-max_total_time={seconds}"]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
        runs = [row.split()[1] for row in done.stderr.splitlines() if row.startswith("Done ")]
        counts[f"{which}: files tried"] += int(runs[0]) if runs else 0
        wrong += [f"{which}: {done.stderr[-2000:]}"] * (done.returncode != 0 or not runs)
    return counts, wrong


def parts(chosen: argparse.Namespace, root: Path) -> Iterator[tuple[str, Callable[[], Found]]]:
    """Each part by its name."""
    dice, stage = random.Random(chosen.seed), None
    if "corpus" in chosen.only:
        first = 10_000 * (1 + chosen.seed)
        each = max(5, round(chosen.files / 14))  # 12 formats of images, 9 of label maps, a fifth as many
        seeds, label_seeds = range(first, first + each), range(first, first + each // 5)
        yield "corpus", lambda: prepare_damaged(root / "corpus", seeds, label_seeds)
    if {"kills", "writes", "workers", "hardships"} & set(chosen.only):
        stage = Stage(root / "stage", chosen.override)
    if stage and "kills" in chosen.only:
        yield "kills", lambda: kills.at_random(stage, chosen.kills, dice)
    if stage and "writes" in chosen.only:
        yield "writes", lambda: kills.in_writes(stage, chosen.writes, dice)
    if stage and "workers" in chosen.only:
        yield "workers", lambda: kills.of_workers(stage, chosen.workers, dice)
    if stage and "hardships" in chosen.only:
        yield from hardships.all_of_them(stage, chosen.hardships, dice)
    if "fuzz" in chosen.only:
        yield "fuzz", lambda: fuzzed(root / "fuzz", chosen.fuzz)


def main() -> int:
    chosen, wrong = options(), []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        Path(folder).chmod(0o755)  # another user reads here as well
        for name, do in parts(chosen, Path(folder)):
            began = time.monotonic()
            counts, told = do()
            wrong += [f"{name}: {line}" for line in told]
            shown = ", ".join(f"{what} {count}" for what, count in counts.items())
            print(f"{name:12}{shown}; wrong {len(told)}; {time.monotonic() - began:.0f} s", flush=True)
            print(*told, sep="\n", flush=True)
    print(f"{len(wrong)} are not as they must be" if wrong else "all as it must be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
