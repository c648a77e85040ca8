"""A comparison as a report on W&B (needs the extra `dashboard` and a login)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flare.errors import FlareError
from flare.evaluation.rendering import Cell, Table, to_markdown
from flare.records import is_public
from flare.report.comparison import BARS, CASES, LINES, PICTURES, Comparison, Panel


def publish(found: Comparison) -> str:
    """Create the report.

    Args:
        found: What to show, with the project and entity where.

    Returns:
        Its address.

    Raises:
        FlareError: If the extra is missing or W&B refuses.
    """
    report = build_report(found)
    try:
        report.save()
    except Exception as error:  # whatever the client raises: no login, no network, no rights
        raise FlareError(f"online=true: W&B refuses: {' '.join(str(error).split())}") from None
    return str(report.url)


def build_report(found: Comparison) -> Any:
    """Build the report without telling W&B: a table, then every section over the runs of the group.

    Raises:
        FlareError: If the extra is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise FlareError("online=true needs wandb-workspaces: pip install 'flare[dashboard]'") from None
    place = {"project": found.project, "entity": found.entity or ""}
    runs = wr.Runset(**place, name=found.name, filters=f"Metric('group') == '{found.name}'")
    tables = [public_table(table) for table in found.tables]
    blocks: list[Any] = [wr.MarkdownBlock(text=to_markdown(tables))] if tables else []
    for section in found.sections:
        panels = [_panel(wr, panel) for panel in section.panels]
        blocks += [wr.H2(section.title), wr.PanelGrid(runsets=[runs], panels=panels)]
    told = f"All runs of the group {found.name}"
    return wr.Report(**place, title=found.title, description=told, blocks=blocks)


def public_table(table: Table) -> Table:
    """A table as it may leave the machine: a sweep over folders or checkpoints has their names in it.

    Args:
        table: Its headings are keys of the configuration, or names of measures.

    Returns:
        The same less columns of keys of `data` and `paths` that are private, other file names as dashes.
    """
    kept = [n for n, column in enumerate(table.columns) if is_public(column.heading, None)]
    rows = [
        [row[n] if is_public(table.columns[n].heading, row[n].text) else Cell("-") for n in kept]
        for row in table.rows
    ]
    return replace(table, columns=[table.columns[n] for n in kept], rows=rows)


def _panel(wr: Any, panel: Panel) -> Any:
    """A panel in W&B's terms."""
    made = {
        LINES: lambda: wr.LinePlot(title=panel.title, x="trainer/global_step", y=[panel.key]),
        BARS: lambda: wr.BarPlot(title=panel.title, metrics=[panel.key]),
        PICTURES: lambda: wr.MediaBrowser(title=panel.title, media_keys=[panel.key]),
        CASES: lambda: wr.WeavePanelSummaryTable(table_name=panel.key),
    }
    return made[panel.kind]()
