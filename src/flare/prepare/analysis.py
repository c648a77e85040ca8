"""Label analysis: which classes each case has, and so how complete its labels are. Reads label files only."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flare.cases import Case
from flare.executor import Executor, Outcome, run_cases
from flare.images import read_labels
from flare.journal import Journal
from flare.labels import LabelSet
from flare.prepare.index import Entry
from flare.prepare.integrity import collected_warnings

logger = logging.getLogger(__name__)

EMPTY_LABEL = "label file without any foreground"


@dataclass
class Analysis:
    """What the label files of a cohort hold.

    Args:
        cases: Every case whose label file could be read, or that has none.
        volumes_ml: Case id to class id to millilitres, for labelled cases; classes with no voxel are absent.
        warnings: Case id to what was odd about its label.
        failures: Cases refused for their label file.
    """

    cases: list[Case] = field(default_factory=list)
    volumes_ml: dict[str, dict[int, float]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)


def count_labels(
    case: str, label: Path, classes: Mapping[str, Any], label_map: Mapping[str, int] | None
) -> dict[str, Any]:
    """Count the voxels of each class in one label file.

    Args:
        case: The case id, for messages.
        label: The label file.
        classes: The class list as plain values.
        label_map: Renumbering of the file's ids.

    Returns:
        Plain values: `voxels` (class id as text -> count), `voxel_ml`, `warnings`.

    Raises:
        CaseError: If the file is unreadable or holds values outside the class list.
    """
    with collected_warnings() as warnings:
        volume = read_labels(label, LabelSet.from_config(classes), label_map, case)
    counts = np.bincount(volume.array.reshape(-1), minlength=1)
    voxels = {str(i): int(counts[i]) for i in np.flatnonzero(counts) if i > 0}
    if not voxels:
        warnings.append(EMPTY_LABEL)
    return {
        "voxels": voxels,
        "voxel_ml": math.prod(volume.geometry.spacing_mm) / 1000,
        "warnings": warnings,
    }


def kind_of(present: Iterable[int], annotated: Iterable[int], labels: LabelSet) -> str:
    """Kind of a case that has a label file.

    Args:
        present: Class ids with a voxel.
        annotated: Class ids that the annotation covers.
        labels: The class list.

    Returns:
        `tumor` where there is one, `organs_complete` where all organs are annotated, else `partial`.

    Reference: method section 2.
    """
    present, annotated = set(present), set(annotated)
    if labels.tumor is not None and labels.tumor in present:
        return "tumor"
    complete = bool(present) and bool(labels.organs) and set(labels.organs) <= annotated
    return "organs_complete" if complete else "partial"


def analyse_labels(
    entries: Sequence[Entry],
    labels: LabelSet,
    label_map: Mapping[str, int] | None,
    *,
    journal: Journal,
    executor: Executor,
) -> Analysis:
    """Look into every label file that is new or changed.

    Args:
        entries: The cohort as found on disk.
        labels: The class list.
        label_map: Renumbering of the files' ids.
        journal: What was looked into before.
        executor: Where the work runs.

    Returns:
        The cohort's cases, in the order of `entries`.
    """
    config = {"classes": labels.ids, "label_map": label_map}
    labelled = {e.id: e.label for e in entries if e.label is not None}
    jobs = {
        case: {"case": case, "label": path, "classes": labels.to_config(), "label_map": label_map}
        for case, path in labelled.items()
        if not journal.is_current(case, {"label": path}, config)
    }
    found = Analysis()
    for outcome in run_cases(count_labels, jobs, executor=executor, description="label analysis"):
        if outcome.error is None:
            journal.record(outcome.case_id, {"label": labelled[outcome.case_id]}, config, {}, outcome.value)
        else:
            found.failures.append(outcome)
    refused = {f.case_id for f in found.failures}
    for entry in entries:
        if entry.id not in refused:
            values = journal.values(entry.id) if entry.label is not None else None
            _add(found, entry, values, labels)
    return found


def _add(found: Analysis, entry: Entry, values: Mapping[str, Any] | None, labels: LabelSet) -> None:
    """Add one case, with what its label file holds."""
    if values is None:
        found.cases.append(Case(entry.id, entry.image, None, entry.split, "unlabeled", (), ()))
        return
    voxels = {int(k): n for k, n in values["voxels"].items()}
    present, declared = set(voxels), set(entry.annotates or ())
    # an empty label file tells nothing, whatever its source declares
    annotated = present | declared if present else set()
    found.volumes_ml[entry.id] = {k: n * values["voxel_ml"] for k, n in voxels.items()}
    warnings = list(values["warnings"])
    if entry.annotates is not None and present - declared:
        names = ", ".join(labels.name_of(c) for c in sorted(present - declared))
        warnings.append(f"has classes that data.sources does not declare for it: {names}")
    if warnings:
        found.warnings[entry.id] = warnings
    found.cases.append(
        Case(
            id=entry.id,
            image=entry.image,
            label=entry.label,
            split=entry.split,
            kind=kind_of(present, annotated, labels),
            present=tuple(sorted(present)),
            annotated=tuple(sorted(annotated)),
        )
    )
