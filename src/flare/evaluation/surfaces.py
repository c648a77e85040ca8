"""Surfaces of voxel masks: area of each surface element, and distance from each to another surface.

The same numbers as DeepMind's surface-distance, faster: neighbour codes by shifts instead of a correlation,
a search tree for what both surfaces do not share, and a distance transform where that is too much.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from pathlib import Path

import edt
import numpy as np
from scipy.spatial import KDTree

from flare.core.files import read_csv
from flare.core.geometry import Spacing

# A surface element sits where eight voxels meet. Beside all in and all out their patterns fall into 13 kinds
# under rotation, reflection and exchange of inside and outside. The file has one pattern of each kind, as its
# occupied corners (z, y, x), and the triangles that cut it by their normals: |normal| along the three axes,
# its length the triangle's area for unit voxels.
# Reference: the marching-cubes patterns of DeepMind's surface-distance, reduced by symmetry.
_KINDS = Path(__file__).with_name("surface_kinds.csv")
_NORMALS = {"small": (0.125,) * 3, "middle": (0.25,) * 3, "wide": (0.375,) * 3, "face": (0.5, 0.0, 0.0)}
_NORMALS |= {"edge_xy": (0.25, 0.25, 0.0), "edge_yz": (0.0, 0.25, 0.25), "edge_xz": (0.25, 0.0, 0.25)}
_NEAR = 1e-5  # relative; single precision of the distance transform is good to 3e-7
_VOXELS_PER_POINT = 20  # voxels of a distance transform in the time of one point's search (measured)


@dataclass(frozen=True)
class Surface:
    """Surface elements of a mask; beyond its array all is outside."""

    # bool, one larger than the mask along each axis: points where eight voxels meet, some inside, some not
    border: np.ndarray
    areas: np.ndarray  # mm² of each element, in the order of `border`'s true points


def surface(mask: np.ndarray, spacing_mm: Spacing) -> Surface:
    """Find the surface of a mask, `(Z, Y, X)` bool."""
    padded = np.pad(mask, 1).view(np.uint8)
    along_x = (padded[:, :, :-1] << 1) | padded[:, :, 1:]
    along_y = (along_x[:, :-1] << 2) | along_x[:, 1:]
    codes = (along_y[:-1] << 4) | along_y[1:]
    border = codes + np.uint8(1) > 1  # neither code 0, all outside, nor 255, all inside, which wraps to 0
    return Surface(border, element_areas(tuple(spacing_mm))[codes[border]])


def distances_mm(
    start: Surface, end: Surface, *, spacing_mm: Spacing, threshold_mm: float, beyond: bool = True
) -> np.ndarray:
    """Distance from each element of one surface to the nearest of another, not empty one on the same box.

    Distances are `(n,)` float64 mm, in the order of `start`. Those near the threshold, what they will be
    compared with, are exact in double precision, since there rounding would decide. Those above may come as
    infinite, unless what lies `beyond` matters.
    """
    apart = ~end.border[start.border]
    if beyond or np.count_nonzero(apart) * _VOXELS_PER_POINT > start.border.size:
        field = edt.edt(~end.border, anisotropy=tuple(spacing_mm), parallel=1)
        distances = field[start.border].astype(np.float64)
        asked = np.flatnonzero(np.abs(distances - threshold_mm) <= _NEAR * threshold_mm)
    else:
        distances = np.zeros(len(apart))
        asked = np.flatnonzero(apart)
    if asked.size:
        points, targets = np.argwhere(start.border)[asked], np.argwhere(end.border)
        tree = KDTree(targets * spacing_mm, leafsize=32, balanced_tree=False, compact_nodes=False)
        limit_mm = threshold_mm * (1 + 2 * _NEAR)
        nearby, nearest = tree.query(points * spacing_mm, distance_upper_bound=limit_mm)
        found = np.isfinite(nearby)
        z, y, x = ((targets[nearest[found]] - points[found]) * spacing_mm).T
        nearby[found] = np.sqrt(x * x + y * y + z * z)  # whole voxels first, summed as over an x, y, z array
        distances[asked] = nearby
    return distances


def surface_dice(
    to_end: np.ndarray, to_start: np.ndarray, start: Surface, end: Surface, tolerance_mm: float
) -> float:
    """Share of both surfaces that lies within the tolerance of the other (NSD)."""
    within = start.areas[to_end <= tolerance_mm].sum() + end.areas[to_start <= tolerance_mm].sum()
    return float(within / (start.areas.sum() + end.areas.sum()))


def robust_hausdorff_mm(
    to_end: np.ndarray, to_start: np.ndarray, start: Surface, end: Surface, percent: float = 95
) -> float:
    """The larger of both directions' area-weighted percentile distances (HD95)."""
    found = []
    for distances, areas in ((to_end, start.areas), (to_start, end.areas)):
        order = np.argsort(distances, kind="stable")
        share = np.cumsum(areas[order]) / areas.sum()
        found.append(distances[order[min(int(np.searchsorted(share, percent / 100)), len(order) - 1)]])
    return float(max(found))


@cache
def element_areas(spacing_mm: Spacing) -> np.ndarray:
    """Area (mm²) of the surface element of each of the 256 neighbour codes.

    Bit `4 z + 2 y + x` counted from the highest belongs to corner (z, y, x).
    """
    z, y, x = spacing_mm
    scale = np.array([y * x, z * x, z * y])
    areas = np.zeros(256)
    for kind in read_csv(_KINDS):
        corners = [tuple(map(int, corner)) for corner in kind["corners"].split()]
        normals = [_NORMALS[name] for name in kind["triangles"].split()]
        for axes in permutations(range(3)):
            area = sum(float(np.linalg.norm(np.take(n, axes) * scale)) for n in normals)
            for flips in product((0, 1), repeat=3):
                moved = [tuple(c[a] ^ f for a, f in zip(axes, flips, strict=True)) for c in corners]
                code = sum(128 >> (4 * c[0] + 2 * c[1] + c[2]) for c in moved)
                areas[code] = areas[255 - code] = area
    return areas
