"""Merging of cases: two maps brought to one grid, merged, and written with their provenance."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flare.core.classes import ClassList
from flare.core.errors import CaseError
from flare.core.files import read_json, write_json
from flare.core.geometry import Volume
from flare.core.volumes import match_grid, write_labels
from flare.merging.maps import annotated_classes
from flare.merging.provenance import GROUND_TRUTH, sidecar, write_provenance
from flare.merging.rules import merge_labels, taken_alone
from flare.merging.settings import MergeSettings, PseudoSource
from flare.runs.journal import Resumed


def merge_maps(
    case: str,
    truth: Volume | None,
    pseudo: Volume | None,
    settings: MergeSettings,
    *,
    declared: Collection[int] | None,
    source: PseudoSource,
) -> tuple[Volume, dict[str, Any]]:
    """Merge what there is of one case: both maps on the pseudo labels' grid, or the only one as it is.

    Args:
        case: The case id.
        truth: Its annotation, if there is one.
        pseudo: A prediction, if there is one.
        settings: How to merge.
        declared: Class ids that the annotation's source declares to annotate; None if it does not say.
        source: Who made the prediction.

    Returns:
        The merged labels and their provenance, as the sidecar has it.

    Raises:
        CaseError: If there is no map, or the grids differ.
    """
    classes, rules = settings.classes, settings.rules
    sources = {} if truth is None else {GROUND_TRUTH: {"kind": GROUND_TRUTH}}
    if pseudo is None:
        if truth is None:
            raise CaseError(case, "expected ground truth or pseudo labels, given neither")
        merged, grid = taken_alone(truth.array, GROUND_TRUTH, classes), truth.geometry
    else:
        sources[source.name] = source.to_config()
        annotated = None
        if truth is not None:
            truth = _on_grid_of(pseudo, truth, case)
            drawn = annotated_classes(truth.array, None)
            # an empty label file tells nothing, whatever its source declares
            annotated = drawn | set(declared or ()) if drawn else drawn
        merged = merge_labels(
            None if truth is None else truth.array,
            pseudo.array,
            rules,
            classes=classes,
            spacing_mm=pseudo.geometry.spacing_mm,
            annotated=annotated,
        )
        grid = pseudo.geometry
    told = sidecar(
        case, merged.report, classes, rules=rules.to_config(), sources=sources, pseudo_name=source.name
    )
    return Volume(merged.labels, grid), told


def _on_grid_of(pseudo: Volume, truth: Volume, case: str) -> Volume:
    """Bring the ground truth to the pseudo labels' voxel order, or refuse with both grids."""
    try:
        return match_grid(truth, pseudo, case)
    except CaseError as error:
        reason = error.reason.replace("image and label", "pseudo labels and ground truth")
        raise CaseError(case, reason) from None


def write_merged(outputs: Mapping[str, Path], labels: Volume, told: Mapping[str, Any]) -> None:
    """Write merged labels and their sidecar, see `merged_files`."""
    write_labels(outputs["labels"], labels.array, labels.geometry)
    write_json(outputs["provenance"], told)


def merged_files(folder: Path, case: str) -> dict[str, Path]:
    """The files of a merged case."""
    return {"labels": folder / f"{case}.nii.gz", "provenance": folder / f"{case}.json"}


@dataclass(frozen=True)
class MergedFolder:
    """What merging into a folder came to.

    Args:
        folder: Has `<case>.nii.gz`, `<case>.json`, `provenance.csv` and `provenance.md`.
        done: The cases.
        summary: Their provenance in short, Markdown.
    """

    folder: Path
    done: Resumed
    summary: str

    @classmethod
    def told(cls, folder: Path, done: Resumed, classes: ClassList) -> MergedFolder:
        """Write the provenance of all cases that are done, now or earlier."""
        sidecars = [read_json(merged_files(folder, case)["provenance"]) for case in done.values]
        return cls(folder, done, write_provenance(folder, sidecars, classes))
