"""The jobs of a sweep, as their folders tell them, and the table that compares them."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any

from flare.core.errors import without_secrets
from flare.core.files import read_csv, read_json, write_csv, write_json, write_text
from flare.evaluation.rendering import Column, Table, cell, show, to_markdown, write_table

FILE = "job.json"
PLANNED, RUNNING, COMPLETED, FAILED = "planned", "running", "completed", "failed"
# shown to people: means, the tumor, the loss, what a case costs; the csv has every number
SHOWN = re.compile(
    r"(^|/)(objective|[a-z]*_?(dsc|nsd)_mean|organ_mean[/_].*|tumor|tumor/.*|train/loss"
    r"|seconds|windows|time_s|gpu_auc)$"
)
LOWER_IS_BETTER = re.compile(r"(loss|/ce|seconds|windows|(?<!per)_s|gpu_auc|memory_mb)$")
# what the means are over; other names, such as those of lesions by organ, depend on what was predicted
CLASSES = re.compile(r"(^|/)(classes/.*|val/dsc/.*|\w+_DSC)$")


@dataclass(frozen=True)
class Job:
    """What a job was asked to do and what came of it."""

    folder: str  # its name in the sweep's folder
    script: str  # `train`, `infer`, ...
    overrides: list[str] | None  # its command line; None of a trial that the search has not begun
    status: str = RUNNING  # `planned`, `running` (or killed while it ran), `completed` or `failed`
    seconds: float | None = None
    error: str | None = None  # why it failed, in one line
    measures: dict[str, float] = field(default_factory=dict)  # what `measure` gives

    @property
    def choices(self) -> dict[str, str]:
        """Key -> value of its overrides, as far as they are known."""
        pairs = (override.lstrip("+~").partition("=") for override in self.overrides or ())
        return {key: value for key, _, value in pairs}

    def name(self, keys: Sequence[str]) -> str:
        """What it was asked to do, as far as these keys tell."""
        return " ".join(f"{key}={self.choices.get(key)}" for key in keys)

    def write(self, sweep: Path) -> None:
        """Note it in its folder."""
        write_json(sweep / self.folder / FILE, without_secrets(asdict(self)))

    def remove(self, sweep: Path) -> None:
        """Take back a job that was only planned."""
        (sweep / self.folder / FILE).unlink()
        if not any((sweep / self.folder).iterdir()):
            (sweep / self.folder).rmdir()


def read_jobs(sweep: Path) -> list[Job]:
    """All jobs of a sweep, those still planned too, in the order of their numbers."""
    jobs = [Job(**read_json(path)) for path in sweep.glob(f"*/{FILE}")]
    return sorted(jobs, key=lambda j: (int(j.folder) if j.folder.isdigit() else math.inf, j.folder))


def measure(folder: Path, returned: Any) -> dict[str, float]:
    """Every finite number that a job has brought out, in its folder and in what its script returned.

    Of rounds trained there the last value of each column counts; with several, its name has the round's.
    """
    tables = sorted(folder.glob("rounds/*/training.csv"))
    found: list[tuple[str, float]] = []
    for path in tables:
        prefix = f"{path.parent.name}/" if len(tables) > 1 else ""
        last = {key: float(value) for row in read_csv(path) for key, value in row.items() if value}
        found += [(prefix + key, value) for key, value in last.items()]
    if isinstance(returned, float | int):
        returned = {"objective": returned}
    return {name: value for name, value in [*found, *_numbers(returned, "")] if math.isfinite(value)}


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Numbers in nested plain values; of a table the rows of its rounds, or the means of its columns."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}/{key}" if name else str(key))
    elif isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        if "round" in value[0]:
            rounds = {row["round"]: {k: v for k, v in row.items() if k != "round"} for row in value}
            yield from _numbers(rounds, "")
            return
        rows = [dict(_numbers(row, "")) for row in value]
        keys = dict.fromkeys(key for row in rows for key in row)
        yield from ((key, fmean(row[key] for row in rows if key in row)) for key in keys)


def write_sweep(sweep: Path) -> list[Job]:
    """Write `sweep.csv`, `.md` and `.tex` of all jobs, of which there is one at least; returns these."""
    jobs = read_jobs(sweep)
    choices, table = varied(jobs), compare(jobs)
    names = list(dict.fromkeys(name for job in jobs for name in job.measures))
    rows: list[dict[str, Any]] = []
    for job in jobs:
        own = {"job": job.folder, "status": job.status, "job_seconds": job.seconds, "error": job.error}
        rows.append({key: job.choices.get(key) for key in choices} | job.measures | own)
    write_csv(sweep / "sweep.csv", rows, ["job", *choices, "status", "job_seconds", *names, "error"])
    write_table(sweep / "sweep", [table])
    write_text(sweep / "sweep.md", to_markdown([table]) + failures(jobs, sweep))
    return jobs


def varied(jobs: Sequence[Job]) -> list[str]:
    """Keys in whose values the jobs differ, as far as these are known; of a single job all."""
    known = [job.choices for job in jobs if job.overrides is not None]
    keys = dict.fromkeys(key for choices in known for key in choices)
    differing = [key for key in keys if len({choices.get(key) for choices in known}) > 1]
    return differing or list(keys)


def shown(jobs: Sequence[Job]) -> list[str]:
    """Names of the measures that people are shown."""
    return [name for name in dict.fromkeys(n for job in jobs for n in job.measures) if SHOWN.search(name)]


def compare(jobs: Sequence[Job]) -> Table:
    """One row a job: what it was asked to do, how it ended, and its numbers, the best in bold."""
    choices, names = varied(jobs), shown(jobs)
    columns = [Column("job"), *(Column(k) for k in choices), Column("status"), Column("job_seconds")]
    # a mean over other classes, or another loss, is no better or worse
    scored = {frozenset(filter(CLASSES.search, j.measures)) for j in jobs if j.status == COMPLETED}
    is_comparable = len(scored) <= 1
    named = jobs[0].choices.get("objective", "")  # what the column of that name is; all jobs have the same
    lower = [LOWER_IS_BETTER.search(named if n == "objective" else n) for n in names]
    best = [("min" if is_lower else "max") if is_comparable else "" for is_lower in lower]
    columns += [Column(n, b) for n, b in zip(names, best, strict=True)]
    rows = []
    for job in jobs:
        asked = [cell(job.choices.get(key, "")) for key in choices]
        numbers = [cell(job.measures.get(name), 4) for name in names]
        rows.append([cell(job.folder), *asked, cell(job.status), cell(job.seconds, 0), *numbers])
    told = "best of each column in bold" if is_comparable else "the classes scored differ, so none is best"
    return Table(f"{jobs[0].script} over {', '.join(choices)}; {told}", columns, rows)


def failures(jobs: Sequence[Job], sweep: Path) -> str:
    """The jobs that are not complete, why, and the command that runs just them again; empty without any."""
    known = [job for job in jobs if job.overrides is not None]
    ends = {FAILED: "failed: {}", RUNNING: "is running or was killed", PLANNED: "has not begun"}
    lines = [
        f"job {job.folder} ({job.name(varied(jobs))}) {end.format(shorten(job.error or '', 300))}"
        for status, end in ends.items()
        for job in known
        if job.status == status
    ]
    again = f"python -m flare.sweeps sweep={shlex.quote(str(sweep))} rerun=true"
    told = f"\nTo run just these again, once the sweep has ended: `{again}`\n" if lines else ""
    if unknown := len(jobs) - len(known):
        lines.append(f"{unknown} trials have not begun, and only a new search would choose their parameters")
    return "\n" + "".join(f"- {line}\n" for line in lines) + told if lines else ""


def show_jobs(jobs: Sequence[Job], sweep: Path) -> str:
    """Show the comparison on the console; returns what `failures` says."""
    show(compare(jobs))
    return failures(jobs, sweep).strip()
