"""Reading a case once: everything that its files can show, and what training reads of it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.files import remove_partial
from flare.core.geometry import Spacing, Volume
from flare.core.volumes import match_grid, read_image, read_labels
from flare.prepare.estimate import estimate, require_room
from flare.prepare.index import Entry
from flare.prepare.settings import PrepareSettings
from flare.runs.journal import Journal, Resumed, resume_cases
from flare.runs.outcomes import Outcome
from flare.runs.work import run_cases

EMPTY_LABEL = "label file without any foreground"


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Gather what this package warns of while the block runs, for the case's row of the report."""
    messages: list[str] = []
    own = threading.get_ident()  # an executor may work on other cases in other threads

    class _Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == own:
                messages.append(record.getMessage())

    package, handler = logging.getLogger("flare"), _Collect(logging.WARNING)
    package.addHandler(handler)
    try:
        yield messages
    finally:
        package.removeHandler(handler)


def count_labels(
    case: str, label: Path, classes: ClassList, label_map: Mapping[str, int] | None
) -> dict[str, Any]:
    """Count the voxels of each class in one label file.

    Args:
        case: The case id, for messages.
        label: The label file.
        classes: The class list.
        label_map: Renumbering of the file's ids.

    Returns:
        Plain values: `voxels` (class id as text -> count), `voxel_ml`, `warnings`.

    Raises:
        CaseError: If the file is unreadable or holds values outside the class list.
    """
    with collected_warnings() as warnings:
        counts = _counts(read_labels(label, classes, label_map, case), warnings)
    return {**counts, "warnings": warnings}


def _counts(labels: Volume, warnings: list[str]) -> dict[str, Any]:
    """What `count_labels` says of the voxels."""
    counts = np.bincount(labels.array.reshape(-1), minlength=1)
    voxels = {str(i): int(counts[i]) for i in np.flatnonzero(counts) if i > 0}
    if not voxels:
        warnings.append(EMPTY_LABEL)
    return {"voxels": voxels, "voxel_ml": math.prod(labels.geometry.spacing_mm) / 1000}


def read_case(
    case: str,
    image: Path,
    label: Path | None,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
    outputs: Mapping[str, Path],
    spacing_mm: Spacing,
    interpolation: str,
) -> dict[str, Any]:
    """Read a case whole, with every check, count its labels and store what training reads of it.

    Args:
        case: The case id.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        classes: The class list.
        label_map: Renumbering of the label file's ids.
        outputs: Where the `image`, and with a label the `labels` and `histogram`, shall lie; empty for a case
            that is not trained on.
        spacing_mm: Voxel size along Z, Y, X.
        interpolation: `linear`, `cubic` or `nnunet`.

    Returns:
        Plain values, as `count_labels`; `warnings` alone without a label.

    Raises:
        CaseError: If the case must be refused: unreadable, not a finite 3D scalar volume, broken geometry,
            unknown label values, image and label on different grids. Nothing is written for it.
    """
    counts, target = {}, None
    with collected_warnings() as warnings:
        if label is not None:  # first: it takes less time, and its refusal spares the image
            target = read_labels(label, classes, label_map, case)
            counts = _counts(target, warnings)
        volume = read_image(image, case)
        target = target and match_grid(target, volume, case)
        if outputs:
            _store(case, volume, target, outputs, spacing_mm, interpolation)
    return {**counts, "warnings": warnings}


def _store(
    case: str,
    image: Volume,
    labels: Volume | None,
    outputs: Mapping[str, Path],
    spacing_mm: Spacing,
    interpolation: str,
) -> None:
    """Cache a training case."""
    # imported here: only the workers need the store
    from flare.data.cache import cache_image, cache_labels
    from flare.prepare.intensity import foreground_histogram, write_histogram

    cache_image(image, outputs["image"], spacing_mm=spacing_mm, interpolation=interpolation, case_id=case)
    if labels is not None:
        cache_labels(labels, outputs["labels"], image=outputs["image"], case_id=case)
        write_histogram(outputs["histogram"], foreground_histogram(image.array, labels.array))


