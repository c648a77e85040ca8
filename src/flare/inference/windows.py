"""Find the body, plan which windows the network looks at, and in which order, and walk along the plan.

A plan is data: rows of window starts, one row per z start. What the network sees in the first window of a
row may decide which of the others are visited, where the schedule says so.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, TypeVar

import cc3d
import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes

from flare.core.geometry import Box, Shape, Spacing, bounding_box
from flare.inference.settings import BodyRule, InferenceSettings

Start = Shape
Row = tuple[Start, ...]
Plan = tuple[Row, ...]
Seen = TypeVar("Seen")

GRID_MM = 2.4  # in-plane distance of the samples looked at: every second voxel at 1.2 mm (ours)
AIR_SHARE = 0.1  # of voxels above the body's threshold (ours): a table without a patient has less
# flare22's rule, from the authors' code
MINIMUM_VOX = 1000  # fewer foreground voxels in the central window discard it
EDGE_VOX = 10  # more foreground voxels than this in its first (last) y plane ask for the neighbour there


def find_body(array_hu: np.ndarray, spacing_mm: Spacing, rule: BodyRule) -> np.ndarray | None:
    """Mark the body in `(Z, Y, X)` HU, Z along the patient, to leave out windows over air (ours).

    It is the largest component above a threshold after an opening, holes filled slice by slice. Gives
    `(Z, Y, X)` bool, constant over blocks of about `GRID_MM` in plane, or None if there is no body.
    """
    steps = [max(1, round(GRID_MM / spacing)) for spacing in spacing_mm[1:]]
    rows, columns = (
        np.minimum(np.arange(math.ceil(size / step)) * step + step // 2, size - 1)
        for size, step in zip(array_hu.shape[1:], steps, strict=True)
    )
    dense = array_hu[:, rows[:, None], columns] > rule.threshold_hu
    grid_mm = (spacing_mm[0], spacing_mm[1] * steps[0], spacing_mm[2] * steps[1])
    reach = [max(1, round(rule.opening_mm / spacing)) for spacing in grid_mm[1:]]
    y, x = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    disc = ((y / reach[0]) ** 2 + (x / reach[1]) ** 2 <= 1)[None]
    # the body goes on where the image ends: a narrow field of view must not round it off
    dense = binary_dilation(binary_erosion(dense, disc, border_value=1), disc)
    if not dense.any():
        return None
    body = cc3d.largest_k(dense, k=1, connectivity=6) > 0
    if np.count_nonzero(body) * math.prod(grid_mm) < rule.minimum_ml * 1000:
        return None
    for plane in body:
        plane[:] = binary_fill_holes(plane)
    y, x = (np.arange(size) // step for size, step in zip(array_hu.shape[1:], steps, strict=True))
    return body[:, y[:, None], x]


def body_box(body: np.ndarray, patch: Shape) -> Box:
    """Bound a body, which is not empty, by at least a window where the volume has one."""
    spans = []
    for span, size, width in zip(bounding_box(body) or (), body.shape, patch, strict=True):
        wide = min(max(span.stop - span.start, width), size)
        start = min(max((span.start + span.stop - wide) // 2, 0), size - wide)
        spans.append(slice(start, start + wide))
    return spans[0], spans[1], spans[2]


def is_air(array_hu: np.ndarray, rule: BodyRule) -> bool:
    """Whether a volume in which no body was found holds next to nothing that could be one (ours).

    A crop smaller than a body, or one that the opening takes apart, is no air.
    """
    return float(np.mean(array_hu > rule.threshold_hu)) < AIR_SHARE


class Axis(NamedTuple):
    """Window starts along one axis: the central one, and all of them in ascending order."""

    centre: int
    starts: tuple[int, ...]


def even_starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """Spread starts evenly so that neighbours overlap by at least the given fraction of a window, below 1.

    They ascend without repeats and together cover the axis.

    Reference: nnU-Net, sliding-window inference, at an overlap of 0.5.
    """
    if size <= patch:
        return (0,)
    count = math.ceil((size - patch) / (patch * (1 - overlap))) + 1
    return tuple(sorted({round(i * (size - patch) / (count - 1)) for i in range(count)}))


def plane_starts(
    size: int, patch: int, interval: tuple[int, int] | None = None, overlap: float | None = None
) -> Axis:
    """Place at most three starts around the middle of an in-plane axis: at most two patches are seen.

    Every window lies inside the axis; equal starts appear once. The interval, first voxel and the voxel after
    the last, counts as the axis instead (the body); it is widened to a patch if smaller. With an overlap
    starts are spread over all of it, as by `even_starts`.

    Reference: paper, section 2.2 (sliding window strategy); interval and overlap: ours.
    """
    lower, upper = interval or (0, size)
    width = min(max(upper - lower, patch), size)
    offset = min(max((lower + upper - width) // 2, 0), size - width)
    if width <= patch:
        return Axis(offset, (offset,))
    if overlap is not None:
        spread = tuple(offset + start for start in even_starts(width, patch, overlap))
        return Axis(spread[len(spread) // 2], spread)
    if width <= 2 * patch:
        starts = [offset + round(i * (width - patch) / 2) for i in range(3)]
    else:
        middle = offset + round(width / 2)
        starts = [middle - patch, middle - patch // 2, middle]
    return Axis(starts[1], tuple(sorted(set(starts))))


def extended(axis: Axis, patch: int, interval: tuple[int, int]) -> Axis:
    """Add starts, half a patch apart, until an interval inside the axis is covered; the centre stays."""
    lower, upper = interval
    step = max(patch // 2, 1)
    starts = list(axis.starts)
    while starts[0] > lower:
        starts.insert(0, max(starts[0] - step, lower))
    while starts[-1] + patch < upper:
        starts.append(min(starts[-1] + step, upper - patch))
    return Axis(axis.centre, tuple(starts))


def plan_windows(settings: InferenceSettings, shape: Start, *, patch: Start, body: np.ndarray | None) -> Plan:
    """List the windows of a volume, which is at least the patch along every axis, row by row.

    `paper` and `flare22` place 3 x 3 windows in plane, unless `plane_overlap` spreads them; `fast` does too
    and leaves out those without body; `dense` spreads windows evenly along every axis, whatever `centre` and
    `extend` say. Without a body, None, all of the volume is body. The central window of a row stands first,
    but for `dense`.

    Reference: paper, section 2.2; `fast`: ours.
    """
    plane = settings.plane_overlap
    overlaps = [settings.overlap, *[settings.overlap if plane is None else plane] * 2]
    z_starts, *others = map(even_starts, shape, patch, overlaps)
    if settings.name == "dense":
        return tuple(tuple((z, y, x) for y, x in product(*others)) for z in z_starts)
    found = None if body is None else bounding_box(body)
    extent = found or tuple(slice(0, size) for size in shape)
    axes = []
    for span, size, width in zip(extent[1:], shape[1:], patch[1:], strict=True):
        interval = (span.start, span.stop)
        placed = plane_starts(size, width, interval if settings.centre == "body" else None, plane)
        axes.append(extended(placed, width, interval) if settings.extend else placed)
    centre = (axes[0].centre, axes[1].centre)
    around = [pair for pair in product(axes[0].starts, axes[1].starts) if pair != centre]
    rows = [[(z, *pair) for pair in (centre, *around)] for z in z_starts]
    if settings.name == "fast" and body is not None:
        rows = [[start for start in row if body[window_slices(start, patch)].any()] for row in rows]
    return tuple(tuple(row) for row in rows if row)


def window_slices(start: Start, patch: Shape) -> tuple[slice, slice, slice]:
    """Turn a window's start into the slices that cut it from a `(Z, Y, X)` array."""
    z, y, x = (slice(begin, begin + width) for begin, width in zip(start, patch, strict=True))
    return z, y, x


@dataclass(frozen=True)
class Verdict:
    """What a row's central window decides: does it count, who follows, is the next row left out."""

    keep: bool
    others: Row
    skip_next: bool = False


def judge_flare22(row: Row, segmentation: np.ndarray, tubes: frozenset[int]) -> Verdict:
    """Decide from the central window whether its surroundings can hold an abdominal organ.

    Nearly empty: the window is discarded, and so are its neighbours and the whole next row. Nothing but
    `tubes`, the long vessels and the esophagus: only the neighbour straight before or behind is looked at,
    where the foreground reaches that face. `segmentation` has the class ids in the row's first window.

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
    at_front, at_back = (np.count_nonzero(foreground[:, face]) > EDGE_VOX for face in (0, -1))
    return Verdict(keep=True, others=(*(before if at_front else ()), *(behind if at_back else ())))


def walk(
    rows: Plan, predict: Callable[[Start], Seen], judge: Callable[[Row, Seen], Verdict] | None = None
) -> Iterator[tuple[Start, Seen]]:
    """Visit the windows of a plan and yield those that count, each with its prediction.

    `predict` is called once per visited window, in the order of the visits. `judge` decides from the
    prediction of a row's first window; without it every window counts.
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
