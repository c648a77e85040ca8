"""Smooth random fields, the warp that they make, and the scanner's voxel grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from flare.core.geometry import Geometry
from flare.phantom.anatomy import FORWARD_MM, STEP_MM, Anatomy, Field

REACH_MM = 330.0  # half the box in which a patient is defined
SURVEY_MM = 9.0  # grid on which the field of view is laid out
TABLE_MM = 12.0  # stored pitch of a field; below half its correlation length linear interpolation is smooth
TO_LPS = np.array([-1.0, -1.0, 1.0])  # (x, y, z): right, anterior, superior to left, posterior, superior


def random_field(rng: np.random.Generator, centre_mm: np.ndarray, reach_mm: Any, length_mm: float) -> Field:
    """Draw Gaussian noise of unit variance over a box about a centre (z, y, x), float32.

    Half the box's size is `reach_mm`; the correlation length is the smoothing kernel's standard deviation.
    """
    pitch = min(TABLE_MM, length_mm / 1.2)
    low, high = centre_mm - reach_mm, centre_mm + reach_mm
    shape = np.ceil((high - low + 4 * pitch) / pitch).astype(int) + 1
    values = rng.standard_normal(tuple(shape), dtype=np.float32)
    values = ndimage.gaussian_filter(values, length_mm / pitch, mode="wrap")
    origin = (low - 2 * pitch).astype(np.float32)
    return Field(origin, np.full(3, pitch, np.float32), values / values.std())


@dataclass(frozen=True)
class Warp:
    """Maps positions in the room to positions in the label map (both RAS, z y x, mm)."""

    matrix: np.ndarray  # (3, 3) rotation and scale
    room_centre: np.ndarray  # goes to `map_centre`
    map_centre: np.ndarray
    displacement: Sequence[Field]  # three fields (z, y, x), of unit variance
    amplitude_mm: float  # their standard deviation

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
    displacement = [random_field(rng, np.zeros(3), REACH_MM, 34.0) for _ in range(3)]
    middle = (anatomy.lowest_mm + anatomy.top_mm) / 2
    y, x = anatomy.spine[round(middle / STEP_MM)]
    room_centre = rng.uniform((-300, -60, -60), (900, 60, 60))
    return Warp(matrix, room_centre, np.array([middle, y + FORWARD_MM, x]), displacement, deformation_mm)


def room_positions(geometry: Geometry, start: int, stop: int) -> np.ndarray:
    """`(3, N)` float32 positions (z, y, x; RAS) of the voxels of slices start ... stop - 1."""
    steps = (geometry.matrix * np.asarray(geometry.spacing_mm)[::-1] * TO_LPS[:, None])[::-1, ::-1]
    origin = (np.asarray(geometry.origin_mm) * TO_LPS)[::-1]
    z, y, x = np.ogrid[start:stop, : geometry.shape[1], : geometry.shape[2]]
    out = np.empty((3, stop - start, *geometry.shape[1:]), np.float32)
    for axis in range(3):
        np.add(origin[axis] + steps[axis, 0] * z + steps[axis, 1] * y, steps[axis, 2] * x, out=out[axis])
    return out.reshape(3, -1)


def lay_out(anatomy: Anatomy, warp: Warp, spec: Mapping[str, Any]) -> Geometry:
    """Choose the scanner's grid, in RAS voxel order but for a tilt.

    Within the body its last slice lies below the upper end of the label map, above which nothing is known.
    Downwards it covers `below_mm` below the lowest organ, upwards all but `off_top_mm` of the map.
    The specification has `spacing_mm` (z, y, x); `matrix`, rows and columns, or None for as many as the field
    of view needs; with it the in-plane voxel size is what the field of view needs, within `in_plane_mm`;
    `margin_mm` of air around the body (negative cuts the skin); `tilt_degrees` about the room's z, y, x.
    """
    axes = rotation(spec["tilt_degrees"])  # columns: slice, row and column in the room (z, y, x)
    ticks = np.arange(-REACH_MM, REACH_MM, SURVEY_MM)
    local = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij")).reshape(3, -1)
    points = warp.to_map(axes @ local + warp.room_centre[:, None])
    body = anatomy.skin_depth(points) > 0
    last = local[0, body & (points[0] > anatomy.top_mm - spec["off_top_mm"])].min() - SURVEY_MM
    first = local[0, body & (points[0] > anatomy.lowest_mm - spec["below_mm"])].min()
    scanned = body & (local[0] >= first) & (local[0] <= last)
    margin, (thickness, pitch, _) = spec["margin_mm"], spec["spacing_mm"]
    low, high = local[1:, scanned].min(1) - margin, local[1:, scanned].max(1) + margin
    low[0] -= max(0.0, 22.0 + min(margin, 0.0))  # room for the table
    if spec["matrix"] is None:
        rows, columns = (int(n) for n in np.ceil((high - low) / pitch))
    else:
        rows = columns = spec["matrix"]
        pitch = float(np.clip((high - low).max() / rows, *spec["in_plane_mm"]))
    slices = int((last - first) / thickness) + 1
    plane = (low + high) / 2 - (np.array([rows, columns]) - 1) / 2 * pitch
    # slices are counted down from the last one, so that rounding is lost at the lower end
    origin = axes @ [last - (slices - 1) * thickness, *plane] + warp.room_centre
    x, y, z = (origin[::-1] * TO_LPS).tolist()
    direction = axes[::-1, ::-1] * TO_LPS[:, None]
    spacing = (thickness, pitch, pitch)
    return Geometry((slices, rows, columns), spacing, (x, y, z), tuple(direction.ravel().tolist()))
