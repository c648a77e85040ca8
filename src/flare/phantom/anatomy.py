"""Real anatomy as smooth shapes: a signed distance map an organ; skin and spine placed around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cc3d
import edt
import numpy as np
from scipy import ndimage

from flare.core.files import read_csv
from flare.core.geometry import reorient_to_ras
from flare.core.volumes import read_image

MARGIN_MM = 12.0  # how far outside an organ its distance is known
PITCH_MM = 1.6  # in-plane grid of the distance maps; they are smooth, so finer gains nothing
FAR = np.float32(-99.0)
# other pelvic organs (AMOS: bladder, prostate or uterus) are painted as soft tissue and have no class
PELVIC = "pelvic_organs"
# values of label maps; other values of TotalSegmentator v2 (task `total`) are painted as body
NUMBERINGS: dict[str, dict[int, str]] = {}
for row in read_csv(Path(__file__).parent / "numberings.csv"):
    NUMBERINGS.setdefault(row["numbering"], {})[int(row["value"])] = row["shape"]
STEP_MM = 5.0  # between nodes of the body's curves and of the roof
WALL_MM = 26.0  # organs keep at least this distance from the skin
FORWARD_MM = 35.0  # the skin's centre lies this far in front of the vertebral bodies
SKIN_POWER = 2.5  # a cross-section between an ellipse and a box
UPPER = ("liver", "spleen", "stomach", "gallbladder", "left_kidney", "right_kidney")


@dataclass(frozen=True)
class Field:
    """Values on the nodes of a regular grid, linear between them, which are `pitch_mm` apart.

    From the first node, at `origin_mm`, z, y, x (or y, x) grow to superior, anterior and right.
    """

    origin_mm: np.ndarray
    pitch_mm: np.ndarray
    values: np.ndarray

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Values at `(axes, N)` positions; beyond the grid its edge is repeated."""
        index = (points - self.origin_mm[:, None]) / self.pitch_mm[:, None]
        return ndimage.map_coordinates(self.values, index, order=1, mode="nearest")


