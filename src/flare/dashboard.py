"""The command that compares the rounds of a run, or the jobs of a sweep: a page here, a report on W&B.

python -m flare.dashboard run=outputs/demo
python -m flare.dashboard run=outputs/demo/multirun/<time> online=true project=flare entity=team
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
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
    sys.exit(main(sys.argv[1:]))
