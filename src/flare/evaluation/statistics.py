"""How sure a mean is, and whether two runs differ: bootstrap over cases, paired signed-rank test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.evaluation.metrics import MEASURES

# a batch of resamples lies in memory at once
BOOTSTRAP = {"method": "percentile", "confidence_level": 0.95, "n_resamples": 2000, "batch": 200, "rng": 0}


def score_matrix(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> np.ndarray:
    """Scores as `(cases, columns)` float64; NaN where a class was not scored."""
    cells = [[np.nan if row[c] in ("", None) else float(row[c]) for c in columns] for row in rows]
    return np.array(cells, dtype=float).reshape(len(rows), len(columns))


def interval(scores: np.ndarray) -> list[float] | None:
    """The 95 % percentile bootstrap interval, over cases, of the mean of column means; the same every time.

    Args:
        scores: `(cases, columns)`, NaN where not scored. A case without any score takes no part.

    Returns:
        Low and high with four digits; None without a score.
    """
    from scipy.stats import bootstrap

    scores = scores[~np.isnan(scores).all(axis=1)]
    if len(scores) < 2:  # nothing to draw from
        return np.round(np.repeat(_mean(scores), 2), 4).tolist() or None
    found = bootstrap((scores.T,), lambda drawn, axis: _mean(_mean(drawn, axis), 0), axis=-1, **BOOTSTRAP)
    return np.round(found.confidence_interval, 4).tolist()


def intervals(
    rows: Sequence[Mapping[str, Any]], classes: ClassList
) -> dict[str, dict[str, list[float] | None]]:
    """95 % confidence intervals of each class's mean and of the organ mean.

    Args:
        rows: As in `metrics.csv`.
        classes: The classes.

    Returns:
        Short name, or `organ_mean` -> measure -> (low, high).
    """
    if not rows:
        return {}
    names = [*(c.short for c in classes.entries), "organ_mean"]
    found: dict[str, dict[str, list[float] | None]] = {name: {} for name in names}
    for m in MEASURES:
        scores = score_matrix(rows, [f"{c.short}_{m}" for c in classes.entries])
        for c, column in zip(classes.entries, scores.T, strict=True):
            found[c.short][m] = interval(column[:, None])
        found["organ_mean"][m] = interval(scores[:, _organ_columns(classes)])
    return found


def metrics_file(path: Path) -> Path:
    """The `metrics.csv` that a path names, or that lies in the folder it names.

    Raises:
        FlareError: If there is none.
    """
    found = path / "metrics.csv" if path.is_dir() else path
    if not found.is_file():
        raise FlareError(f"compare: no metrics.csv at {path}; expected the output of another evaluation")
    return found


def compare_runs(ours: Path, other: Path, classes: ClassList) -> list[dict[str, Any]]:
    """Compare two runs on the cases that both scored.

    Args:
        ours: `metrics.csv` of this run.
        other: `metrics.csv` of the other.
        classes: The classes.

    Returns:
        One row a class and measure, and the organ mean per case: cases, both means, the mean difference
        (ours less other) with its bootstrap interval, and the p of Wilcoxon's signed-rank test.

    Raises:
        FlareError: If the other run scored other classes, or no case is in both.
    """
    a, b = ({row["Name"]: row for row in read_csv(path)} for path in (ours, other))
    cases = sorted(a.keys() & b.keys())
    if not cases:
        raise FlareError(f"compare: no case of {other} is among those scored here")
    columns = {m: [f"{c.short}_{m}" for c in classes.entries] for m in MEASURES}
    unknown = [c for m in MEASURES for c in columns[m] if c not in b[cases[0]]]
    if unknown:
        raise FlareError(f"compare: {other} lacks the columns {unknown[:5]}; expected the same classes")
    found = []
    for m in MEASURES:
        x, y = (score_matrix([rows[c] for c in cases], columns[m]) for rows in (a, b))
        organs = _organ_columns(classes)
        pairs = [(c.short, x[:, i], y[:, i]) for i, c in enumerate(classes.entries)]
        for name, p, q in [*pairs, ("organ_mean", _mean(x[:, organs]), _mean(y[:, organs]))]:
            both = ~np.isnan(p) & ~np.isnan(q)
            if both.any():
                found.append({"class": name, "measure": m, **_paired(p[both], q[both])})
    return found


def _paired(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    from scipy.stats import wilcoxon

    difference = a - b
    low, high = interval(difference[:, None]) or (None, None)
    return {
        "cases": len(a),
        "ours": round(float(a.mean()), 4),
        "other": round(float(b.mean()), 4),
        "difference": round(float(difference.mean()), 4),
        "low": low,
        "high": high,
        "p": float(wilcoxon(difference).pvalue) if difference.any() else 1.0,
    }


def _organ_columns(classes: ClassList) -> list[int]:
    return [i for i, c in enumerate(classes.entries) if c.id in classes.organs]


def _mean(scores: np.ndarray, axis: int = 1) -> np.ndarray:
    """Means along an axis over what was scored; NaN where nothing was."""
    return np.ma.filled(np.ma.masked_invalid(scores).mean(axis), np.nan)
