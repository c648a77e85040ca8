"""The label analysis as people read it: a csv file, a heat map, a table on the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flare.cases import KINDS, Case
from flare.files import atomic, write_csv
from flare.labels import LabelSet
from flare.prepare.analysis import Analysis


def write_label_analysis(path: Path, analysis: Analysis, labels: LabelSet) -> None:
    """Write `label_analysis.csv`, one row a case, and the plot of the training cases beside it.

    A class has its volume in ml, 0 where the source annotates it and the patient lacks it, and an empty
    cell where nothing says that it was annotated. What is unchanged is not written again.

    Args:
        path: The csv file; the plot has the suffix `.png`.
        analysis: What the label files hold.
        labels: The class list.
    """
    rows = []
    for case in analysis.cases:
        volumes = analysis.volumes_ml.get(case.id, {})
        row: dict[str, object] = {"case": case.id, "split": case.split, "kind": case.kind}
        row |= {f"{labels.name_of(c)}_ml": round(volumes.get(c, 0.0), 4) for c in case.annotated}
        rows.append(row)
    columns = ["case", "split", "kind", *(f"{name}_ml" for name in labels.names)]
    plot = path.with_suffix(".png")
    before = path.read_bytes() if path.exists() and plot.exists() else None
    write_csv(path, rows, columns)
    if path.read_bytes() != before:
        plot_label_analysis(plot, analysis.cases, labels)


def class_counts(cases: Sequence[Case], labels: LabelSet) -> np.ndarray:
    """Training cases that show each class, by kind.

    Returns:
        `(classes, kinds)` counts in the order of `labels.ids` and `cases.KINDS`.
    """
    counts = np.zeros((len(labels.ids), len(KINDS)), dtype=int)
    for case in cases:
        if case.split == "train":
            for class_id in case.present:
                counts[labels.ids.index(class_id), KINDS.index(case.kind)] += 1
    return counts


def kind_counts(cases: Sequence[Case], split: str = "train") -> dict[str, int]:
    """Number of cases of each kind in a split."""
    counts = Counter(c.kind for c in cases if c.split == split)
    return {kind: counts[kind] for kind in KINDS}


def plot_label_analysis(path: Path, cases: Sequence[Case], labels: LabelSet) -> None:
    """Draw how many training cases of each kind show each class.

    Args:
        path: The .png file.
        cases: The cohort.
        labels: The class list.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts, totals = class_counts(cases, labels), kind_counts(cases)
    figure = Figure(figsize=(7.2, 1.7 + 0.36 * len(labels.ids)), layout="constrained")
    axes = figure.subplots()
    top = max(1, int(counts.max(initial=0)))
    # a square root keeps a class with few cases apart from one with none
    axes.imshow(counts, cmap="GnBu", aspect="auto", norm=PowerNorm(0.5, 0, top))
    axes.set_xticks(range(len(KINDS)), [f"{k.replace('_', ' ')}\n{totals[k]} cases" for k in KINDS])
    axes.set_yticks(range(len(labels.ids)), [n.replace("_", " ") for n in labels.names])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(np.arange(-0.5, len(KINDS)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(labels.ids)), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for (row, column), count in np.ndenumerate(counts):
        light = count > 0.45 * top
        text = str(count) if count else "\N{MIDDLE DOT}"
        axes.text(column, row, text, ha="center", va="center", color="white" if light else "#22313f")
    axes.set_title(f"Training cases in which each class is labelled ({sum(totals.values())} cases)", pad=14)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150)


def print_label_analysis(cases: Sequence[Case], labels: LabelSet) -> None:
    """Show the counts of the training cases on the console, classes by kind."""
    from rich.table import Table

    from flare.progress import console

    totals = kind_counts(cases)
    table = Table(title="Label analysis of the training cases")
    table.add_column("class")
    for kind in KINDS:
        table.add_column(kind.replace("_", " "), justify="right")
    table.add_column("all", justify="right")
    for name, row in zip(labels.names, class_counts(cases, labels), strict=True):
        table.add_row(name.replace("_", " "), *(str(n) if n else "-" for n in row), str(row.sum()))
    table.add_section()
    table.add_row("cases", *(str(totals[k]) for k in KINDS), str(sum(totals.values())))
    others = {s: sum(kind_counts(cases, s).values()) for s in ("validation", "test")}
    table.caption = ", ".join(f"{n} {split} cases" for split, n in others.items())
    console.print(table)
