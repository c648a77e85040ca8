"""A comparison as a report on W&B (needs the extra `dashboard` and a login)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flare.core.errors import FlareError
from flare.core.files import sha256
from flare.evaluation.rendering import Cell, Table, to_markdown
from flare.report.comparison import BARS, CASES, LINES, PICTURES, Comparison, Panel
from flare.runs.folders import RunFolder
from flare.runs.journal import Journal
from flare.runs.records import is_public


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


STEP = "table5"


def publish_table(cfg: DictConfig, run: RunFolder, table: Sequence[Mapping[str, Any]]) -> None:
    """Send `table5.csv`, `.md` and `.tex` to W&B, if that is a logger of the run.

    It goes into a run of its own, of job type `ablation` in the experiment's group, always the same.

    Args:
        cfg: Configuration of `iterate`; does nothing without `logger.wandb`.
        run: The run's folder.
        table: Rows of the table.
    """
    settings = (cfg.logger or {}).get("wandb")
    if settings is None or not table:
        return
    journal = Journal(run.root / "journal" / "tracking.jsonl")
    files = [run.root / f"table5{suffix}" for suffix in (".csv", ".md", ".tex")]
    inputs = {path.name: sha256(path) for path in files}
    config = {"project": settings.project, "entity": settings.entity, "group": settings.group}
    if journal.is_current(STEP, inputs, config):
        return
    run_id = journal.values(STEP)["run_id"] if STEP in journal else None
    chosen = OmegaConf.to_container(settings, resolve=True) | {"job_type": "ablation", "run_id": run_id}  # type: ignore[operator]
    logger = instantiate(chosen, save_dir=str(run.root / "logs"))
    with logger.running():
        logger.log_files(f"{cfg.name}-table5", "table", files, table)
        run_id = logger.run_id
    journal.record(STEP, inputs, config, {}, {"run_id": run_id})
