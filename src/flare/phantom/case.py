"""One case of the cohort: painted slab by slab, tumors stamped in, scanned, annotated, written."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edt
import numpy as np
from scipy import ndimage

from flare.core.geometry import Geometry, orientation_to
from flare.core.volumes import write_image, write_labels
from flare.phantom.anatomy import Anatomy, load_anatomy
from flare.phantom.painting import FIELD_LENGTHS_MM, PELVIC_ID, Tissue, acquire, draw_hu, paint
from flare.phantom.placement import Warp, draw_warp, lay_out, random_field, room_positions
from flare.phantom.plan import CLASS_IDS, ORGANS, OUTSIDE, TUMOR, case_files

SLAB_VOXELS = 1_500_000  # positions held at once; bounds memory whatever the matrix
# where an index axis runs to, in LPS
DIRECTIONS = {
    "L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1),
}  # fmt: skip
# further hosts, for a tumor that does not fit into its own
SPARE_HOSTS = ("liver", "spleen", "left_kidney", "right_kidney")
SEARCH_MM = 3.0  # grid on which centres are looked for
ATTEMPTS = 6
SOFT_HU = (-140.0, 170.0)  # a tumor displaces soft tissue and fat, not bone, lung or gas
LOWEST_HU = 3.0  # of a tumor: lower values would look like fat


@dataclass
class Canvas:
    """What tumors are stamped into, all `(Z, Y, X)` in RAS order."""

    labels: np.ndarray  # uint8 class ids, 0 outside the organs
    tissue: np.ndarray  # uint8 as painted: class ids, and tissues elsewhere
    image: np.ndarray  # int16 HU, before blur and noise
    spacing_mm: np.ndarray  # voxel size (z, y, x)
    table: np.ndarray  # mean HU by painted value


def generate_case(root: str, case_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Make one case in `root` as `plan_cohort` draws it, write its files and tell what was put in."""
    canvas, whole, geometry, found = draw_case(spec)
    order = orientation_to(geometry, np.transpose([DIRECTIONS[letter] for letter in spec["voxel_order"]]))
    stored = order.apply_geometry(geometry)
    files = case_files(Path(root), case_id, spec["kind"])
    write_image(files["image"], order.apply(canvas.image), stored)
    if "truth" in files:
        write_labels(files["truth"], order.apply(canvas.labels), stored)
    if "label" in files:
        hosts = {tumor["host"] for tumor in found if tumor["voxels"]}
        write_labels(files["label"], order.apply(annotate(canvas.labels, whole, hosts, spec)), stored)
    return {
        **{key: spec[key] for key in ("kind", "phase", "voxel_order", "style", "seed")},
        "anatomy": Path(spec["anatomy"]).name,
        "tilted": any(spec["tilt_degrees"]),
        "tumors": found,
    }


def draw_case(spec: Mapping[str, Any]) -> tuple[Canvas, np.ndarray, Geometry, list[dict[str, Any]]]:
    """Make one case in memory, RAS but for a tilt: its canvas, labels before tumors, grid, and tumors."""
    rng = np.random.default_rng(spec["seed"])
    anatomy, warp, geometry = place(rng, spec)
    canvas = _paint(rng, anatomy, warp, geometry, spec)
    whole = canvas.labels.copy()
    found = [stamp_tumor(canvas, rng, wanted) for wanted in spec["tumors"]]
    acquire(canvas.image, rng, blur_vox=spec["blur_vox"], noise_hu=spec["noise_hu"])
    return canvas, whole, geometry, found


def place(rng: np.random.Generator, spec: Mapping[str, Any]) -> tuple[Anatomy, Warp, Geometry]:
    """Give a case's anatomy, its warp and the scanner's grid."""
    # a name alone is one of the shipped maps
    path = spec["anatomy"] if "/" in spec["anatomy"] else Path(__file__).parent / "maps" / spec["anatomy"]
    anatomy = load_anatomy(str(path), spec["numbering"])
    warp = draw_warp(rng, anatomy, deformation_mm=spec["deformation_mm"])
    return anatomy, warp, lay_out(anatomy, warp, spec)


