"""Progress bars with an estimate of what remains."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Show a bar while the block runs; `advance(bar.task_ids[0])` moves it.

    Args:
        description: What is being done.
        total: Number of cases.
        done: How many were done before this start.
    """
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        bar.add_task(description, total=total, completed=done)
        yield bar
