"""The seam to Hydra: every job of a multirun notes what became of it, and the sweep's table follows."""

import atexit
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from flare.core.errors import FlareError, without_secrets
from flare.core.files import GENERAL_FAULTS, NO_ACCESS, NO_ROOM, write_text
from flare.core.paths import require_writable, settle_paths
from flare.runs.door import go_on_with, is_asked, listen, stop
from flare.runs.folders import is_job
from flare.runs.locks import lock
from flare.runs.work import console
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, Job, measure, read_jobs, show_jobs, write_sweep

log = logging.getLogger(__name__)
# columns of training.csv that a search can optimise
DIRECTIONS = {
    "maximize": re.compile(r"val/(dsc|nsd)[/_].+|train/dice|patches_per_s"),
    "minimize": re.compile(r"train/(loss|ce)|gpu_memory_mb"),
}


class SweepTable(Callback):
    """Writes `job.json` into each job's folder and `sweep.csv`, `.md` and `.tex` into the sweep's.

    The table is written as each job ends, wherever it ran: Hydra leaves `on_multirun_end` out when a job has
    failed, and a sweep of days is looked at before its end.
    """

    started: float
    sweep: Path

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note which jobs there will be, and have them compared at the end, whatever becomes of them."""
        try:
            set_direction(config)
        except FlareError as error:
            end_refused(error)  # Hydra takes an exception of a callback for a warning
        self.sweep = Path(config.hydra.sweep.dir)
        go_on_with(f"python -m flare.sweeps sweep={shlex.quote(str(self.sweep))} rerun=true")
        atexit.register(self.tell)
        for job in plan(config):
            job.write(self.sweep)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Tell the comparison, and exit with 1 if a job failed: a search goes on to its end."""
        atexit.unregister(self.tell)
        jobs = read_jobs(self.sweep)
        for job in jobs:
            if job.status == PLANNED:  # the sweep is over without it: a grid may have fewer trials
                job.remove(self.sweep)
        self.tell()
        if any(job.status == FAILED for job in jobs):
            sys.exit(1)  # Hydra takes an exception of a callback for a warning

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse paths that are none, and a folder that Hydra could not make."""
        try:
            settle_paths(config)
            if config.hydra.output_subdir is not None:
                require_writable("hydra.run.dir", Path(config.hydra.run.dir))
        except FlareError as error:
            end_refused(error)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Note that a job has begun: one that is killed stays so. Hide secrets in what Hydra has stored."""
        listen()  # a launcher may have given it a process of its own
        if is_job(config.hydra):
            self.started = time.monotonic()
            sweep, job = _job(config)
            job.write(sweep)
            if config.hydra.output_subdir is None:  # of a script that leaves nothing when it runs alone
                own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
                (sweep / job.folder / ".hydra").mkdir(exist_ok=True)
                OmegaConf.save(own, sweep / job.folder / ".hydra" / "config.yaml")
        folder = Path(config.hydra.runtime.output_dir)
        stored = folder / (config.hydra.output_subdir or ".hydra")
        for path in (*stored.glob("*.yaml"), *folder.parent.glob("multirun.yaml")):
            content = OmegaConf.to_container(OmegaConf.load(path))
            if (plain := without_secrets(content)) != content:
                write_text(path, OmegaConf.to_yaml(plain))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Note how a job ended and bring the table up to date."""
        if is_asked() and job_return.status == JobStatus.FAILED:
            stop()  # a signal to all processes, as Slurm's, ends a tracker's service before its run ends
        if not is_job(config.hydra):
            return
        sweep, job = _job(config)
        returned = job_return._return_value  # the property would raise it if it is an error
        measures = measure(sweep / job.folder, returned)
        job = replace(job, seconds=round(time.monotonic() - self.started, 1), measures=measures)
        if job_return.status == JobStatus.COMPLETED:
            job = replace(job, status=COMPLETED)
        else:
            error = " ".join(str(returned).split()) or type(returned).__name__
            job = replace(job, status=FAILED, error=error)
            log.error("job %s failed", job.folder)
            # reasons name files, and log files hold case ids alone
            console.print(error, markup=False, soft_wrap=True)
        with lock(sweep, wait=True):  # jobs that run at once end at once
            job.write(sweep)
            write_sweep(sweep)
        is_grid = config.hydra.runtime.choices.get("hydra/sweeper") == "basic"
        if is_grid and config.hydra.mode == RunMode.MULTIRUN and is_refusal(returned):
            # told above and at the end, where the exit code is 1; Hydra would tell it as `on_run_end` says
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_run_end(self, config: DictConfig, **ended: Any) -> None:
        """Print a refusal alone: Hydra puts the command line before it and a hint at tracebacks behind it."""
        job: JobReturn = ended["job_return"]
        if job.status == JobStatus.FAILED and is_refusal(job._return_value):
            end_refused(job._return_value)

    def tell(self) -> None:
        """Show the comparison, and which jobs failed."""
        if all(job.status == PLANNED for job in read_jobs(self.sweep)):
            return
        told = show_jobs(write_sweep(self.sweep), self.sweep)
        told = f"the jobs compared: {self.sweep / 'sweep.md'}\n{told}".rstrip()
        console.print(told, markup=False, soft_wrap=True)


def is_refusal(error: Any) -> bool:
    """Whether an error's text tells it all, as of a share that is away; not where tracebacks are wanted."""
    is_told = isinstance(error, CompactHydraException | OmegaConfBaseException)
    is_told |= isinstance(error, OSError) and error.errno in (*GENERAL_FAULTS, *NO_ACCESS, *NO_ROOM)
    return is_told and not os.environ.get("HYDRA_FULL_ERROR")


