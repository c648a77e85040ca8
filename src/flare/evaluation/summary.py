"""From scores of cases to the means of a cohort, rounded as the official script rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flare.core.classes import ClassList
from flare.core.files import read_csv, write_csv
from flare.evaluation.lesions import Lesion, detection, size_class
from flare.evaluation.metrics import MEASURES, ClassScore, mean, rounded

Row = dict[str, Any]


def metrics_columns(classes: ClassList) -> list[str]:
    """Columns of `metrics.csv`, in the official script's order."""
    return ["Name", *(f"{c.short}_{m}" for m in MEASURES for c in classes.entries)]


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


def only_learned(rows: Sequence[Mapping[str, Any]], classes: ClassList, targets: str) -> list[Row]:
    """Rows of `metrics.csv` without the scores of classes that a round does not learn: None in their place.

    Args:
        rows: One a case.
        classes: The classes.
        targets: What the round segments: `organs`, `tumor` or `organs_tumor`.
    """
    learned = classes.outputs(targets)
    foreign = {f"{c.short}_{m}": None for c in classes.entries if c.id not in learned for m in MEASURES}
    return [{**row, **foreign} for row in rows]


def summarise(rows: Sequence[Row], classes: ClassList) -> dict[str, Any]:
    """Means over cases, as the official script takes them.

    Each class's mean over the cases that score it is rounded to four digits; the organ mean is taken over
    these rounded means, without the tumor, and rounded again.

    Returns:
        `cases`, `classes` (short -> DSC, NSD), `organ_mean` and `tumor`; None where nothing is scored.
    """
    by_short = {
        c.short: {m: _mean(row[f"{c.short}_{m}"] for row in rows) for m in MEASURES} for c in classes.entries
    }
    organs = [by_short[classes.by_id(i).short] for i in classes.organs]
    tumor = None if classes.tumor is None else by_short[classes.by_id(classes.tumor).short]
    organ_mean = {m: _mean(c[m] for c in organs) for m in MEASURES}
    return {"cases": len(rows), "classes": by_short, "organ_mean": organ_mean, "tumor": tumor}


def _mean(values: Iterable[float | None]) -> float | None:
    found = mean(values)
    return None if found is None else rounded(found)


MEASURED = ("DSC", "NSD", "HD95_mm", "reference_ml", "prediction_ml", "volume_error_ml")
DETAIL_COLUMNS = ("case", "class", *MEASURED)
LESION_COLUMNS = ("case", "side", "volume_ml", "diameter_mm", "size", "organ", "matched", "DSC")


@dataclass(frozen=True)
class CaseScores:
    """All that is known of one case.

    Args:
        classes: Short name -> scores.
        lesions: Tumors of both sides; None where they are not asked for, or where the protocol does not
            score the tumor.
        extra: What the scores of the user's own say.
    """

    classes: Mapping[str, ClassScore]
    lesions: Sequence[Lesion] | None = None
    extra: Mapping[str, float | None] = field(default_factory=dict)


def write_details(scored: Mapping[str, CaseScores], output: Path) -> dict[str, Any]:
    """Write `details.csv` (one row a case and class) and `lesions.csv` (one row a lesion).

    Returns:
        For the summary: `distances` (short -> mean HD95 and over how many cases, mean and mean absolute
        volume error in ml) and `lesions`.
    """
    rows = [_row(case, short, s) for case, found in scored.items() for short, s in found.classes.items()]
    write_csv(output / "details.csv", rows, DETAIL_COLUMNS)
    cases = {case: found.lesions for case, found in scored.items() if found.lesions is not None}
    lesions = [
        {"case": case, "size": size_class(x.diameter_mm), **asdict(x), "DSC": x.dsc}
        for case, found in cases.items()
        for x in found
    ]
    write_csv(output / "lesions.csv", lesions, LESION_COLUMNS)
    shorts = dict.fromkeys(row["class"] for row in rows)
    distances = {short: _means([row for row in rows if row["class"] == short]) for short in shorts}
    return {"distances": distances, "lesions": detection(cases)}


def _row(case: str, short: str, s: ClassScore) -> dict[str, Any]:
    error = None if s.prediction_ml is None or s.reference_ml is None else s.prediction_ml - s.reference_ml
    values = (s.dsc, s.nsd, s.hd95_mm, s.reference_ml, s.prediction_ml, error)
    return dict(zip(DETAIL_COLUMNS, (case, short, *values), strict=True))


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of one class over the cases that have the value and score the class."""
    scored = [row for row in rows if row["DSC"] is not None]
    hd95 = [row["HD95_mm"] for row in scored if row["HD95_mm"] is not None]
    errors = [row["volume_error_ml"] for row in scored if row["volume_error_ml"] is not None]
    return {
        "HD95_mm": mean(hd95),
        "HD95_cases": len(hd95),
        "volume_error_ml": mean(errors),
        "absolute_volume_error_ml": mean(map(abs, errors)),
    }
