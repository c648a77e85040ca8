"""The tables of one round: scores per class, 4, efficiency, 6 and 7, and the test result, 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare.evaluation.efficiency import table8, write_efficiency
from flare.evaluation.metrics import MEASURES
from flare.evaluation.tables import table4
from flare.labels import LabelSet


def write_round_tables(
    folder: Path,
    *,
    scores: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    inference: Sequence[Mapping[str, Any]],
    labels: LabelSet,
    targets: str,
) -> None:
    """Write tables 4 and 8, and 6 and 7 where the efficiency was measured.

    What the round does not learn stays empty.

    Args:
        folder: Where they go.
        scores: The rows of `metrics.csv`.
        summary: What `flare.evaluation.scores` gives.
        inference: The rows of `inference.csv`.
        labels: The classes.
        targets: What the round segments: `organs`, `tumor` or `organs_tumor`.
    """
    learned = {labels.by_id(i).short for i in labels.outputs(targets) if i}
    foreign = {f"{c.short}_{m}": None for c in labels.classes if c.short not in learned for m in MEASURES}
    table4([{**row, **foreign} for row in scores], labels, folder / "table4")
    efficiency = write_efficiency(inference, folder)
    summary = dict(summary)
    if targets == "tumor":
        summary["organ_mean"] = dict.fromkeys(MEASURES)
    if targets == "organs":
        summary["tumor"] = None
    table8(summary, folder / "table8", efficiency=efficiency)
