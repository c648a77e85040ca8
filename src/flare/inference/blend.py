"""Average the maps of overlapping windows, over no more than the box that the windows cover.

Windows are visited with ascending z. So planes that no later window touches are restored and dropped while
the network goes on, and a scan of any length takes the memory of a patch's depth.
"""

import time
from collections.abc import Iterator
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


class Accumulator(Blended):
    """Weighted means of the maps of windows, which are visited as planes are asked for.

    `windows` gives start and maps `(C, Z, Y, X)` of those that count among `rows`, with ascending z. The
    volume of a `shape` begins at `offsets` in the padded one. A lone window need not be weighted.
    """

    def __init__(
        self,
        windows: Iterator[tuple[Start, torch.Tensor]],
        rows: Plan,
        patch: Shape,
        *,
        channels: int,
        offsets: Shape,
        shape: Shape,
        device: torch.device,
    ) -> None:
        bounds, inside, box = covered_box(rows, patch), [], []
        for (lower, upper), offset, size in zip(bounds, offsets, shape, strict=True):
            first = max(lower, offset)
            last = max(first, min(upper, offset + size))
            inside.append(slice(first - lower, last - lower))
            box.append((first - offset, last - offset))
        depth, *plane = (upper - lower for lower, upper in bounds)
        self._bounds, self._depth, self._inside, self.patch = bounds, depth, inside, patch
        self._seen = torch.zeros([depth, *plane], dtype=torch.bool, device=device)
        # sums of the planes from `_first` of the bounds on; those before `_finished` are divided
        self._sums = torch.zeros([channels, 0, *plane], device=device)
        self._weights = torch.zeros([1, 0, *plane], device=device)
        self._first = self._finished = 0
        self._window_weights = gaussian_weights(patch).to(device) if sum(map(len, rows)) > 1 else None
        self._windows = windows
        self._next: tuple[Start, torch.Tensor] | None = None  # visited, not yet added
        self.visited = self.passes = 0  # windows, and with each flip as one, counted by who visits them
        self.seconds = 0.0  # spent on windows
        z, y, x = inside
        super().__init__(self._sums[:, z, y, x], self._seen[z, y, x], (box[0], box[1], box[2]), shape)

    @torch.inference_mode()
    def planes(self, part: slice) -> torch.Tensor:
        """Give the averages `(C, z, y, x)` of some planes of the box; those before may be dropped.

        `covered` is known of the planes that were given.
        """
        began = time.perf_counter()
        z, y, x = self._inside
        first, last = z.start + part.start, z.start + part.stop
        self._hold(min(first, self._finished), last)
        while self._finished < last:
            if self._next is not None:
                self._hold(min(first, self._finished), self._finished + self.patch[0])
                self.add(*self._next)
            self._next = next(self._windows, None)
            self._divide(self._depth if self._next is None else self._next[0][0] - self._bounds[0][0])
        self.seconds += time.perf_counter() - began
        return self._sums[:, first - self._first : last - self._first, y, x]

    def whole(self) -> Blended:
        """Keep the averages of all planes, as `values`."""
        self.values = self.planes(slice(0, len(self.covered)))
        return self

    def finish(self) -> None:
        """Visit the windows that are left: the wanted grid may need none of the last planes."""
        end = self._depth - self._inside[0].start
        self.planes(slice(end, end))

    def add(self, start: Start, maps: torch.Tensor) -> None:
        """Add the maps `(C, Z, Y, X)` of a window that starts there in the padded volume."""
        z, y, x = (begin - lower for begin, (lower, _) in zip(start, self._bounds, strict=True))
        at = (slice(None), *window_slices((z - self._first, y, x), self.patch))
        if self._window_weights is None:
            self._sums[at] += maps
            self._weights[at] += 1
        else:
            self._sums[at].addcmul_(maps, self._window_weights)
            self._weights[at] += self._window_weights

    def _hold(self, first: int, last: int) -> None:
        """Hold the planes from `first` to before `last`; drop those before, unless there is room."""
        room = self._sums.shape[1]
        if last <= self._first + room:
            return
        moved = first - self._first
        kept = max(room - moved, 0)
        before = self._sums, self._weights
        if last - first > room:
            shapes = ((len(a), last - first, *a.shape[2:]) for a in before)
            self._sums, self._weights = map(self._sums.new_zeros, shapes)
        for array, old in zip((self._sums, self._weights), before, strict=True):
            for plane in range(kept):  # one by one: they overlap
                array[:, plane] = old[:, plane + moved]
            array[:, kept:] = 0
        self._first = first

    def _divide(self, finished: int) -> None:
        """Make averages of the planes before `finished`, which no later window touches."""
        held = min(finished, self._first + self._sums.shape[1])  # beyond are no windows
        planes = slice(self._finished - self._first, held - self._first)
        weights = self._weights[:, planes]
        covered = weights > 0
        self._sums[:, planes].div_(torch.where(covered, weights, torch.ones_like(weights)))
        self._seen[self._finished : held] = covered[0]
        self._finished = finished
