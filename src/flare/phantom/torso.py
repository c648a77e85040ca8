"""The body around the organs: skin, fat, muscle, bones, lungs, heart, bowel, in simple shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from flare.phantom.frame import BodyFrame
from flare.phantom.placement import RandomField

# what is painted outside the organs; the values are no class ids
Tissue = IntEnum(
    "Tissue",
    "AIR FAT MUSCLE CORTEX MARROW DISC LUNG HEART BOWEL_WALL BOWEL_FLUID GAS STOOL CANAL SKIN",
    start=30,
)
VERTEBRA_MM = 34.0  # height of a vertebra and its disc
RIB_MM = 27.0


@dataclass(frozen=True)
class Inside:
    """Where positions inside the skin lie (mm), `(N,)` each but for `points`.

    Args:
        points: `(3, N)` in the label map, z y x.
        u: To the right of the spine.
        v: In front of the spine.
        inner: Distance to the muscle wall's inner side, negative outside.
        organ_depth: Distance to the nearest organ, negative outside.
        frame: The person's frame.
    """

    points: np.ndarray
    u: np.ndarray
    v: np.ndarray
    inner: np.ndarray
    organ_depth: np.ndarray
    frame: BodyFrame

    @property
    def z(self) -> np.ndarray:
        """Height."""
        return self.points[0]

    @property
    def side(self) -> np.ndarray:
        """Distance from the middle."""
        return np.abs(self.u)


def paint_body(
    points: np.ndarray,
    organ_depth: np.ndarray,
    frame: BodyFrame,
    fields: Mapping[str, RandomField],
    spec: Mapping[str, Any],
) -> np.ndarray:
    """Give each position outside the organs its tissue.

    Args:
        points: `(3, N)` positions in the label map (mm, RAS).
        organ_depth: `(N,)` distance to the nearest organ, negative outside.
        frame: The person's frame.
        fields: `bowel`, `content` and `wall` fields over the map.
        spec: `fat_mm` and `wall_mm`, thickness of subcutaneous fat and of the muscle wall; `bowel_gas`, the
            share of the bowel that holds gas.

    Returns:
        `(N,)` uint8 `Tissue`.
    """
    depth = frame.skin_depth(points)
    tissue = np.full(points.shape[1], Tissue.AIR, np.uint8)
    inside = np.flatnonzero(depth > 0)
    points, depth = points[:, inside], depth[inside]
    v = points[1] - frame.along(points[0], frame.spine[:, 0])
    u = points[2] - frame.along(points[0], frame.spine[:, 1])
    wall = fields["wall"].sample(points)
    fat = spec["fat_mm"] * (1 + 0.18 * wall) * np.where(v < -20, 0.75, 1.0)
    inner = depth - fat - spec["wall_mm"] * (1 + 0.12 * wall)
    at = Inside(points, u, v, inner, organ_depth[inside], frame)
    body = np.full(len(inside), Tissue.FAT, np.uint8)
    body[(depth > fat) & (inner < 0)] = Tissue.MUSCLE
    _paint_bowel(body, at, fields, spec["bowel_gas"])
    _paint_muscles(body, at)
    _paint_chest(body, at)
    _paint_pelvis(body, at)
    _paint_spine(body, at)
    body[depth < 2] = Tissue.SKIN
    tissue[inside] = body
    return tissue


def _ellipse(a: np.ndarray, b: np.ndarray, half_a: float, half_b: float) -> np.ndarray:
    """Squared elliptical radius: below 1 inside."""
    return (a / np.float32(half_a)) ** 2 + (b / np.float32(half_b)) ** 2


def _paint_muscles(body: np.ndarray, at: Inside) -> None:
    """Back muscles, quadratus, and the psoas, which thickens downwards."""
    z, side, v, frame = at.z, at.side, at.v, at.frame
    grown = np.clip((frame.crest_mm + 120 - z) / 100, 0.05, 1).astype(np.float32)
    body[_ellipse(side - 30, v + 42, 27, 19) < 1] = Tissue.MUSCLE
    body[_ellipse((side - 24 - 14 * grown) / grown, (v - 1) / grown, 17, 21) < 1] = Tissue.MUSCLE
    quadratus = (z < frame.crest_mm + 90) & (z > frame.crest_mm - 30)
    body[quadratus & (_ellipse(side - 62, v + 20, 17, 10) < 1)] = Tissue.MUSCLE


def _paint_spine(body: np.ndarray, at: Inside) -> None:
    """Vertebral bodies with discs, canal, arch, transverse and spinous processes."""
    z, u, v, side, frame = at.z, at.u, at.v, at.side, at.frame
    level = np.mod(z / VERTEBRA_MM, 1)
    widen = 1 + np.clip((frame.crest_mm - 35 - z) / 45, 0, 1)  # the sacrum
    radius = _ellipse(u / widen.astype(np.float32), v, 22.5, 17)
    disc = (level < 0.22) & (z > frame.crest_mm - 40)
    body[radius < 1] = Tissue.CORTEX
    body[radius < 0.78] = Tissue.MARROW
    body[(radius < 1) & disc] = Tissue.DISC
    ring = _ellipse(u, v + 26, 14, 13)
    body[(ring < 1) & ((level > 0.35) | (v > -26))] = Tissue.CORTEX
    body[(side < 4) & (v < -36) & (v > -60) & (level > 0.4) & (level < 0.9)] = Tissue.CORTEX
    body[(side < 40) & (side > 10) & (np.abs(v + 22) < 4) & (level > 0.5) & (level < 0.75)] = Tissue.CORTEX
    body[ring < 0.42] = Tissue.CANAL


def _paint_chest(body: np.ndarray, at: Inside) -> None:
    """Lung bases above the diaphragm, the heart's lower surface, and ribs in the wall."""
    z, u, v, side, inner, frame = at.z, at.u, at.v, at.side, at.inner, at.frame
    roof = frame.roof_at(at.points[1], at.points[2])
    # the pleural recess reaches deepest behind
    recess = frame.top_mm - 30 - 60 * np.clip((60 - v) / 100, 0, 1)
    above = (inner > 0) & (z > roof + 4) & (z > recess)
    mediastinum = (side < 32) & (v > -12) & (v < 75)
    lung = above & ~mediastinum
    body[lung] = np.where(at.organ_depth[lung] > -4, Tissue.MUSCLE, Tissue.LUNG)
    heart = _ellipse(u + 28, v - 95, 52, 45) + ((z - frame.top_mm - 15) / 45) ** 2
    body[above & (heart < 1.12)] = Tissue.FAT
    body[above & (heart < 1)] = Tissue.HEART
    arc = np.arctan2(side, -(v - 30)) * 150  # along the wall from the back
    cycle = np.mod((z + 0.45 * arc) / RIB_MM, 1)
    band = np.abs(inner + 4.5)
    rib = (band < 4.5) & (cycle < 0.42) & (arc > 40) & (z > frame.top_mm - 175 + 0.2 * arc)
    hollow = (band < 2.2) & (cycle > 0.1) & (cycle < 0.32)
    body[rib] = np.where(arc[rib] > 330, Tissue.DISC, np.where(hollow[rib], Tissue.MARROW, Tissue.CORTEX))


