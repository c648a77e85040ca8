"""Smooth random fields: deformations, bowel loops and texture are all made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TABLE_MM = 12.0  # stored pitch of a field; below half its correlation length linear interpolation is smooth


@dataclass(frozen=True)
class RandomField:
    """Gaussian noise of unit variance and a given correlation length, defined on all of a box.

    Args:
        origin_mm: First node (z, y, x).
        pitch_mm: Distance of nodes.
        values: `(Z, Y, X)` float32.
    """

    origin_mm: np.ndarray
    pitch_mm: float
    values: np.ndarray

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Field values at `(3, N)` positions; beyond the box the edge is repeated."""
        from scipy import ndimage

        index = (points - self.origin_mm[:, None].astype(np.float32)) / np.float32(self.pitch_mm)
        return ndimage.map_coordinates(self.values, index, order=1, mode="nearest")


def random_field(
    rng: np.random.Generator, low_mm: np.ndarray, high_mm: np.ndarray, length_mm: float
) -> RandomField:
    """Draw a field over a box.

    Args:
        rng: Source of randomness.
        low_mm: Lower corner (z, y, x).
        high_mm: Upper corner.
        length_mm: Correlation length (standard deviation of the smoothing kernel).
    """
    from scipy import ndimage

    pitch = min(TABLE_MM, length_mm / 1.2)
    margin = 2 * pitch
    shape = np.ceil((high_mm - low_mm + 2 * margin) / pitch).astype(int) + 1
    values = rng.standard_normal(tuple(shape), dtype=np.float32)
    values = ndimage.gaussian_filter(values, length_mm / pitch, mode="wrap")
    return RandomField(np.asarray(low_mm) - margin, pitch, values / values.std())
