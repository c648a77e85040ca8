"""Label analysis: which classes each case has, and so how complete its labels are."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Column, Table

from flare.core.cases import KINDS, Case, Entry
from flare.core.classes import IGNORE, ClassList
from flare.core.errors import some
from flare.core.files import atomic, write_csv
from flare.prepare.settings import Values
from flare.runs.work import console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 10  # cases that a message names
YES, NO, INFERRED = "yes", "no", "inferred"  # does a source declare that it annotates a class?
SOURCE_COLUMNS = ("source", "class", "declared", "cases", "present", "contradiction")


@dataclass
class Analysis:
    """What the label files of a cohort hold."""

    cases: list[Case] = field(default_factory=list)  # every case that can be used
    # case id to class id, or `IGNORE`, to millilitres, for labelled cases; classes with no voxel are absent
    volumes_ml: dict[str, dict[int, float]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # case id to its source, for labelled cases
    contradictions: dict[str, str] = field(default_factory=dict)  # case id to what contradicts its source
    table: list[dict[str, str]] = field(default_factory=list)  # a row a source and class, see `source_table`
    doubts: list[str] = field(default_factory=list)  # what contradicts `data.sources`, by source and class


def kind_of(present: Iterable[int], annotated: Iterable[int], classes: ClassList) -> str:
    """Kind of a case: `tumor`, `organs_complete` if all are annotated, else `partial` (method section 2)."""
    present, annotated = set(present), set(annotated)
    if classes.tumor is not None and classes.tumor in present:
        return "tumor"
    complete = bool(present) and bool(classes.organs) and set(classes.organs) <= annotated
    return "organs_complete" if complete else "partial"


def analyse_labels(entries: Sequence[Entry], values: Values, classes: ClassList) -> Analysis:
    """Say how complete the labels are of each case that can be used: that has values."""
    found = Analysis()
    declares: dict[str, tuple[int, ...] | None] = {}
    for entry in entries:
        if entry.id not in values:
            continue
        counted = values[entry.id]
        voxels = {int(k): n for k, n in counted.get("voxels", {}).items()}
        present, declared = voxels.keys() - {IGNORE}, set(entry.annotates or ())
        # an empty label file tells nothing, whatever its source declares
        annotated = present | declared if present else set()
        kind = "unlabeled" if entry.label is None else kind_of(present, annotated, classes)
        ids = (tuple(sorted(present)), tuple(sorted(annotated)))
        found.cases.append(Case(entry.id, entry.image, entry.label, entry.split, kind, *ids))
        if entry.label is None:
            continue
        found.volumes_ml[entry.id] = {k: n * counted["voxel_ml"] for k, n in voxels.items()}
        found.sources[entry.id] = entry.source
        declares[entry.source] = entry.annotates
        if entry.annotates is not None and present - declared:
            names = ", ".join(classes.name_of(c) for c in sorted(present - declared))
            found.contradictions[entry.id] = f"has classes that {entry.source} does not declare: {names}"
    _compare(found, declares, classes)
    return found


def _compare(found: Analysis, declares: Mapping[str, tuple[int, ...] | None], classes: ClassList) -> None:
    """Hold what each source declares against what its labels show: the rows of the table, and the doubts.

    Where nothing is declared, a class counts as annotated in the cases that show it, so nothing contradicts.
    """
    shown: dict[str, list[Case]] = defaultdict(list)
    for case in found.cases:
        if case.id in found.sources:
            shown[found.sources[case.id]].append(case)
    for source in sorted(shown):
        declared = declares[source]
        for c in classes.ids:
            name, cases = classes.name_of(c), [case.id for case in shown[source] if c in case.present]
            told, doubt = INFERRED if declared is None else YES if c in declared else NO, ""
            of = len(shown[source])
            if told == YES and not cases:
                doubt = "declared, present in no case"
                found.doubts.append(f"{source}: declares {name}, present in none of its {of} cases")
            if told == NO and cases:
                doubt = f"not declared, present in {some(cases, NAMED)}"
                count = f"{len(cases)} of its {of} cases: {some(cases, NAMED)}"
                found.doubts.append(f"{source}: does not declare {name}, present in {count}")
            numbers = str(of), str(len(cases))
            found.table.append(dict(zip(SOURCE_COLUMNS, (source, name, told, *numbers, doubt), strict=True)))


def write_label_analysis(path: Path, analysis: Analysis, classes: ClassList) -> None:
    """Write `label_analysis.csv`, one row a case, and beside it, as `.png`, the plot of the training cases.

    In the first, a class has its volume in ml, 0 where the source annotates it and the patient lacks it, and
    an empty cell where nothing says that it was annotated; `ignored_ml` is what `classes.ignore` leaves out.
    `label_sources.csv` beside has a row a source and class: whether the source declares the class, and how
    many of its labelled cases, of all splits, show it.
    What is unchanged is not written again.
    """
    rows = []
    for case in analysis.cases:
        volumes = analysis.volumes_ml.get(case.id, {})
        found = {f"{classes.name_of(c)}_ml": round(volumes.get(c, 0.0), 4) for c in case.annotated}
        found["ignored_ml"] = round(volumes.get(IGNORE, 0.0), 4)
        told = {
            "source": analysis.sources.get(case.id),
            "contradiction": analysis.contradictions.get(case.id),
        }
        rows.append({"case": case.id, "split": case.split, "kind": case.kind, **found, **told})
    volumes_of = [*classes.names, *(["ignored"] if classes.ignore else [])]
    columns = ["case", "split", "kind", *(f"{name}_ml" for name in volumes_of), "source", "contradiction"]
    write_csv(path.with_name("label_sources.csv"), analysis.table, SOURCE_COLUMNS)
    plot = path.with_suffix(".png")
    before = path.read_bytes() if path.exists() and plot.exists() else None
    write_csv(path, rows, columns)
    if path.read_bytes() != before:
        with atomic(plot) as temporary:
            draw_label_analysis(analysis.cases, classes).savefig(temporary, dpi=150)


def class_counts(cases: Sequence[Case], classes: ClassList) -> np.ndarray:
    """Training cases that show each class, by kind: `(classes, kinds)`, as `classes.ids` and `KINDS`."""
    shown = Counter((c, case.kind) for case in cases if case.split == "train" for c in case.present)
    return np.array([[shown[c, kind] for kind in KINDS] for c in classes.ids], int).reshape(-1, len(KINDS))


def kind_counts(cases: Sequence[Case], split: str = "train") -> dict[str, int]:
    """Number of cases of each kind in a split."""
    counts = Counter(c.kind for c in cases if c.split == split)
    return {kind: counts[kind] for kind in KINDS}


def draw_label_analysis(cases: Sequence[Case], classes: ClassList) -> "Figure":
    """Draw how many training cases of each kind show each class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts, totals = class_counts(cases, classes), kind_counts(cases)
    figure = Figure(figsize=(7.2, 1.7 + 0.36 * len(classes.ids)), layout="constrained")
    axes = figure.subplots()
    top = max(1, int(counts.max(initial=0)))
    # a square root keeps a class with few cases apart from one with none
    axes.imshow(counts, cmap="GnBu", aspect="auto", norm=PowerNorm(0.5, 0, top))
    axes.set_xticks(range(len(KINDS)), [f"{k.replace('_', ' ')}\n{totals[k]} cases" for k in KINDS])
    axes.set_yticks(range(len(classes.ids)), [n.replace("_", " ") for n in classes.names])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, len(KINDS)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(classes.ids)), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for (row, column), count in np.ndenumerate(counts):
        light = count > 0.45 * top
        text = str(count) if count else "\N{MIDDLE DOT}"
        axes.text(column, row, text, ha="center", va="center", color="white" if light else "#22313f")
    axes.set_title(f"Training cases in which each class is labelled ({sum(totals.values())} cases)", pad=14)
    return figure


