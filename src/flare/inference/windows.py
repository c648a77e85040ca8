"""Plan which windows of a volume the network looks at, and in which order.

A plan is data: rows of window starts, one row per z start; `visits.py` walks along it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Start = tuple[int, int, int]
Row = tuple[Start, ...]


class Axis(NamedTuple):
    """Window starts along one axis: the central one, and all of them in ascending order."""

    centre: int
    starts: tuple[int, ...]


def even_starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """Spread starts evenly so that neighbours overlap by at least the given fraction (nnU-Net's rule at 0.5).

    Args:
        size: Voxels along the axis.
        patch: Voxels of a window along the axis.
        overlap: Fraction of a window that the next one covers again, in [0, 1).

    Returns:
        Ascending starts without repeats; together they cover the axis.

    Reference: nnU-Net, sliding-window inference.
    """
    if size <= patch:
        return (0,)
    count = math.ceil((size - patch) / (patch * (1 - overlap))) + 1
    return tuple(sorted({round(i * (size - patch) / (count - 1)) for i in range(count)}))


def plane_starts(size: int, patch: int) -> Axis:
    """Place at most three starts around the middle of an in-plane axis: at most two patches are seen.

    Args:
        size: Voxels along the axis.
        patch: Voxels of a window along the axis.

    Returns:
        The central start and all starts; equal starts appear once.

    Reference: paper, section 2.4 (fast sliding window).
    """
    if size <= patch:
        return Axis(0, (0,))
    if size <= 2 * patch:
        before, centre, after = (round(i * (size - patch) / 2) for i in range(3))
    else:
        middle = round(size / 2)
        before, centre, after = middle - patch, middle - patch // 2, middle
    return Axis(centre, tuple(sorted({before, centre, after})))


def plane_starts_on(size: int, patch: int, interval: tuple[int, int]) -> Axis:
    """Apply the in-plane rule to an interval of an axis (the body's) instead of the whole axis.

    Args:
        size: Voxels along the axis.
        patch: Voxels of a window along the axis.
        interval: First voxel of the interval and the voxel after its last; widened to a patch if smaller.

    Returns:
        The central start and all starts, every window inside the axis.
    """
    lower, upper = interval
    width = min(max(upper - lower, patch), size)
    offset = min(max((lower + upper - width) // 2, 0), size - width)
    axis = plane_starts(width, patch)
    return Axis(axis.centre + offset, tuple(start + offset for start in axis.starts))


def extended(axis: Axis, patch: int, interval: tuple[int, int]) -> Axis:
    """Add starts, half a patch apart, until an interval of the axis is covered.

    Args:
        axis: Starts already placed.
        patch: Voxels of a window along the axis.
        interval: First voxel to cover and the voxel after the last, inside the axis.

    Returns:
        The same centre with the added starts.
    """
    lower, upper = interval
    step = max(patch // 2, 1)
    starts = list(axis.starts)
    while starts[0] > lower:
        starts.insert(0, max(starts[0] - step, lower))
    while starts[-1] + patch < upper:
        starts.append(min(starts[-1] + step, upper - patch))
    return Axis(axis.centre, tuple(starts))


def body_interval(body: np.ndarray | None, axis: int, size: int) -> tuple[int, int]:
    """Give the extent of the body along an axis, or the whole axis without a body."""
    if body is None:
        return 0, size
    found = np.flatnonzero(body.any(axis=tuple(other for other in range(body.ndim) if other != axis)))
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, size)


def centre_first_rows(z_starts: tuple[int, ...], y: Axis, x: Axis) -> tuple[Row, ...]:
    """Build one row per z start: the central window, then those around it in raster order."""
    rows = []
    for z in z_starts:
        around = [
            (z, y_start, x_start)
            for y_start in y.starts
            for x_start in x.starts
            if (y_start, x_start) != (y.centre, x.centre)
        ]
        rows.append(((z, y.centre, x.centre), *around))
    return tuple(rows)


def plan_windows(
    schedule: str,
    shape: tuple[int, int, int],
    *,
    patch: tuple[int, int, int],
    overlap: float,
    body: np.ndarray | None,
    centre: str,
    extend: bool,
) -> tuple[Row, ...]:
    """List the windows of a volume, row by row.

    Args:
        schedule: `paper` and `flare22` place 3 x 3 windows in plane; `fast` does too and leaves out those
            without body; `dense` spreads windows evenly along every axis.
        shape: `(Z, Y, X)` of the volume, at least the patch along every axis.
        patch: `(Z, Y, X)` of a window.
        overlap: Fraction by which windows overlap along z (`dense`: along every axis).
        body: `(Z, Y, X)` mask of the body, or None where none was found: then all of the volume is body.
        centre: `image` or `body`: what the in-plane windows are centred on (not used by `dense`).
        extend: Whether in-plane windows are added until the body is covered (not used by `dense`).

    Returns:
        Rows of starts; in `paper`, `flare22` and `fast` the central window of a row stands first.

    Reference: paper, section 2.4; `fast`: ours.
    """
    z_starts = even_starts(shape[0], patch[0], overlap)
    if schedule == "dense":
        y_starts, x_starts = (even_starts(shape[axis], patch[axis], overlap) for axis in (1, 2))
        return tuple(tuple((z, y, x) for y in y_starts for x in x_starts) for z in z_starts)
    axes = []
    for axis in (1, 2):
        size, width = shape[axis], patch[axis]
        interval = body_interval(body, axis, size)
        placed = plane_starts_on(size, width, interval if centre == "body" else (0, size))
        axes.append(extended(placed, width, interval) if extend else placed)
    rows = centre_first_rows(z_starts, *axes)
    if schedule == "fast" and body is not None:
        rows = tuple(tuple(start for start in row if body[window_slices(start, patch)].any()) for row in rows)
    return tuple(row for row in rows if row)


def window_slices(start: Start, patch: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """Turn a window's start into the slices that cut it from a `(Z, Y, X)` array."""
    z, y, x = (slice(begin, begin + width) for begin, width in zip(start, patch, strict=True))
    return z, y, x
