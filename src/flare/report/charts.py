"""Figures of how the rounds learned, what the last one scored, and how good their pseudo labels were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.pictures import TARGETS, class_colours, title
from flare.report.agreement import Quality
from flare.report.facts import Facts, RoundFacts
from flare.report.figures import ACCENT, GREY, INK, PAPER, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_POINTS = 40  # of a curve: each has a dot (ours)
MIN_PLACES = 6  # of boxes side by side: a single one would fill the figure (ours)
STAGES = ("read", "preprocess", "plan", "network", "restore", "write")
STAGE_COLOURS = ("#9aa4b0", "#88c0a8", "#e0c060", "#2f6f9f", "#b07aa1", "#5f4b3b")


def learning_curves(rounds: Sequence[RoundFacts]) -> Figure:
    """Training loss (above) and mean validation DSC (below) by epoch, one column a round."""
    with style():
        figure = new_figure(10.4, 3.9)
        grid = figure.subplots(2, len(rounds), sharex="col", sharey="row", squeeze=False)
        for (above, below), item in zip(grid.T, rounds, strict=True):
            colour = TARGETS[item.plan["targets"]]
            _curve(above, item, "train/loss", colour)
            _curve(below, item, "val/dsc_mean", colour)
            above.set_title(item.name.upper())
            epochs = max(1, len(item.curve))
            below.set_xlim(0, epochs + 0.5)
            below.set_xticks(sorted({1, epochs}))
        grid[1, 0].set_ylim(0, 1)
        grid[0, 0].set_ylabel("training loss")
        grid[1, 0].set_ylabel("validation DSC")
        figure.supxlabel("epoch", fontsize=9.5)
    return figure


def _curve(axes: Axes, item: RoundFacts, key: str, colour: str) -> None:
    points = [(n + 1.0, v) for n, row in enumerate(item.curve) if (v := row.get(key)) is not None]
    if not draw_curve(axes, points, colour):
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color=GREY)


def draw_curve(axes: Axes, points: Sequence[tuple[float, float]], colour: str, dash: str = "-") -> bool:
    """Draw the finite points as one curve, dots too where they are few; whether there are any."""
    finite = [p for p in points if np.isfinite(p[1])]
    if finite:
        marker = "o" if len(finite) <= FEW_POINTS else None
        look = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 3.5, "linewidth": 1.5}
        axes.plot(*zip(*finite, strict=True), clip_on=False, **look)  # type: ignore[arg-type]
    return bool(finite)


def trends(facts: Facts) -> dict[str, str]:
    """Columns of the ablation table whose course over the rounds is drawn, with what they are called.

    Organ mean and tumor DSC, as far as any round of the run learns and has them.
    """
    names = {"organ_mean_DSC": "organs, mean"}
    if facts.classes.tumor is not None:
        names[f"{facts.classes.by_id(facts.classes.tumor).short}_DSC"] = "tumor"
    ours = {r.name for r in facts.rounds}
    rows = [row for row in facts.table if row["round"] in ours]
    return {k: name for k, name in names.items() if any(row.get(k) is not None for row in rows)}


def trend(facts: Facts) -> Figure | None:
    """What `trends` tells, ours and the paper's, with the baselines as levels; None where it is nothing."""
    wanted = trends(facts)
    if not wanted:
        return None
    with style():
        figure = new_figure(10.4, 3.3)
        grid = figure.subplots(1, len(wanted), squeeze=False)[0]
        for axes, (key, name) in zip(grid, wanted.items(), strict=True):
            draw_trend(axes, facts, key, name)
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def draw_trend(axes: Axes, facts: Facts, key: str, name: str) -> None:
    """One measure of the ablation table over the rounds."""
    names = [r.name for r in facts.rounds]
    rows = {row["round"]: row for row in facts.table}
    for column, colour, mark, told in (
        (key, ACCENT, "o-", f"this run ({facts.settings.data}, n={facts.results.compared})"),
        (f"paper_{key}", PAPER, "s--", "the paper (FLARE23 online validation)"),
    ):
        points = [(i, rows[n][column]) for i, n in enumerate(names) if rows[n].get(column) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=5, label=told, clip_on=False)
    baselines = [r for r in facts.table if r["round"] not in names and r.get(key) is not None]
    if baselines:
        best = max(baselines, key=lambda r: r[key])
        axes.axhline(best[key], color=GREY, linewidth=1, linestyle=":", label="best baseline")
        axes.text(len(names) - 0.6, best[key] + 1.5, best["round"], color=GREY, ha="right", fontsize=8.5)
    axes.set_title(name)
    axes.set_xticks(range(len(names)), [n.upper() for n in names])
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_ylim(0, 100)
    axes.set_ylabel("DSC (%)")


