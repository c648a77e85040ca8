"""Validation while training: whole cases on their original grid, each class only where it is defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol, TypedDict

import numpy as np

from flare.cases import Case
from flare.errors import CaseError
from flare.evaluation.metrics import score_case as surface_scores
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


class Segmented(TypedDict):
    """A validation case with the current weights' segmentation, all on its original grid.

    Args:
        image: The CT.
        reference: `(Z, Y, X)` uint8 class ids of the annotation.
        segmentation: `(Z, Y, X)` uint8 class ids of the network.
    """

    image: Volume
    reference: np.ndarray
    segmentation: np.ndarray


def segment_case(
    predictor: CasePredictor, case: Case, *, labels: LabelSet, label_map: Mapping[Any, int] | None
) -> Segmented:
    """Segment a case and read its annotation.

    Args:
        predictor: Segments a whole volume.
        case: With an annotation.
        labels: The class list.
        label_map: `data.label_map`, from the annotation's values to class ids.

    Raises:
        CaseError: If the case has no annotation, or a file is bad.
    """
    if case.label is None:
        raise CaseError(case.id, "no annotation to validate against")
    image = read_image(case.image, case.id)
    reference = match_grid(read_labels(case.label, labels, label_map, case.id), image, case.id).array
    segmentation = predictor.predict(image).segmentation
    return Segmented(image=image, reference=reference, segmentation=segmentation)


def score_case(segmented: Segmented, *, labels: LabelSet, outputs: Sequence[int], nsd: bool) -> Scores:
    """Compare a segmentation with its annotation.

    Args:
        segmented: The case.
        labels: The class list.
        outputs: Class id of each output of the network, 0 first; others are not asked for.
        nsd: Whether to score surfaces as well.

    Returns:
        `dsc/<class>`, and with `nsd` `nsd/<class>` as `protocol=present` has it, of the trained classes that
        the annotation has.
    """
    reference, segmentation = segmented["reference"], segmented["segmentation"]
    there = np.flatnonzero(np.bincount(reference.ravel(), minlength=256))
    present = [class_id for class_id in outputs[1:] if class_id in there]
    scores = {
        f"dsc/{labels.name_of(class_id)}": dice(segmentation == class_id, reference == class_id)
        for class_id in present
    }
    if nsd:
        spacing_mm = segmented["image"].geometry.spacing_mm
        found = surface_scores(
            reference, segmentation, spacing_mm=spacing_mm, labels=labels, protocol="present"
        )
        for class_id in present:
            score = found[labels.by_id(class_id).short].nsd
            if score is not None:
                scores[f"nsd/{labels.name_of(class_id)}"] = score
    return scores


def mean_scores(scores: Mapping[str, Scores], labels: LabelSet) -> Scores:
    """Average over the cases that have a class, then over the organs.

    Args:
        scores: Case id to what `score_case` gives.
        labels: The class list.

    Returns:
        `val/dsc/<class>` of every class that some case has, and `val/dsc_mean`: the mean of the organs, or
        of the tumor where no organ is trained; the same for `nsd`. Empty if no class was to be scored.
    """
    organs = {labels.name_of(class_id) for class_id in labels.organs}
    by_key: dict[str, list[float]] = {}
    for case in sorted(scores):  # the same order of summation on every rank
        for key, value in scores[case].items():
            by_key.setdefault(key, []).append(value)
    means: Scores = {}
    for measure in ("dsc", "nsd"):
        keys = {name: f"{measure}/{name}" for name in labels.names}
        found = {name: fmean(by_key[key]) for name, key in keys.items() if key in by_key}
        if found:
            averaged = [value for name, value in found.items() if name in organs] or list(found.values())
            means |= {f"val/{keys[name]}": value for name, value in found.items()}
            means[f"val/{measure}_mean"] = fmean(averaged)
    return means
