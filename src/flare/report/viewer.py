"""Small volumes for the interactive viewer: image, reference and prediction, as NIfTI inside the page."""

from __future__ import annotations

import base64
import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flare.geometry import Volume
from flare.labels import LabelSet
from flare.report.overlays import WINDOW_HU
from flare.report.palette import class_colours, rgb, title
from flare.report.reading import read_case
from flare.resampling import resample

VOXELS = 1_500_000  # of a volume in the page; larger ones are made coarser (ours)


def pack_case(
    case: str,
    image: Path,
    reference: Path,
    prediction: Path,
    classes: Mapping[str, Mapping[str, Any]],
    label_map: dict[Any, int] | None,
) -> dict[str, str]:
    """Pack one case for the page.

    Args:
        case: The case id.
        image: The CT.
        reference: Its annotation.
        prediction: What a round predicts.
        classes: The class list, plain.
        label_map: Renumbering of the annotation's ids.

    Returns:
        `image`, `reference` and `prediction`: base64 of `.nii.gz`, uint8, in RAS voxel order; the image's
        soft-tissue window is spread over 0 to 255.
    """
    labels = LabelSet.from_config(classes)
    ct, truth, ours = read_case(case, image, reference, prediction, labels=labels, label_map=label_map)
    coarse = max(1.0, (ct.array.size / VOXELS) ** (1 / 3))
    shape = tuple(max(1, round(n / coarse)) for n in ct.array.shape)
    low, high = WINDOW_HU
    grey = ct.array if shape == ct.array.shape else resample(ct.array, shape, "linear")
    grey = np.rint(np.clip((grey.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    spacing = [s * n / m for s, n, m in zip(ct.geometry.spacing_mm, ct.array.shape, shape, strict=True)]
    return {
        "image": encode(grey, spacing),
        "reference": encode(_coarse(truth, shape), spacing),
        "prediction": encode(_coarse(ours, shape), spacing),
    }


def _coarse(volume: Volume, shape: tuple[int, ...]) -> np.ndarray:
    return resample(volume.array, shape, "nearest")  # type: ignore[arg-type]


def encode(array: np.ndarray, spacing_mm: list[float]) -> str:
    """Write a NIfTI-1 file in memory: uint8, axes along the patient's, the origin in the middle.

    An oblique grid is shown along its nearest axes; nothing else of its place in the scanner is kept.

    Args:
        array: `(Z, Y, X)` uint8 in RAS voxel order.
        spacing_mm: Along Z, Y, X.

    Returns:
        Base64 of the gzipped file.
    """
    header = bytearray(352)
    sizes = array.shape[::-1]
    mm = spacing_mm[::-1]
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *sizes, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # uint8
    struct.pack_into("<8f", header, 76, 1, *mm, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # where voxels begin; their scale
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # position by the affine below
    for row in range(3):
        values = [0.0, 0.0, 0.0, -mm[row] * (sizes[row] - 1) / 2]
        values[row] = mm[row]
        struct.pack_into("<4f", header, 280 + 16 * row, *values)
    header[344:348] = b"n+1\0"
    content = bytes(header) + np.ascontiguousarray(array).tobytes()
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def lookup_table(labels: LabelSet) -> dict[str, list[Any]]:
    """Colours and names by class id, as niivue takes them; the background is clear."""
    colours = class_colours(labels)
    table: dict[str, list[Any]] = {"R": [0], "G": [0], "B": [0], "A": [0], "I": [0], "labels": [""]}
    for c in labels.classes:
        for key, value in zip("RGB", rgb(colours[c.id]), strict=True):
            table[key].append(value)
        table["A"].append(255)
        table["I"].append(c.id)
        table["labels"].append(title(c))
    return table
