"""The table that compares the jobs of a sweep: everything as csv, what matters as Markdown and LaTeX."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from flare.evaluation.rendering import Cell, Column, Table, number, to_markdown, write_table
from flare.files import write_csv, write_text
from flare.sweeps.jobs import COMPLETED, FAILED, Job, read_jobs

# shown to people: means, the tumor, the loss; the csv has every number
SHOWN = re.compile(
    r"(^|/)(objective|[a-z]*_?(dsc|nsd)_mean|organ_mean[/_].*|tumor|tumor/.*|train/loss|total_s)$"
)
LOWER_IS_BETTER = re.compile(r"(loss|_s)$")


def write_sweep(sweep: Path) -> list[Job]:
    """Write `sweep.csv`, `.md` and `.tex` of the jobs that have begun, and return these."""
    jobs = read_jobs(sweep)
    if not jobs:
        return jobs
    choices = varied(jobs)
    names = list(dict.fromkeys(name for job in jobs for name in job.measures))
    rows = [
        {"job": j.folder, **{k: j.choices.get(k) for k in choices}, "status": j.status, "seconds": j.seconds}
        | j.measures
        | {"error": j.error}
        for j in jobs
    ]
    write_csv(sweep / "sweep.csv", rows, ["job", *choices, "status", "seconds", *names, "error"])
    table = compare(jobs)
    write_table(sweep / "sweep", [table])
    write_text(sweep / "sweep.md", to_markdown([table]) + failures(jobs, sweep))
    return jobs


def show(jobs: Sequence[Job]) -> None:
    """Show the comparison on the console."""
    from rich.table import Table as Shown

    from flare.progress import console

    table = compare(jobs)
    shown = Shown(title=table.title, title_justify="left")
    for column in table.columns:
        shown.add_column(column.heading, overflow="fold")
    for row in table.rows:
        shown.add_row(*(cell.text for cell in row))
    console.print(shown)


def varied(jobs: Sequence[Job]) -> list[str]:
    """Keys in whose values the jobs differ; of a single job all."""
    keys = dict.fromkeys(key for job in jobs for key in job.choices)
    differing = [key for key in keys if len({job.choices.get(key) for job in jobs}) > 1]
    return differing or list(keys)


def compare(jobs: Sequence[Job]) -> Table:
    """One row a job: what it was asked to do, how it ended, and its numbers, the best in bold."""
    choices = varied(jobs)
    names = [n for n in dict.fromkeys(n for job in jobs for n in job.measures) if SHOWN.search(n)]
    columns = [Column("job"), *(Column(k) for k in choices), Column("status"), Column("seconds")]
    # a mean over other classes, or another loss, is no better or worse
    measured = {frozenset(job.measures) for job in jobs if job.status == COMPLETED}
    is_comparable = len(measured) == 1
    best = [("min" if LOWER_IS_BETTER.search(n) else "max") if is_comparable else "" for n in names]
    columns += [Column(n, b) for n, b in zip(names, best, strict=True)]
    rows = [
        [
            Cell(job.folder),
            *(Cell(job.choices.get(k, "")) for k in choices),
            Cell(job.status),
            number(job.seconds, 0),
            *(number(job.measures.get(n), 4) for n in names),
        ]
        for job in jobs
    ]
    told = "best of each column in bold" if is_comparable else "what was measured differs, so none is best"
    return Table(f"{jobs[0].script} over {', '.join(choices)}; {told}", columns, rows)


def failures(jobs: Sequence[Job], sweep: Path) -> str:
    """The jobs that failed, why, and the command that runs just them again; empty without any."""
    bad = [job for job in jobs if job.status == FAILED]
    unfinished = [job for job in jobs if job.status not in (COMPLETED, FAILED)]
    names = {j.folder: " ".join(f"{k}={j.choices.get(k)}" for k in varied(jobs)) for j in jobs}
    lines = [f"job {j.folder} ({names[j.folder]}) failed: {shorten(j.error or '', 300)}" for j in bad]
    lines += [f"job {j.folder} ({names[j.folder]}) is running or was killed" for j in unfinished]
    if not lines:
        return ""
    again = f"python -m flare.sweeps sweep={shlex.quote(str(sweep))} rerun=true"
    return "\n" + "".join(f"- {line}\n" for line in lines) + f"\nTo run just these again: `{again}`\n"
