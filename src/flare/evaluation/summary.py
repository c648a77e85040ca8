"""From scores of cases to the means of a cohort, rounded as the official script rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.evaluation.metrics import MEASURES, ClassScore, rounded
from flare.files import read_csv
from flare.labels import LabelSet

Row = dict[str, Any]


def metrics_columns(labels: LabelSet) -> list[str]:
    """Columns of `metrics.csv`, in the official script's order."""
    return ["Name", *(f"{c.short}_{m}" for m in MEASURES for c in labels.classes)]


def metrics_row(case: str, scores: Mapping[str, ClassScore]) -> Row:
    """One case's row of `metrics.csv`; None where the protocol does not score the class."""
    row: Row = {"Name": case}
    for short, score in scores.items():
        row |= {f"{short}_DSC": score.dsc, f"{short}_NSD": score.nsd}
    return row


def read_scores(path: Path) -> list[Row]:
    """Read `metrics.csv`: one row a case, None where the protocol does not score the class."""
    return [
        {k: v if k == "Name" else float(v) if v else None for k, v in row.items()} for row in read_csv(path)
    ]


def only_learned(rows: Sequence[Mapping[str, Any]], labels: LabelSet, targets: str) -> list[Row]:
    """Rows of `metrics.csv` without the scores of classes that a round does not learn: None in their place.

    Args:
        rows: One a case.
        labels: The classes.
        targets: What the round segments: `organs`, `tumor` or `organs_tumor`.
    """
    learned = labels.outputs(targets)
    foreign = {f"{c.short}_{m}": None for c in labels.classes if c.id not in learned for m in MEASURES}
    return [{**row, **foreign} for row in rows]


def summarise(rows: Sequence[Row], labels: LabelSet) -> dict[str, Any]:
    """Means over cases, as the official script takes them.

    Each class's mean over the cases that score it is rounded to four digits; the organ mean is taken over
    these rounded means, without the tumor, and rounded again.

    Returns:
        `cases`, `classes` (short -> DSC, NSD), `organ_mean` and `tumor`; None where nothing is scored.
    """

    def class_mean(column: str) -> float | None:
        return _mean([row[column] for row in rows if row[column] is not None])

    classes = {c.short: {m: class_mean(f"{c.short}_{m}") for m in MEASURES} for c in labels.classes}
    organs = [classes[labels.by_id(i).short] for i in labels.organs]
    tumor = None if labels.tumor is None else classes[labels.by_id(labels.tumor).short]
    organ_mean = {m: _mean([c[m] for c in organs if c[m] is not None]) for m in MEASURES}
    return {"cases": len(rows), "classes": classes, "organ_mean": organ_mean, "tumor": tumor}


def _mean(values: Sequence[float | None]) -> float | None:
    return rounded(float(np.mean(values))) if values else None  # type: ignore[arg-type]
