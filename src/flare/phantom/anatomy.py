"""Real anatomy as smooth shapes: one signed distance map an organ, and the body frame around the organs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from flare.phantom.frame import BodyFrame, OrganShape, build_frame

MARGIN_MM = 12.0  # how far outside an organ its distance is known
PITCH_MM = 1.6  # in-plane grid of the distance maps; they are smooth, so finer gains nothing
FAR = np.float32(-99.0)
# other pelvic organs (AMOS: bladder, prostate or uterus) are painted as soft tissue and have no class
PELVIC = "pelvic_organs"
# values of label maps; other values of TotalSegmentator v2 (task `total`) are painted as body
NUMBERINGS = {
    "amos": {
        1: "spleen", 2: "right_kidney", 3: "left_kidney", 4: "gallbladder", 5: "esophagus", 6: "liver",
        7: "stomach", 8: "aorta", 9: "inferior_vena_cava", 10: "pancreas", 11: "right_adrenal_gland",
        12: "left_adrenal_gland", 13: "duodenum", 14: PELVIC, 15: PELVIC,
    },
    "totalsegmentator": {
        1: "spleen", 2: "right_kidney", 3: "left_kidney", 4: "gallbladder", 5: "liver", 6: "stomach",
        7: "pancreas", 8: "right_adrenal_gland", 9: "left_adrenal_gland", 15: "esophagus", 19: "duodenum",
        52: "aorta", 63: "inferior_vena_cava", 21: PELVIC,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One person's organs and body frame, in millimetres of the label map (RAS)."""

    shapes: Mapping[str, OrganShape]
    frame: BodyFrame
    top_mm: float

    def lowest_mm(self, names: tuple[str, ...]) -> float:
        """Lower end of the named organs."""
        return min(self.shapes[name].lowest_mm for name in names if name in self.shapes)

    def front_mm(self, name: str, share: float) -> float:
        """Height y in front of which this share of an organ lies."""
        shape = self.shapes[name]
        counts = (shape.distance_mm > 0).sum(axis=(0, 2))[::-1].cumsum()
        rows = int(np.searchsorted(counts, share * counts[-1]))
        return float(shape.origin_mm[1] + shape.pitch_mm[1] * (len(counts) - 1 - rows))


@lru_cache(maxsize=3)
def load_anatomy(path: str, numbering: str) -> Anatomy:
    """Read a label map and turn it into shapes.

    Args:
        path: A NIfTI label map.
        numbering: `amos` or `totalsegmentator`: what its values mean.

    Returns:
        The anatomy. Nothing is known above the map's upper end.
    """
    from scipy import ndimage

    from flare.core.geometry import reorient_to_ras
    from flare.core.volumes import read_image

    volume, _ = reorient_to_ras(read_image(Path(path)))
    pitch = np.asarray(volume.geometry.spacing_mm, dtype=float)
    names = NUMBERINGS[numbering]
    labels = np.where(volume.array <= max(names), volume.array, 0).astype(np.uint8)
    boxes = ndimage.find_objects(labels, max_label=max(names))
    ids: dict[str, list[int]] = {}
    for number, name in names.items():
        if boxes[number - 1] is not None:
            ids.setdefault(name, []).append(number)
    shapes = {
        name: _organ_shape(labels, numbers, [boxes[n - 1] for n in numbers], pitch)
        for name, numbers in ids.items()
    }
    top = (labels.shape[0] - 1) * pitch[0]
    return Anatomy(shapes, build_frame(shapes, float(top)), top_mm=float(top))


def _organ_shape(
    labels: np.ndarray, ids: list[int], boxes: list[tuple[slice, ...]], pitch: np.ndarray
) -> OrganShape:
    """Signed distance of one organ, its stray voxels removed, in the box around its boxes and a margin."""
    import cc3d
    import edt
    from scipy import ndimage

    margin = np.ceil(MARGIN_MM / pitch).astype(int)
    start = [max(0, min(b[a].start for b in boxes) - margin[a]) for a in range(3)]
    stop = [max(b[a].stop for b in boxes) + margin[a] for a in range(3)]
    mask = np.isin(labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))], ids)
    parts = cc3d.connected_components(mask.astype(np.uint8))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    mask = (sizes > sizes.max() / 20)[parts]
    spacing = tuple(float(p) for p in pitch)
    # no border: an organ that is cut by the map's last slice does not end there
    distance = edt.edt(mask, anisotropy=spacing, black_border=False)
    distance -= edt.edt(~mask, anisotropy=spacing, black_border=False)
    step = max(1, round(PITCH_MM / spacing[1]))
    if step > 1:
        distance = ndimage.gaussian_filter(distance, (0, step / 3, step / 3))[:, ::step, ::step]
    distance += _volume_offset(distance, float(mask.mean()))
    return OrganShape(
        origin_mm=np.asarray(start) * pitch,
        pitch_mm=pitch * (1, step, step),
        distance_mm=np.clip(distance, -MARGIN_MM, 3 * MARGIN_MM).astype(np.float32),
    )


def _volume_offset(distance: np.ndarray, share: float) -> float:
    """Offset (mm) that restores the volume that a thin organ loses by interpolation between slices."""
    between = (distance[1:] + distance[:-1]) / 2
    both = np.concatenate([distance.ravel(), between.ravel()])
    rank = len(both) - max(1, round(share * len(both)))
    return float(np.clip(-np.partition(both, rank)[rank], -1.5, 1.5))


def sample_organs(anatomy: Anatomy, points: np.ndarray, numbers: Mapping[str, int]) -> tuple[np.ndarray, ...]:
    """Which organ each point lies in, and how deep.

    Args:
        anatomy: The shapes.
        points: `(3, N)` in the map's millimetres.
        numbers: Value to write for each shape's name.

    Returns:
        `(N,)` uint8 number of the organ (0: none) and `(N,)` float32 distance to the nearest organ's surface,
        positive inside, `FAR` where no organ is near.
    """
    count = points.shape[1]
    labels = np.zeros(count, np.uint8)
    depth = np.full(count, FAR, np.float32)
    inside = np.empty(count, bool)
    for name, shape in anatomy.shapes.items():
        chosen, distance = shape.sample(points, inside)
        deeper = distance > depth[chosen]
        chosen, distance = chosen[deeper], distance[deeper]
        depth[chosen] = distance
        labels[chosen] = numbers[name]
    labels[depth <= 0] = 0
    return labels, depth