def _paint(
    rng: np.random.Generator, anatomy: Anatomy, warp: Warp, geometry: Geometry, spec: Mapping[str, Any]
) -> Canvas:
    """Organs, body and HU, slab by slab."""
    table = draw_hu(rng, spec["phase"])
    # these live in the map's space and warp with the patient
    centre = np.array([anatomy.top_mm / 2, *anatomy.spine.mean(0)])
    reach = np.array([anatomy.top_mm / 2 + 30, 200, 230])
    fields = {name: random_field(rng, centre, reach, length) for name, length in FIELD_LENGTHS_MM.items()}
    labels, tissue, image = (np.empty(geometry.shape, kind) for kind in (np.uint8, np.uint8, np.int16))
    canvas = Canvas(labels, tissue, image, np.asarray(geometry.spacing_mm), table)
    step = max(1, SLAB_VOXELS // (geometry.shape[1] * geometry.shape[2]))
    for start in range(0, geometry.shape[0], step):
        slab = slice(start, min(start + step, geometry.shape[0]))
        room = room_positions(geometry, slab.start, slab.stop)
        painted, values = paint(warp.to_map(room), anatomy, fields, canvas.table, spec)
        _paint_table(values, painted, room, warp, anatomy)
        shape = canvas.image[slab].shape
        canvas.labels[slab] = np.where(painted < PELVIC_ID, painted, 0).reshape(shape)
        canvas.tissue[slab] = painted.reshape(shape)
        canvas.image[slab] = np.rint(values).reshape(shape)
    return canvas


def _paint_table(
    values: np.ndarray, painted: np.ndarray, room: np.ndarray, warp: Warp, anatomy: Anatomy
) -> None:
    """A hollow, slightly curved table under the back; it belongs to the scanner and is not warped."""
    air = np.flatnonzero(painted == Tissue.AIR)
    back = float(anatomy.half[:, 2].max()) / warp.matrix[1, 1]
    across = room[2, air] - warp.room_centre[2]
    below = warp.room_centre[1] - back - 2 + 0.0006 * across**2 - room[1, air]
    slab = (below > 0) & (below < 16) & (np.abs(across) < 215)
    shell = (below < 3.5) | (below > 12.5) | (np.abs(across) > 211)
    values[air[slab & shell]] = 60
    values[air[slab & ~shell]] = -920


def stamp_tumor(canvas: Canvas, rng: np.random.Generator, wanted: dict[str, Any]) -> dict[str, Any]:
    """Put a tumor into the canvas, in place: `wanted` are `host`, `diameter_mm`, `contrast_hu`, `minimum_mm`.

    Tells what was made: `host`, `diameter_mm` (of the ball of the same volume), `contrast_hu` (below its
    host; 0: iso-dense), `voxels`; voxels is 0 if it fits nowhere.
    """
    hosts = [wanted["host"], *(h for h in SPARE_HOSTS if h != wanted["host"])]
    best: tuple[float, Any, str] = (0.0, None, "")
    for host in hosts if wanted["minimum_mm"] > 0 else hosts[:1]:
        depth, low = _depth(canvas, host)
        for _ in range(ATTEMPTS if depth is not None else 0):
            box, mask = _grow(canvas, rng, host, depth, low, wanted["diameter_mm"] / 2)
            # of the ball of the same volume
            diameter = float((6 * int(mask.sum()) * canvas.spacing_mm.prod() / np.pi) ** (1 / 3))
            if diameter > best[0]:
                best = (diameter, (box, mask), host)
            if diameter >= max(wanted["minimum_mm"], 0.75 * wanted["diameter_mm"]):
                break
        if best[1] is not None and best[0] >= wanted["minimum_mm"]:
            break
    diameter, chosen, host = best
    contrast = wanted["contrast_hu"]
    found = {"host": host, "diameter_mm": round(diameter, 1), "contrast_hu": contrast, "voxels": 0}
    if chosen is None:
        return found
    box, mask = chosen
    base = canvas.table[CLASS_IDS[host]] if host != OUTSIDE else canvas.table[Tissue.MUSCLE] + 30
    contrast = min(contrast, float(base) - LOWEST_HU)
    core = base - contrast + rng.normal(0, 5, mask.shape)
    canvas.image[box][mask] = np.rint(core[mask])
    canvas.labels[box][mask] = CLASS_IDS[TUMOR]
    return found | {"contrast_hu": round(contrast, 1), "voxels": int(mask.sum())}


def _depth(canvas: Canvas, host: str) -> tuple[Any, Any]:
    """Distance (mm) to the host's surface on a coarse grid, and the first voxel of that grid."""
    step = np.maximum(1, np.round(SEARCH_MM / canvas.spacing_mm)).astype(int)
    coarse = tuple(slice(None, None, int(s)) for s in step)
    if host == OUTSIDE:
        mask = (canvas.tissue[coarse] == Tissue.FAT) & (canvas.labels[coarse] == 0)
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


def annotate(truth: np.ndarray, whole: np.ndarray, hosts: Set[str], spec: Mapping[str, Any]) -> np.ndarray:
    """Make the label file of a case, `(Z, Y, X)` uint8, from all its classes; `hosts` bear its tumors.

    `whole` is the truth before tumors were put in. `organ_order` lists all organs, those preferred first,
    `organ_count` is how many the annotators drew, where the style leaves a choice; `style` is `complete`, all
    that is there; `tumor_only`; `tumor_with_host`, the tumor, its organ without the tumor's voxels and a few
    others; `tumor_with_others`, the tumor and organs that bear none; `some_organs`, where the tumor is in no
    class; `some_organs_filled`, drawn whole, over the tumor.
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
