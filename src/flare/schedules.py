"""The learning rate over the epochs of a round."""

from __future__ import annotations

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def poly_factor(epoch: int, *, decay_epochs: int, power: float) -> float:
    """Give the fraction of the initial learning rate at an epoch.

    The base is clamped at 0: the paper prints a decay over 1000 epochs for a training of 1500, where an
    unclamped root of a negative number is complex.

    Args:
        epoch: Epochs completed before this one.
        decay_epochs: Epoch at which the rate reaches 0.
        power: Exponent; 0.9 in nnU-Net and in the paper.

    Returns:
        `max(0, 1 - epoch / decay_epochs) ** power`.

    Reference: FLARE23 paper, table of the training protocol; nnU-Net 1.7 `poly_lr`.
    """
    return max(0.0, 1.0 - epoch / decay_epochs) ** power


class PolyLR(LambdaLR):
    """Learning rate that falls by `poly_factor`, stepped once an epoch.

    Args:
        optimizer: Whose learning rate is scheduled.
        decay_epochs: Epoch at which the rate reaches 0.
        power: Exponent.
    """

    def __init__(self, optimizer: Optimizer, *, decay_epochs: int, power: float) -> None:
        super().__init__(optimizer, partial(poly_factor, decay_epochs=decay_epochs, power=power))
