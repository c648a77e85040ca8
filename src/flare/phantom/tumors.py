"""Tumors: lobulated masses stamped into image and truth; and the label files that annotators leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.phantom.plan import CLASS_IDS, ORGANS, TUMOR
from flare.phantom.torso import Tissue

OUTSIDE = "outside"
# further hosts, for a tumor that does not fit into its own
SPARE_HOSTS = ("liver", "spleen", "left_kidney", "right_kidney")
SEARCH_MM = 3.0  # grid on which centres are looked for
ATTEMPTS = 6
SOFT_HU = (-140.0, 170.0)  # a tumor displaces soft tissue and fat, not bone, lung or gas
LOWEST_HU = 3.0  # of a tumor: lower values would look like fat
ADRIFT = Tissue.FAT  # tumors outside organs start here


@dataclass
class Canvas:
    """What tumors are stamped into, all `(Z, Y, X)` in RAS order.

    Args:
        labels: uint8 class ids, 0 outside the organs.
        tissue: uint8 as painted: class ids, and tissues elsewhere.
        image: int16 HU, before blur and noise.
        spacing_mm: Voxel size (z, y, x).
        table: Mean HU by painted value.
    """

    labels: np.ndarray
    tissue: np.ndarray
    image: np.ndarray
    spacing_mm: np.ndarray
    table: np.ndarray


def stamp_tumor(canvas: Canvas, rng: np.random.Generator, wanted: dict[str, Any]) -> dict[str, Any]:
    """Put one tumor into the canvas.

    Args:
        canvas: Changed in place.
        rng: Source of randomness.
        wanted: `host`, `diameter_mm`, `contrast_hu` (below its host; 0: iso-dense), `minimum_mm`.

    Returns:
        What was made: `host`, `diameter_mm` (of the ball of the same volume), `contrast_hu`, `voxels`; voxels
        is 0 if it fits nowhere.
    """
    hosts = [wanted["host"], *(h for h in SPARE_HOSTS if h != wanted["host"])]
    best: tuple[float, Any, str] = (0.0, None, "")
    for host in hosts if wanted["minimum_mm"] > 0 else hosts[:1]:
        depth, low = _depth(canvas, host)
        for _ in range(ATTEMPTS if depth is not None else 0):
            box, mask = _grow(canvas, rng, host, depth, low, wanted["diameter_mm"] / 2)
            diameter = _ball_diameter(int(mask.sum()), canvas.spacing_mm)
            if diameter > best[0]:
                best = (diameter, (box, mask), host)
            if diameter >= max(wanted["minimum_mm"], 0.75 * wanted["diameter_mm"]):
                break
        if best[1] is not None and best[0] >= wanted["minimum_mm"]:
            break
    diameter, place, host = best
    if place is None:
        return {"host": host, "diameter_mm": 0.0, "contrast_hu": wanted["contrast_hu"], "voxels": 0}
    box, mask = place
    base = canvas.table[CLASS_IDS[host]] if host != OUTSIDE else canvas.table[Tissue.MUSCLE] + 30
    contrast = min(wanted["contrast_hu"], float(base) - LOWEST_HU)
    core = base - contrast + rng.normal(0, 5, mask.shape)
    canvas.image[box][mask] = np.rint(core[mask])
    canvas.labels[box][mask] = CLASS_IDS[TUMOR]
    return {
        "host": host,
        "diameter_mm": round(diameter, 1),
        "contrast_hu": round(contrast, 1),
        "voxels": int(mask.sum()),
    }


def _ball_diameter(voxels: int, spacing_mm: np.ndarray) -> float:
    """Diameter (mm) of the ball that has the volume of so many voxels."""
    return float((6 * voxels * spacing_mm.prod() / np.pi) ** (1 / 3))


def _depth(canvas: Canvas, host: str) -> tuple[Any, Any]:
    """Distance (mm) to the host's surface on a coarse grid, and the first voxel of that grid."""
    import edt
    from scipy import ndimage

    step = np.maximum(1, np.round(SEARCH_MM / canvas.spacing_mm)).astype(int)
    coarse = tuple(slice(None, None, int(s)) for s in step)
    if host == OUTSIDE:
        mask = (canvas.tissue[coarse] == ADRIFT) & (canvas.labels[coarse] == 0)
        mask = ndimage.binary_erosion(mask, iterations=2)
    else:
        mask = canvas.labels[coarse] == CLASS_IDS[host]
    if mask.sum() < 8:
        return None, None
    # a border counts as surface: the tumor shall lie inside the field of view
    return edt.edt(mask, anisotropy=tuple(map(float, canvas.spacing_mm * step)), black_border=True), step


