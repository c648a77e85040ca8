"""Bring blended maps back to a case's own grid as labels, exactly and within a memory budget.

Upsampling every class of a whole volume takes gigabytes and most of the time of a case. Here a block of
slices is worked on at a time, class after class, and of a class no more than the box in which it can win:
interpolation is a weighted mean, so where no voxel around has more of the class than of the background, the
class loses to the background, and the result is the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from flare.core.geometry import Axis, Shape, Spacing
from flare.core.preprocessing import is_anisotropic
from flare.inference.blend import Blended

VARIANTS = ("trilinear", "nnunet", "nearest")
BLOCK_SLICES = 16  # more gain no speed: boxes grow with the block


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
    network's grid was not covered is background. Of equal values the first channel's counts.

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
    z, y, x = (
        Axis.between(size, wanted, interval, linear=along)
        for size, wanted, interval, along in zip(blended.shape, shape, blended.box, linear, strict=True)
    )
    if not (len(z) and len(y) and len(x)):
        return labels
    ids = np.asarray(outputs, dtype=np.uint8)
    step = _slices_per_block(shape, memory_mb)
    for first in range(0, len(z), step):
        winners = _winners(blended, (z, y, x), slice(first, min(first + step, len(z))), shape[2])
        start = z.span.start + first
        labels[start : start + len(winners), y.span, x.span] = ids[winners.cpu().numpy()]
    if not bool(blended.covered.all()):
        covered = blended.covered.cpu().numpy()
        for plane, source in zip(labels[z.span], z.nearest, strict=True):
            plane[y.span, x.span] *= covered[source][np.ix_(y.nearest, x.nearest)]
    return labels


def _slices_per_block(shape: Shape, memory_mb: float) -> int:
    """Count the slices whose working memory fits in the budget, were every class everywhere."""
    # the largest values, and of one class its map after x, its two rows after y, and their mean, in float32;
    # a label and a comparison
    per_voxel = 4 * (1 + 4) + 2
    return min(max(1, int(memory_mb * 2**20 / (shape[1] * shape[2] * per_voxel))), BLOCK_SLICES)


def _winners(blended: Blended, axes: tuple[Axis, Axis, Axis], block: slice, width: int) -> torch.Tensor:
    """Give the channel of the largest value, `(slices, y, x)` uint8 over the spans of the axes."""
    z, y, x = axes
    sources = slice(int(z.lower[block.start]), int(z.upper[block.stop - 1]) + 1)
    maps = blended.values[:, sources]
    winners = maps.new_zeros((block.stop - block.start, len(y), len(x)), dtype=torch.uint8)
    windows = [_window(maps[channel] > maps[0], y, x) for channel in range(1, len(maps))]
    found = [window for window in windows if window is not None]
    if not found:
        return winners
    rows, columns = (
        slice(min(w[axis].start for w in found), max(w[axis].stop for w in found)) for axis in (0, 1)
    )
    largest = maps.new_empty(winners.shape)
    between = [
        (int(z.lower[i]) - sources.start, int(z.upper[i]) - sources.start, float(z.weight[i]))
        for i in range(block.start, block.stop)
    ]
    for channel, window in enumerate([(rows, columns), *windows]):
        if window is None:
            continue
        planes = _in_plane(maps[channel], blended, axes, window, width)
        for row, (below, above, weight) in enumerate(between):
            value = planes[below] if below == above else planes[below].lerp(planes[above], weight)
            record = largest[row][window]
            if channel == 0:
                record.copy_(value)
                continue
            winners[row][window].masked_fill_(value > record, channel)
            torch.maximum(record, value, out=record)
    return winners


def _window(ahead: torch.Tensor, y: Axis, x: Axis) -> tuple[slice, slice] | None:
    """Bound the wanted voxels that see a voxel where a class is ahead of the background."""
    plane = ahead.any(0)
    rows, columns = (np.flatnonzero(plane.any(axis).cpu().numpy()) for axis in (1, 0))
    if not rows.size:
        return None
    window = y.reach(rows[0], rows[-1]), x.reach(columns[0], columns[-1])
    return window if all(part.stop > part.start for part in window) else None


def _in_plane(
    maps: torch.Tensor,
    blended: Blended,
    axes: tuple[Axis, Axis, Axis],
    window: tuple[slice, slice],
    width: int,
) -> torch.Tensor:
    """Bring `(slices, y, x)` of one class in the box to a window of the wanted plane."""
    _, y, x = axes
    rows, columns = window
    lower, upper = y.lower[rows], y.upper[rows]
    maps = maps[:, lower[0] : upper[-1] + 1]
    if x.weight.any():
        first, last = blended.box[2]
        if (first, last) != (0, blended.shape[2]):
            maps = pad(maps, (first, blended.shape[2] - last))
        size = (maps.shape[1], width)
        maps = interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
        maps = maps[:, :, x.span][:, :, columns]
    else:
        maps = maps.index_select(2, torch.from_numpy(x.lower[columns]).to(maps.device))
    below, above = (
        maps.index_select(1, torch.from_numpy(source - lower[0]).to(maps.device)) for source in (lower, upper)
    )
    weight = torch.from_numpy(y.weight[rows]).to(maps.device)
    return below.lerp_(above, weight[:, None])