@dataclass(frozen=True)
class _Step:
    """The training cases, which are cached, or the held-out ones, which are only checked."""

    settings: PrepareSettings
    entries: dict[str, Entry]
    is_cached: bool

    @property
    def journal(self) -> Journal:
        return self.settings.folder.journal("cache" if self.is_cached else "check")

    @property
    def config(self) -> dict[str, Any]:
        return self.settings.decisive(is_cached=self.is_cached)

    def outputs(self, case: str) -> dict[str, Path]:
        folder, outputs = self.settings.folder, {}
        if self.is_cached:
            outputs["image"] = folder.image(case)
            if self.entries[case].label is not None:
                outputs |= {"labels": folder.labels(case), "histogram": folder.histogram(case)}
        return outputs

    def inputs(self, case: str) -> dict[str, Path | str]:
        entry = self.entries[case]
        return {"image": entry.image} if entry.label is None else {"image": entry.image, "label": entry.label}

    def job(self, case: str) -> dict[str, Any]:
        entry, settings = self.entries[case], self.settings
        return {
            "case": case,
            "image": entry.image,
            "label": entry.label,
            "classes": settings.classes,
            "label_map": settings.label_map,
            "outputs": self.outputs(case),
            "spacing_mm": settings.folder.spacing_mm,
            "interpolation": settings.interpolation,
        }

    def make_room(self, todo: Iterable[str]) -> None:
        """Say what the work will take, refuse it where the disk cannot hold it, clear what was left half."""
        folder, images = self.settings.folder, [self.entries[case].image for case in todo]
        needed = estimate(images, folder.spacing_mm, self.settings.executor.workers, is_cached=self.is_cached)
        require_room(folder.root, needed)
        for path in (folder.image(""), folder.labels(""), folder.histogram("")):
            remove_partial(path.parent)


def _steps(settings: PrepareSettings, entries: Iterable[Entry]) -> list[_Step]:
    """The training cases first: only they need room on the disk."""
    by_kind: dict[bool, dict[str, Entry]] = {True: {}, False: {}}
    for entry in entries:
        by_kind[entry.split == "train"][entry.id] = entry
    return [_Step(settings, chosen, is_cached) for is_cached, chosen in by_kind.items()]


def read_cases(settings: PrepareSettings, entries: Sequence[Entry]) -> Resumed:
    """Read every case that is new or changed, once; cache those of the training split.

    Raises:
        FlareError: If the disk has no room.
    """
    done = [
        resume_cases(
            read_case,
            {case: step.job(case) for case in step.entries},
            inputs={case: step.inputs(case) for case in step.entries},
            config=step.config,
            outputs=step.outputs,
            journal=step.journal,
            executor=settings.executor,
            description="check and cache" if step.is_cached else "check held-out cases",
            before=step.make_room,
        )
        for step in _steps(settings, entries)
    ]
    values = {case: found for part in done for case, found in part.values.items()}
    processed = [case for part in done for case in part.processed]
    return Resumed(values, processed, [failure for part in done for failure in part.failures])


def count_cases(
    settings: PrepareSettings, entries: Sequence[Entry]
) -> tuple[dict[str, dict[str, Any]], list[Outcome]]:
    """Count the labels of a cohort without reading an image or writing anything.

    Returns:
        Case id -> as `count_labels`, of what was noted before where the files are unchanged; and the cases
        that failed.
    """
    values: dict[str, dict[str, Any]] = {}
    jobs, failures = {}, []
    for step in _steps(settings, entries):
        journal, config = step.journal, step.config
        for case, entry in step.entries.items():
            if entry.label is None:
                values[case] = {"warnings": []}
            elif journal.is_current(case, step.inputs(case), config):
                values[case] = journal.values(case)
            else:
                given = step.job(case)
                jobs[case] = {key: given[key] for key in ("case", "label", "classes", "label_map")}
    for outcome in run_cases(count_labels, jobs, executor=settings.executor, description="label analysis"):
        if outcome.error is None:
            values[outcome.case_id] = outcome.value
        else:
            failures.append(outcome)
    return values, failures
