"""The commands that are disturbed: tiny runs of each script, and what they must leave, to the bit."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import torch
from fault import code

import warm
from tiny_round import write_case
from tiny_run import FEW, SETTINGS, given

ROUNDS = "rounds=[mo,mo1]"
# what differs between two undisturbed runs as well: time, and what the machine has
VOLATILE = re.compile(r"second|_s$|per_s|memory|time|hours|date")
CHECKED = (".nii.gz", ".b2nd", ".npz", ".ckpt", ".csv", ".json")
UNCHECKED = re.compile(
    r"/logs/|/hydra/|/\.hydra/|environment\.json|seen\.json|job\.json|sweep\.csv|/\.partial-"
)


@dataclass(frozen=True)
class Work:
    """A command below a folder `run`, which is the same for the undisturbed and the disturbed one."""

    name: str
    script: str
    line: Callable[[Path], list[str]]  # by the folder that is given to all works
    # the command that goes on after a kill, if it is another one; by the same folder
    again: Callable[[Path], list[str]] | None = None


def _sweep(root: Path) -> list[str]:
    run = root / "run"
    line = [*SETTINGS, FEW, f"paths.outputs={run}", "round=mo", "model=tiny", "trainer.max_epochs=2"]
    return ["-m", *line, "seed=1,2", f"hydra.sweep.dir={run / 'sweep'}"]


def _again(root: Path) -> list[str]:
    return ["-m", "flare.sweeps", f"sweep={root / 'run' / 'sweep'}", "rerun=true"]


def _cohort(root: Path) -> list[str]:
    places = [f"data.root={root / 'cohort'}", f"paths.outputs={root / 'run'}"]
    return ["data=flare23", "data.spacing_mm=[3,2,2]", *places, "executor.workers=2"]


def _infer(root: Path) -> list[str]:
    scans = [f"input={root / 'cohort'}/imagesTr2200", f"output={root / 'run' / 'segmented'}"]
    return [*scans, f"checkpoint={root / 'teacher.ckpt'}", "tta=none", "executor.workers=1"]


WORKS = (
    Work("iterate", "iterate", lambda root: given(root / "run", ROUNDS, "executor.workers=1")),
    Work("iterate in one process", "iterate", lambda root: given(root / "run", ROUNDS)),
    Work("train", "train", lambda root: [
        *SETTINGS, FEW, f"paths.outputs={root / 'run'}", "round=mo", "model=tiny", "trainer.max_epochs=3"
    ]),
    Work("prepare", "prepare", _cohort),
    Work("prepare in one process", "prepare", lambda root: [*_cohort(root)[:-1], "executor.workers=0"]),
    Work("infer", "infer", _infer),
    Work("sweep", "train", _sweep, _again),
)  # fmt: skip
ONE_PROCESS = ("iterate in one process", "train", "sweep")  # in which faults can be put into a write


class Stage:
    """A folder in which works are done undisturbed once, and then disturbed."""

    def __init__(self, root: Path, more: Sequence[str] = ()) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # in processes that a sweep starts as well: sums depend on it
        self.root, self.run, self.more = root, root / "run", tuple(more)  # overrides of every command
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, str] = {}
        for seed in range(6):
            write_case(root / "cohort", f"case{seed}", seed)
        write_case(root / "cohort", "held_out", 9, split="Val")

    def start(self, work: Work, before: str = "") -> warm.Command:
        """Start a work's command, after some code, see `fault.code`."""
        return warm.start(
            [sys.executable, *code(work.script, before), *work.line(self.root), *self.more], self.root
        )

    def finish(self, work: Work, before: str = "") -> CompletedProcess[str]:
        """Do what goes on after a kill, to its end."""
        if work.again and list(self.run.glob("sweep/*/job.json")):
            return warm.run([sys.executable, *work.again(self.root)], self.root, timeout=900)
        return warm.run(
            [sys.executable, *code(work.script, before), *work.line(self.root), *self.more],
            self.root,
            timeout=900,
        )

    def whole(self, work: Work) -> Path:
        """The results of an undisturbed run, made at the first call; its writes and renames are counted."""
        kept = self.root / f"whole {work.name}"
        teacher = self.root / "teacher.ckpt"
        if work.name == "infer" and not teacher.exists():
            self.whole(WORKS[0])
        if not kept.exists():
            self.clear()
            counts = self.root / f"{work.name}.json"
            began = time.monotonic()
            done = self.finish(work, f"fault.arm('', 0, {str(counts)!r})")
            assert done.returncode == 0, done.stderr
            self.seconds[work.name] = time.monotonic() - began
            self.counts[work.name] = counts.read_text()
            if work is WORKS[0]:
                shutil.copy(self.run / "demo/rounds/mo/checkpoints/last.ckpt", teacher)
            self.run.rename(kept)
        return kept

    def clear(self) -> None:
        """Remove what a disturbed run left."""
        shutil.rmtree(self.run, ignore_errors=True)


def results(folder: Path) -> dict[str, Path]:
    """The files of a run that must be the same, by their names below it.

    A training's folder is called by its teacher's file, whose bytes tell also where Lightning went on.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"/[0-9a-f]{16}/", "/*/", f"/{path.relative_to(folder)}")
        if path.is_file() and name.endswith(CHECKED) and not UNCHECKED.search(name):
            found[f"{name}, again" if name in found else name] = path
    return found


def content(path: Path) -> object:
    """What must be the same of a file: weights of a checkpoint, a table without what was measured."""
    if path.suffix == ".ckpt":
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return {name: value.numpy().tobytes() for name, value in state.items()}
    if path.suffix in (".csv", ".json"):
        # the hash of a checkpoint is also one of when it was written
        text = re.sub(r"[0-9a-f]{64}|@[0-9a-f]{12}", "@", path.read_text())
        if path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(text))
            return [{k: v for k, v in row.items() if not VOLATILE.search(k)} for row in rows]
        return [line for line in text.splitlines() if not VOLATILE.search(line.partition(":")[0].strip(' "'))]
    return path.read_bytes()


def differences(run: Path, whole: Path) -> list[str]:
    """Say in which results a run differs from the undisturbed one, and what was left half."""
    found, wanted = results(run), results(whole)
    told = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    told += [f"{name} is too much" for name in found.keys() - wanted.keys()]
    told += [
        f"{name} differs"
        for name in wanted.keys() & found.keys()
        if content(found[name]) != content(wanted[name])
    ]
    left = [str(path.relative_to(run)) for path in run.rglob(".partial-*")]
    return sorted(told + [f"{name} was left" for name in left])


def named(names: Sequence[str]) -> tuple[Work, ...]:
    """Works by their names."""
    return tuple(work for work in WORKS if work.name in names)
