"""An organ's shape, and the body frame that is placed around the organs: skin, spine and lungs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

STEP_MM = 5.0
WALL_MM = 26.0  # organs keep at least this distance from the skin
SKIN_POWER = 2.5  # a cross-section between an ellipse and a box
UPPER = ("liver", "spleen", "stomach", "gallbladder", "left_kidney", "right_kidney")


@dataclass(frozen=True)
class OrganShape:
    """Signed distance to an organ's surface (mm, positive inside) in a box of the map.

    Args:
        origin_mm: Centre of the first voxel (z, y, x): superior, anterior and right positive.
        pitch_mm: Voxel size (z, y, x).
        distance_mm: `(Z, Y, X)` float32.
    """

    origin_mm: np.ndarray
    pitch_mm: np.ndarray
    distance_mm: np.ndarray

    @property
    def lowest_mm(self) -> float:
        """Height z of the organ's first slice."""
        present = np.flatnonzero((self.distance_mm > 0).any(axis=(1, 2)))
        return float(self.origin_mm[0] + self.pitch_mm[0] * present[0])

    def sample(self, points: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance at those points that lie in the box.

        Args:
            points: `(3, N)` positions in the map's millimetres.
            inside: `(N,)` bool scratch space.

        Returns:
            Indices into N, and the distance there; linear between slices, so shapes do not step.
        """
        from scipy import ndimage

        low = self.origin_mm - self.pitch_mm / 2
        high = low + self.pitch_mm * self.distance_mm.shape
        np.logical_and(points[0] >= low[0], points[0] <= high[0], out=inside)
        for axis in (1, 2):
            inside &= (points[axis] >= low[axis]) & (points[axis] <= high[axis])
        chosen = np.flatnonzero(inside)
        index = (points[:, chosen] - self.origin_mm[:, None]) / self.pitch_mm[:, None]
        return chosen, ndimage.map_coordinates(self.distance_mm, index, order=1, mode="nearest")


@dataclass(frozen=True)
class BodyFrame:
    """Curves over z (every `STEP_MM` from 0) and the roof, below which there is no lung, in mm.

    Args:
        spine: `(n, 2)` centre (y, x) of the vertebral bodies.
        half: `(n, 3)` half-axes of the skin (lateral, anterior, posterior) about a centre before the spine.
        crest_mm: Height of the iliac crest.
        top_mm: Upper end of the map.
        roof: `(Y, X)` height of the highest organ in each column, every `STEP_MM` from `roof_origin`.
        roof_origin: (y, x) of the roof's first column.
    """

    spine: np.ndarray
    half: np.ndarray
    crest_mm: float
    top_mm: float
    roof: np.ndarray
    roof_origin: np.ndarray

    forward_mm = 35.0  # the skin's centre lies this far in front of the vertebral bodies

    def along(self, z: np.ndarray, curve: np.ndarray) -> np.ndarray:
        """A column of `spine` or `half` at heights z."""
        return np.interp(z, np.arange(len(curve)) * STEP_MM, curve).astype(np.float32)

    def roof_at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Height of the roof above columns."""
        from scipy import ndimage

        index = np.stack([y - self.roof_origin[0], x - self.roof_origin[1]]) / STEP_MM
        return ndimage.map_coordinates(self.roof, index, order=1, mode="nearest")

    def skin_depth(self, points: np.ndarray) -> np.ndarray:
        """Distance to the skin along the ray from the centre, positive inside."""
        z = points[0]
        v = points[1] - self.along(z, self.spine[:, 0]) - self.forward_mm
        u = points[2] - self.along(z, self.spine[:, 1])
        lateral = self.along(z, self.half[:, 0])
        sagittal = np.where(v > 0, self.along(z, self.half[:, 1]), self.along(z, self.half[:, 2]))
        ratio = (np.abs(u) / lateral) ** SKIN_POWER + (np.abs(v) / sagittal) ** SKIN_POWER
        ratio = np.maximum(ratio, 1e-6) ** (1 / SKIN_POWER)
        length = np.hypot(u, v)
        return np.where(ratio > 1e-2, length / ratio - length, lateral).astype(np.float32)


def build_frame(shapes: Mapping[str, OrganShape], top_mm: float) -> BodyFrame:
    """Place spine, skin and roof around the organs of one map."""
    heights = np.arange(0, top_mm + STEP_MM / 2, STEP_MM)
    spine, crest = _spine(shapes, heights)
    half = _skin(shapes, heights, spine)
    roof, origin = _roof(shapes, top_mm)
    return BodyFrame(spine, half, crest, top_mm, roof, origin)


def _inside(shape: OrganShape) -> np.ndarray:
    """`(N, 3)` positions (z, y, x) of every other voxel inside an organ."""
    index = np.argwhere(shape.distance_mm[:, ::2, ::2] > 0) * (1, 2, 2)
    return shape.origin_mm + index * shape.pitch_mm


def _spine(shapes: Mapping[str, OrganShape], heights: np.ndarray) -> tuple[np.ndarray, float]:
    """Vertebral bodies behind the aorta, midway between it and the vena cava; the sacrum falls back."""
    from scipy.ndimage import gaussian_filter1d

    curves = {}
    for name in ("aorta", "inferior_vena_cava"):
        points = _inside(shapes[name])
        levels = np.unique(points[:, 0])
        centres = np.array([points[points[:, 0] == level].mean(0) for level in levels])
        curves[name] = np.stack([np.interp(heights, levels, centres[:, a]) for a in (1, 2)], axis=1)
    crest = float(_inside(shapes["aorta"])[:, 0].min())  # the aorta divides at the fourth lumbar vertebra
    middle = (curves["aorta"][:, 1] + curves["inferior_vena_cava"][:, 1]) / 2
    middle = 0.5 * middle + 0.5 * middle.mean()
    behind = np.minimum(curves["aorta"][:, 0] - 31, curves["inferior_vena_cava"][:, 0] - 27)
    behind -= 0.35 * np.clip(crest - 25 - heights, 0, 130)
    return gaussian_filter1d(np.stack([behind, middle], axis=1), 5, axis=0, mode="nearest"), crest


def _skin(shapes: Mapping[str, OrganShape], heights: np.ndarray, spine: np.ndarray) -> np.ndarray:
    """Half-axes of a skin that keeps `WALL_MM` from every organ, smooth over z."""
    from scipy.ndimage import gaussian_filter1d, maximum_filter1d

    points = np.concatenate([_inside(shape) for shape in shapes.values()])
    half = np.tile([150.0, 92.0, 105.0], (len(heights), 1))
    row = np.clip(np.round(points[:, 0] / STEP_MM).astype(int), 0, len(heights) - 1)
    v = points[:, 1] - spine[row, 0] - BodyFrame.forward_mm
    u = np.abs(points[:, 2] - spine[row, 1])
    # a rounded box of these half-axes would cut its corners: iterate towards one that holds all
    for _ in range(4):
        axis = half[row]
        sagittal = np.where(v > 0, axis[:, 1], axis[:, 2])
        need = ((u + WALL_MM * u / np.hypot(u, v)) / axis[:, 0]) ** SKIN_POWER
        need += ((np.abs(v) + WALL_MM * np.abs(v) / np.hypot(u, v)) / sagittal) ** SKIN_POWER
        need = need ** (1 / SKIN_POWER)
        grow = np.ones_like(half)
        for column, share in ((0, u / axis[:, 0]), (1, v / axis[:, 1]), (2, -v / axis[:, 2])):
            wide = share > 0.45
            np.maximum.at(grow[:, column], row[wide], need[wide])
        half = half * maximum_filter1d(grow, 13, axis=0, mode="nearest")
    return gaussian_filter1d(half, 5, axis=0, mode="nearest")


def _roof(shapes: Mapping[str, OrganShape], top_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Height of the highest organ in each column, widened and smoothed, for the diaphragm."""
    from scipy.ndimage import gaussian_filter, maximum_filter

    points = np.concatenate([_inside(shapes[n]) for n in UPPER if n in shapes])
    origin = points[:, 1:].min(0) - 60
    index = np.round((points[:, 1:] - origin) / STEP_MM).astype(int)
    roof = np.full(tuple(index.max(0) + 12), top_mm - 110)
    np.maximum.at(roof, (index[:, 0], index[:, 1]), points[:, 0])
    return gaussian_filter(maximum_filter(roof, 3), 1.0), origin
