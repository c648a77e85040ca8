"""List the jobs of a sweep, and run those again alone that failed or were killed."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flare.core.errors import FLAG, FlareError, given_paths
from flare.core.paths import settle_paths
from flare.runs.door import Stopped, entry
from flare.sweeps.jobs import COMPLETED, read_jobs, show_jobs, write_sweep

log = logging.getLogger("flare.sweeps")


def main(cfg: DictConfig, overrides: Sequence[str] | None = None) -> None:
    """List or rerun jobs as `conf/sweeps.yaml` and the command line say; open ones at the end are refused."""
    settle_paths(cfg)
    (sweep,) = given_paths(cfg, "sweep")
    overrides = HydraConfig.get().overrides.task if overrides is None else overrides
    extra = [o for o in overrides if not o.startswith(("sweep=", "rerun="))]
    if not (jobs := read_jobs(sweep)):
        raise FlareError(f"sweep={sweep}: no job of a sweep has begun there")
    FLAG.require("rerun", cfg.rerun)
    if extra and not cfg.rerun:
        raise FlareError(f"{extra[0]}: overrides are for rerun=true")
    if cfg.rerun:
        for job in jobs:
            # nobody has chosen the parameters of trials that a search has not begun
            if job.status != COMPLETED and job.overrides is not None:
                log.info("job %s again: %s", job.folder, " ".join(job.overrides))
                _run(command(job.script, [*job.overrides, *extra], sweep / job.folder))
        jobs = write_sweep(sweep)
    if text := show_jobs(jobs, sweep):
        log.error(text)
        open_jobs = sum(job.status != COMPLETED for job in jobs)
        raise FlareError(f"sweep={sweep}: {open_jobs} of {len(jobs)} jobs are not complete")


def command(script: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """The command line of one job in its own folder; a sweeper would write over files of the sweep."""
    code = f"from flare.cli import run; run({script!r})"
    number = folder.name if folder.name.isdigit() else 0  # makes it a job: see runs.is_job
    place = ["hydra.mode=RUN", f"hydra.job.num={number}", f"hydra.run.dir='{folder.resolve()}'"]
    return [sys.executable, "-c", code, *overrides, *place]


def _run(line: Sequence[str]) -> None:
    """Run a job; one that is told to stop has the time to do so."""
    with subprocess.Popen(line) as job:
        try:
            job.wait()
        except Stopped:
            job.terminate()
            raise


if __name__ == "__main__":
    entry("sweeps", "flare.sweeps.__main__", "main")
