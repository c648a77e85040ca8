"""Partly annotated cases in the loss: what is unknown of a sample may be background or any unknown class.

Which classes are known is `(B, C)` bool, per sample; the background, output 0, counts as known. Where the
label is background, a voxel is background or of an unknown class.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = 1e4  # a logit so far below another has exactly the probability 0 in float32, and a finite logarithm


def as_known(target: Tensor, known: Tensor) -> Tensor:
    """Turn voxels of unknown classes into background; `(B, Z, Y, X)` int64 indices of outputs."""
    return target * known.gather(1, target.flatten(1)).view_as(target)


def marginalise(logits: Tensor, known: Tensor) -> Tensor:
    """Add the probabilities of each sample's unknown classes to its background's.

    Returns:
        `(B, C, Z, Y, X)` float32 logits whose softmax has them so: 0 of an unknown class, without gradient.
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
