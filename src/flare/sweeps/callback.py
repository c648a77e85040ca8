"""The seam to Hydra: every job of a multirun notes what became of it, and the sweep's table follows."""

from __future__ import annotations

import atexit
import fcntl
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from flare.evaluation.rendering import show
from flare.runs.folders import is_job
from flare.runs.work import console
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, Job, measure, read_jobs
from flare.sweeps.table import compare, failures, write_sweep

log = logging.getLogger(__name__)
BY_NUMBER = {"subdir": "${hydra.job.num}"}


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
        if is_job(config.hydra):
            self.started = time.monotonic()
            sweep, job = _job(config)
            job.write(sweep)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note how a job ended and bring the table up to date."""
        if not is_job(config.hydra):
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
        show(compare(jobs))
        console.print(f"the jobs compared: {self.sweep / 'sweep.md'}", markup=False, soft_wrap=True)
        if text := failures(jobs, self.sweep).strip():
            console.print(text, markup=False, soft_wrap=True)


def plan(config: DictConfig) -> list[Job]:
    """List the jobs of a sweep as it starts.

    Args:
        config: The sweep's, as Hydra gives it to callbacks.

    Returns:
        In the order of their numbers. None if the jobs' folders are not these (`hydra.sweep.subdir`), or if
        the sweeper is neither Hydra's own nor one with a number of trials.
    """
    if OmegaConf.to_container(OmegaConf.masked_copy(config.hydra.sweep, "subdir")) != BY_NUMBER:
        return []
    script = config.hydra.job.config_name
    return [Job(str(n), script, overrides, PLANNED) for n, overrides in enumerate(_overrides(config))]


def _overrides(config: DictConfig) -> Sequence[list[str] | None]:
    """Each job's command line; None where the sweeper chooses it later."""
    sweeper = config.hydra.sweeper
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return [None] * sweeper.get("n_trials", 0)
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    values: dict[str, list[str]] = {}  # of a key given twice the last counts
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for item in parser.parse_overrides([*given, *config.hydra.overrides.task]):
        swept = (
            item.sweep_string_iterator() if item.is_sweep_override() else [item.get_value_element_as_str()]
        )
        values[item.get_key_element()] = [f"{item.get_key_element()}={value}" for value in swept]
    return [list(job) for job in product(*values.values())]


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
