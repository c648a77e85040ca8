"""Exact percentiles of values that are too many to hold: two passes count them by their bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIGN = np.uint32(1 << 31)
HALF = 16  # bits: the first pass counts by the upper half, the second by the lower half where it matters

Counts = tuple[np.ndarray, np.ndarray]


def count_values(values: np.ndarray, uppers: Sequence[int] | None = None) -> Counts:
    """Count one piece of the values, small enough to hand on.

    Args:
        values: `(N,)` float32.
        uppers: What the first pass has found to matter (`Percentiles.uppers`); None in the first pass.

    Returns:
        Keys, ascending, and how often each occurs: upper halves in the first pass, whole keys in the second.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    keys = np.where(bits & SIGN, ~bits, bits | SIGN)  # in the order of the numbers
    if uppers is None:
        return np.unique(keys >> HALF, return_counts=True)
    return np.unique(keys[np.isin(keys >> HALF, uppers)], return_counts=True)


class Percentiles:
    """Percentiles of all pieces, as `numpy.percentile` gives them for the whole.

    `add` every piece, then read `uppers`, then `refine` every piece, then `read`. It holds half a megabyte,
    and as much for each of at most two upper halves a percentile, however many the values are.

    Args:
        percentiles: From 0 to 100.
    """

    def __init__(self, percentiles: Sequence[float]) -> None:
        self.percentiles = percentiles
        self._coarse = np.zeros(1 << HALF, np.int64)
        self._fine: dict[int, np.ndarray] = {}

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self._coarse.sum())

    def add(self, counts: Counts) -> None:
        """Take a piece of the first pass."""
        keys, numbers = counts
        self._coarse[keys] += numbers

    @property
    def uppers(self) -> list[int]:
        """Upper halves of the values that the percentiles lie between."""
        ranks = {r for p in self.percentiles for r in self._ranks(p)[:2]} if self.count else set()
        return sorted({self._place(rank)[0] for rank in ranks})

    def refine(self, counts: Counts) -> None:
        """Take a piece of the second pass."""
        keys, numbers = counts
        for upper in np.unique(keys >> HALF).tolist():
            chosen = keys >> HALF == upper
            row = self._fine.setdefault(upper, np.zeros(1 << HALF, np.int64))
            row[keys[chosen] & 0xFFFF] += numbers[chosen]

    def read(self) -> list[float]:
        """The percentiles."""
        found = []
        for percentile in self.percentiles:
            below, above, part = self._ranks(percentile)
            pair = np.array([self._value(below), self._value(above)], np.float32)
            found.append(float(np.quantile(pair, [part])[0]))
        return found

    def _ranks(self, percentile: float) -> tuple[int, int, float]:
        """Ranks of the two neighbours of a percentile, and how far it is from the lower to the upper."""
        place = (self.count - 1) * (percentile / 100)
        return int(place), min(int(place) + 1, self.count - 1), place - int(place)

    def _place(self, rank: int) -> tuple[int, int]:
        """Upper half of the value of a rank, and its rank among those with the same."""
        below = np.cumsum(self._coarse)
        upper = int(np.searchsorted(below, rank, "right"))
        return upper, rank - int(below[upper] - self._coarse[upper])

    def _value(self, rank: int) -> np.float32:
        upper, within = self._place(rank)
        lower = int(np.searchsorted(np.cumsum(self._fine[upper]), within, "right"))
        key = np.uint32(upper << HALF | lower)
        return (key ^ SIGN if key & SIGN else ~key).view(np.float32)
