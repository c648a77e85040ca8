"""The command that compares the rounds of a run, or the jobs of a sweep: a page here, a report on W&B.

python -m flare.dashboard run=outputs/demo
python -m flare.dashboard run=outputs/demo/multirun/<time> online=true project=flare entity=team
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from flare.core.checks import given_paths
from flare.core.errors import FlareError

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Make a dashboard as `conf/dashboard.yaml` and the command line say."""
    (run,) = given_paths(cfg, "run")
    if not isinstance(cfg.online, bool):
        raise FlareError(f"online={cfg.online}: expected true or false")
    output = Path(cfg.output)
    make_dashboard(run, output=output, online=cfg.online, project=cfg.project, entity=cfg.entity)


def make_dashboard(
    run: Path, *, output: Path, online: bool, project: str | None = None, entity: str | None = None
) -> dict[str, Path]:
    """Write the dashboard of a run or sweep as files, and with `online` create it on W&B as well.

    Args:
        run: Folder of a run (its rounds are compared) or of a sweep (its jobs are).
        output: Where `dashboard.html`, `.md` and `.json` go.
        online: Whether to create the report on W&B.
        project: The W&B project; by default the one that the run was logged to.
        entity: As `project`.

    Returns:
        The files by suffix.

    Raises:
        FlareError: If there is nothing to show, or W&B refuses.
    """
    from flare.report.comparison import write_comparison
    from flare.sweeps.trainings import read_comparison

    found = read_comparison(run)
    found = replace(found, project=project or found.project, entity=entity or found.entity)
    paths = write_comparison(found, output)
    log.info("wrote %s", paths["html"])
    if online and not found.is_trained:
        raise FlareError("online=true: only trainings are logged to W&B, and nothing was trained here")
    if online:
        from flare.report.online import publish

        log.info("created %s", publish(found))
    return paths


if __name__ == "__main__":
    from flare.cli import run

    run("dashboard")