def print_label_analysis(
    cases: Sequence[Case], classes: ClassList, sources: Sequence[Mapping[str, str]]
) -> None:
    """Show the counts of the training cases on the console, classes by kind, and those of the sources."""
    totals = kind_counts(cases)
    heads = [Column(name.replace("_", " "), justify="right") for name in (*KINDS, "all")]
    table = Table("class", *heads, title="Label analysis of the training cases")
    for name, row in zip(classes.names, class_counts(cases, classes), strict=True):
        table.add_row(name.replace("_", " "), *(str(n) if n else "-" for n in row), str(row.sum()))
    table.add_section()
    table.add_row("cases", *(str(totals[k]) for k in KINDS), str(sum(totals.values())))
    others = {s: sum(kind_counts(cases, s).values()) for s in ("validation", "test")}
    table.caption = ", ".join(f"{n} {split} cases" for split, n in others.items())
    console.print(table)
    print_sources(sources)


def print_sources(rows: Sequence[Mapping[str, str]]) -> None:
    """Show, classes by source, what is declared, in how many cases it is present, and what contradicts."""
    names = list(dict.fromkeys(row["source"] for row in rows))
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        told = {YES: "declared ", NO: "", INFERRED: ""}[row["declared"]]
        mark = "! " if row["contradiction"] else ""
        cells[row["class"]][row["source"]] = f"{mark}{told}{row['present']}/{row['cases']}"
    heads = [Column(name.replace("[", "\\["), justify="right") for name in names]
    table = Table("class", *heads, title="Classes by source of labels: labelled cases that show them, of all")
    for label, found in cells.items():
        table.add_row(label.replace("_", " "), *(found[name] for name in names))
    table.caption = "declared: annotated as data.sources says, whether shown or not; ! contradicts it"
    if rows:
        console.print(table)
