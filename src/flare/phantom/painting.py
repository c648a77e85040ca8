"""Hounsfield units of organs and tissues by contrast phase, and the scanner's blur and noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flare.phantom.anatomy import PELVIC
from flare.phantom.placement import RandomField
from flare.phantom.plan import CLASS_IDS
from flare.phantom.torso import Tissue

PHASES = ("native", "arterial", "portal")
PELVIC_ID = 20  # in arrays of the generator only; never in a label file

# Mean HU in native, arterial and portal-venous phase, then the spread over patients (standard deviation).
# Ours, round numbers of what radiology textbooks give; neighbours overlap once spread and noise are added.
ORGAN_HU: dict[str, tuple[float, float, float, float]] = {
    "liver": (56, 72, 108, 9),
    "right_kidney": (33, 150, 168, 14),
    "left_kidney": (33, 150, 168, 14),
    "spleen": (48, 112, 118, 9),
    "pancreas": (40, 92, 92, 9),
    "aorta": (42, 290, 150, 20),
    "inferior_vena_cava": (41, 82, 132, 14),
    "right_adrenal_gland": (28, 72, 76, 8),
    "left_adrenal_gland": (28, 72, 76, 8),
    "gallbladder": (9, 10, 12, 6),
    "esophagus": (38, 58, 70, 7),
    "stomach": (36, 58, 66, 7),
    "duodenum": (36, 64, 74, 8),
    PELVIC: (22, 26, 32, 8),
}
TISSUE_HU: dict[Tissue, tuple[float, float, float, float]] = {
    Tissue.AIR: (-1000, -1000, -1000, 0),
    Tissue.FAT: (-104, -102, -100, 5),
    Tissue.MUSCLE: (50, 56, 60, 5),
    Tissue.CORTEX: (430, 430, 430, 50),
    Tissue.MARROW: (170, 175, 180, 30),
    Tissue.DISC: (85, 88, 90, 8),
    Tissue.LUNG: (-830, -820, -810, 25),
    Tissue.HEART: (42, 230, 140, 15),
    Tissue.BOWEL_WALL: (36, 60, 72, 7),
    Tissue.BOWEL_FLUID: (14, 18, 20, 8),
    Tissue.GAS: (-900, -900, -900, 20),
    Tissue.STOOL: (10, 10, 10, 20),
    Tissue.CANAL: (25, 28, 30, 4),
    Tissue.SKIN: (-5, 5, 10, 8),
}


def draw_hu(rng: np.random.Generator, phase: str) -> np.ndarray:
    """Mean HU of this patient for each value of the painted map.

    Args:
        rng: Source of randomness.
        phase: One of `PHASES`.

    Returns:
        `(64,)` float32, indexed by class id, `PELVIC_ID` or `Tissue`.
    """
    table = np.zeros(64, np.float32)
    column = PHASES.index(phase)
    shared = rng.standard_normal()  # how much contrast agent arrived: organs rise and fall together
    numbers = {**CLASS_IDS, PELVIC: PELVIC_ID}
    for name, row in ORGAN_HU.items():
        table[numbers[name]] = row[column] + row[3] * (0.6 * shared + 0.8 * rng.standard_normal())
    for tissue, row in TISSUE_HU.items():
        table[tissue] = row[column] + row[3] * rng.standard_normal()
    # the two kidneys and the two adrenals of a person enhance alike
    table[CLASS_IDS["left_kidney"]] = table[CLASS_IDS["right_kidney"]] + 2 * rng.standard_normal()
    table[CLASS_IDS["left_adrenal_gland"]] = table[CLASS_IDS["right_adrenal_gland"]]
    return table


def paint(
    painted: np.ndarray,
    points: np.ndarray,
    organ_depth: np.ndarray,
    table: np.ndarray,
    fields: Mapping[str, RandomField],
    *,
    phase: str,
    gas_front_mm: float,
) -> np.ndarray:
    """Give each position its HU, before blur and noise.

    Args:
        painted: `(N,)` uint8 class ids, `PELVIC_ID` and `Tissue`.
        points: `(3, N)` positions in the label map (mm).
        organ_depth: `(N,)` depth below the organ's surface (mm).
        table: Mean HU by value.
        fields: `grain`, `vessel_a`, `vessel_b`, `content`.
        phase: Contrast phase.
        gas_front_mm: In the stomach, all in front of this y of the map is gas.

    Returns:
        `(N,)` float32 HU.
    """
    values = table[painted]
    solid = np.flatnonzero((painted != Tissue.AIR) & (painted != Tissue.GAS))
    where = points[:, solid]
    grain = fields["grain"].sample(where)
    rough = np.full(64, 6.0, np.float32)
    rough[[Tissue.STOOL, Tissue.MARROW, Tissue.LUNG]] = (70, 35, 30)
    rough[Tissue.FAT] = 9
    values[solid] += grain * rough[painted[solid]]
    # liver vessels: where two fields are both near zero there is a tube, as bright as the vena cava
    liver = np.flatnonzero((painted == CLASS_IDS["liver"]) & (organ_depth > 6))
    where = points[:, liver]
    tube = np.hypot(fields["vessel_a"].sample(where), fields["vessel_b"].sample(where)) < 0.2
    values[liver[tube]] = 0.25 * table[CLASS_IDS["liver"]] + 0.75 * table[CLASS_IDS["inferior_vena_cava"]]
    _paint_kidneys(values, painted, organ_depth, phase)
    # a wall around food and fluid; the patient lies on the back, so gas lies in front
    lumen = np.flatnonzero((painted == CLASS_IDS["stomach"]) & (organ_depth > 4))
    if len(lumen):
        values[lumen] -= 22 + 8 * fields["content"].sample(points[:, lumen])
        values[lumen[points[1, lumen] > gas_front_mm]] = -880
    for name, depth in (("duodenum", 7.0), ("esophagus", 5.0)):
        values[(painted == CLASS_IDS[name]) & (organ_depth > depth)] -= 25
    return values


def _paint_kidneys(values: np.ndarray, painted: np.ndarray, organ_depth: np.ndarray, phase: str) -> None:
    """Cortex brighter than medulla while the contrast agent passes; fat in the sinus."""
    contrast = {"native": 0.0, "arterial": 28.0, "portal": 7.0}[phase]
    for name in ("left_kidney", "right_kidney"):
        kidney = painted == CLASS_IDS[name]
        values[kidney & (organ_depth < 6)] += contrast
        values[kidney & (organ_depth > 9)] -= contrast
        values[kidney & (organ_depth > 17)] -= 90


def acquire(image: np.ndarray, rng: np.random.Generator, *, blur_vox: float, noise_hu: float) -> None:
    """Blur and noise of a scanner, in place, slice by slice.

    Args:
        image: `(Z, Y, X)` int16 HU.
        rng: Source of randomness.
        blur_vox: In-plane standard deviation of the point spread.
        noise_hu: Standard deviation of the noise in the finished image.
    """
    from scipy import ndimage

    for plane in image:
        blurred = ndimage.gaussian_filter(plane.astype(np.float32), blur_vox)
        noise = rng.standard_normal(plane.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, 0.6)
        blurred += noise * (noise_hu / noise.std())
        plane[:] = np.clip(np.rint(blurred), -1024, 3071)
