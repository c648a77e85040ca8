"""Find the patient in a scan: windows over air are left out, and body that no window saw is counted."""

from __future__ import annotations

import math

import cc3d
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes

from flare.core.geometry import Spacing
from flare.inference.settings import BodyRule

GRID_MM = 2.4  # in-plane distance of the samples looked at: every second voxel at 1.2 mm (ours)


def find_body(array_hu: np.ndarray, spacing_mm: Spacing, rule: BodyRule) -> np.ndarray | None:
    """Mark the body: the largest component above a threshold after an opening, holes filled slice by slice.

    Args:
        array_hu: `(Z, Y, X)` in HU, Z along the patient.
        spacing_mm: Voxel size along Z, Y, X.
        rule: Thresholds.

    Returns:
        `(Z, Y, X)` bool, constant over blocks of about `GRID_MM` in plane, or None if there is no body.

    Reference: ours.
    """
    steps = [max(1, round(GRID_MM / spacing)) for spacing in spacing_mm[1:]]
    rows, columns = (
        np.minimum(np.arange(math.ceil(size / step)) * step + step // 2, size - 1)
        for size, step in zip(array_hu.shape[1:], steps, strict=True)
    )
    dense = array_hu[:, rows[:, None], columns] > rule.threshold_hu
    grid_mm = (spacing_mm[0], spacing_mm[1] * steps[0], spacing_mm[2] * steps[1])
    disc = _disc(rule.opening_mm, grid_mm)
    # the body goes on where the image ends: a narrow field of view must not round it off
    dense = binary_dilation(binary_erosion(dense, disc, border_value=1), disc)
    if not dense.any():
        return None
    body = cc3d.largest_k(dense, k=1, connectivity=6) > 0
    if np.count_nonzero(body) * math.prod(grid_mm) < rule.minimum_ml * 1000:
        return None
    for plane in body:
        plane[:] = binary_fill_holes(plane)
    y, x = (np.arange(size) // step for size, step in zip(array_hu.shape[1:], steps, strict=True))
    return body[:, y[:, None], x]


def _disc(radius_mm: float, grid_mm: Spacing) -> np.ndarray:
    """Give `(1, y, x)` of the samples within a radius."""
    reach = [max(1, round(radius_mm / spacing)) for spacing in grid_mm[1:]]
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    return ((y / reach[0]) ** 2 + (x / reach[1]) ** 2 <= 1)[None]
