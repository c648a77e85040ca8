"""Bring blended maps back to a case's own grid as labels, exactly and within a memory budget.

Upsampling every class of a whole volume takes gigabytes. Here a block of slices at a time is interpolated and
reduced to labels, with the same result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from flare.geometry import Shape, Spacing
from flare.inference.accumulate import Blended
from flare.preprocessing import is_anisotropic

VARIANTS = ("trilinear", "nnunet", "nearest")


def nearest_source(size: int, wanted: int) -> np.ndarray:
    """Give the voxel, of `size`, that holds each of `wanted` voxel centres; both span the same extent."""
    return np.minimum(((np.arange(wanted) + 0.5) * size / wanted).astype(int), size - 1)


def linear_source(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the two voxels, of `size`, around each of `wanted` voxel centres, and the second's weight."""
    position = np.maximum((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0)
    lower = np.minimum(position.astype(int), size - 1)
    return lower, np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32)


def interpolated_axes(variant: str, spacing_mm: Spacing, original_mm: Spacing) -> tuple[bool, bool, bool]:
    """Tell along which axes maps are interpolated; along the others the nearest voxel is taken.

    Args:
        variant: `trilinear`, `nnunet` or `nearest`.
        spacing_mm: Voxel size of the network's grid along Z, Y, X.
        original_mm: Voxel size of the case along Z, Y, X.

    Returns:
        One fact per axis.

    Reference: nnU-Net, separate treatment of the axis of lowest resolution at a spacing ratio above 3.
    """
    if variant != "nnunet":
        linear = variant == "trilinear"
        return linear, linear, linear
    for spacing in (spacing_mm, original_mm):
        if is_anisotropic(spacing):
            coarsest = [size == max(spacing) for size in spacing]
            if sum(coarsest) == 1:
                return not coarsest[0], not coarsest[1], not coarsest[2]
            break
    return True, True, True


def restore_labels(
    blended: Blended,
    shape: Shape,
    *,
    linear: tuple[bool, bool, bool],
    outputs: tuple[int, ...],
    memory_mb: float,
) -> np.ndarray:
    """Interpolate maps to a grid of the same extent and take the class of the largest value at each voxel.

    Only voxels that windows covered take part in the interpolation; a voxel whose nearest voxel on the
    network's grid was not covered is background.

    Args:
        blended: Maps on the network's grid; voxels without a window are 0 there.
        shape: `(Z, Y, X)` wanted.
        linear: What `interpolated_axes` gives.
        outputs: Class id of each channel.
        memory_mb: Bound on the working memory of a block of slices; one slice is always taken.

    Returns:
        `(Z, Y, X)` uint8 class ids, axes as in `blended`.
    """
    labels = np.zeros(shape, dtype=np.uint8)
    nearest = [nearest_source(size, wanted) for size, wanted in zip(blended.shape, shape, strict=True)]
    spans = [_span(source, interval) for source, interval in zip(nearest, blended.box, strict=True)]
    z_span, y_span, x_span = spans
    if not all(span.stop > span.start for span in spans):
        return labels
    step = _slices_per_block(blended, shape, memory_mb)
    ids = np.asarray(outputs, dtype=np.uint8)
    for first in range(z_span.start, z_span.stop, step):
        block = range(first, min(first + step, z_span.stop))
        maps = _slices(blended, shape[0], block, linear[0])
        maps = _in_plane(maps, blended, shape, linear)
        winners = maps.max(1).indices[:, y_span, x_span].to(torch.uint8)
        labels[block.start : block.stop, y_span, x_span] = ids[winners.cpu().numpy()]
    if not bool(blended.covered.all()):
        inside = [
            source[span] - interval[0]
            for source, span, interval in zip(nearest, spans, blended.box, strict=True)
        ]
        covered = blended.covered.cpu().numpy()
        for index, z in zip(range(z_span.start, z_span.stop), inside[0], strict=True):
            labels[index, y_span, x_span] *= covered[z][np.ix_(inside[1], inside[2])]
    return labels


def _span(source: np.ndarray, interval: tuple[int, int]) -> slice:
    """Give the wanted voxels whose nearest source voxel lies in the interval."""
    first, last = np.searchsorted(source, interval)
    return slice(int(first), int(last))


def _slices_per_block(blended: Blended, shape: Shape, memory_mb: float) -> int:
    """Count the slices whose maps, before and after in-plane interpolation, fit in the budget."""
    plane, wanted = blended.shape[1] * blended.shape[2], shape[1] * shape[2]
    floats = len(blended.values) * (2 * plane + wanted) * 4
    winners = wanted * (4 + 8 + 1)  # the largest value, its index, the label
    return max(1, int(memory_mb * 2**20 / (floats + winners)))


def _slices(blended: Blended, depth: int, block: range, linear: bool) -> torch.Tensor:
    """Give `(slices, C, y, x)` of the box at the wanted z positions."""
    values, (start, stop) = blended.values, blended.box[0]
    maps = values.new_empty((len(block), len(values), *values.shape[2:]))
    lower, upper, weight = linear_source(blended.shape[0], depth)
    if not linear:
        lower = upper = nearest_source(blended.shape[0], depth)
    for row, z in enumerate(block):
        below, above = (min(max(int(source[z]), start), stop - 1) - start for source in (lower, upper))
        if below == above:
            maps[row] = values[:, below]
        else:
            torch.lerp(values[:, below], values[:, above], float(weight[z]), out=maps[row])
    return maps


def _in_plane(
    maps: torch.Tensor, blended: Blended, shape: Shape, linear: tuple[bool, bool, bool]
) -> torch.Tensor:
    """Bring `(slices, C, y, x)` of the box to `(slices, C, Y, X)` of the wanted grid."""
    (y0, y1), (x0, x1) = blended.box[1:]
    height, width = blended.shape[1:]
    if (y0, y1, x0, x1) != (0, height, 0, width):
        maps = pad(maps, (x0, width - x1, y0, height - y1))
    for axis in (1, 2):
        if not linear[axis]:
            source = torch.from_numpy(nearest_source(blended.shape[axis], shape[axis])).to(maps.device)
            maps = maps.index_select(axis + 1, source)
    if tuple(maps.shape[2:]) == shape[1:]:
        return maps
    return interpolate(maps, size=shape[1:], mode="bilinear", align_corners=False)
