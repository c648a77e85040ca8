"""How sure a mean is, and whether two runs differ: bootstrap over cases, paired signed-rank test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flare.errors import FlareError
from flare.evaluation.metrics import MEASURES
from flare.files import read_csv
from flare.labels import LabelSet

RESAMPLES = 2000
LEVEL = 0.95


def score_matrix(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> np.ndarray:
    """Scores as `(cases, columns)` float64; NaN where a class was not scored."""
    cells = [[np.nan if row[c] in ("", None) else float(row[c]) for c in columns] for row in rows]
    return np.array(cells, dtype=float).reshape(len(rows), len(columns))


def bootstrap_means(scores: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Column means of resampled cases.

    Args:
        scores: `(cases, columns)`, NaN where not scored.
        seed: Of the resampling.
        resamples: How many.

    Returns:
        `(resamples, columns)`; NaN where a resample holds no score of the column.
    """
    cases = len(scores)
    weights = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    scored = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return (weights @ np.where(scored, scores, 0)) / (weights @ scored)


def interval(samples: np.ndarray) -> list[float] | None:
    """The percentile interval of bootstrap samples, four digits; None if there are none."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return None
    return np.round(np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), 4).tolist()


def intervals(
    rows: Sequence[Mapping[str, Any]], labels: LabelSet
) -> dict[str, dict[str, list[float] | None]]:
    """95 % confidence intervals of each class's mean and of the organ mean.

    Args:
        rows: As in `metrics.csv`.
        labels: The classes.

    Returns:
        Short name, or `organ_mean` -> measure -> (low, high).
    """
    if not rows:
        return {}
    names = [*(c.short for c in labels.classes), "organ_mean"]
    found: dict[str, dict[str, list[float] | None]] = {name: {} for name in names}
    for m in MEASURES:
        means = bootstrap_means(score_matrix(rows, [f"{c.short}_{m}" for c in labels.classes]))
        for c, samples in zip(labels.classes, means.T, strict=True):
            found[c.short][m] = interval(samples)
        found["organ_mean"][m] = interval(_mean(means[:, _organ_columns(labels)]))
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


def compare_runs(ours: Path, other: Path, labels: LabelSet) -> list[dict[str, Any]]:
    """Compare two runs on the cases that both scored.

    Args:
        ours: `metrics.csv` of this run.
        other: `metrics.csv` of the other.
        labels: The classes.

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
    columns = {m: [f"{c.short}_{m}" for c in labels.classes] for m in MEASURES}
    unknown = [c for m in MEASURES for c in columns[m] if c not in b[cases[0]]]
    if unknown:
        raise FlareError(f"compare: {other} lacks the columns {unknown[:5]}; expected the same classes")
    found = []
    for m in MEASURES:
        x, y = (score_matrix([rows[c] for c in cases], columns[m]) for rows in (a, b))
        organs = _organ_columns(labels)
        pairs = [(c.short, x[:, i], y[:, i]) for i, c in enumerate(labels.classes)]
        for name, p, q in [*pairs, ("organ_mean", _mean(x[:, organs]), _mean(y[:, organs]))]:
            both = ~np.isnan(p) & ~np.isnan(q)
            if both.any():
                found.append({"class": name, "measure": m, **_paired(p[both], q[both])})
    return found


def _paired(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    from scipy.stats import wilcoxon

    difference = a - b
    low, high = interval(bootstrap_means(difference[:, None])[:, 0]) or (None, None)
    return {
        "cases": len(a),
        "ours": round(float(a.mean()), 4),
        "other": round(float(b.mean()), 4),
        "difference": round(float(difference.mean()), 4),
        "low": low,
        "high": high,
        "p": float(wilcoxon(difference).pvalue) if difference.any() else 1.0,
    }


def _organ_columns(labels: LabelSet) -> list[int]:
    return [i for i, c in enumerate(labels.classes) if c.id in labels.organs]


def _mean(scores: np.ndarray) -> np.ndarray:
    """Row means over what was scored; NaN where nothing was."""
    scored = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(scored, scores, 0).sum(1) / scored.sum(1)
