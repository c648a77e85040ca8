"""Trainings or jobs side by side: as a page, Markdown and JSON here, as a report on W&B."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import sha256, write_json, write_text
from flare.core.pictures import Stroke, run_strokes
from flare.evaluation import metrics, summary
from flare.evaluation.rendering import Cell, Column, Table, beside, cell, to_markdown
from flare.report import figures
from flare.runs.folders import RunFolder, is_public
from flare.runs.journal import Journal

Rows = list[dict[str, float]]
Point = tuple[float, float]
LINES, BARS, PICTURES, CASES = "lines", "bars", "pictures", "cases"
LAST = ", last"  # behind the title of a panel of last values


class Panel(NamedTuple):
    """One picture: `lines` over steps, `bars` of last values, `pictures` or a table of `cases`."""

    kind: str
    title: str
    key: str  # as logged, see docs/logging.md

    @property
    def is_drawn(self) -> bool:
        """Whether it needs nothing but numbers."""
        return self.kind in (LINES, BARS)


@dataclass(frozen=True)
class Comparison:
    """Trainings to compare, or jobs that trained nothing."""

    name: str  # the experiment, which is the group of its runs on W&B
    project: str
    entity: str | None  # team or user there; None is the account's default
    # training -> its rows of `training.csv`, without empty cells; or job -> a row of its measures
    curves: dict[str, Rows]
    tables: list[Table]  # what compares them; empty if there is none yet
    measures: list[str] | None = None  # what is shown of jobs that trained nothing; None for trainings

    @property
    def title(self) -> str:
        """The heading."""
        return f"Ablation: {self.name}"

    @property
    def is_trained(self) -> bool:
        """Whether these are trainings."""
        return self.measures is None

    def last(self, key: str) -> dict[str, float]:
        """Training -> its last value of a key, of those that have any."""
        found = {name: [row[key] for row in rows if key in row] for name, rows in self.curves.items()}
        return {name: values[-1] for name, values in found.items() if values}

    @property
    def sections(self) -> dict[str, list[Panel]]:
        """What is shown, from top to bottom; a key that no training has gets no panel."""
        if self.measures is not None:
            return {"Measures": [Panel(BARS, k, k) for k in self.measures]} if self.measures else {}
        known = sorted({key for rows in self.curves.values() for row in rows for key in row})
        scores = {"dsc": "Dice", "nsd": "normalised surface Dice"}
        means = [Panel(LINES, f"mean {name}", f"val/{m}_mean") for m, name in scores.items()]
        means += [Panel(BARS, f"mean {name}{LAST}", f"val/{m}_mean") for m, name in scores.items()]
        classes = [k for m in scores for k in known if k.startswith(f"val/{m}/")]
        cases = [Panel(PICTURES, "validation cases", "val/overlays"), Panel(CASES, "cases", "val/cases")]
        machine = ("lr", "patches_per_s", "gpu_memory_mb")
        found = {
            "Validation": means,
            "Loss": [Panel(LINES, k, k) for k in ("train/loss", "train/dice", "train/ce")],
            "Classes": [Panel(LINES, k.removeprefix("val/"), k) for k in classes],
            "Cases": cases,
            "Learning rate, speed and memory": [Panel(LINES, k, k) for k in machine],
        }
        there = {t: [p for p in panels if p.key in known or not p.is_drawn] for t, panels in found.items()}
        shown = {t: list(dict.fromkeys(map(self._drawn, panels))) for t, panels in there.items()}
        return {title: panels for title, panels in shown.items() if panels}

    def _drawn(self, panel: Panel) -> Panel:
        """The panel, or last values instead of curves where no training has two points."""
        runs = self.curves.values()
        points = [sum(math.isfinite(row.get(panel.key, math.nan)) for row in rows) for rows in runs]
        if panel.kind != LINES or max(points) > 1:
            return panel
        return Panel(BARS, panel.title + LAST, panel.key)


def write_comparison(found: Comparison, output: Path) -> dict[str, Path]:
    """Write `dashboard.html`, `.md` and `.json` into a folder; returns the files by suffix."""
    paths = {suffix: output / f"dashboard.{suffix}" for suffix in ("html", "md", "json")}
    sections = [{"title": t, "panels": [p._asdict() for p in panels]} for t, panels in found.sections.items()]
    told = {"title": found.title, "project": found.project, "group": found.name, "sections": sections}
    write_json(paths["json"], told)
    drawn = {title: [p for p in panels if p.is_drawn] for title, panels in found.sections.items()}
    drawn = {title: panels for title, panels in drawn.items() if panels}
    parts = [f"# {found.title}\n", to_markdown(found.tables)]
    parts += [f"## {title}\n\n{to_markdown([_last_values(found, ps)])}" for title, ps in drawn.items()]
    write_text(paths["md"], "\n".join(parts))
    strokes = run_strokes(found.curves)
    shown = {t: [(p.title, _figure(found, p, strokes)) for p in panels] for t, panels in drawn.items()}
    page = figures.render("comparison.html", found=found, figures=shown, strokes=strokes)
    write_text(paths["html"], page)
    return paths


def _last_values(found: Comparison, panels: Sequence[Panel]) -> Table:
    values = {p.key: found.last(p.key) for p in panels}
    rows = []
    for name in found.curves:
        numbers = [of.get(name) for of in values.values()]
        rows.append([cell(name), *(cell(None) if n is None else Cell(f"{n:.4g}", n) for n in numbers)])
    title, first = ("Last values", "training") if found.is_trained else ("Values", "job")
    return Table(title, [Column(first), *map(Column, values)], rows)


def _figure(found: Comparison, panel: Panel, strokes: Mapping[str, Stroke]) -> "figures.Figure":
    if panel.kind == BARS:
        return compared_bars(found.last(panel.key), strokes)
    runs = found.curves.items()
    points = {n: [(row["step"], row[panel.key]) for row in rows if panel.key in row] for n, rows in runs}
    return compared_curves(points, strokes)


def compared_curves(points: Mapping[str, Sequence[Point]], strokes: Mapping[str, Stroke]) -> "figures.Figure":
    """One curve a run over the steps, in its own stroke."""
    with figures.new_figure(5.2, 2.9) as figure:
        axes = figure.subplots()
        for name, found in points.items():
            figures.draw_curve(axes, found, *strokes[name][:2])
        axes.set_xlabel("step")
    return figure


def compared_bars(values: Mapping[str, float], strokes: Mapping[str, Stroke]) -> "figures.Figure":
    """One bar a run, in its own colour, with its value."""
    names = [fill(name, 40) for name in values]
    lines = sum(max(2, 1 + name.count("\n")) for name in names)
    with figures.new_figure(5.2, 0.6 + 0.18 * max(2, lines)) as figure:
        axes = figure.subplots()
        bars = axes.barh(range(len(values)), list(values.values()), color=[strokes[n][0] for n in values])
        axes.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
        axes.margins(x=0.15)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return figure


def mean_table(rows: Sequence[Mapping[str, Any]], classes: ClassList, cohort: str) -> Table:
    """Organ means and tumor of the ablation table, from rows of `table5.csv` with numbers as such."""
    names = ["organ_mean", *(c.short for c in classes.entries if c.id == classes.tumor)]
    keys = [f"{name}_{measure}" for name in names for measure in metrics.MEASURES]
    columns = [Column("round"), Column("cases"), *(Column(k.replace("_", " "), "max") for k in keys)]
    body = []
    for row in rows:
        cells = [beside(row.get(k), row.get(f"paper_{k}")) for k in keys]
        body.append([cell(row["round"]), cell(row["cases"], 0), *cells])
    has_paper = any(k.startswith("paper_") for r in rows for k in r)
    told = ", the paper's (FLARE23 online validation) in brackets" if has_paper else ""
    return Table(f"Rounds on {cohort}, in percent{told}; best in bold", columns, body)


def publish(found: Comparison) -> str:
    """Create the report on W&B and return its address; without extra or login it is refused."""
    report = build_report(found)
    try:
        report.save()
    except Exception as error:  # whatever the client raises: no login, no network, no rights
        raise FlareError(f"online=true: W&B refuses: {' '.join(str(error).split())}") from None
    return str(report.url)


def build_report(found: Comparison) -> Any:
    """Build the report, a table and sections over the runs; refused without the extra `dashboard`."""
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise FlareError("online=true needs wandb-workspaces: pip install 'flare[dashboard]'") from None
    place = {"project": found.project, "entity": found.entity or ""}
    runs = wr.Runset(**place, name=found.name, filters=f"Metric('group') == '{found.name}'")
    tables = [public_table(table) for table in found.tables]
    blocks: list[Any] = [wr.MarkdownBlock(text=to_markdown(tables))] if tables else []
    for title, panels in found.sections.items():
        grid = wr.PanelGrid(runsets=[runs], panels=[_panel(wr, panel) for panel in panels])
        blocks += [wr.H2(title), grid]
    told = f"All runs of the group {found.name}"
    return wr.Report(**place, title=found.title, description=told, blocks=blocks)


def public_table(table: Table) -> Table:
    """A table as it may leave the machine: a sweep over folders or checkpoints has their names in it.

    Columns headed by private keys of `data` and `paths` are left out, other file names become dashes.
    """
    heads = table.headings
    kept = [n for n, heading in enumerate(heads) if is_public(heading, None)]
    rows = [[row[n] if is_public(heads[n], row[n].text) else Cell("-") for n in kept] for row in table.rows]
    return replace(table, columns=[table.columns[n] for n in kept], rows=rows)


def _panel(wr: Any, panel: Panel) -> Any:
    """A panel in W&B's terms."""
    if panel.kind == LINES:
        return wr.LinePlot(title=panel.title, x="trainer/global_step", y=[panel.key])
    if panel.kind == BARS:
        return wr.BarPlot(title=panel.title, metrics=[panel.key])
    if panel.kind == PICTURES:
        return wr.MediaBrowser(title=panel.title, media_keys=[panel.key])
    return wr.WeavePanelSummaryTable(table_name=panel.key)


