"""Choose the flips that test-time augmentation averages over."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch

VARIANTS = ("none", "tta4", "tta8")
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
