"""What is done to one case: read once, check, count intensities, cache. Runs in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flare.geometry import Spacing
from flare.labels import LabelSet
from flare.prepare.integrity import collected_warnings, read_case


def check_case(
    case: str,
    image: Path,
    label: Path | None,
    classes: Mapping[str, Any],
    label_map: Mapping[str, int] | None,
) -> dict[str, Any]:
    """Check a case of the validation or test split, of which nothing is cached.

    Args:
        case: The case id.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        classes: The class list as plain values.
        label_map: Renumbering of the label file's ids.

    Returns:
        Plain values: `warnings`.

    Raises:
        CaseError: If the case must be refused.
    """
    with collected_warnings() as warnings:
        read_case(case, image, label, LabelSet.from_config(classes), label_map)
    return {"warnings": warnings}


def cache_case(
    case: str,
    image: Path,
    label: Path | None,
    classes: Mapping[str, Any],
    label_map: Mapping[str, int] | None,
    outputs: Mapping[str, Path],
    spacing_mm: Spacing,
    interpolation: str,
) -> dict[str, Any]:
    """Check a training case and store all that training reads of it.

    Args:
        case: The case id.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        classes: The class list as plain values.
        label_map: Renumbering of the label file's ids.
        outputs: Where the `image`, and with a label the `labels` and `histogram`, shall lie.
        spacing_mm: Voxel size along Z, Y, X.
        interpolation: `linear`, `cubic` or `nnunet`.

    Returns:
        Plain values: `warnings`.

    Raises:
        CaseError: If the case must be refused; nothing is written for it.
    """
    # imported here: only the workers need the store
    from flare.prepare.cache import cache_image, cache_labels
    from flare.prepare.statistics import foreground_histogram, write_histogram

    with collected_warnings() as warnings:
        volume, target = read_case(case, image, label, LabelSet.from_config(classes), label_map)
        cache_image(
            volume, outputs["image"], spacing_mm=spacing_mm, interpolation=interpolation, case_id=case
        )
        if target is not None:
            cache_labels(target, outputs["labels"], image=outputs["image"], case_id=case)
            write_histogram(outputs["histogram"], foreground_histogram(volume.array, target.array))
    return {"warnings": warnings}
