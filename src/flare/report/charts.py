"""Figures of the page: the graph of rounds, how they learned, what they scored; one for a README."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.files import atomic
from flare.core.pictures import TARGETS, class_colours, title
from flare.evaluation.metrics import MEASURES, mean
from flare.report import figures
from flare.report.facts import Facts, RoundFacts

WIDTH, HEIGHT, GAP, ROW, EDGE = 122, 129, 24, 153, 4  # of a box, between columns, of a row, around all
BELOW = 11  # how far below its boxes an arrow runs that has others to pass
MIN_PLACES = 6  # of boxes side by side: a single one would fill the figure (ours)
STAGES = ("read", "preprocess", "plan", "network", "restore", "write")
STAGE_COLOURS = ("#9aa4b0", "#88c0a8", "#e0c060", "#2f6f9f", "#b07aa1", "#5f4b3b")


def place(rounds: Sequence[RoundFacts]) -> dict[str, tuple[int, int]]:
    """Column and row of each round: a pupil stands right of its teacher; a row ends where a branch does."""
    known = {r.name for r in rounds}
    places: dict[str, tuple[int, int]] = {}
    rows = 0
    for item in rounds:
        teachers = [name for name in item.teachers if name in known]
        if teachers:
            row = places[teachers[0]][1]
            column = 1 + max(places[name][0] for name in teachers)
            while (column, row) in places.values():
                row += 1
        else:
            column, row = 0, rows
        places[item.name] = (column, row)
        rows = max(rows, row + 1)
    return places


def draw_graph(rounds: Sequence[RoundFacts]) -> str:
    """Draw the rounds as boxes and the pseudo labels as arrows: a whole `<svg>` element."""
    places = place(rounds)
    columns, rows = (1 + max(axis) for axis in zip(*places.values(), strict=True))
    corners = {n: (EDGE + column * (WIDTH + GAP), EDGE + row * ROW) for n, (column, row) in places.items()}
    size = (2 * EDGE + columns * (WIDTH + GAP) - GAP, 2 * EDGE + rows * ROW - (ROW - HEIGHT) + BELOW)
    arrows = [
        (_arrow(corners[name], corners[item.name]), name == item.unlabeled_teacher)
        for item in rounds
        for name in item.teachers
        if name in corners
    ]
    boxes = [(item, corners[item.name]) for item in rounds]
    given = {"size": size, "arrows": arrows, "boxes": boxes}
    return figures.render("graph.svg", **given, width=WIDTH, height=HEIGHT, targets=TARGETS)


def _arrow(source: tuple[int, int], target: tuple[int, int]) -> str:
    """From side to side, or below the boxes that stand between."""
    (x0, y0), (x1, y1) = source, target
    if x1 - x0 > WIDTH + GAP:
        x0, x1, low = x0 + WIDTH // 2, x1 + WIDTH // 2, max(y0, y1) + HEIGHT + BELOW
        return f"M{x0} {y0 + HEIGHT}V{low}H{x1}V{y1 + HEIGHT + 2}"
    x0, y0, y1 = x0 + WIDTH, y0 + HEIGHT // 2, y1 + HEIGHT // 2
    bend = (x1 - x0) // 2
    return f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1 - 2} {y1}"


def learning_curves(rounds: Sequence[RoundFacts]) -> "figures.Figure":
    """Training loss (above) and mean validation DSC (below) by epoch, one column a round."""
    with figures.new_figure(9.2, 3.9) as figure:
        grid = figure.subplots(2, len(rounds), sharex="col", sharey="row", squeeze=False)
        for column, item in zip(grid.T, rounds, strict=True):
            for axes, key in zip(column, ("train/loss", "val/dsc_mean"), strict=True):
                points = [(n + 1.0, v) for n, row in enumerate(item.curve) if (v := row.get(key)) is not None]
                if not figures.draw_curve(axes, points, TARGETS[item.plan["targets"]]):
                    axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color=figures.GREY)
                if len(points) == 1:  # no curve: its one value in words
                    told = f"{points[0][1]:.2f} "
                    axes.annotate(told, points[0], ha="right", va="center", color=figures.INK)
            column[0].set_title(item.name.upper())
            epochs = max(1, len(item.curve))
            column[1].set(xlim=(0, epochs + 0.5), xticks=sorted({1, epochs}))
        grid[0, 0].set(ylabel="training loss")
        grid[1, 0].set(ylabel="validation DSC", ylim=(0, 1))
        figure.supxlabel("epoch", fontsize=9.5)
    return figure


def trends(facts: Facts) -> dict[str, str]:
    """Columns of the ablation table that are drawn over the rounds, organ mean and tumor DSC, by name."""
    names = {"organ_mean_DSC": "organs, mean", facts.tumor_column: "tumor"}
    rows = [row for row in facts.results.table if row["round"] in facts.names]
    return {k: name for k, name in names.items() if any(row.get(k) is not None for row in rows)}


def trend(facts: Facts) -> "figures.Figure | None":
    """What `trends` tells, ours and the paper's, with the baselines as levels; None where it is nothing."""
    if not (wanted := trends(facts)):
        return None
    with figures.new_figure(9.2, 3.3) as figure:
        grid = figure.subplots(1, len(wanted), squeeze=False)[0]
        for axes, (key, name) in zip(grid, wanted.items(), strict=True):
            draw_trend(axes, facts, key, name)
        figures.legend_below(figure, grid[0])
    return figure


