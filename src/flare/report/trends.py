"""Figures of the ablation table: scores over the rounds, beside the paper's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flare.report.drawing import ACCENT, GREY, PAPER, new_figure, style
from flare.report.gather import Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def trends(facts: Facts) -> dict[str, str]:
    """Columns of the ablation table whose course over the rounds is drawn, with what they are called.

    Organ mean and tumor DSC, as far as any round of the run learns and has them.
    """
    names = {"organ_mean_DSC": "organs, mean"}
    if facts.labels.tumor is not None:
        names[f"{facts.labels.by_id(facts.labels.tumor).short}_DSC"] = "tumor"
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
        (key, ACCENT, "o-", f"this run ({facts.data}, n={facts.compared})"),
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
