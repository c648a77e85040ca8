"""Bring blended maps back to a case's own grid, as labels or as they are, within a memory budget.

Upsampling every class of a whole volume takes gigabytes and most of the time of a case. Here a block of
slices is worked on at a time, class after class, and of a class no more than the box in which it can win:
interpolation is a weighted mean, so where no voxel around has more of the class than of the background, the
class loses to the background, and the result is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from flare.core.geometry import Shape, Spacing
from flare.core.preprocessing import Axis, separate_axis

Linear = tuple[bool, bool, bool]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Place = tuple[slice, slice, slice]
BLOCK_SLICES = 16  # more gain no speed: boxes grow with the block


@dataclass
class Blended:
    """Maps of a whole volume on the network's grid, stored over the box that windows cover."""

    # `(C, z, y, x)` float32 probabilities or logits inside the box, 0 where no window was
    values: torch.Tensor
    covered: torch.Tensor  # `(z, y, x)` bool inside the box: whether any window was there
    box: Box  # where the box lies in the volume
    shape: Shape  # `(Z, Y, X)` of the volume

    def planes(self, part: slice) -> torch.Tensor:
        """Give `values` of some planes of the box. They are asked for with ascending z."""
        return self.values[:, part]

    def of_volume(self, of_box: torch.Tensor) -> np.ndarray:
        """Give `values` (large) or `covered` of the whole volume, `(..., Z, Y, X)`, 0 without a window."""
        inside = of_box.cpu().numpy()
        full = np.zeros((*inside.shape[:-3], *self.shape), dtype=inside.dtype)
        z, y, x = (slice(*interval) for interval in self.box)
        full[..., z, y, x] = inside
        return full


@dataclass(frozen=True)
class Way:
    """How maps come back to a grid of the same extent."""

    linear: Linear  # along which axes they are interpolated, see `interpolated_axes`
    outputs: tuple[int, ...]  # class id of each channel
    memory_mb: float  # bound on the working memory of a block of slices; one slice is always taken
    # makes interpolated maps `(C, ...)` probabilities
    activate: Callable[[torch.Tensor], torch.Tensor] = lambda maps: maps


def interpolated_axes(variant: str, spacing_mm: Spacing, original_mm: Spacing) -> Linear:
    """Tell along which axes maps are interpolated; along the others the nearest voxel is taken.

    Reference: nnU-Net, separate treatment of the axis of lowest resolution at a spacing ratio above 3.
    """
    if variant != "nnunet":
        linear = variant == "trilinear"
        return linear, linear, linear
    apart = separate_axis(spacing_mm, original_mm)
    return apart != 0, apart != 1, apart != 2


def restore_labels(blended: Blended, shape: Shape, way: Way, into: np.ndarray | None = None) -> np.ndarray:
    """Interpolate maps to a grid `(Z, Y, X)` and take the class of the largest value at each voxel.

    Only voxels that windows covered take part in the interpolation; a voxel whose nearest voxel on the
    network's grid was not covered is background. Of equal values the first channel's counts. `into` are zeros
    of the shape, uint8, which may be a view of any strides; they are written and returned.
    """
    labels = np.zeros(shape, dtype=np.uint8) if into is None else into
    z, y, x = axes = _axes(blended, shape, way.linear)
    if not all(map(len, axes)):
        return labels
    ids = np.asarray(way.outputs, dtype=np.uint8)
    # the largest values, and of one class its map after x, its two rows after y, and their mean, in float32;
    # a label and a comparison
    for block in _blocks(len(z), shape, way.memory_mb, 4 * (1 + 4) + 2):
        winners = _winners(blended, axes, block, shape[2])
        start = z.span.start + block.start
        labels[start : start + len(winners), y.span, x.span] = ids[winners.cpu().numpy()]
    if not bool(blended.covered.all()):
        covered = blended.covered.cpu().numpy()
        for plane, source in zip(labels[z.span], z.nearest, strict=True):
            plane[y.span, x.span] *= covered[source][np.ix_(y.nearest, x.nearest)]
    return labels


def restore_probabilities(blended: Blended, channels: Mapping[int, np.ndarray], way: Way) -> None:
    """Interpolate maps, a block of slices at a time.

    As in `restore_labels`, only voxels that windows covered take part; where none was, all is background.
    `channels` are written in place: channel to an array `(Z, Y, X)`, which may be a view of any strides.
    """
    for channel, array in channels.items():
        array[...] = float(channel == 0)
    shape = next(iter(channels.values())).shape
    for at, found in _probabilities(blended, shape, way):
        for channel, array in channels.items():
            array[at] = found[channel].cpu().numpy()


