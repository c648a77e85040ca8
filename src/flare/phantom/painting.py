"""A patient in Hounsfield units: a body of simple shapes around the organs, and the look of each tissue."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from flare.core.files import read_csv
from flare.phantom.anatomy import PELVIC, Anatomy, Field
from flare.phantom.plan import CLASS_IDS

Fields = Mapping[str, Field]
# what is painted outside the organs; the values are no class ids
Tissue = IntEnum(
    "Tissue",
    "AIR FAT MUSCLE CORTEX MARROW DISC LUNG HEART BOWEL_WALL BOWEL_FLUID GAS STOOL CANAL SKIN",
    start=30,
)
PELVIC_ID = 20  # in arrays of the generator only; never in a label file
NUMBERS = {**CLASS_IDS, PELVIC: PELVIC_ID, **Tissue.__members__}
FIELD_LENGTHS_MM = {
    "bowel": 9.0, "content": 16.0, "wall": 35.0, "grain": 4.5, "vessel_a": 8.0, "vessel_b": 8.0,
}  # fmt: skip
VERTEBRA_MM = 34.0  # height of a vertebra and its disc
RIB_MM = 27.0
# Mean HU of organs and tissues by contrast phase, then the spread over patients (standard deviation). Ours,
# round numbers of what radiology textbooks give; neighbours overlap once spread and noise are added.
HU = read_csv(Path(__file__).parent / "hu.csv")


@dataclass(frozen=True)
class _Inside:
    """Where `(N,)` positions inside the skin lie (mm); distances are negative outside."""

    anatomy: Anatomy
    points: np.ndarray  # (3, N)
    u: np.ndarray  # to the right of the spine
    v: np.ndarray  # in front of it
    side: np.ndarray  # |u|
    inner: np.ndarray  # distance to the muscle wall's inner side
    organ_depth: np.ndarray  # distance to the nearest organ


def paint(
    points: np.ndarray, anatomy: Anatomy, fields: Fields, table: np.ndarray, spec: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Say what lies at `(3, N)` positions in the label map (mm, RAS), and its HU before blur and noise.

    There is a field over the map of each name in `FIELD_LENGTHS_MM`; the table is as of `draw_hu`. `fat_mm`
    and `wall_mm` are the thickness of subcutaneous fat and of the muscle wall, `bowel_gas` and `stomach_gas`
    the shares that hold gas. Gives `(N,)` uint8 class ids, `PELVIC_ID` and `Tissue`, and `(N,)` float32 HU.
    """
    organs, depth = anatomy.sample_organs(points, NUMBERS)
    painted = np.where(organs > 0, organs, _paint_body(points, depth, anatomy, fields, spec))
    values = table[painted]
    solid = np.flatnonzero((painted != Tissue.AIR) & (painted != Tissue.GAS))
    rough = np.full(64, 6.0, np.float32)
    rough[[Tissue.STOOL, Tissue.MARROW, Tissue.LUNG, Tissue.FAT]] = (70, 35, 30, 9)
    values[solid] += fields["grain"].sample(points[:, solid]) * rough[painted[solid]]
    # liver vessels: where two fields are both near zero there is a tube, as bright as the vena cava
    liver = np.flatnonzero((painted == CLASS_IDS["liver"]) & (depth > 6))
    where = points[:, liver]
    tube = np.hypot(fields["vessel_a"].sample(where), fields["vessel_b"].sample(where)) < 0.2
    values[liver[tube]] = 0.25 * table[CLASS_IDS["liver"]] + 0.75 * table[CLASS_IDS["inferior_vena_cava"]]
    # the kidney's cortex is brighter than its medulla while the contrast agent passes; fat in the sinus
    contrast = {"native": 0.0, "arterial": 28.0, "portal": 7.0}[spec["phase"]]
    for name in ("left_kidney", "right_kidney"):
        kidney = painted == CLASS_IDS[name]
        values[kidney & (depth < 6)] += contrast
        values[kidney & (depth > 9)] -= contrast
        values[kidney & (depth > 17)] -= 90
    # a wall around food and fluid; the patient lies on the back, so gas lies in front
    lumen = np.flatnonzero((painted == CLASS_IDS["stomach"]) & (depth > 4))
    values[lumen] -= 22 + 8 * fields["content"].sample(points[:, lumen])
    values[lumen[points[1, lumen] > anatomy.front_mm("stomach", spec["stomach_gas"])]] = -880
    for name, wall in (("duodenum", 7.0), ("esophagus", 5.0)):
        values[(painted == CLASS_IDS[name]) & (depth > wall)] -= 25
    return painted, values


def _paint_body(
    points: np.ndarray, organ_depth: np.ndarray, anatomy: Anatomy, fields: Fields, spec: Mapping[str, Any]
) -> np.ndarray:
    """Give each position outside the organs its tissue."""
    depth = anatomy.skin_depth(points)
    tissue = np.full(points.shape[1], Tissue.AIR, np.uint8)
    inside = np.flatnonzero(depth > 0)
    points, depth = points[:, inside], depth[inside]
    v, u = anatomy.from_spine(points)
    wall = fields["wall"].sample(points)
    fat = spec["fat_mm"] * (1 + 0.18 * wall) * np.where(v < -20, 0.75, 1.0)
    inner = depth - fat - spec["wall_mm"] * (1 + 0.12 * wall)
    at = _Inside(anatomy, points, u, v, np.abs(u), inner, organ_depth[inside])
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