def end_refused(error: Exception) -> NoReturn:
    """Print an error, of a configuration in one line, and exit with code 1."""
    lines = str(error).splitlines() if isinstance(error, OmegaConfBaseException) else [str(error)]
    sys.stderr.write(f"{lines[0]}\n")
    sys.exit(1)


def set_direction(config: DictConfig) -> None:
    """Tell a search which way its objective is better, if the sweeper has a `direction` that is null.

    Another direction is refused, several, and a script that has nothing to optimise.
    """
    sweeper, script = config.hydra.sweeper, config.hydra.job.config_name
    if "direction" not in sweeper:
        return
    objective = config.get("objective") if script == "train" else None
    wanted = next((way for way, names in DIRECTIONS.items() if names.fullmatch(str(objective))), None)
    if wanted is None:
        expected = "train.py with an objective that has one, such as val/dsc_mean or train/loss"
        told = f"objective={objective} of {script} has no direction"
        raise FlareError(f"hydra/sweeper: {told}; expected {expected}")
    given = sweeper.direction
    ways = [getattr(way, "name", way) for way in (given if OmegaConf.is_list(given) else [given])]
    if ways == [None]:
        with read_write(config), open_dict(config):
            sweeper.direction = wanted
    elif ways != [wanted]:
        key, told = "hydra.sweeper.direction", ", ".join(map(str, ways))
        raise FlareError(f"{key}={told}: expected {key}={wanted} for objective={objective}")


def plan(config: DictConfig) -> list[Job]:
    """List the jobs of a sweep as it starts, in the order of their numbers.

    None if jobs have other folders (`hydra.sweep.subdir`), or the sweeper is no grid and counts no trials.
    """
    hydra = config.hydra
    folders = OmegaConf.to_container(OmegaConf.masked_copy(hydra.sweep, "subdir"))
    if folders != {"subdir": "${hydra.job.num}"}:
        return []
    lines: Iterable[list[str] | None] = [None] * hydra.sweeper.get("n_trials", 0)  # it chooses them later
    if hydra.runtime.choices["hydra/sweeper"] == "basic":
        given = [*(f"{k}={v}" for k, v in (hydra.sweeper.params or {}).items()), *hydra.overrides.task]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        (lines,) = BasicSweeper.split_arguments(parser.parse_overrides(given), max_batch_size=None)
    return [Job(str(n), hydra.job.config_name, line, PLANNED) for n, line in enumerate(lines)]


def _job(config: DictConfig) -> tuple[Path, Job]:
    """The sweep's folder and what is known of a job before it runs."""
    folder = Path(config.hydra.runtime.output_dir)
    return folder.parent, Job(folder.name, config.hydra.job.config_name, list(config.hydra.overrides.task))