@dataclass(frozen=True)
class Anatomy:
    """One person's organs and the body around them, in millimetres (z, y, x) of the label map (RAS)."""

    shapes: Mapping[str, Field]  # signed distance to an organ's surface, positive inside, float32, in a box
    top_mm: float  # upper end of the map, above which nothing is known
    crest_mm: float  # height of the iliac crest
    spine: np.ndarray  # `(n, 2)` centre (y, x) of the vertebral bodies, every `STEP_MM` of z from 0
    half: np.ndarray  # `(n, 3)` half-axes of the skin (lateral, front, back) about a centre before the spine
    roof: Field  # height of the highest organ in each column (y, x); below it there is no lung

    @property
    def lowest_mm(self) -> float:
        """Lower end of the organs that have a class."""
        return min(
            float(shape.origin_mm[0] + shape.pitch_mm[0] * np.flatnonzero((shape.values > 0).any((1, 2)))[0])
            for name, shape in self.shapes.items()
            if name != PELVIC
        )

    def front_mm(self, name: str, share: float) -> float:
        """Height y in front of which this share of an organ lies."""
        shape = self.shapes[name]
        counts = (shape.values > 0).sum(axis=(0, 2))[::-1].cumsum()
        rows = int(np.searchsorted(counts, share * counts[-1]))
        return float(shape.origin_mm[1] + shape.pitch_mm[1] * (len(counts) - 1 - rows))

    def from_spine(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far `(3, N)` positions lie in front of the vertebral bodies, and to their right."""
        y, x = (_along(points[0], curve) for curve in self.spine.T)
        return points[1] - y, points[2] - x

    def skin_depth(self, points: np.ndarray) -> np.ndarray:
        """Distance of `(3, N)` positions to the skin along the ray from its centre, positive inside."""
        v, u = self.from_spine(points)
        v -= FORWARD_MM
        lateral, anterior, posterior = (_along(points[0], curve) for curve in self.half.T)
        ratio = (np.abs(u) / lateral) ** SKIN_POWER
        ratio += (np.abs(v) / np.where(v > 0, anterior, posterior)) ** SKIN_POWER
        ratio = np.maximum(ratio, 1e-6) ** (1 / SKIN_POWER)
        length = np.hypot(u, v)
        return np.where(ratio > 1e-2, length / ratio - length, lateral).astype(np.float32)

    def sample_organs(self, points: np.ndarray, numbers: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Which organ each of `(3, N)` points, in the map's millimetres, lies in, and how deep.

        Gives `(N,)` uint8 number of the organ's name (0: none) and `(N,)` float32 distance to the nearest
        organ's surface, positive inside, `FAR` where no organ is near.
        """
        labels = np.zeros(points.shape[1], np.uint8)
        depth = np.full(points.shape[1], FAR, np.float32)
        for name, shape in self.shapes.items():
            low = shape.origin_mm - shape.pitch_mm / 2
            high = low + shape.pitch_mm * shape.values.shape
            is_near = (points >= low[:, None]) & (points <= high[:, None])
            chosen = np.flatnonzero(is_near.all(0))
            distance = shape.sample(points[:, chosen])
            deeper = distance > depth[chosen]
            chosen = chosen[deeper]
            depth[chosen] = distance[deeper]
            labels[chosen] = numbers[name]
        labels[depth <= 0] = 0
        return labels, depth


def _along(z: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """A curve of the body at heights z."""
    return np.interp(z, np.arange(len(curve)) * STEP_MM, curve).astype(np.float32)


@lru_cache(maxsize=3)
def load_anatomy(path: str, numbering: str) -> Anatomy:
    """Turn a NIfTI label map, whose values mean what `NUMBERINGS[numbering]` says, into shapes."""
    volume, _ = reorient_to_ras(read_image(Path(path)))
    pitch = np.asarray(volume.geometry.spacing_mm, dtype=float)
    names = list(dict.fromkeys(NUMBERINGS[numbering].values()))
    labels = np.zeros(volume.geometry.shape, np.uint8)
    for value, name in NUMBERINGS[numbering].items():
        labels[volume.array == value] = names.index(name) + 1
    boxes = ndimage.find_objects(labels, max_label=len(names))
    shapes = {
        name: _organ_shape(labels, number, box, pitch)
        for number, (name, box) in enumerate(zip(names, boxes, strict=True), start=1)
        if box is not None
    }
    top = float((labels.shape[0] - 1) * pitch[0])
    heights = np.arange(0, top + STEP_MM / 2, STEP_MM)
    # every other voxel inside an organ
    points = {
        name: shape.origin_mm + np.argwhere(shape.values[:, ::2, ::2] > 0) * (1, 2, 2) * shape.pitch_mm
        for name, shape in shapes.items()
    }
    crest = float(points["aorta"][:, 0].min())  # the aorta divides at the fourth lumbar vertebra
    spine = _spine(points["aorta"], points["inferior_vena_cava"], crest, heights)
    half = _skin(np.concatenate(list(points.values())), heights, spine)
    roof = _roof(np.concatenate([points[n] for n in UPPER if n in points]), top)
    return Anatomy(shapes, top, crest, spine, half, roof)


def _organ_shape(labels: np.ndarray, number: int, box: tuple[slice, ...], pitch: np.ndarray) -> Field:
    """Signed distance of one organ, its stray voxels removed, in its box and a margin."""
    margin = np.ceil(MARGIN_MM / pitch).astype(int)
    start = [max(0, s.start - m) for s, m in zip(box, margin, strict=True)]
    stop = [s.stop + m for s, m in zip(box, margin, strict=True)]
    mask = labels[tuple(map(slice, start, stop))] == number
    parts = cc3d.connected_components(mask.astype(np.uint8))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    mask = (sizes > sizes.max() / 20)[parts]
    spacing = tuple(map(float, pitch))
    # no border: an organ that is cut by the map's last slice does not end there
    distance = edt.edt(mask, anisotropy=spacing, black_border=False)
    distance -= edt.edt(~mask, anisotropy=spacing, black_border=False)
    step = max(1, round(PITCH_MM / spacing[1]))
    if step > 1:
        distance = ndimage.gaussian_filter(distance, (0, step / 3, step / 3))[:, ::step, ::step]
    # restores the volume that a thin organ loses by interpolation between slices
    both = np.concatenate([distance.ravel(), ((distance[1:] + distance[:-1]) / 2).ravel()])
    rank = len(both) - max(1, round(float(mask.mean()) * len(both)))
    distance += float(np.clip(-np.partition(both, rank)[rank], -1.5, 1.5))
    values = np.clip(distance, -MARGIN_MM, 3 * MARGIN_MM).astype(np.float32)
    return Field(np.asarray(start) * pitch, pitch * (1, step, step), values)


def _spine(aorta: np.ndarray, cava: np.ndarray, crest: float, heights: np.ndarray) -> np.ndarray:
    """Vertebral bodies behind the aorta, midway between it and the vena cava; the sacrum falls back."""
    curves = []
    for points in (aorta, cava):
        levels = np.unique(points[:, 0])
        centres = np.array([points[points[:, 0] == level].mean(0) for level in levels])
        curves.append([np.interp(heights, levels, centres[:, axis]) for axis in (1, 2)])
    (aorta_y, aorta_x), (cava_y, cava_x) = curves
    middle = (aorta_x + cava_x) / 2
    middle = 0.5 * middle + 0.5 * middle.mean()
    behind = np.minimum(aorta_y - 31, cava_y - 27) - 0.35 * np.clip(crest - 25 - heights, 0, 130)
    return ndimage.gaussian_filter1d(np.stack([behind, middle], axis=1), 5, axis=0, mode="nearest")


def _skin(points: np.ndarray, heights: np.ndarray, spine: np.ndarray) -> np.ndarray:
    """Half-axes of a skin that keeps `WALL_MM` from every organ, smooth over z."""
    half = np.tile([150.0, 92.0, 105.0], (len(heights), 1))
    row = np.clip(np.round(points[:, 0] / STEP_MM).astype(int), 0, len(heights) - 1)
    v = points[:, 1] - spine[row, 0] - FORWARD_MM
    u = np.abs(points[:, 2] - spine[row, 1])
    # a rounded box of these half-axes would cut its corners: iterate towards one that holds all
    for _ in range(4):
        axis = half[row]
        sagittal = np.where(v > 0, axis[:, 1], axis[:, 2])
        need = ((u + WALL_MM * u / np.hypot(u, v)) / axis[:, 0]) ** SKIN_POWER
        need += ((np.abs(v) + WALL_MM * np.abs(v) / np.hypot(u, v)) / sagittal) ** SKIN_POWER
        need = need ** (1 / SKIN_POWER)
        grow = np.ones_like(half)
        for column, share in ((0, u / axis[:, 0]), (1, v / axis[:, 1]), (2, -v / axis[:, 2])):
            wide = share > 0.45
            np.maximum.at(grow[:, column], row[wide], need[wide])
        half = half * ndimage.maximum_filter1d(grow, 13, axis=0, mode="nearest")
    return ndimage.gaussian_filter1d(half, 5, axis=0, mode="nearest")


def _roof(points: np.ndarray, top_mm: float) -> Field:
    """Height of the highest organ in each column, widened and smoothed, for the diaphragm."""
    origin = points[:, 1:].min(0) - 60
    index = np.round((points[:, 1:] - origin) / STEP_MM).astype(int)
    roof = np.full(tuple(index.max(0) + 12), top_mm - 110)
    np.maximum.at(roof, (index[:, 0], index[:, 1]), points[:, 0])
    smooth = ndimage.gaussian_filter(ndimage.maximum_filter(roof, 3), 1.0)
    return Field(origin, np.full(2, STEP_MM), smooth)
