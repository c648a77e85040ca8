"""Soft Dice from counts, over the samples that know a class and over all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

DENOMINATOR_GUARD = 1e-8  # nnU-Net's, beside the smoothing, so that smoothing may be 0


class _Sum(Function):
    """The sum of a tensor over all processes; each gets it, and each one's loss has its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def ranks() -> int:
    """Count the processes that train together."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum float values over the processes that train together, differentiably; one alone keeps its own.

    Every process has the loss of the joint batch then. The gradient of what a process put in is the sum over
    all of these losses, so `ranks()` times that of the one; DDP's mean of gradients divides by as much.

    Reference: nnU-Net v2 `AllGatherGrad`.
    """
    return values if ranks() == 1 else _Sum.apply(values)


def share_of(chosen: Tensor) -> Tensor:
    """What a mean over all elements of a process is multiplied with to be one over the `chosen`, booleans.

    With several processes the DDP mean of such means is that over the chosen elements of all. It is exactly 1
    where all are chosen.
    """
    total = chosen.sum() if ranks() == 1 else sum_over_ranks(chosen.sum().float()) / ranks()
    # tensors on both sides: only their quotient is exactly 1 where all are chosen
    return torch.full_like(total, chosen.numel()) / total.clamp(min=1)


def soft_dice(counts: Tensor, known: Tensor | None, *, smooth: float, batch_dice: bool) -> Tensor:
    """Compute the Dice of every output, `(2 tp + smooth) / (predicted + in target + smooth + 1e-8)`.

    Args:
        counts: `(3, B, C)` float: true positives, all that is predicted, all that is in the target.
        known: `(B, C)` bool: over which samples an output is counted; None: over all.
        smooth: Added to numerator and denominator.
        batch_dice: Whether voxels are counted over all patches together, those of all processes, or per
            patch and then averaged.

    Returns:
        `(C,)`; an output that no sample knows has a value without meaning, and without gradient.
    """
    counts = counts if known is None else counts * known
    if batch_dice:
        counts = sum_over_ranks(counts.sum(dim=1, keepdim=True))
    true_positive, predicted, in_target = counts
    dice = (2 * true_positive + smooth) / (predicted + in_target + smooth + DENOMINATOR_GUARD)
    if batch_dice or known is None:
        return dice.mean(dim=0)
    told = sum_over_ranks(known.float().sum(dim=0)) / ranks()
    return (dice * known).mean(dim=0) * (torch.full_like(told, len(known)) / told.clamp(min=1 / ranks()))
