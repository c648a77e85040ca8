"""The challenge's scores by brute force, for small volumes: the oracle of the metrics' tests.

Written from the rules alone: every corner where voxels meet is visited, every distance is computed. Shares
no code with `flare.evaluation`.
"""

import itertools
from functools import cache

import numpy as np
from monai.metrics.utils import _get_neighbour_code_to_normals_table


@cache
def code_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Area of each neighbour code: lengths of MONAI's normals, which are in the order of the array's axes."""
    a, b, c = spacing
    normals = _get_neighbour_code_to_normals_table().double().numpy() * np.array([b * c, a * c, a * b])
    return np.linalg.norm(normals, axis=-1).sum(-1)


def surface_elements(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Positions in mm and areas of all corners between inside and outside."""
    area_of = code_areas(tuple(spacing))
    voxels = {tuple(v) for v in np.argwhere(mask).tolist()}
    cube = list(itertools.product((0, 1), repeat=3))
    corners = {(x + i, y + j, z + k) for x, y, z in voxels for i, j, k in cube}
    points, areas = [], []
    for corner in sorted(corners):
        x, y, z = corner
        inside = [(x + i - 1, y + j - 1, z + k - 1) in voxels for i, j, k in cube]
        code = sum(128 >> bit for bit, occupied in enumerate(inside) if occupied)
        if code in (0, 255):
            continue
        areas.append(area_of[code])
        points.append(corner)
    return np.array(points), np.array(areas)


def nsd(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> float:
    (p, areas_p), (q, areas_q) = surface_elements(reference, spacing), surface_elements(prediction, spacing)
    between = np.sqrt((((p[:, None] - q[None]) * np.array(spacing)) ** 2).sum(-1))
    good = areas_p[between.min(1) <= tolerance].sum() + areas_q[between.min(0) <= tolerance].sum()
    return good / (areas_p.sum() + areas_q.sum())


def challenge_scores(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], tolerances: list[float]
) -> list[tuple[float, float]]:
    """DSC and NSD of classes 1, 2, ...; arrays, spacing in x, y, z order, as the challenge reads them."""
    found = []
    for label, tolerance in enumerate(tolerances, start=1):
        r, p = reference == label, prediction == label
        if not r.any() or not p.any():
            found.append((1.0, 1.0) if r.any() == p.any() else (0.0, 0.0))
            continue
        if label in (5, 6, 10):  # aorta, IVC, esophagus
            z = np.unique(np.nonzero(r)[2])
            r, p = r[:, :, z[0] : z[-1]], p[:, :, z[0] : z[-1]]
        if not r.any() or not p.any():
            found.append((1.0, 1.0) if r.any() == p.any() else (0.0, 0.0))
            continue
        dsc = np.float64(2 * (r & p).sum() / (r.sum() + p.sum()))
        found.append((round(dsc, 4), 0.0 if dsc < 0.2 else round(nsd(r, p, spacing, tolerance), 4)))
    return found
