"""Which windows are worth a look: the fewest that cover the body, and those where a decision is open (ours).

A decision is open where the two best classes are near each other, or where two windows disagree. It is asked
of the voxels that a window sees more centrally than every window before it: of others it would change little.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product
from operator import itemgetter

import numpy as np
import torch

from flare.core.geometry import Shape, bounding_box
from flare.inference.settings import InferenceSettings
from flare.inference.windows import Plan, Start, window_slices

Divisors = Sequence[int] | None  # what a network divides an axis by
Visit = tuple[Start, torch.Tensor]


def window_size(patch: Shape, factors: Sequence[float] | None, divisors: Divisors) -> Shape:
    """Give the size of a window: the patch times a factor an axis, rounded up to multiples of the divisors.

    Where nobody tells them it is the largest power of two in the patch, which the network takes.
    """
    if factors is None:
        return patch
    steps = divisors or [size & -size for size in patch]
    z, y, x = (
        math.ceil(round(size * factor / step, 6)) * step  # 40 * 1.1 is a little more than 44
        for size, factor, step in zip(patch, factors, steps, strict=True)
    )
    return z, y, x


def sparsest_first(rows: Plan, patch: Shape, body: np.ndarray | None) -> Plan:
    """Order a plan's windows into two rows: the sparsest grid in it that covers the body, and the others.

    That has the fewest starts of each axis with which no voxel of the body is missed that the plan sees.
    Without a body, None, the box of all windows is covered.
    """
    starts = [start for row in rows for start in row]
    found = None if body is None else bounding_box(body)
    chosen = []
    for axis, width in enumerate(patch):
        known = sorted({start[axis] for start in starts})
        lower, upper = known[0], known[-1] + width
        if found is not None:
            lower, upper = max(lower, found[axis].start), min(upper, found[axis].stop)
        chosen.append(_fewest(known, width, lower, upper))
    first = set(product(*chosen))
    return tuple(s for s in starts if s in first), tuple(s for s in starts if s not in first)


def _fewest(starts: Sequence[int], width: int, lower: int, upper: int) -> set[int]:
    """Choose as few of some ascending starts as cover an interval, which all together cover.

    An interval without a voxel, which no window sees, chooses all.
    """
    chosen: set[int] = set()
    while lower < upper:
        last = max(start for start in starts if start <= lower)
        chosen.add(last)
        lower = last + width
    return chosen or set(starts)


class Decisions:
    """What the windows so far say of each voxel of a volume that is padded to a window, `(Z, Y, X)`.

    `weights` says how central a voxel of a window is, `(Z, Y, X)`. All is of a voxel's most central window.
    """

    def __init__(self, shape: Shape, weights: torch.Tensor, settings: InferenceSettings) -> None:
        self.weights, self.margin = weights, settings.open_margin
        self.patch: Shape = (weights.shape[0], weights.shape[1], weights.shape[2])
        self.needed = max(1, math.ceil(settings.open_share * weights.numel()))
        device = weights.device
        self.nearness = torch.zeros(shape, device=device)  # how central; 0 where no window was
        # between the best two probabilities; where no window was there is nothing to decide
        self.margins = torch.ones(shape, dtype=torch.float16, device=device)
        self.winners = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.disputed = torch.zeros(shape, dtype=torch.bool, device=device)

    def is_open(self, start: Start) -> bool:
        """Whether enough decisions are open where a window would be the most central one."""
        box = window_slices(start, self.patch)
        return self._enough(self.weights > self.nearness[box], self.margins[box], self.disputed[box])

    def note(self, start: Start, probabilities: torch.Tensor) -> bool:
        """Note what a window says, `(C, Z, Y, X)`; whether enough decisions are open in it."""
        box = window_slices(start, self.patch)
        best, channels = probabilities.max(0)
        second = probabilities.scatter(0, channels[None], -1).amax(0)
        margins, winners = (best - second).half(), channels.to(torch.uint8)
        is_nearer = self.weights > self.nearness[box]
        self.disputed[box] |= (self.nearness[box] > 0) & (winners != self.winners[box])
        is_open = self._enough(is_nearer, margins, self.disputed[box])
        for known, new in ((self.margins, margins), (self.winners, winners), (self.nearness, self.weights)):
            known[box] = torch.where(is_nearer, new, known[box])
        return is_open

    def _enough(self, is_nearer: torch.Tensor, margins: torch.Tensor, disputed: torch.Tensor) -> bool:
        """Whether enough voxels are open among those that a window sees best."""
        is_open = (margins <= self.margin) | disputed
        return int(torch.count_nonzero(is_open & is_nearer)) >= self.needed


def walk_open(rows: Plan, look: Callable[[Start], torch.Tensor], decisions: Decisions) -> Iterator[Visit]:
    """Visit the windows of `sparsest_first`, of the second row those that are open by then.

    They come with ascending z, each with its prediction, which is held until its turn.
    """
    depth = decisions.patch[0]
    first, by_z = set(rows[0]), itemgetter(0)  # within a z in the order of the plan, the central ones first
    ahead, held = deque(sorted(rows[0], key=by_z)), deque[Visit]()
    for z, starts in groupby(sorted(rows[0] + rows[1], key=by_z), key=by_z):
        while ahead and ahead[0][0] < z + depth:
            start = ahead.popleft()
            held.append((start, look(start).clone()))  # an engine may give the same memory again
        while held and held[0][0][0] == z:
            yield held.popleft()
        for start in starts:
            if start not in first and decisions.is_open(start):
                yield start, look(start)
