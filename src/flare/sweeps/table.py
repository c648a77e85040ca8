"""The table that compares the jobs of a sweep: everything as csv, what matters as Markdown and LaTeX."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from flare.core.files import write_csv, write_text
from flare.evaluation.rendering import Column, Table, cell, to_markdown, write_table
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, RUNNING, Job, read_jobs

# shown to people: means, the tumor, the loss, what a case costs; the csv has every number
SHOWN = re.compile(
    r"(^|/)(objective|[a-z]*_?(dsc|nsd)_mean|organ_mean[/_].*|tumor|tumor/.*|train/loss"
    r"|seconds|windows|time_s|gpu_auc)$"
)
LOWER_IS_BETTER = re.compile(r"(loss|seconds|windows|_s|gpu_auc)$")
# what the means are over; other names, such as those of lesions by organ, depend on what was predicted
CLASSES = re.compile(r"(^|/)(classes/.*|val/dsc/.*|\w+_DSC)$")


def write_sweep(sweep: Path) -> list[Job]:
    """Write `sweep.csv`, `.md` and `.tex` of all jobs, and return these."""
    jobs = read_jobs(sweep)
    if not jobs:
        return jobs
    choices = varied(jobs)
    names = list(dict.fromkeys(name for job in jobs for name in job.measures))
    rows: list[dict[str, Any]] = [
        {k: j.choices.get(k) for k in choices}
        | j.measures
        | {"job": j.folder, "status": j.status, "job_seconds": j.seconds, "error": j.error}
        for j in jobs
    ]
    write_csv(sweep / "sweep.csv", rows, ["job", *choices, "status", "job_seconds", *names, "error"])
    table = compare(jobs)
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
    choices = varied(jobs)
    names = shown(jobs)
    columns = [Column("job"), *(Column(k) for k in choices), Column("status"), Column("job_seconds")]
    # a mean over other classes, or another loss, is no better or worse
    scored = {frozenset(filter(CLASSES.search, j.measures)) for j in jobs if j.status == COMPLETED}
    is_comparable = len(scored) <= 1
    best = [("min" if LOWER_IS_BETTER.search(n) else "max") if is_comparable else "" for n in names]
    columns += [Column(n, b) for n, b in zip(names, best, strict=True)]
    rows = [
        [
            cell(job.folder),
            *(cell(job.choices.get(k, "")) for k in choices),
            cell(job.status),
            cell(job.seconds, 0),
            *(cell(job.measures.get(n), 4) for n in names),
        ]
        for job in jobs
    ]
    told = "best of each column in bold" if is_comparable else "the classes scored differ, so none is best"
    return Table(f"{jobs[0].script} over {', '.join(choices)}; {told}", columns, rows)


def failures(jobs: Sequence[Job], sweep: Path) -> str:
    """The jobs that are not complete, why, and the command that runs just them again; empty without any."""
    known = [job for job in jobs if job.overrides is not None]
    ends = {FAILED: "failed: {}", RUNNING: "is running or was killed", PLANNED: "has not begun"}
    lines = []
    for status, end in ends.items():
        for job in known:
            if job.status == status:
                name = " ".join(f"{k}={job.choices.get(k)}" for k in varied(jobs))
                lines.append(f"job {job.folder} ({name}) {end.format(shorten(job.error or '', 300))}")
    again = f"python -m flare.sweeps sweep={shlex.quote(str(sweep))} rerun=true"
    told = f"\nTo run just these again, once the sweep has ended: `{again}`\n" if lines else ""
    if unknown := len(jobs) - len(known):
        lines.append(f"{unknown} trials have not begun, and only a new search would choose their parameters")
    return "\n" + "".join(f"- {line}\n" for line in lines) + told if lines else ""
