"""The command line of the dashboard.

python -m flare.dashboard run=outputs/demo
python -m flare.dashboard run=outputs/demo/multirun/<time> online=true project=flare entity=team
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from flare.errors import FlareError

log = logging.getLogger(__name__)

KEYS = ("run", "output", "online", "project", "entity")


def main(arguments: Sequence[str]) -> int:
    """Make a dashboard as the command line says; a refusal is one line.

    Args:
        arguments: `key=value`.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        given = dict(a.partition("=")[::2] for a in arguments)
        unknown = [key for key in given if key not in KEYS]
        if unknown:
            raise FlareError(f"{unknown[0]}: no such key; expected key=value with one of {', '.join(KEYS)}")
        if given.get("online", "false").lower() not in ("true", "false"):
            raise FlareError(f"online={given['online']}: expected true or false")
        if not given.get("run"):
            raise FlareError("run: not given; expected run=<folder of a run or of a sweep>")
        make_dashboard(
            Path(given["run"]),
            output=Path(given.get("output") or given["run"]),
            online=given.get("online", "false").lower() == "true",
            project=given.get("project"),
            entity=given.get("entity"),
        )
    except FlareError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


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
    from flare.dashboard.gather import gather
    from flare.dashboard.page import write_files  # matplotlib: only once there is work
    from flare.dashboard.spec import ablation_dashboard

    ablation = gather(run)
    dashboard = ablation_dashboard(
        project=project or ablation.project,
        group=ablation.name,
        logged=ablation.keys,
        measures=ablation.measures,
    )
    paths = write_files(dashboard, ablation, output)
    log.info("wrote %s", paths["html"])
    if online and not ablation.is_trained:
        raise FlareError("online=true: only trainings are logged to W&B, and nothing was trained here")
    if online:
        from flare.dashboard.online import publish

        log.info("created %s", publish(dashboard, ablation, entity or ablation.entity))
    return paths
