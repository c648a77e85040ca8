"""A selection of pseudo labels as somebody else would write it: it imports nothing of the package."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Trust:
    """Draws a case by its weight, drops those that are named, and leaves a class of the teacher's out.

    Args:
        weights: Case id -> weight; 1 for others.
        unsure: Name of the class whose voxels are left out where the ground truth does not draw it.
    """

    def __init__(self, weights: Mapping[str, float], unsure: str | None = None) -> None:
        self.weights, self.unsure = dict(weights), unsure

    def __call__(
        self, case: str, labels: np.ndarray, provenance: Mapping[str, Any]
    ) -> tuple[float, np.ndarray | None]:
        weight = self.weights.get(case, 1.0)
        known = provenance["classes"].get(self.unsure)
        if known is None or known["source"] == "ground_truth":
            return weight, None
        return weight, labels == known["id"]


def one_in_two(case: str, labels: np.ndarray, provenance: Mapping[str, Any]) -> float:
    """A plain function will do."""
    return 0.5


def nonsense(case: str, labels: np.ndarray, provenance: Mapping[str, Any]) -> Any:
    return {"weight": -1.0, "mask": (1.0, labels)}[provenance["case"].split("_")[0]]


class Unsure:
    """Leaves out what the teacher gives with a low probability, or otherwise when it looks unmirrored."""

    def __call__(
        self,
        case: str,
        labels: np.ndarray,
        provenance: Mapping[str, Any],
        confidence: np.ndarray,
        pseudo: np.ndarray,
        unflipped: np.ndarray,
    ) -> tuple[float, np.ndarray]:
        return 0.5, (confidence < 128) | (unflipped != pseudo)
