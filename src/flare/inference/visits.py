"""Lead the network through a plan of windows, letting what it sees decide where the schedule says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from flare.inference.windows import Row, Start

Seen = TypeVar("Seen")

# flare22's rule, from the authors' code
MINIMUM_VOX = 1000  # fewer foreground voxels in the central window discard it
EDGE_VOX = 10  # more foreground voxels than this in its first (last) y plane ask for the neighbour there


@dataclass(frozen=True)
class Verdict:
    """What a row's central window decides: does it count, who follows, is the next row left out."""

    keep: bool
    others: Row
    skip_next: bool = False


def judge_flare22(row: Row, segmentation: np.ndarray, tubes: frozenset[int]) -> Verdict:
    """Decide from the central window whether its surroundings can hold an abdominal organ.

    Nearly empty: the window is discarded, and so are its neighbours and the whole next row. Nothing but the
    long vessels and the esophagus: only the neighbour straight before or behind is looked at, where the
    foreground reaches that face.

    Args:
        row: Starts of the row, the central one first.
        segmentation: `(Z, Y, X)` class ids in the central window.
        tubes: Ids of the long vessels and the esophagus.

    Returns:
        The verdict for this row.

    Reference: FLARE23 authors' code (fast inference of FLARE22).
    """
    foreground = segmentation != 0
    if np.count_nonzero(foreground) < MINIMUM_VOX:
        return Verdict(keep=False, others=(), skip_next=True)
    centre, *others = row
    if not set(np.unique(segmentation[foreground]).tolist()) <= tubes:
        return Verdict(keep=True, others=tuple(others))
    in_line = [start for start in others if start[2] == centre[2]]
    before = [start for start in in_line if start[1] < centre[1]][-1:]
    behind = [start for start in in_line if start[1] > centre[1]][:1]
    chosen: list[Start] = []
    if np.count_nonzero(foreground[:, 0]) > EDGE_VOX:
        chosen += before
    if np.count_nonzero(foreground[:, -1]) > EDGE_VOX:
        chosen += behind
    return Verdict(keep=True, others=tuple(chosen))


def walk(
    rows: tuple[Row, ...],
    predict: Callable[[Start], Seen],
    judge: Callable[[Row, Seen], Verdict] | None = None,
) -> Iterator[tuple[Start, Seen]]:
    """Visit the windows of a plan and yield those that count, each with its prediction.

    Args:
        rows: The plan.
        predict: Gives a window's prediction; called once per visited window, in the order of the visits.
        judge: Decides from the prediction of a row's first window; without it every window counts.

    Yields:
        Start and prediction of each window that is not discarded.
    """
    skip = False
    for row in rows:
        if skip:
            skip = False
            continue
        first = predict(row[0])
        verdict = judge(row, first) if judge else Verdict(keep=True, others=row[1:])
        skip = verdict.skip_next
        if verdict.keep:
            yield row[0], first
        for start in verdict.others:
            yield start, predict(start)