def restore_confidence(blended: Blended, labels: np.ndarray, way: Way) -> np.ndarray:
    """Give 255 times the probability of each voxel's own label, `(Z, Y, X)` uint8, rounded.

    Where no window was, background is certain, as in `restore_probabilities`.
    """
    confidence = np.full(labels.shape, 255, dtype=np.uint8)
    channel = np.zeros(256, dtype=np.int64)
    channel[list(way.outputs)] = np.arange(len(way.outputs))
    for at, found in _probabilities(blended, labels.shape, way):
        own = torch.from_numpy(channel[labels[at]]).to(found.device)
        values = found.gather(0, own[None])[0].clamp(0, 1)
        confidence[at] = (255 * values).round().byte().cpu().numpy()
    return confidence


def _probabilities(blended: Blended, shape: Shape, way: Way) -> Iterator[tuple[Place, torch.Tensor]]:
    """Give where a block lies and its `(C, slices, y, x)` probabilities; elsewhere all is background."""
    z, y, x = axes = _axes(blended, shape, way.linear)
    if not all(map(len, axes)):
        return
    whole = slice(0, len(y)), slice(0, len(x))
    coverage, channels = blended.covered.float(), len(blended.values)
    for block in _blocks(len(z), shape, way.memory_mb, 4 * (2 * channels + 4)):
        sources, between = _rows(z, block)
        values = coverage.new_empty((channels + 1, len(between), len(y), len(x)))
        for kind, maps in enumerate([*blended.values, coverage]):
            planes = _in_plane(maps[sources], blended, axes, whole, shape[2])
            for row, (below, above, weight) in enumerate(between):
                values[kind, row] = planes[below].lerp(planes[above], weight)
        seen = blended.covered[z.nearest[block]][:, y.nearest][:, :, x.nearest]
        found = way.activate(values[:-1] / values[-1].where(seen, torch.ones_like(values[-1])))
        background = torch.zeros_like(found[:, :1, :1, :1])
        background[0] = 1
        at = slice(z.span.start + block.start, z.span.start + block.stop)
        yield (at, y.span, x.span), found.where(seen, background)


def _axes(blended: Blended, shape: Shape, linear: Linear) -> list[Axis]:
    """Lay out how each axis of the wanted grid is read from the box."""
    each = zip(blended.shape, shape, blended.box, linear, strict=True)
    return [Axis.between(size, wanted, interval, linear=along) for size, wanted, interval, along in each]


def _rows(z: Axis, block: slice) -> tuple[slice, list[tuple[int, int, float]]]:
    """Give the slices of the box that a block sees, and below, above and weight of each of its rows."""
    first, last = int(z.lower[block.start]), int(z.upper[block.stop - 1])
    below, above = (z.lower[block] - first).tolist(), (z.upper[block] - first).tolist()
    return slice(first, last + 1), list(zip(below, above, z.weight[block].tolist(), strict=True))


def _blocks(count: int, shape: Shape, memory_mb: float, per_voxel: int) -> Iterator[slice]:
    """Cut slices into blocks whose working memory, so many bytes a voxel, fits in the budget."""
    step = min(max(1, int(memory_mb * 2**20 / (shape[1] * shape[2] * per_voxel))), BLOCK_SLICES)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _winners(blended: Blended, axes: Sequence[Axis], block: slice, width: int) -> torch.Tensor:
    """Give the channel of the largest value, `(slices, y, x)` uint8 over the spans of the axes."""
    z, y, x = axes
    sources, between = _rows(z, block)
    maps = blended.planes(sources)
    winners = maps.new_zeros((block.stop - block.start, len(y), len(x)), dtype=torch.uint8)
    windows = [_window(maps[channel] > maps[0], y, x) for channel in range(1, len(maps))]
    found = [window for window in windows if window is not None]
    if not found:
        return winners
    bounds = [slice(min(s.start for s in of), max(s.stop for s in of)) for of in zip(*found, strict=True)]
    largest = maps.new_empty(winners.shape)
    for channel, window in enumerate([(bounds[0], bounds[1]), *windows]):
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
    maps: torch.Tensor, blended: Blended, axes: Sequence[Axis], window: tuple[slice, slice], width: int
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
        maps = interpolate(maps[None], size=(maps.shape[1], width), mode="bilinear", align_corners=False)[0]
        maps = maps[:, :, x.span][:, :, columns]
    else:
        maps = maps.index_select(2, torch.from_numpy(x.lower[columns]).to(maps.device))
    below, above = (torch.from_numpy(source - lower[0]).to(maps.device) for source in (lower, upper))
    weight = torch.from_numpy(y.weight[rows]).to(maps.device)
    return maps.index_select(1, below).lerp_(maps.index_select(1, above), weight[:, None])
