"""From cases' scores to means, rounded as the official script does, bootstrap intervals and paired tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.evaluation.metrics import MEASURES, mean, rounded
from flare.evaluation.rendering import Column, Table, cell

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
Interval = list[float] | None  # low and high
# a batch of resamples lies in memory at once
BOOTSTRAP = {"method": "percentile", "confidence_level": 0.95, "n_resamples": 2000, "batch": 200, "rng": 0}


def metrics_columns(classes: ClassList) -> list[str]:
    """Columns of `metrics.csv`, in the official script's order."""
    return ["Name", *(f"{c.short}_{m}" for m in MEASURES for c in classes.entries)]


def read_scores(path: Path, *, may_lack: bool = False) -> list[Row]:
    """Read a table of numbers, as `metrics.csv`: a row a case or a round, None where a cell is empty."""
    names, rows = ("Name", "round"), read_csv(path, may_lack=may_lack)
    return [{k: v if k in names else float(v) if v else None for k, v in row.items()} for row in rows]


def only_learned(rows: Rows, classes: ClassList, targets: str) -> list[Row]:
    """Rows of `metrics.csv` with None for what a round of these targets does not learn."""
    learned = classes.outputs(targets)
    foreign = {f"{c.short}_{m}": None for c in classes.entries if c.id not in learned for m in MEASURES}
    return [{**row, **foreign} for row in rows]


def summarise(rows: Sequence[Row], classes: ClassList) -> dict[str, Any]:
    """Means over cases, as the official script takes them; None where nothing is scored.

    Each class's mean over the cases that score it is rounded to four digits; the organ mean is taken over
    these rounded means, without the tumor, and rounded again.
    """
    by_id = {}
    for c in classes.entries:
        by_id[c.id] = {m: rounded(mean(row[f"{c.short}_{m}"] for row in rows)) for m in MEASURES}
    return {
        "cases": len(rows),
        "classes": {c.short: by_id[c.id] for c in classes.entries},
        "organ_mean": {m: rounded(mean(by_id[i][m] for i in classes.organs)) for m in MEASURES},
        "tumor": None if classes.tumor is None else by_id[classes.tumor],
    }


def class_table(summary: Mapping[str, Any]) -> Table:
    """What `evaluate` shows: means by class, each with its 95 % interval over cases, then of the organs."""
    known, rows = summary["intervals"], []
    for name, means in {**summary["classes"], "organ_mean": summary["organ_mean"]}.items():
        cells = [cell(name)]
        for m in MEASURES:
            low_high = known.get(name, {}).get(m)
            told = "-" if low_high is None else "{:.4f} to {:.4f}".format(*low_high)
            cells += [cell(means[m], 4), cell(told)]
        rows.append(cells)
    columns = [Column("class"), *(Column(text) for m in MEASURES for text in (m, f"{m} 95 %"))]
    return Table(f"{summary['cases']} cases, protocol={summary['protocol']}", columns, rows)


def score_matrix(rows: Rows, columns: Sequence[str]) -> np.ndarray:
    """Scores as `(cases, columns)` float64; NaN where a class was not scored."""
    cells = [[np.nan if row[c] in ("", None) else float(row[c]) for c in columns] for row in rows]
    return np.array(cells, dtype=float).reshape(len(rows), len(columns))


def interval(scores: np.ndarray) -> Interval:
    """The 95 % percentile bootstrap interval, over cases, of the mean of column means; the same every time.

    `scores` are `(cases, columns)`, NaN where not scored. A case without any score takes no part. Both ends
    have four digits; without a score there is no interval.
    """
    from scipy.stats import bootstrap

    scores = scores[~np.isnan(scores).all(axis=1)]
    if len(scores) < 2:  # nothing to draw from
        return np.round(np.repeat(_means(scores), 2), 4).tolist() or None
    found = bootstrap((scores.T,), lambda drawn, axis: _means(_means(drawn, axis), 0), axis=-1, **BOOTSTRAP)
    return np.round(found.confidence_interval, 4).tolist()


def _means(scores: np.ndarray, axis: int = 1) -> np.ndarray:
    """Means along an axis over what was scored; NaN where nothing was."""
    return np.ma.filled(np.ma.masked_invalid(scores).mean(axis), np.nan)


def _groups(rows: Rows, classes: ClassList, measure: str) -> dict[str, np.ndarray]:
    """Scores `(cases, columns)` of each class alone, and of all organs as `organ_mean`."""
    scores = score_matrix(rows, [f"{c.short}_{measure}" for c in classes.entries])
    groups = {c.short: scores[:, [i]] for i, c in enumerate(classes.entries)}
    organs = [i for i, c in enumerate(classes.entries) if c.id in classes.organs]
    return groups | {"organ_mean": scores[:, organs]}


def intervals(rows: Rows, classes: ClassList) -> dict[str, dict[str, Interval]]:
    """95 % confidence intervals: short name, or `organ_mean` -> measure -> (low, high)."""
    found: dict[str, dict[str, Interval]] = {}
    for m in MEASURES if rows else ():
        for name, scores in _groups(rows, classes, m).items():
            found.setdefault(name, {})[m] = interval(scores)
    return found


def metrics_file(path: Path) -> Path:
    """The `metrics.csv` that a path names or that lies in its folder; without one, a FlareError."""
    found = path / "metrics.csv" if path.is_dir() else path
    if not found.is_file():
        raise FlareError(f"compare: no metrics.csv at {path}; expected the output of another evaluation")
    return found


def compare_runs(ours: Path, other: Path, classes: ClassList) -> list[Row]:
    """Compare two runs, each by its `metrics.csv`, on the cases that both scored.

    Gives one row a class and measure, and the organ mean per case: cases, both means, the mean difference
    (ours less other) with its bootstrap interval, and the p of Wilcoxon's signed-rank test. A run that scored
    other classes is refused, and one without a case in common.
    """
    a, b = ({row["Name"]: row for row in read_csv(path)} for path in (ours, other))
    cases = sorted(a.keys() & b.keys())
    if not cases:
        raise FlareError(f"compare: no case of {other} is among those scored here")
    unknown = [c for c in metrics_columns(classes) if c not in b[cases[0]]]
    if unknown:
        raise FlareError(f"compare: {other} lacks the columns {unknown[:5]}; expected the same classes")
    found = []
    for m in MEASURES:
        x, y = (_groups([rows[c] for c in cases], classes, m) for rows in (a, b))
        for name in x:
            p, q = _means(x[name]), _means(y[name])
            both = ~np.isnan(p) & ~np.isnan(q)
            if both.any():
                found.append({"class": name, "measure": m, **_paired(p[both], q[both])})
    return found


def _paired(a: np.ndarray, b: np.ndarray) -> Row:
    from scipy.stats import wilcoxon

    difference = a - b
    low, high = interval(difference[:, None]) or (None, None)
    named = {"ours": a, "other": b, "difference": difference}
    means = {name: round(float(values.mean()), 4) for name, values in named.items()}
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return {"cases": len(a), **means, "low": low, "high": high, "p": p}
