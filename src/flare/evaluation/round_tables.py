"""The tables of one round: scores per class, 4, efficiency, 6 and 7, and the test result, 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare.evaluation.efficiency import table8, write_efficiency
from flare.evaluation.metrics import MEASURES
from flare.evaluation.summary import only_learned
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
    table4(only_learned(scores, labels, targets), labels, folder / "table4")
    efficiency = write_efficiency(inference, folder)
    summary = dict(summary)
    if targets == "tumor":
        summary["organ_mean"] = dict.fromkeys(MEASURES)
    if targets == "organs":
        summary["tumor"] = None
    table8(summary, folder / "table8", efficiency=efficiency)
