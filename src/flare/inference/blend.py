"""Blend the maps of overlapping windows into one, over no more than the box that the windows cover."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from flare.core.geometry import Shape
from flare.inference.restore import Blended, Box
from flare.inference.windows import Plan, Start, window_slices


@lru_cache(maxsize=4)
def gaussian_weights(patch: Shape) -> torch.Tensor:
    """Weight the voxels of a window `(Z, Y, X)` by how central they are: 1 at the centre, never 0, float32.

    The array is shared between calls: do not write to it.

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


class Accumulator:
    """Sums of weighted window maps, and of the weights, over a box of the padded volume.

    A lone window need not be weighted.
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
        """Divide by the weights and cut off the padding around a volume; the accumulator is used up."""
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