def class_boxes(item: RoundFacts, classes: ClassList) -> Figure:
    """DSC and NSD of every scored case by class that the round learns: boxes, with every case as a dot."""
    colours = class_colours(classes)
    learned = [c for c in classes.entries if c.id in classes.outputs(item.plan["targets"])]
    with style():
        figure = new_figure(10.4, 5.6)
        grid = figure.subplots(2, 1, sharex=True)
        counts: list[int] = []
        for axes, measure in zip(grid, ("DSC", "NSD"), strict=True):
            values = [_scores(item, f"{c.short}_{measure}") for c in learned]
            counts = [len(v) for v in values]
            axes.boxplot(
                [100 * v for v in values],
                positions=range(len(values)),
                widths=0.55,
                showfliers=False,
                medianprops={"color": INK, "linewidth": 1.6},
                boxprops={"color": GREY},
                whiskerprops={"color": GREY},
                capprops={"color": GREY},
            )
            for place, (c, found) in enumerate(zip(learned, values, strict=True)):
                offsets = np.linspace(-0.16, 0.16, len(found)) if len(found) > 1 else np.zeros(len(found))
                axes.scatter(
                    place + offsets,
                    100 * found,
                    s=22,
                    color=colours[c.id],
                    edgecolor=INK,
                    linewidth=0.6,
                    zorder=3,
                )
            axes.set_ylim(-3, 103)
            axes.set_ylabel(f"{measure} (%)")
            axes.grid(axis="x", visible=False)
        names = [f"{title(c).replace(' ', chr(10))}\nn={n}" for c, n in zip(learned, counts, strict=True)]
        middle, half = (len(learned) - 1) / 2, max(len(learned), MIN_PLACES) / 2 + 0.1
        grid[1].set_xlim(middle - half, middle + half)
        grid[1].set_xticks(range(len(names)), names, fontsize=8)
    return figure


def _scores(item: RoundFacts, key: str) -> np.ndarray:
    return np.asarray([row[key] for row in item.scores if row.get(key) is not None], dtype=float)


def label_quality(found: Sequence[Quality], classes: ClassList) -> Figure | None:
    """Dice of the pseudo labels of each round: with the teacher's own training labels, and with the truth.

    Organs and tumor apart; None where there is nothing to compare them with.
    """
    lines = (
        ("previous", GREY, "D:", "prediction and the labels its teacher was trained on"),
        ("pseudo", ACCENT, "o-", "prediction and truth"),
        ("merged", PAPER, "s-", "merged label and truth"),
    )
    tumor = () if classes.tumor is None else (classes.tumor,)
    parts = [(classes.organs, "organs, mean"), (tumor, "tumor")]
    there = [p for p in parts if any(q.percent(k, p[0]) is not None for q in found for k, *_ in lines)]
    if not there:
        return None
    with style():
        figure = new_figure(10.4, 3.3)
        grid = figure.subplots(1, len(there), sharey=True, squeeze=False)[0]
        for axes, (ids, name) in zip(grid, there, strict=True):
            for comparison, colour, mark, told in lines:
                points = [
                    (i, m) for i, q in enumerate(found) if (m := q.percent(comparison, ids)) is not None
                ]
                if points:
                    x, y = np.asarray(points).T
                    axes.plot(x, y, mark, color=colour, markersize=5, label=told, clip_on=False)
            axes.set_title(name)
            axes.set_xticks(range(len(found)), [f"{q.round.upper()}\nby {q.teacher.upper()}" for q in found])
            axes.set_xlim(-0.4, len(found) - 0.6)
            axes.set_ylim(0, 102)
        grid[0].set_ylabel("Dice (%)")
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def seconds_by_stage(rounds: Sequence[RoundFacts]) -> Figure:
    """Mean seconds a case by stage of inference, one bar a round."""
    with style():
        figure = new_figure(10.4, 0.9 + 0.32 * len(rounds))
        axes = figure.subplots()
        left = np.zeros(len(rounds))
        for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
            widths = np.asarray([mean_of(r.seconds, f"{stage}_s") or 0.0 for r in rounds])
            axes.barh(range(len(rounds)), widths, left=left, color=colour, height=0.62, label=stage)
            left = left + widths
        axes.set_yticks(range(len(rounds)), [r.name.upper() for r in rounds])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds a case (mean)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def mean_of(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean of a column over the rows that have it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None
