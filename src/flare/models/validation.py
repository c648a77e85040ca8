"""Validation while training: whole cases on their original grid, each class only where it is defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from flare.cases import Case
from flare.errors import CaseError
from flare.geometry import Volume
from flare.images import match_grid, read_image, read_labels
from flare.inference.components import dice
from flare.labels import LabelSet

Scores = dict[str, float]


class CasePredictor(Protocol):
    """What validation asks of a predictor."""

    def predict(self, volume: Volume) -> Any:
        """Give an object whose `segmentation` is `(Z, Y, X)` class ids on the volume's own grid."""
        ...


def score_case(
    predictor: CasePredictor,
    case: Case,
    *,
    labels: LabelSet,
    outputs: Sequence[int],
    label_map: Mapping[Any, int] | None,
) -> Scores:
    """Segment a case and compare it with its annotation.

    Args:
        predictor: Segments a whole volume.
        case: With an annotation.
        labels: The class list.
        outputs: Class id of each output of the network, 0 first; others are not asked for.
        label_map: `data.label_map`, from the annotation's values to class ids.

    Returns:
        DSC by class name, of the trained classes that the annotation has.

    Raises:
        CaseError: If the case has no annotation, or a file is bad.
    """
    if case.label is None:
        raise CaseError(case.id, "no annotation to validate against")
    image = read_image(case.image, case.id)
    reference = match_grid(read_labels(case.label, labels, label_map, case.id), image, case.id).array
    segmentation = predictor.predict(image).segmentation
    present = np.flatnonzero(np.bincount(reference.ravel(), minlength=256))
    return {
        labels.name_of(class_id): dice(segmentation == class_id, reference == class_id)
        for class_id in outputs[1:]
        if class_id in present
    }


def mean_scores(scores: Mapping[str, Scores], labels: LabelSet) -> Scores:
    """Average over the cases that have a class, then over the organs.

    Args:
        scores: Case id to what `score_case` gives.
        labels: The class list.

    Returns:
        `val/dsc/<class>` of every class that some case has, and `val/dsc_mean`: the mean of the organs, or
        of the tumor where no organ is trained. Empty if no class was to be scored.
    """
    organs = {labels.name_of(class_id) for class_id in labels.organs}
    by_class: dict[str, list[float]] = {}
    for case in sorted(scores):  # the same order of summation on every rank
        for name, value in scores[case].items():
            by_class.setdefault(name, []).append(value)
    means = {name: fmean(by_class[name]) for name in labels.names if name in by_class}
    if not means:
        return {}
    averaged = [value for name, value in means.items() if name in organs] or list(means.values())
    return {f"val/dsc/{name}": value for name, value in means.items()} | {"val/dsc_mean": fmean(averaged)}
