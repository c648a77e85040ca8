"""Blend the maps of overlapping windows into one, over no more than the box that the windows cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from flare.core.geometry import Shape
from flare.inference.windows import Plan, Start, window_slices

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@lru_cache(maxsize=4)
def gaussian_weights(patch: Shape) -> torch.Tensor:
    """Weight the voxels of a window by how central they are.

    Returns:
        `(Z, Y, X)` float32, 1 at the centre, never 0. Shared between calls: do not write to it.

    Reference: nnU-Net; sigma is an eighth of the patch.
    """
    impulse = np.zeros(patch)
    impulse[tuple(width // 2 for width in patch)] = 1
    weights = gaussian_filter(impulse, [width / 8 for width in patch], mode="constant", cval=0)
    weights /= weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return torch.from_numpy(weights.astype(np.float32))


def covered_box(rows: Plan, patch: Shape) -> Box:
    """Bound all windows of a plan: first voxel and the voxel after the last; empty without any window."""
    if not rows:
        return (0, 0), (0, 0), (0, 0)
    starts = np.array([start for row in rows for start in row])
    low, high = starts.min(axis=0).tolist(), (starts.max(axis=0) + patch).tolist()
    return (low[0], high[0]), (low[1], high[1]), (low[2], high[2])


@dataclass(frozen=True)
class Blended:
    """Maps of a whole volume on the network's grid, stored over the box that windows cover.

    Attributes:
        values: `(C, z, y, x)` float32 probabilities or logits inside the box, 0 where no window was.
        covered: `(z, y, x)` bool inside the box: whether any window was there.
        box: Where the box lies in the volume.
        shape: `(Z, Y, X)` of the volume.
    """

    values: torch.Tensor
    covered: torch.Tensor
    box: Box
    shape: Shape

    def full_coverage(self) -> np.ndarray:
        """Give the coverage of the whole volume, `(Z, Y, X)` bool."""
        full = np.zeros(self.shape, dtype=bool)
        full[tuple(slice(*interval) for interval in self.box)] = self.covered.cpu().numpy()
        return full

    def full_values(self) -> np.ndarray:
        """Give the maps of the whole volume, `(C, Z, Y, X)` float32, 0 without a window (large)."""
        full = np.zeros((len(self.values), *self.shape), dtype=np.float32)
        z, y, x = (slice(*interval) for interval in self.box)
        full[:, z, y, x] = self.values.cpu().numpy()
        return full


class Accumulator:
    """Sums of weighted window maps, and of the weights.

    Args:
        box: The part of the padded volume to hold.
        patch: `(Z, Y, X)` of a window.
        channels: Output channels of the network.
        weighted: Whether windows are weighted; a lone window need not be.
        device: Where the sums live.
    """

    def __init__(
        self, box: Box, patch: Shape, *, channels: int, weighted: bool, device: torch.device
    ) -> None:
        size = [upper - lower for lower, upper in box]
        self.box, self.patch = box, patch
        self.sums = torch.zeros([channels, *size], device=device)
        self.weights = torch.zeros(size, device=device)
        self.window_weights = gaussian_weights(patch).to(device) if weighted else None

    def add(self, start: Start, maps: torch.Tensor) -> None:
        """Add the maps `(C, Z, Y, X)` of a window that starts there in the padded volume."""
        local = tuple(begin - interval[0] for begin, interval in zip(start, self.box, strict=True))
        z, y, x = window_slices((local[0], local[1], local[2]), self.patch)
        if self.window_weights is None:
            self.sums[:, z, y, x] += maps
            self.weights[z, y, x] += 1
        else:
            self.sums[:, z, y, x].addcmul_(maps, self.window_weights)
            self.weights[z, y, x] += self.window_weights

    def blend(self, offsets: Shape, shape: Shape) -> Blended:
        """Divide by the weights and cut the padding off; the accumulator is used up.

        Args:
            offsets: Voxels of padding before the volume along Z, Y, X.
            shape: `(Z, Y, X)` of the volume without padding.
        """
        inside, box = [], []
        for (lower, upper), offset, size in zip(self.box, offsets, shape, strict=True):
            first = max(lower, offset)
            last = max(first, min(upper, offset + size))
            inside.append(slice(first - lower, last - lower))
            box.append((first - offset, last - offset))
        z, y, x = inside
        sums, weights = self.sums[:, z, y, x], self.weights[z, y, x]
        covered = weights > 0
        sums.div_(torch.where(covered, weights, torch.ones_like(weights)))
        return Blended(sums, covered, (box[0], box[1], box[2]), shape)


Axes = tuple[int, ...]


def flips(variant: str, mirror_axes: Axes) -> tuple[Axes, ...]:
    """List the flips of a variant, the identity first.

    Args:
        variant: `none`; `tta4`, each axis alone; `tta8`, every combination of axes.
        mirror_axes: Axes of a `(Z, Y, X)` array along which the network was trained to be flipped.

    Returns:
        One tuple of array axes per map to average.

    Reference: paper, section 2.4 (four maps); nnU-Net (eight maps).
    """
    most = {"none": 0, "tta4": 1, "tta8": len(mirror_axes)}[variant]
    counts = range(min(most, len(mirror_axes)) + 1)
    return tuple(axes for count in counts for axes in combinations(sorted(mirror_axes), count))


def average_over_flips(
    predict: Callable[[torch.Tensor], torch.Tensor], patch: torch.Tensor, axes_of_flips: tuple[Axes, ...]
) -> torch.Tensor:
    """Average the maps of a patch over flips, each turned back first.

    Args:
        predict: Maps `(1, 1, Z, Y, X)` to `(1, C, Z, Y, X)` logits or probabilities.
        patch: `(1, 1, Z, Y, X)` normalised intensities.
        axes_of_flips: What `flips` gives; the sum is divided by exactly their number.

    Returns:
        `(1, C, Z, Y, X)` mean of the maps, in the patch's own orientation.
    """
    total: torch.Tensor | None = None
    # the identity last: a flip copies, so that the sum is never written into the network's own output
    for axes in reversed(axes_of_flips):
        dims = [axis + 2 for axis in axes]
        maps = predict(patch.flip(dims)).flip(dims) if dims else predict(patch)
        total = maps if total is None else total.add_(maps)
    if total is None:
        raise ValueError("no flip to average over; expected at least the identity")
    return total.div_(len(axes_of_flips)) if len(axes_of_flips) > 1 else total
