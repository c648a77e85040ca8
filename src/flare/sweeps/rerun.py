"""List the jobs of a sweep, and run those again alone that failed or were killed.

python -m flare.sweeps sweep=outputs/demo/multirun/<time>
python -m flare.sweeps sweep=outputs/demo/multirun/<time> rerun=true ckpt_path=auto
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flare.errors import FlareError
from flare.sweeps.jobs import COMPLETED, Job, read_jobs
from flare.sweeps.table import failures, show, write_sweep

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """List or rerun as the command line says; a refusal is one line.

    Args:
        arguments: `sweep=<folder>`, `rerun=true` to run unfinished jobs again, and overrides for these.

    Returns:
        The exit code: 1 if, at the end, a job is not complete.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = dict(a.split("=", 1) for a in arguments if a.startswith(("sweep=", "rerun=")))
    extra = [a for a in arguments if not a.startswith(("sweep=", "rerun="))]
    try:
        jobs = _jobs(given.get("sweep"))
        if given.get("rerun", "false").lower() not in ("true", "false"):
            raise FlareError(f"rerun={given['rerun']}: expected true or false")
        if given.get("rerun", "false").lower() == "true":
            jobs = rerun(Path(given["sweep"]), extra)
        elif extra:
            raise FlareError(f"{extra[0]}: overrides are for rerun=true")
    except FlareError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    show(jobs)
    text = failures(jobs, Path(given["sweep"])).strip()
    if text:
        log.error(text)
    return 1 if text else 0


def rerun(sweep: Path, extra: Sequence[str]) -> list[Job]:
    """Run every job again that is not complete, each alone and in its own folder.

    Trials that a search has not begun are left out: nobody has chosen their parameters.

    Args:
        sweep: The sweep's folder.
        extra: Further overrides, such as `ckpt_path=auto`.

    Returns:
        All jobs of the sweep, as they are then.
    """
    for job in _jobs(str(sweep)):
        if job.status != COMPLETED and job.overrides is not None:
            log.info("job %s again: %s", job.folder, " ".join(job.overrides))
            given = [*job.overrides, *extra]
            subprocess.run(command(job.script, given, sweep / job.folder), check=False)
    return write_sweep(sweep)


def command(script: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """The command line of one job, in the folder that the job has."""
    code = f"import sys; from flare.sweeps.alone import run_alone; run_alone({script!r}, sys.argv[1:])"
    folder = folder.resolve()
    place = [f"hydra.sweep.dir='{folder.parent}'", f"hydra.sweep.subdir='{folder.name}'"]
    return [sys.executable, "-c", code, *overrides, *place]


def _jobs(sweep: str | None) -> list[Job]:
    if not sweep:
        raise FlareError("sweep: not given; expected sweep=<folder of a multirun>")
    jobs = read_jobs(Path(sweep))
    if not jobs:
        raise FlareError(f"sweep={sweep}: no job of a sweep has begun there")
    return jobs