def _grow(
    canvas: Canvas, rng: np.random.Generator, host: str, depth: np.ndarray, step: np.ndarray, radius: float
) -> tuple[tuple[slice, ...], np.ndarray]:
    """One attempt: a centre deep enough, and the voxels of a lobulated ellipsoid about it."""
    deep = np.argwhere(depth >= min(0.8 * radius, 0.75 * depth.max()))
    centre = deep[rng.integers(len(deep))] * step
    if host != OUTSIDE:
        radius = min(radius, 1.3 * float(depth.max()))
    half = np.ceil(1.5 * radius / canvas.spacing_mm).astype(int)
    start = np.maximum(centre - half, 0)
    stop = np.minimum(centre + half + 1, canvas.labels.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    grid = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1)
    axes = rng.uniform(0.8, 1.25, 3)  # relative half-axes of the ellipsoid, brought to unit volume
    offset = (grid - centre) * canvas.spacing_mm / (radius * (axes / axes.prod() ** (1 / 3)))
    length = np.linalg.norm(offset, axis=-1)
    unit = offset / np.maximum(length, 1e-6)[..., None]
    surface = np.ones(length.shape)
    for _ in range(4):
        surface += 0.07 * np.cos(unit @ rng.normal(0, 2.5, 3) + rng.uniform(0, 2 * np.pi))
    labels, image = canvas.labels[box], canvas.image[box]
    free = (labels == 0) & (image > SOFT_HU[0]) & (image < SOFT_HU[1])
    own = labels == CLASS_IDS[host] if host != OUTSIDE else free
    # gas in a hollow organ stays gas; what bulges out displaces soft tissue
    allowed = (own & (image > SOFT_HU[0])) | free
    return box, (length <= surface) & allowed


def annotate(
    truth: np.ndarray, whole: np.ndarray, hosts: Sequence[str], spec: Mapping[str, Any]
) -> np.ndarray:
    """Make the label file of a case.

    Args:
        truth: `(Z, Y, X)` uint8, all classes.
        whole: The same before tumors were put in.
        hosts: Organs that bear a tumor.
        spec: `organ_order`, all organs, those preferred first; `organ_count`, how many the annotators drew,
            where the style leaves a choice; `style`: `complete`, all that is there; `tumor_only`;
            `tumor_with_host`, the tumor, its organ without the tumor's voxels and a few others;
            `tumor_with_others`, the tumor and organs that bear none; `some_organs`, where the tumor is in no
            class; `some_organs_filled`, drawn whole, over the tumor.

    Returns:
        `(Z, Y, X)` uint8.
    """
    style, count = spec["style"], spec["organ_count"]
    if style == "complete":
        return truth
    others = [name for name in spec["organ_order"] if name not in hosts]
    bearing = [name for name in ORGANS if name in hosts]
    organs = {
        "tumor_only": [TUMOR],
        "tumor_with_host": [*bearing, *others[:count], TUMOR],
        "tumor_with_others": [*others[:count], TUMOR],
    }.get(style, [*bearing, *others][:count])
    source = whole if style == "some_organs_filled" else truth
    return np.where(np.isin(source, [CLASS_IDS[name] for name in organs]), source, 0).astype(np.uint8)
