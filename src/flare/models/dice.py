"""Soft Dice from counts: over the samples that know a class, and over all processes that train together."""

import torch
from torch import Tensor, distributed
from torch.autograd import Function

DENOMINATOR_GUARD = 1e-8  # nnU-Net's, beside the smoothing, so that smoothing may be 0


class _Sum(Function):
    """The sum over all processes; its gradient is the sum of those of their losses."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    backward = forward


def ranks() -> int:
    """Count the processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum float values over the processes that train together, differentiably.

    Each process has the loss of the joint batch then, and its gradient is `ranks()` times that loss's. DDP
    takes the mean of gradients, which divides by as much.

    Reference: nnU-Net v2 `AllGatherGrad`.
    """
    return values if ranks() == 1 else _Sum.apply(values)


def share_of(chosen: Tensor) -> Tensor:
    """What makes a mean over all elements one over the `chosen`, booleans, of all processes (DDP's mean)."""
    total = chosen.sum() if ranks() == 1 else sum_over_ranks(chosen.sum().float()) / ranks()
    # tensors on both sides: only their quotient is exactly 1 where all are chosen
    return torch.full_like(total, chosen.numel()) / total.clamp(min=1)


def soft_dice(counts: Tensor, known: Tensor, *, smooth: float, batch_dice: bool) -> Tensor:
    """Compute `(C,)` Dice of the outputs, `(2 tp + smooth) / (predicted + in target + smooth + 1e-8)`.

    With `batch_dice` voxels are counted over all patches of all processes together; otherwise per patch, of
    which the mean is taken. `counts` are `(3, B, C)`: tp, predicted, in target; `known` is `(B, C)` bool, the
    samples over which an output is counted. Of one that none knows the value has no meaning or gradient.
    """
    counts = counts * known
    counts = sum_over_ranks(counts.sum(dim=1, keepdim=True)) if batch_dice else counts
    true_positive, predicted, in_target = counts
    dice = (2 * true_positive + smooth) / (predicted + in_target + smooth + DENOMINATOR_GUARD)
    if batch_dice:
        return dice[0]
    told = sum_over_ranks(known.float().sum(dim=0)) / ranks()
    return (dice * known).mean(dim=0) * (torch.full_like(told, len(known)) / told.clamp(min=1 / ranks()))