def _paint_muscles(body: np.ndarray, at: _Inside) -> None:
    """Back muscles, quadratus, and the psoas, which thickens downwards."""
    z, side, v, crest = at.points[0], at.side, at.v, at.anatomy.crest_mm
    grown = np.clip((crest + 120 - z) / 100, 0.05, 1).astype(np.float32)
    body[_ellipse(side - 30, v + 42, 27, 19) < 1] = Tissue.MUSCLE
    body[_ellipse((side - 24 - 14 * grown) / grown, (v - 1) / grown, 17, 21) < 1] = Tissue.MUSCLE
    quadratus = (z < crest + 90) & (z > crest - 30)
    body[quadratus & (_ellipse(side - 62, v + 20, 17, 10) < 1)] = Tissue.MUSCLE


def _paint_spine(body: np.ndarray, at: _Inside) -> None:
    """Vertebral bodies with discs, canal, arch, transverse and spinous processes."""
    z, u, v, side, crest = at.points[0], at.u, at.v, at.side, at.anatomy.crest_mm
    level = np.mod(z / VERTEBRA_MM, 1)
    widen = 1 + np.clip((crest - 35 - z) / 45, 0, 1)  # the sacrum
    radius = _ellipse(u / widen.astype(np.float32), v, 22.5, 17)
    disc = (level < 0.22) & (z > crest - 40)
    body[radius < 1] = Tissue.CORTEX
    body[radius < 0.78] = Tissue.MARROW
    body[(radius < 1) & disc] = Tissue.DISC
    ring = _ellipse(u, v + 26, 14, 13)
    body[(ring < 1) & ((level > 0.35) | (v > -26))] = Tissue.CORTEX
    body[(side < 4) & (v < -36) & (v > -60) & (level > 0.4) & (level < 0.9)] = Tissue.CORTEX
    body[(side < 40) & (side > 10) & (np.abs(v + 22) < 4) & (level > 0.5) & (level < 0.75)] = Tissue.CORTEX
    body[ring < 0.42] = Tissue.CANAL


def _paint_chest(body: np.ndarray, at: _Inside) -> None:
    """Lung bases above the diaphragm, the heart's lower surface, and ribs in the wall."""
    z, u, v, side, inner, top = at.points[0], at.u, at.v, at.side, at.inner, at.anatomy.top_mm
    # the pleural recess reaches deepest behind
    recess = top - 30 - 60 * np.clip((60 - v) / 100, 0, 1)
    above = (inner > 0) & (z > at.anatomy.roof.sample(at.points[1:]) + 4) & (z > recess)
    mediastinum = (side < 32) & (v > -12) & (v < 75)
    lung = above & ~mediastinum
    body[lung] = np.where(at.organ_depth[lung] > -4, Tissue.MUSCLE, Tissue.LUNG)
    heart = _ellipse(u + 28, v - 95, 52, 45) + ((z - top - 15) / 45) ** 2
    body[above & (heart < 1.12)] = Tissue.FAT
    body[above & (heart < 1)] = Tissue.HEART
    arc = np.arctan2(side, -(v - 30)) * 150  # along the wall from the back
    cycle = np.mod((z + 0.45 * arc) / RIB_MM, 1)
    band = np.abs(inner + 4.5)
    rib = (band < 4.5) & (cycle < 0.42) & (arc > 40) & (z > top - 175 + 0.2 * arc)
    hollow = (band < 2.2) & (cycle > 0.1) & (cycle < 0.32)
    body[rib] = np.where(arc[rib] > 330, Tissue.DISC, np.where(hollow[rib], Tissue.MARROW, Tissue.CORTEX))


def _paint_pelvis(body: np.ndarray, at: _Inside) -> None:
    """Iliac wings with muscle on both faces, hip joints below."""
    side, v, inner = at.side, at.v, at.inner
    below = at.anatomy.crest_mm - 5 - at.points[0]
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


def _paint_bowel(body: np.ndarray, at: _Inside, fields: Fields, bowel_gas: float) -> None:
    """Small-bowel loops where a field is high, the colon at both flanks; gas rises to the front."""
    top = at.anatomy.top_mm
    room = (at.inner > 4) & (at.organ_depth < -2.5) & (at.v > 12) & (at.points[0] < top - 60)
    chosen = np.flatnonzero(room)
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


def draw_hu(rng: np.random.Generator, phase: str) -> np.ndarray:
    """Mean HU of this patient for each painted value, `(64,)` float32: class ids, `PELVIC_ID`, `Tissue`."""
    table = np.zeros(64, np.float32)
    shared = rng.standard_normal()  # how much contrast agent arrived: organs rise and fall together
    for row in HU:
        number, drawn = NUMBERS[row["painted"]], rng.standard_normal()
        if number <= PELVIC_ID:
            drawn = 0.6 * shared + 0.8 * drawn
        table[number] = float(row[phase]) + float(row["spread"]) * drawn
    # the two kidneys and the two adrenals of a person enhance alike
    table[CLASS_IDS["left_kidney"]] = table[CLASS_IDS["right_kidney"]] + 2 * rng.standard_normal()
    table[CLASS_IDS["left_adrenal_gland"]] = table[CLASS_IDS["right_adrenal_gland"]]
    return table


def acquire(image: np.ndarray, rng: np.random.Generator, *, blur_vox: float, noise_hu: float) -> None:
    """Blur and noise (standard deviations) of a scanner, slice by slice, in place; `(Z, Y, X)` int16 HU."""
    for plane in image:
        blurred = ndimage.gaussian_filter(plane.astype(np.float32), blur_vox)
        noise = rng.standard_normal(plane.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, 0.6)
        blurred += noise * (noise_hu / noise.std())
        plane[:] = np.clip(np.rint(blurred), -1024, 3071)