def draw_trend(axes: "figures.Axes", facts: Facts, key: str, name: str) -> None:
    """One measure of the ablation table over the rounds."""
    names, right = facts.names, len(facts.names) - 0.6
    rows = {row["round"]: row for row in facts.results.table}
    ours = f"this run ({facts.settings.data}, n={facts.results.compared})"
    theirs = "the paper (FLARE23 online validation)"
    figures.draw_series(axes, [rows[n].get(key) for n in names], "o-", figures.ACCENT, ours)
    figures.draw_series(axes, [rows[n].get(f"paper_{key}") for n in names], "s--", figures.PAPER, theirs)
    if best := facts.best_baseline(key):
        axes.axhline(best[key], color=figures.GREY, linewidth=1, linestyle=":", label="best baseline")
        place = right, best[key] + 1.5
        axes.text(*place, best["round"], color=figures.GREY, ha="right", fontsize=8.5)
    axes.set_xticks(range(len(names)), [n.upper() for n in names])
    axes.set(title=name, xlim=(-0.4, right), ylim=(0, 100), ylabel="DSC (%)")


def class_boxes(item: RoundFacts, classes: ClassList) -> "figures.Figure":
    """DSC and NSD of every scored case by class that the round learns: boxes, with every case as a dot."""
    colours = class_colours(classes)
    learned = [c for c in classes.entries if c.id in classes.outputs(item.plan["targets"])]
    look: dict[str, Any] = {k: {"color": figures.GREY} for k in ("boxprops", "whiskerprops", "capprops")}
    look |= {"medianprops": {"color": figures.INK, "linewidth": 1.6}}
    with figures.new_figure(9.2, 5.6) as figure:
        grid = figure.subplots(2, 1, sharex=True)
        for axes, measure in zip(grid, MEASURES, strict=True):
            keys = [f"{c.short}_{measure}" for c in learned]
            values = [[100 * row[k] for row in item.scores if row.get(k) is not None] for k in keys]
            axes.boxplot(values, positions=range(len(values)), widths=0.55, showfliers=False, **look)
            for spot, (c, found) in enumerate(zip(learned, values, strict=True)):
                offsets = np.linspace(-0.16, 0.16, len(found)) if len(found) > 1 else np.zeros(len(found))
                edge = {"edgecolor": figures.INK, "linewidth": 0.6}
                axes.scatter(spot + offsets, found, s=22, zorder=3, color=colours[c.id], **edge)
            axes.set(ylim=(-3, 103), ylabel=f"{measure} (%)")
            axes.grid(axis="x", visible=False)
        names = [f"{title(c)}, n={len(v)}" for c, v in zip(learned, values, strict=True)]
        middle, half = (len(learned) - 1) / 2, max(len(learned), MIN_PLACES) / 2 + 0.1
        grid[1].set_xlim(middle - half, middle + half)
        slanted: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        grid[1].set_xticks(range(len(names)), names, fontsize=9, **slanted)
    return figure


def seconds_by_stage(rounds: Sequence[RoundFacts]) -> "figures.Figure":
    """Mean seconds a case by stage of inference, one bar a round."""
    with figures.new_figure(9.2, 0.9 + 0.32 * len(rounds)) as figure:
        axes = figure.subplots()
        left = np.zeros(len(rounds))
        for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
            widths = np.asarray([mean(row.get(f"{stage}_s") for row in r.seconds) or 0.0 for r in rounds])
            axes.barh(range(len(rounds)), widths, left=left, color=colour, height=0.62, label=stage)
            left = left + widths
        axes.set_yticks(range(len(rounds)), [r.name.upper() for r in rounds])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds a case (mean)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def write_overview(path: Path, facts: Facts, example: tuple[str, Mapping[str, bytes]] | None) -> None:
    """Draw a PNG of the run for a README: a case with what `draw_case` gives of it, and the trends."""
    from matplotlib.patches import Patch
    from PIL import Image

    with figures.new_figure(11.5, 5.8) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=[1.45, 1], squeeze=False).flat
        if example is not None:
            case, pictures = example
            names = {"reference": "reference", "prediction": f"prediction of {facts.last.name.upper()}"}
            for axes, (name, told) in zip(left.subplots(2, 1), names.items(), strict=True):
                axes.imshow(np.asarray(Image.open(io.BytesIO(pictures[name]))))
                axes.set_title(f"{case}, {told}")
                axes.set_axis_off()
        if drawn := trends(facts):
            grid = right.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
            for axes, (key, name) in zip(grid, drawn.items(), strict=True):
                draw_trend(axes, facts, key, name)
            grid[0].legend(fontsize=8, loc="lower right")
        colours = class_colours(facts.settings.classes)
        patches = [Patch(color=colours[c.id], label=title(c)) for c in facts.settings.classes.entries]
        left.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=150)
