"""Partly annotated cases in the loss: where the label is background, a voxel may be of any unknown class.

Which classes of a sample are known is `(B, C)` bool; the background, output 0, counts as known.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from flare.models.dice import share_of, soft_dice

NOTHING = 1e4  # a logit so far below another has exactly the probability 0 in float32, and a finite logarithm


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


def exclude(
    logits: Tensor, target: Tensor, counted: Tensor, known: Tensor, *, batch_dice: bool
) -> tuple[Tensor, Tensor]:
    """Compute how far each sample's unknown classes claim its known foreground, to be minimised.

    The tensors are those of `DeepSupervision.compare`. With `(C,)`, the Dice of each output with the known
    foreground of the samples that do not know it, comes the mean over voxels of the `log(1 + p)` of unknown
    classes where known foreground is.

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
) -> tuple[Tensor, Tensor]:
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
