"""The paper's tables of scores, 4 and 5, with our numbers beside: csv, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList, LabelClass
from flare.core.files import write_csv
from flare.evaluation.efficiency import table8, write_efficiency
from flare.evaluation.metrics import MEASURES, mean
from flare.evaluation.rendering import (
    Cell,
    Column,
    Table,
    beside,
    cell,
    published,
    published_round,
    write_table,
)
from flare.evaluation.summary import only_learned

SPLITS = ("public", "online", "testing")


@dataclass(frozen=True)
class AblationRow:
    """One row of the ablation table.

    Args:
        round: `mo` ... `mot3`, or the name of a baseline.
        cases: Training cases; None where there is no training.
        summary: What `flare.evaluation.scores` gives.
        targets: `organs`, `tumor` or `organs_tumor`: what it segments; other cells stay empty.
    """

    round: str
    cases: int | None
    summary: Mapping[str, Any]
    targets: str = "organs_tumor"

    def percent(self, classes: ClassList) -> dict[str, float | None]:
        """`<short>_DSC`, ... and `organ_mean_DSC`, ..., in percent with two digits."""
        learned = {classes.by_id(i).short for i in classes.outputs(self.targets) if i}
        values: dict[str, float | None] = {}
        for m in MEASURES:
            for c in classes.entries:
                score = self.summary["classes"][c.short][m] if c.short in learned else None
                values[f"{c.short}_{m}"] = _percent(score)
            mean = None if self.targets == "tumor" else self.summary["organ_mean"][m]
            values[f"organ_mean_{m}"] = _percent(mean)
        return values


def table5(
    rows: Sequence[AblationRow], classes: ClassList, stem: Path, *, note: str = ""
) -> list[dict[str, Any]]:
    """Write the ablation table: `<stem>.csv`, one row a name, and `.md` and `.tex` in the paper's shape.

    Args:
        rows: One a round or baseline, all of the same cases.
        classes: The classes.
        stem: Where the files go.
        note: What a reader of `.md` and `.tex` must know of the rows.

    Returns:
        The rows of the csv: `round`, `cases`, scores in percent, then the paper's figures as `paper_*`.
    """
    keys = [f"{c}_{m}" for m in MEASURES for c in _shorts(classes)]
    keys += [f"organ_mean_{m}" for m in MEASURES]
    lines = []
    for row in rows:
        paper = published_round(row.round)
        theirs = {k: paper.get(k[-3:], {}).get(k[:-4]) for k in keys}
        line = {"round": row.round, "cases": row.cases, **row.percent(classes)}
        line["paper_cases"] = paper.get("training_images")
        lines.append(line | {f"paper_{k}": v for k, v in theirs.items()})
    columns = ["round", "cases", *keys, "paper_cases", *(f"paper_{k}" for k in keys)]
    write_csv(stem.with_suffix(".csv"), lines, columns)
    write_table(stem, [_ablation(lines, classes, m, note) for m in MEASURES])
    return lines


def _ablation(lines: Sequence[Mapping[str, Any]], classes: ClassList, measure: str, note: str) -> Table:
    names = [*_shorts(classes), "organ_mean"]
    heads = [Column("round"), Column("cases"), *(Column(n.replace("_", " "), "max") for n in names)]
    rows = []
    for line in lines:
        cases = beside(line["cases"], line["paper_cases"], 0)
        cells = [beside(line[f"{n}_{measure}"], line[f"paper_{n}_{measure}"]) for n in names]
        rows.append([Cell(line["round"]), cases, *cells])
    title = f"{measure} (%), the paper's in brackets; best of each column in bold"
    return Table(f"{title}. {note}" if note else title, heads, rows)


def table4(rows: Sequence[Mapping[str, Any]], classes: ClassList, stem: Path) -> list[dict[str, Any]]:
    """Write scores per class: our mean and standard deviation over cases beside the paper's three cohorts.

    The best of a row is bold, DSC and NSD apart. A class that is not scored here is not compared, and
    without it our average is not either: it would be one of fewer classes.

    Args:
        rows: One a case, as in `metrics.csv`: `<short>_DSC`, ... from 0 to 1; empty or None is not scored.
        classes: The classes.
        stem: Where `.csv`, `.md` and `.tex` go.
    """
    lines = [_target(c, rows) for c in classes.entries]
    average: dict[str, Any] = {"target": "average"}
    for m in MEASURES:
        average |= {m: mean(line[m] for line in lines), f"{m}_std": None}
    lines = [line | _paper(line["target"]) for line in [*lines, average]]
    write_csv(stem.with_suffix(".csv"), lines)
    cohorts = [(m, split) for split in SPLITS for m in MEASURES]
    heads = [Column("target"), *(Column(m, "max", across=m) for m in MEASURES)]
    heads += [Column(f"paper {split} {m}", "max", across=m) for m, split in cohorts]
    scored = [line["DSC"] is not None for line in lines[:-1]]
    body = []
    for line, compared in zip(lines, [*scored, all(scored)], strict=True):
        cells = [_spread(line[m], line[f"{m}_std"]) for m in MEASURES]
        cells += [_spread(line[f"paper_{s}_{m}"], line.get(f"paper_{s}_{m}_std")) for m, s in cohorts]
        body.append([Cell(str(line["target"])), *(c if compared else Cell(c.text) for c in cells)])
    title = f"Scores in percent over {len(rows)} cases; best of each row in bold, DSC and NSD apart"
    write_table(stem, [Table(title, heads, body)])
    return lines


def _target(c: LabelClass, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of one class, in percent."""
    line: dict[str, Any] = {"target": c.short}
    for m in MEASURES:
        values = [100 * float(r[f"{c.short}_{m}"]) for r in rows if r[f"{c.short}_{m}"] not in ("", None)]
        line |= {m: mean(values), f"{m}_std": float(np.std(values)) if values else None}
    return line


def _paper(target: str) -> dict[str, Any]:
    """The paper's Table 4 for one class or the average, as columns."""
    found = published()["table4"].get(target)
    columns: dict[str, Any] = {}
    for split in SPLITS:
        for m in MEASURES:
            value = found[split][m] if found else None
            mean, std = value if isinstance(value, list) else (value, None)
            columns[f"paper_{split}_{m}"] = mean
            if split == "public":
                columns[f"paper_{split}_{m}_std"] = std
    return columns


def _shorts(classes: ClassList) -> list[str]:
    return [c.short for c in classes.entries]


def _percent(score: float | None) -> float | None:
    return None if score is None else round(100 * score, 2)


def _spread(mean: float | None, std: float | None) -> Cell:
    found = cell(mean)
    return found if std is None else Cell(f"{found.text}±{std:.2f}", found.value)


def write_round_tables(
    folder: Path,
    *,
    scores: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    inference: Sequence[Mapping[str, Any]],
    classes: ClassList,
    targets: str,
) -> None:
    """Write tables 4 and 8, and 6 and 7 where the efficiency was measured.

    What the round does not learn stays empty.

    Args:
        folder: Where they go.
        scores: The rows of `metrics.csv`.
        summary: What `flare.evaluation.scores` gives.
        inference: The rows of `inference.csv`.
        classes: The classes.
        targets: What the round segments: `organs`, `tumor` or `organs_tumor`.
    """
    table4(only_learned(scores, classes, targets), classes, folder / "table4")
    efficiency = write_efficiency(inference, folder)
    summary = dict(summary)
    if targets == "tumor":
        summary["organ_mean"] = dict.fromkeys(MEASURES)
    if targets == "organs":
        summary["tumor"] = None
    table8(summary, folder / "table8", efficiency=efficiency)
