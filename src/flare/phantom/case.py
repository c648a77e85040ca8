"""One case of the phantom cohort, from its specification to its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.geometry import Geometry, orientation_to
from flare.phantom.anatomy import PELVIC, Anatomy, load_anatomy, sample_organs
from flare.phantom.painting import PELVIC_ID, acquire, draw_hu, paint
from flare.phantom.placement import (
    RandomField,
    Warp,
    draw_warp,
    lay_out,
    random_field,
    room_positions,
)
from flare.phantom.plan import CLASS_IDS, TUMOR, case_files
from flare.phantom.torso import Tissue, paint_body
from flare.phantom.tumors import Canvas, annotate, stamp_tumor

SLAB_VOXELS = 1_500_000  # positions held at once; bounds memory whatever the matrix
FIELD_LENGTHS_MM = {
    "bowel": 9.0, "content": 16.0, "wall": 35.0, "grain": 4.5, "vessel_a": 8.0, "vessel_b": 8.0,
}  # fmt: skip
NUMBERS = {**{name: number for name, number in CLASS_IDS.items() if name != TUMOR}, PELVIC: PELVIC_ID}
# where an index axis runs to, in LPS
DIRECTIONS = {
    "L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1),
}  # fmt: skip


def generate_case(root: str, case_id: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Make one case and write its files.

    Args:
        root: The cohort's folder.
        case_id: `phantom_0001` and so on.
        spec: As `plan_cohort` draws it.

    Returns:
        Its kind, and what was put in.
    """
    from flare.core.volumes import write_image, write_labels

    canvas, whole, geometry, found = draw_case(spec)
    order = orientation_to(geometry, np.transpose([DIRECTIONS[letter] for letter in spec["voxel_order"]]))
    stored = order.apply_geometry(geometry)
    hosts = sorted({t["host"] for t in found if t["voxels"]})
    files = case_files(Path(root), case_id, spec["kind"])
    write_image(files["image"], order.apply(canvas.image), stored)
    if "truth" in files:
        write_labels(files["truth"], order.apply(canvas.labels), stored)
    if "label" in files:
        write_labels(files["label"], order.apply(annotate(canvas.labels, whole, hosts, spec)), stored)
    return {
        **{key: spec[key] for key in ("kind", "phase", "voxel_order", "style", "seed")},
        "anatomy": Path(spec["anatomy"]).name,
        "tilted": any(spec["tilt_degrees"]),
        "tumors": found,
    }


def draw_case(spec: Mapping[str, Any]) -> tuple[Canvas, np.ndarray, Geometry, list[dict[str, Any]]]:
    """Make one case in memory, in RAS voxel order (but for a tilt).

    Returns:
        The finished canvas, its labels before tumors were put in, its grid, and the tumors.
    """
    rng = np.random.default_rng(spec["seed"])
    anatomy, warp, geometry = place(rng, spec)
    canvas = _paint(rng, anatomy, warp, geometry, spec)
    whole = canvas.labels.copy()
    found = [stamp_tumor(canvas, rng, wanted) for wanted in spec["tumors"]]
    acquire(canvas.image, rng, blur_vox=spec["blur_vox"], noise_hu=spec["noise_hu"])
    return canvas, whole, geometry, found


def place(rng: np.random.Generator, spec: Mapping[str, Any]) -> tuple[Anatomy, Warp, Geometry]:
    """Give a case's anatomy, its warp and the scanner's grid."""
    path = spec["anatomy"]
    if "/" not in path:
        path = str(Path(__file__).parent / "maps" / path)
    anatomy = load_anatomy(path, spec["numbering"])
    warp = draw_warp(rng, anatomy, deformation_mm=spec["deformation_mm"])
    return anatomy, warp, lay_out(anatomy, warp, spec)


def _paint(
    rng: np.random.Generator, anatomy: Anatomy, warp: Warp, geometry: Geometry, spec: Mapping[str, Any]
) -> Canvas:
    """Organs, body and HU, slab by slab."""
    table = draw_hu(rng, spec["phase"])
    fields = _fields(rng, anatomy)
    gas_front_mm = anatomy.front_mm("stomach", spec["stomach_gas"])
    canvas = Canvas(
        labels=np.empty(geometry.shape, np.uint8),
        tissue=np.empty(geometry.shape, np.uint8),
        image=np.empty(geometry.shape, np.int16),
        spacing_mm=np.asarray(geometry.spacing_mm),
        table=table,
    )
    depth_of_slab = max(1, SLAB_VOXELS // (geometry.shape[1] * geometry.shape[2]))
    for start in range(0, geometry.shape[0], depth_of_slab):
        stop = min(start + depth_of_slab, geometry.shape[0])
        room = room_positions(geometry, start, stop)
        points = warp.to_map(room)
        organs, depth = sample_organs(anatomy, points, NUMBERS)
        body = paint_body(points, depth, anatomy.frame, fields, spec)
        painted = np.where(organs > 0, organs, body)
        values = paint(painted, points, depth, table, fields, phase=spec["phase"], gas_front_mm=gas_front_mm)
        _paint_table(values, painted, room, warp, anatomy)
        shape = (stop - start, *geometry.shape[1:])
        canvas.labels[start:stop] = np.where(organs == PELVIC_ID, 0, organs).reshape(shape)
        canvas.tissue[start:stop] = painted.reshape(shape)
        canvas.image[start:stop] = np.rint(values).reshape(shape)
    return canvas


def _fields(rng: np.random.Generator, anatomy: Anatomy) -> dict[str, RandomField]:
    """The random fields that live in the map's space and warp with the patient."""
    centre = np.array([anatomy.top_mm / 2, *anatomy.frame.spine.mean(0)])
    reach = np.array([anatomy.top_mm / 2 + 30, 200, 230])
    return {
        name: random_field(rng, centre - reach, centre + reach, length)
        for name, length in FIELD_LENGTHS_MM.items()
    }


def _paint_table(
    values: np.ndarray, painted: np.ndarray, room: np.ndarray, warp: Warp, anatomy: Anatomy
) -> None:
    """A hollow, slightly curved table under the back; it belongs to the scanner and is not warped."""
    air = np.flatnonzero(painted == Tissue.AIR)
    back = float(anatomy.frame.half[:, 2].max()) / warp.matrix[1, 1]
    across = room[2, air] - warp.room_centre[2]
    below = warp.room_centre[1] - back - 2 + 0.0006 * across**2 - room[1, air]
    slab = (below > 0) & (below < 16) & (np.abs(across) < 215)
    shell = (below < 3.5) | (below > 12.5) | (np.abs(across) > 211)
    values[air[slab & shell]] = 60
    values[air[slab & ~shell]] = -920
