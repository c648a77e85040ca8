"""What is done to one case: read both maps, bring them to one grid, merge, write. Runs in a worker."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flare.errors import CaseError
from flare.files import write_json
from flare.geometry import Geometry, Volume
from flare.images import match_grid, read_labels, write_labels
from flare.labels import LabelSet
from flare.merging.outcome import GROUND_TRUTH, Merged
from flare.merging.provenance import sidecar
from flare.merging.rules import merge_labels, taken_alone
from flare.merging.settings import PseudoSource
from flare.merging.tables import annotated_classes


def merge_case(
    case: str,
    ground_truth: Path | None,
    pseudo: Path | None,
    declared: Collection[int] | None,
    classes: Mapping[str, Any],
    label_map: Mapping[str, int] | None,
    rules: Mapping[str, Any],
    teacher: Mapping[str, Any],
    outputs: Mapping[str, Path],
) -> None:
    """Merge one case and write its labels and sidecar.

    Args:
        case: The case id.
        ground_truth: Annotation, if there is one.
        pseudo: The teacher's prediction, if there is one; with it, the result is on its grid.
        declared: Class ids that the annotation's source declares to annotate; None if it does not say.
        classes: The class list as plain values.
        label_map: Renumbering of the annotation's ids; predictions have ours.
        rules: Arguments of `merge_labels`.
        teacher: Round and checkpoint hash that made the pseudo labels.
        outputs: Where `labels` and `provenance` shall lie.

    Raises:
        CaseError: If a file is bad or the grids differ; nothing is written.
    """
    labels = LabelSet.from_config(classes)
    source = PseudoSource(**teacher)
    truth = None if ground_truth is None else read_labels(ground_truth, labels, label_map, case)
    guess = None if pseudo is None else read_labels(pseudo, labels, None, case)
    merged, grid = _merged(case, truth, guess, declared, labels, rules)
    sources = {} if truth is None else {GROUND_TRUTH: {"kind": GROUND_TRUTH}}
    if guess is not None:
        sources[source.name] = source.to_config()
    told = sidecar(case, merged.report, labels, rules=rules, sources=sources, pseudo_name=source.name)
    write_labels(outputs["labels"], merged.labels, grid)
    write_json(outputs["provenance"], told)


def _merged(
    case: str,
    truth: Volume | None,
    guess: Volume | None,
    declared: Collection[int] | None,
    labels: LabelSet,
    rules: Mapping[str, Any],
) -> tuple[Merged, Geometry]:
    """Merge what there is: both maps on the pseudo label's grid, or the only one as it is."""
    if guess is None:
        if truth is None:
            raise CaseError(case, "expected ground truth or pseudo labels, given neither")
        return taken_alone(truth.array, GROUND_TRUTH, labels), truth.geometry
    annotated = None
    if truth is not None:
        truth = _on_grid_of(guess, truth, case)
        drawn = annotated_classes(truth.array, None)
        # an empty label file tells nothing, whatever its source declares
        annotated = drawn | set(declared or ()) if drawn else drawn
    merged = merge_labels(
        None if truth is None else truth.array,
        guess.array,
        labels=labels,
        spacing_mm=guess.geometry.spacing_mm,
        annotated=annotated,
        **rules,
    )
    return merged, guess.geometry


def _on_grid_of(guess: Volume, truth: Volume, case: str) -> Volume:
    """Bring the ground truth to the pseudo label's voxel order, or refuse with both grids."""
    try:
        return match_grid(truth, guess, case)
    except CaseError as error:
        reason = error.reason.replace("image and label", "pseudo labels and ground truth")
        raise CaseError(case, reason) from None
