"""What the pictures and the viewer show of a case: image, reference and prediction on one grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flare.geometry import Volume, reorient_to_ras
from flare.images import match_grid, read_image, read_labels
from flare.labels import LabelSet


def read_case(
    case: str,
    image: Path,
    reference: Path,
    prediction: Path,
    *,
    labels: LabelSet,
    label_map: dict[Any, int] | None,
) -> tuple[Volume, Volume, Volume]:
    """Read a case for showing.

    Args:
        case: The case id.
        image: The CT.
        reference: Its annotation.
        prediction: What a round predicts.
        labels: The class list.
        label_map: Renumbering of the annotation's ids.

    Returns:
        Image, reference and prediction on the image's grid, in RAS voxel order.

    Raises:
        CaseError: If a file cannot be read or a label map does not lie on the image's grid.
    """
    ct = read_image(image, case)
    truth = match_grid(read_labels(reference, labels, label_map, case), ct, case)
    ours = match_grid(read_labels(prediction, labels, case=case), ct, case)
    return reorient_to_ras(ct)[0], reorient_to_ras(truth)[0], reorient_to_ras(ours)[0]
