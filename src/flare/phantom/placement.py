"""Where a patient lies: the warp of an anatomy, and the scanner's voxel grid around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.geometry import Geometry, Orientation, Shape
from flare.phantom.anatomy import Anatomy
from flare.phantom.classes import ORGANS
from flare.phantom.fields import RandomField, random_field

REACH_MM = 330.0  # half the box in which a patient is defined
SURVEY_MM = 9.0  # grid on which the field of view is laid out
TO_LPS = np.array([-1.0, -1.0, 1.0])  # (x, y, z): right, anterior, superior to left, posterior, superior


@dataclass(frozen=True)
class Warp:
    """Maps positions in the room to positions in the label map (both RAS, z y x, mm).

    Args:
        matrix: `(3, 3)` rotation and scale.
        room_centre: Position in the room that `map_centre` goes to.
        map_centre: The same point in the map.
        displacement: Three fields (z, y, x), of unit variance.
        amplitude_mm: Their standard deviation.
    """

    matrix: np.ndarray
    room_centre: np.ndarray
    map_centre: np.ndarray
    displacement: tuple[RandomField, RandomField, RandomField]
    amplitude_mm: float

    def to_map(self, room: np.ndarray) -> np.ndarray:
        """`(3, N)` float32 room positions to map positions."""
        relative = (room - self.room_centre[:, None]).astype(np.float32)
        points = self.matrix.astype(np.float32) @ relative + self.map_centre[:, None].astype(np.float32)
        for axis, field in enumerate(self.displacement):
            points[axis] += np.float32(self.amplitude_mm) * field.sample(relative)
        return points


def rotation(degrees: Any) -> np.ndarray:
    """`(3, 3)` rotation by angles about the three axes, in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(np.asarray(degrees, dtype=float))):
        a, b = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def draw_warp(rng: np.random.Generator, anatomy: Anatomy, *, deformation_mm: float) -> Warp:
    """A patient of another size, pose and shape than the map's."""
    scale = rng.uniform(0.93, 1.09) * rng.uniform(0.94, 1.06, 3)
    matrix = rotation(rng.uniform(-4, 4, 3)) @ np.diag(1 / scale)
    reach = np.full(3, REACH_MM)
    fields = [random_field(rng, -reach, reach, length) for length in (34.0, 34.0, 34.0)]
    middle = (anatomy.lowest_mm(ORGANS) + anatomy.top_mm) / 2
    spine = anatomy.frame.spine[round(middle / 5.0)]
    return Warp(
        matrix=matrix,
        room_centre=rng.uniform((-300, -60, -60), (900, 60, 60)),
        map_centre=np.array([middle, spine[0] + anatomy.frame.forward_mm, spine[1]]),
        displacement=(fields[0], fields[1], fields[2]),
        amplitude_mm=deformation_mm,
    )


def room_positions(geometry: Geometry, start: int, stop: int) -> np.ndarray:
    """`(3, N)` float32 positions (z, y, x; RAS) of the voxels of slices start ... stop - 1."""
    steps = (geometry.matrix * np.asarray(geometry.spacing_mm)[::-1] * TO_LPS[:, None])[::-1, ::-1]
    origin = (np.asarray(geometry.origin_mm) * TO_LPS)[::-1]
    _, rows, columns = geometry.shape
    z = np.arange(start, stop)[:, None, None]
    y = np.arange(rows)[None, :, None]
    x = np.arange(columns)[None, None, :]
    out = np.empty((3, stop - start, rows, columns), np.float32)
    for axis in range(3):
        np.add(origin[axis] + steps[axis, 0] * z + steps[axis, 1] * y, steps[axis, 2] * x, out=out[axis])
    return out.reshape(3, -1)


def lay_out(
    anatomy: Anatomy,
    warp: Warp,
    *,
    spacing_mm: tuple[float, float, float],
    matrix: int | None,
    in_plane_mm: tuple[float, float],
    margin_mm: float,
    low_mm: float,
    high_mm: float,
    tilt_degrees: tuple[float, float, float],
) -> Geometry:
    """Choose the scanner's grid, in RAS voxel order but for a tilt.

    Its last slice lies below the upper end of the label map everywhere in the body: what is above is unknown.

    Args:
        anatomy: The patient's anatomy.
        warp: The patient's warp.
        spacing_mm: Voxel size (z, y, x); with `matrix` the in-plane size is what the field of view needs.
        matrix: Rows and columns, or None for as many as the field of view needs.
        in_plane_mm: Range of in-plane voxel sizes, used with `matrix`.
        margin_mm: Air around the body; negative cuts the skin.
        low_mm: Map height that shall be covered downwards.
        high_mm: Map height above which nothing is scanned.
        tilt_degrees: Rotation of the grid against the room about z, y, x.
    """
    axes = rotation(tilt_degrees)  # columns: directions of slice, row and column in the room (z, y, x)
    ticks = np.arange(-REACH_MM, REACH_MM, SURVEY_MM)
    local = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij")).reshape(3, -1)
    points = warp.to_map(axes @ local + warp.room_centre[:, None])
    body = anatomy.frame.skin_depth(points) > 0
    above = body & (points[0] > min(high_mm, anatomy.top_mm))
    last = local[0, above].min() - SURVEY_MM
    first = local[0, body & (points[0] > low_mm)].min()
    scanned = body & (local[0] >= first) & (local[0] <= last)
    low = local[1:, scanned].min(1) - margin_mm
    high = local[1:, scanned].max(1) + margin_mm
    low[0] -= max(0.0, 22.0 + min(margin_mm, 0.0))  # room for the table
    rows, columns, pitch = _in_plane(high - low, spacing_mm[1], matrix, in_plane_mm)
    slices = int((last - first) / spacing_mm[0]) + 1
    plane = (low + high) / 2 - (np.array([rows, columns]) - 1) / 2 * pitch
    # slices are counted down from the last one, so that rounding is lost at the lower end
    corner = np.array([last - (slices - 1) * spacing_mm[0], *plane])
    origin = axes @ corner + warp.room_centre
    direction = axes[::-1, ::-1] * TO_LPS[:, None]
    return Geometry(
        shape=(slices, rows, columns),
        spacing_mm=(spacing_mm[0], pitch, pitch),
        origin_mm=tuple(float(v) for v in origin[::-1] * TO_LPS),  # type: ignore[arg-type]
        direction=tuple(float(v) for v in direction.ravel()),
    )


def _in_plane(
    extent_mm: np.ndarray, pitch_mm: float, matrix: int | None, range_mm: tuple[float, float]
) -> tuple[int, int, float]:
    """Rows, columns and voxel size that cover a field of view."""
    if matrix is not None:
        return matrix, matrix, float(np.clip(extent_mm.max() / matrix, *range_mm))
    rows, columns = np.ceil(extent_mm / pitch_mm).astype(int)
    return int(rows), int(columns), pitch_mm


def voxel_order(code: str) -> Orientation:
    """How RAS arrays `(Z, Y, X)` are reordered for a code.

    Args:
        code: Where index axes i, j, k run to, such as `LPS` or `SAR`.
    """
    base = {"R": (2, False), "L": (2, True), "A": (1, False), "P": (1, True), "S": (0, False), "I": (0, True)}
    axes = [base[letter] for letter in code[::-1]]
    permutation: Shape = (axes[0][0], axes[1][0], axes[2][0])
    return Orientation(permutation=permutation, flips=(axes[0][1], axes[1][1], axes[2][1]))