def _paint_pelvis(body: np.ndarray, at: Inside) -> None:
    """Iliac wings with muscle on both faces, hip joints below."""
    side, v, inner = at.side, at.v, at.inner
    below = at.frame.crest_mm - 5 - at.z
    if not (below > 0).any():
        return
    reach = np.clip(below / 45, 0, 1)
    start, end = np.array([42.0, -38.0]), np.array([118.0, 52.0])
    along = end - start
    t = np.clip(((side - start[0]) * along[0] + (v - start[1]) * along[1]) / (along @ along), 0, 1)
    t = np.clip(t, 0.55 - 0.55 * reach, 0.55 + 0.45 * reach)
    bow = 14 * np.sin(np.pi * t)
    distance = np.hypot(side - start[0] - t * along[0] - 0.7 * bow, v - start[1] - t * along[1] + 0.7 * bow)
    wing = (below > 0) & (below < 110)
    body[wing & (distance < 17)] = Tissue.MUSCLE
    body[(below > 20) & (inner > -6) & (side > 88) & (v < 60)] = Tissue.MUSCLE
    body[wing & (distance < 5)] = Tissue.CORTEX
    body[wing & (distance < 2.5)] = Tissue.MARROW
    joint = np.sqrt((side - 92) ** 2 + (v - 25) ** 2 + (below - 128) ** 2)
    body[joint < 36] = Tissue.CORTEX
    body[joint < 31] = Tissue.MUSCLE
    body[joint < 25] = Tissue.CORTEX
    body[joint < 22] = Tissue.MARROW


def _paint_bowel(body: np.ndarray, at: Inside, fields: Mapping[str, RandomField], bowel_gas: float) -> None:
    """Small-bowel loops where a field is high, the colon at both flanks; gas rises to the front."""
    top = at.frame.top_mm
    room = (at.inner > 4) & (at.organ_depth < -2.5) & (at.v > 12) & (at.z < top - 60)
    chosen = np.flatnonzero(room)
    if not len(chosen):
        return
    where, v = at.points[:, chosen], at.v[chosen]
    loops = fields["bowel"].sample(where) + 0.25
    content = fields["content"].sample(where)
    # depth inside the colon: a tube along the inner wall whose width follows the field
    flank = (at.side[chosen] > 70) & (v < 75) & (where[0] < top - 95)
    colon = np.where(flank, 19 + 3 * content - np.hypot(at.inner[chosen] - 24, v - 38), -1)
    kind = np.full(len(chosen), Tissue.FAT, np.uint8)
    kind[loops > 0.35] = Tissue.BOWEL_WALL
    filled = loops > 0.62
    kind[filled] = Tissue.BOWEL_FLUID
    gas_level = 2.2 - 2.6 * bowel_gas - 0.012 * (v - 50)
    kind[filled & (content > gas_level)] = Tissue.GAS
    kind[colon > 0] = Tissue.BOWEL_WALL
    kind[colon > 3] = np.where(content[colon > 3] > 0.8 - bowel_gas, Tissue.GAS, Tissue.STOOL)
    body[chosen] = kind
