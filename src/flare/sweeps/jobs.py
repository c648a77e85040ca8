"""One job of a sweep, as its own folder tells it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from flare.core.files import read_csv, read_json, write_json

FILE = "job.json"
PLANNED, RUNNING, COMPLETED, FAILED = "planned", "running", "completed", "failed"


@dataclass(frozen=True)
class Job:
    """What a job was asked to do and what came of it.

    Args:
        folder: Name of its folder in the sweep's.
        script: `train`, `infer`, ...
        overrides: Its command line; None of a planned trial, since the search chooses it as the trial begins.
        status: `planned`, `running` (or killed while it ran), `completed` or `failed`.
        seconds: How long it took.
        error: Why it failed, in one line.
        measures: Every number that came out of it, by name.
    """

    folder: str
    script: str
    overrides: list[str] | None
    status: str = RUNNING
    seconds: float | None = None
    error: str | None = None
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, str]:
        """Key -> value of its overrides, as far as they are known."""
        pairs = (override.lstrip("+~").partition("=") for override in self.overrides or ())
        return {key: value for key, _, value in pairs}

    def write(self, sweep: Path) -> None:
        """Note it in its folder."""
        write_json(sweep / self.folder / FILE, asdict(self))

    def remove(self, sweep: Path) -> None:
        """Take back a job that was only planned."""
        (sweep / self.folder / FILE).unlink()
        if not any((sweep / self.folder).iterdir()):
            (sweep / self.folder).rmdir()


def read_jobs(sweep: Path) -> list[Job]:
    """All jobs of a sweep, those still planned too, in the order of their numbers."""
    jobs = [Job(**read_json(path)) for path in Path(sweep).glob(f"*/{FILE}")]
    return sorted(
        jobs, key=lambda j: (not j.folder.isdigit(), int(j.folder) if j.folder.isdigit() else 0, j.folder)
    )


def measure(folder: Path, returned: Any) -> dict[str, float]:
    """Every number that a job has brought out.

    Args:
        folder: The job's; the last values of the rounds trained there count, named `<round>/...` where there
            are several.
        returned: What its script returned; numbers in it count too.
    """
    tables = sorted(Path(folder).glob("rounds/*/training.csv"))
    found: dict[str, float] = {}
    for path in tables:
        prefix = f"{path.parent.name}/" if len(tables) > 1 else ""
        found |= {f"{prefix}{key}": value for key, value in last_values(path).items()}
    if isinstance(returned, float | int):
        returned = {"objective": returned}
    return found | {name: value for name, value in _numbers(returned, "") if math.isfinite(value)}


def last_values(path: Path) -> dict[str, float]:
    """The last value of each column of a table of epochs that has one; not that of a column that diverged."""
    found: dict[str, float] = {}
    for row in read_csv(path):
        found |= {key: float(value) for key, value in row.items() if value}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Numbers in nested plain values; of a table the rows of its rounds, or the means of its columns."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}/{key}" if name else str(key))
    elif isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        if "round" in value[0]:
            for row in value:
                yield from _numbers({k: v for k, v in row.items() if k != "round"}, str(row["round"]))
            return
        columns: dict[str, list[float]] = {}
        for row in value:
            for key, number in _numbers(row, ""):
                columns.setdefault(key, []).append(number)
        yield from ((key, fmean(numbers)) for key, numbers in columns.items())
