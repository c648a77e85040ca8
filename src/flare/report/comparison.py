"""Trainings or jobs side by side, in one colour each: as a page, as Markdown, and what is shown as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from flare.core.files import write_json, write_text
from flare.core.pictures import Stroke, run_strokes
from flare.evaluation.rendering import Cell, Column, Table, cell, to_markdown
from flare.report.charts import draw_curve
from flare.report.figures import new_figure, render, style, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, float]]
LINES, BARS, PICTURES, CASES = "lines", "bars", "pictures", "cases"


class Panel(NamedTuple):
    """One picture: `lines` over steps, `bars` of last values, `pictures` or a table of `cases`.

    Args:
        kind: Which of these.
        title: What it shows.
        key: As logged, see docs/logging.md.
    """

    kind: str
    title: str
    key: str


class Section(NamedTuple):
    """Panels that belong together."""

    title: str
    panels: list[Panel]

    @property
    def drawn(self) -> list[Panel]:
        """The panels that need nothing but numbers."""
        return [p for p in self.panels if p.kind in (LINES, BARS)]


@dataclass(frozen=True)
class Comparison:
    """Trainings to compare, or jobs that trained nothing.

    Args:
        name: The experiment, which is the group of its runs on W&B.
        project: The W&B project.
        entity: Team or user there; None is the account's default.
        curves: Training -> its rows of `training.csv`, without empty cells; or job -> a row of its measures.
        tables: What compares them; empty if there is none yet.
        measures: What is shown of jobs that trained nothing; None for trainings.
    """

    name: str
    project: str
    entity: str | None
    curves: dict[str, Rows]
    tables: list[Table]
    measures: list[str] | None = None

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
    def sections(self) -> list[Section]:
        """What is shown, from top to bottom; a key that no training has gets no panel."""
        if self.measures is not None:
            found = [Section("Measures", [Panel(BARS, key, key) for key in self.measures])]
            return [s for s in found if s.panels]
        known = sorted({key for rows in self.curves.values() for row in rows for key in row})
        scores = [("dsc", "Dice"), ("nsd", "normalised surface Dice")]
        means = [Panel(LINES, f"mean {name}", f"val/{m}_mean") for m, name in scores]
        means += [Panel(BARS, f"mean {name}, last", f"val/{m}_mean") for m, name in scores]
        losses = [Panel(LINES, key, key) for key in ("train/loss", "train/dice", "train/ce")]
        classes = [
            Panel(LINES, key.removeprefix("val/"), key)
            for m, _ in scores
            for key in known
            if key.startswith(f"val/{m}/")
        ]
        machine = [Panel(LINES, key, key) for key in ("lr", "patches_per_s", "gpu_memory_mb")]
        cases = [Panel(PICTURES, "validation cases", "val/overlays"), Panel(CASES, "cases", "val/cases")]
        sections = [
            Section("Validation", [p for p in means if p.key in known]),
            Section("Loss", [p for p in losses if p.key in known]),
            Section("Classes", classes),
            Section("Cases", cases),
            Section("Learning rate, speed and memory", [p for p in machine if p.key in known]),
        ]
        return [s for s in sections if s.panels]


def write_comparison(found: Comparison, output: Path) -> dict[str, Path]:
    """Write `dashboard.html`, `.md` and `.json`.

    Args:
        found: What to compare.
        output: Folder.

    Returns:
        The files by suffix.
    """
    paths = {suffix: output / f"dashboard.{suffix}" for suffix in ("html", "md", "json")}
    sections = [{"title": s.title, "panels": [p._asdict() for p in s.panels]} for s in found.sections]
    told = {"title": found.title, "project": found.project, "group": found.name, "sections": sections}
    write_json(paths["json"], told)
    drawn = [s for s in found.sections if s.drawn]
    parts = [f"# {found.title}\n", to_markdown(found.tables)]
    parts += [f"## {s.title}\n\n{to_markdown([_last_values(found, s)])}" for s in drawn]
    write_text(paths["md"], "\n".join(parts))
    strokes = run_strokes(found.curves)
    figures = [(s.title, [(p.title, _figure(found, p, strokes)) for p in s.drawn]) for s in drawn]
    write_text(paths["html"], render("comparison.html", found=found, figures=figures, strokes=strokes))
    return paths


def _last_values(found: Comparison, section: Section) -> Table:
    keys = list(dict.fromkeys(p.key for p in section.drawn))
    values = {key: found.last(key) for key in keys}
    rows = [[cell(name), *(_short(values[key].get(name)) for key in keys)] for name in found.curves]
    first = "training" if found.is_trained else "job"
    title = "Last values" if found.is_trained else "Values"
    return Table(title, [Column(first), *(Column(key) for key in keys)], rows)


def _short(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{value:.4g}", value)


def _figure(found: Comparison, panel: Panel, strokes: dict[str, Stroke]) -> str:
    if panel.kind == BARS:
        return to_svg(compared_bars(found.last(panel.key), strokes))
    points = {
        name: [(row["step"], row[panel.key]) for row in rows if panel.key in row]
        for name, rows in found.curves.items()
    }
    return to_svg(compared_curves(points, strokes))


def compared_curves(
    points: Mapping[str, Sequence[tuple[float, float]]], strokes: Mapping[str, Stroke]
) -> Figure:
    """One curve a run over the steps, in its own stroke."""
    with style():
        figure = new_figure(5.2, 2.9)
        axes = figure.subplots()
        for name, found in points.items():
            draw_curve(axes, found, *strokes[name][:2])
        axes.set_xlabel("step")
    return figure


def compared_bars(values: Mapping[str, float], strokes: Mapping[str, Stroke]) -> Figure:
    """One bar a run, in its own colour, with its value."""
    with style():
        figure = new_figure(5.2, 0.6 + 0.36 * max(1, len(values)))
        axes = figure.subplots()
        bars = axes.barh(range(len(values)), list(values.values()), color=[strokes[n][0] for n in values])
        axes.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
        axes.margins(x=0.15)
        # the last part of each key: the whole name stands beside the picture
        names = [fill(re.sub(r"[\w.]+\.(?=\w+=)", "", n), 28) for n in values]
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return figure
