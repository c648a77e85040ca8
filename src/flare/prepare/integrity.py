"""Whether a case can be used: everything that reading its files can show, and the report of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flare.files import write_csv
from flare.geometry import Volume
from flare.images import match_grid, read_image, read_labels
from flare.labels import LabelSet

COLUMNS = ("case", "path", "status", "reason")
OK, WARNING, REFUSED, FAILED = "ok", "warning", "refused", "failed"


@dataclass(frozen=True)
class Finding:
    """One row of `integrity.csv`.

    Args:
        case: The case.
        path: Its image, or the file at fault.
        status: `ok`, `warning` (used all the same), `refused`, or `failed` (by no fault of its files: it is
            tried again).
        reason: What was found, empty if nothing.
    """

    case: str
    path: Path
    status: str
    reason: str = ""


def read_case(
    case: str, image: Path, label: Path | None, labels: LabelSet, label_map: Mapping[str, int] | None
) -> tuple[Volume, Volume | None]:
    """Read a case whole, with every check.

    Args:
        case: The case id, for messages.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        labels: The class list.
        label_map: Renumbering of the label file's ids, see `sources.read_label_map`.

    Returns:
        The image, and its labels in the image's voxel order.

    Raises:
        CaseError: If the case must be refused: unreadable, not a finite 3D scalar volume, broken geometry,
            unknown label values, image and label on different grids.
    """
    volume = read_image(image, case)
    if label is None:
        return volume, None
    return volume, match_grid(read_labels(label, labels, label_map, case), volume, case)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Gather what this package warns of while the block runs, for the case's row of the report."""
    messages: list[str] = []

    class _Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    package, handler = logging.getLogger("flare"), _Collect(logging.WARNING)
    package.addHandler(handler)
    try:
        yield messages
    finally:
        package.removeHandler(handler)


def write_integrity(path: Path, findings: Sequence[Finding]) -> None:
    """Write `integrity.csv`, the refused first."""
    order = (REFUSED, FAILED, WARNING, OK)
    ranked = sorted(findings, key=lambda f: (order.index(f.status), f.case, str(f.path)))
    write_csv(path, [vars(f) for f in ranked], COLUMNS)
