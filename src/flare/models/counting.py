"""What losses count, over the samples that know a class and over all processes that train together.

In partly annotated cases a voxel whose label is background may be of any unknown class. Which classes of a
sample are known is `(B, C)` bool; the background, output 0, counts as known.
"""

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]  # `(C,)` Dice, and a mean over voxels
DENOMINATOR_GUARD = 1e-8  # nnU-Net's, beside the smoothing, so that smoothing may be 0
NOTHING = 1e4  # a logit so far below another has exactly the probability 0 in float32, and a finite logarithm


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


def as_known(target: Tensor, known: Tensor) -> Tensor:
    """Turn voxels of unknown classes into background; `(B, Z, Y, X)` int64 indices of outputs."""
    return target * known.gather(1, target.flatten(1)).view_as(target)


def marginalise(logits: Tensor, known: Tensor) -> Tensor:
    """Add the probabilities of each sample's unknown classes to its background's.

    Gives `(B, C, Z, Y, X)` float32 logits whose softmax has them so: 0 of an unknown class, without gradient.
    Where all is known they are the given ones, to the last bit; where nothing is, none has a gradient.

    Reference: Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation" (arXiv 2007.03868).
    """
    logits = logits.float()
    unknown = ~known[..., None, None, None]
    apart = ~unknown
    apart[:, 0] = False
    together = logits.masked_fill(apart, -torch.inf).logsumexp(1, keepdim=True)
    others = torch.where(unknown, together.detach() - NOTHING, logits)
    return torch.cat((together, others[:, 1:]), dim=1)


def exclude(logits: Tensor, target: Tensor, counted: Tensor, known: Tensor, *, batch_dice: bool) -> Pair:
    """Compute how far each sample's unknown classes claim its known foreground, to be minimised.

    Tensors are as in `DeepSupervision.compare`. Gives `(C,)`, the Dice of each output with the known
    foreground of samples that do not know it, and the mean over voxels of its unknown classes' `log(1 + p)`.

    Reference: after the exclusion loss of Shi et al. 2021.
    """
    probabilities = logits.float().softmax(1)
    inside = ((target > 0) & counted)[:, None]
    claimed = (probabilities * inside).sum((2, 3, 4))
    predicted = (probabilities * counted[:, None]).sum((2, 3, 4))
    counts = torch.stack((claimed, predicted, inside.sum((2, 3, 4)).expand_as(claimed)))
    dices = soft_dice(counts, ~known, smooth=0.0, batch_dice=batch_dice)
    where = inside & ~known[..., None, None, None]
    return dices, (torch.log1p(probabilities) * where).sum(1).mean() * share_of(counted)


def masked_dice_and_ce(
    logits: Tensor, members: Tensor, counted: Tensor, known: Tensor, *, smooth: float, batch_dice: bool
) -> Pair:
    """Compute `(C,)` Dice and the mean binary cross entropy of sigmoids, of each class where it is known.

    `members` are the voxels of each class, `(B, C, Z, Y, X)` bool, which may overlap; the rest is as in
    `dice_and_ce`. The background's output is not used.
    """
    told = known[..., None, None, None] & counted[:, None]
    told[:, 0] = False
    logits, inside = logits.float(), members & told
    probabilities = logits.sigmoid()
    counts = [part.sum((2, 3, 4)) for part in (probabilities * inside, probabilities * told, inside)]
    entropy = F.binary_cross_entropy_with_logits(logits, members.float(), reduction="none")
    dices = soft_dice(torch.stack(counts), known, smooth=smooth, batch_dice=batch_dice)
    return dices, (entropy * told).mean() * share_of(told)
