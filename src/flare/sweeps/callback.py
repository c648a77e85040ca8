"""The seam to Hydra: every job of a multirun notes what became of it, and the sweep's table follows."""

from __future__ import annotations

import atexit
import fcntl
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from flare.progress import console
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, Job, measure, read_jobs
from flare.sweeps.planning import plan
from flare.sweeps.table import failures, show, write_sweep

log = logging.getLogger(__name__)


class SweepTable(Callback):
    """Writes `job.json` into each job's folder and `sweep.csv`, `.md` and `.tex` into the sweep's.

    The table is written as each job ends, wherever it ran: Hydra leaves `on_multirun_end` out when a job has
    failed, and a sweep of days is looked at before its end.
    """

    def __init__(self) -> None:
        self.started = 0.0
        self.sweep: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note which jobs there will be, and have them compared at the end, whatever becomes of them."""
        self.sweep = Path(config.hydra.sweep.dir)
        atexit.register(self.tell)
        for job in plan(config):
            job.write(self.sweep)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Tell the comparison, and exit with 1 if a job failed: a search goes on to its end."""
        atexit.unregister(self.tell)
        sweep = Path(config.hydra.sweep.dir)
        for job in read_jobs(sweep):
            if job.status == PLANNED:  # the sweep is over without it: a grid may have fewer trials
                job.remove(sweep)
        self.tell()
        if any(job.status == FAILED for job in read_jobs(sweep)):
            sys.exit(1)  # Hydra takes an exception of a callback for a warning

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Note that a job has begun: one that is killed stays so."""
        if config.hydra.mode == RunMode.MULTIRUN:
            self.started = time.monotonic()
            sweep, job = _job(config)
            job.write(sweep)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note how a job ended and bring the table up to date."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        sweep, job = _job(config)
        returned = job_return._return_value  # the property would raise it if it is an error
        is_complete = job_return.status == JobStatus.COMPLETED
        job = replace(
            job,
            status=COMPLETED if is_complete else FAILED,
            seconds=round(time.monotonic() - self.started, 1),
            measures=measure(sweep / job.folder, returned if is_complete else None),
        )
        if not is_complete:
            job = replace(job, error=" ".join(str(returned).split()) or type(returned).__name__)
            log.error("job %s failed", job.folder)
            # reasons name files, and log files hold case ids alone
            console.print(job.error, markup=False, soft_wrap=True)
        with _held(sweep):
            job.write(sweep)
            write_sweep(sweep)

    def tell(self) -> None:
        """Show the comparison, and which jobs failed."""
        jobs = [] if self.sweep is None else read_jobs(self.sweep)
        if self.sweep is None or all(job.status == PLANNED for job in jobs):
            return
        write_sweep(self.sweep)
        show(jobs)
        console.print(f"the jobs compared: {self.sweep / 'sweep.md'}", markup=False, soft_wrap=True)
        if text := failures(jobs, self.sweep).strip():
            console.print(text, markup=False, soft_wrap=True)


def _job(config: DictConfig) -> tuple[Path, Job]:
    """The sweep's folder and what is known of a job before it runs."""
    folder = Path(config.hydra.runtime.output_dir)
    return folder.parent, Job(folder.name, config.hydra.job.config_name, list(config.hydra.overrides.task))


@contextmanager
def _held(sweep: Path) -> Iterator[None]:
    """Hold the sweep's table: jobs that run at once end at once."""
    with (sweep / ".sweep.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