def publish_table(cfg: DictConfig, run: RunFolder, table: Sequence[Mapping[str, Any]]) -> None:
    """Send `table5` and `tumors` to W&B, if the run logs there, into one run of the job type `ablation`."""
    settings = (cfg.get("logger") or {}).get("wandb")
    if settings is None or not table:
        return
    journal = Journal(run.root / "journal" / "tracking.jsonl")
    names = {path.stem for path in run.root.glob("*.csv")} & {"table5", "tumors"}
    files = {n: [run.root / f"{n}{suffix}" for suffix in (".csv", ".md", ".tex")] for n in sorted(names)}
    inputs = {path.name: sha256(path) for paths in files.values() for path in paths}
    config = {"project": settings.project, "entity": settings.entity, "group": settings.group}
    if journal.is_current("table5", inputs, config):
        return
    run_id = journal.values("table5")["run_id"] if "table5" in journal else None
    chosen = OmegaConf.to_container(settings, resolve=True) | {"job_type": "ablation", "run_id": run_id}  # type: ignore[operator]
    logger = instantiate(chosen, save_dir=str(run.root / "logs"))
    status = "failed"
    try:
        for name, paths in files.items():
            rows = table if name == "table5" else summary.read_scores(paths[0])
            logger.log_files(f"{cfg.name}-{name}", "table", paths, rows)
        run_id, status = logger.run_id, "success"
    finally:
        logger.finalize(status)
    journal.record("table5", inputs, config, {}, {"run_id": run_id})
