"""Soft Dice and cross entropy over the deep-supervision outputs of the network.

Reference: nnU-Net 1.7 `DC_and_CE_loss` and `MultipleOutputLoss2`; FLARE23 paper, section 2.2.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flare.core.classes import IGNORE, ClassList
from flare.core.errors import FlareError, choice
from flare.models import counting
from flare.models.names import PARTIAL_LOSSES

CERTAIN = 50.0  # a logit whose probability is exactly 1 in float32, beside others of -50


class LossParts(NamedTuple):
    """The loss to minimise and what it is made of, scalars; None of a loss that has no such part.

    `dice` is the mean soft Dice of the foreground outputs, 1 is perfect; `ce` the mean cross entropy.
    """

    loss: Tensor
    dice: Tensor | None = None
    ce: Tensor | None = None


class DeepSupervision(nn.Module):
    """A loss over the resolutions of deep supervision; a subclass says what it is at one of them.

    With `supervise_lowest` the lowest resolution counts too (the authors' code for the medium network: yes;
    nnU-Net: no). `partial` says what becomes of classes that labels do not tell: `none` takes all as known.
    """

    def __init__(self, *, supervise_lowest: bool, partial: str = "none") -> None:
        super().__init__()
        choice(*PARTIAL_LOSSES).require("loss.partial", partial)
        self.supervise_lowest, self.partial = supervise_lowest, partial

    def weights(self, count: int) -> tuple[float, ...]:
        """Give the weight of each of `count` resolutions, highest first: halved at each step, 1 in all.

        A single resolution always counts; of four without the lowest: 4/7, 2/7, 1/7, 0.
        """
        supervised = count if self.supervise_lowest or count == 1 else count - 1
        raw = [2.0**-level for level in range(supervised)] + [0.0] * (count - supervised)
        return tuple(weight / sum(raw) for weight in raw)

    def compare(self, logits: Tensor, target: Tensor, known: Tensor, counted: Tensor) -> LossParts:
        """Compare at one resolution: the one place where a loss meets logits and labels.

        `logits` are `(B, C, Z, Y, X)`. `target`, `(B, Z, Y, X)` int64, is the index of the right output; 0
        where a voxel does not count, and unless `partial` is `none`, where its class is unknown. `known`,
        `(B, C)` bool, says whether a sample's labels tell where the class of an output is, and `counted`,
        `(B, Z, Y, X)` bool, whether a voxel's label is known.
        """
        raise NotImplementedError

    def forward(self, outputs: Sequence[Tensor], target: Tensor, known: Tensor | None = None) -> LossParts:
        """Compare the logits of every resolution with the target reduced to it; sum the weighted parts.

        `outputs` are `(B, C, Z, Y, X)` logits of each resolution, highest first; `target`, `(B, Z, Y, X)`,
        has the index of the right output, or `IGNORE`; `known` is as in `compare`, None: all of every sample.
        """
        if known is None:
            known = target.new_ones(outputs[0].shape[:2], dtype=torch.bool)
        weighted = []
        for logits, weight in zip(outputs, self.weights(len(outputs)), strict=True):
            if weight > 0:
                reduced = reduce_target(target, logits.shape[2:])
                counted = reduced != IGNORE
                index = reduced.long().masked_fill(~counted, 0)
                index = index if self.partial == "none" else counting.as_known(index, known)
                parts = self.compare(logits, index, known, counted)
                factor = weight * counted.any()  # where no voxel counts there is no loss
                weighted.append([part if part is None else factor * part for part in parts])
        totals = (None if part[0] is None else sum(part) for part in zip(*weighted, strict=True))
        return LossParts(*totals)  # type: ignore[arg-type]


class AnyLoss(DeepSupervision):
    """A loss of PyTorch, MONAI or the user's own, in float32 also under autocast.

    A loss that has arguments named `known` or `counted` is given them as `compare` is. To one without
    `counted`, ignored voxels look like background that the network is certain of: they add no error and have
    no gradient, and a mean over voxels counts them among the right ones. With `partial=marginal` a loss
    without `known` gets the logits that `marginalise` gives; other values of `partial` are refused.

    The loss takes `(B, C, Z, Y, X)` logits and the index of the right output per voxel, int64, with
    `target_channel` as `(B, 1, Z, Y, X)`, like MONAI's, otherwise without channel. It gives a scalar.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        *,
        target_channel: bool = False,
        supervise_lowest: bool = False,
        partial: str = "none",
    ) -> None:
        super().__init__(supervise_lowest=supervise_lowest, partial=partial)
        choice("none", "marginal").require("loss.partial", partial)
        self.loss = loss
        self.target_channel = target_channel
        taken = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
        self.taken = [name for name in ("known", "counted") if name in taken]

    def compare(self, logits: Tensor, target: Tensor, known: Tensor, counted: Tensor) -> LossParts:
        """Compare at one resolution."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if self.partial == "marginal" and "known" not in self.taken:
                logits = counting.marginalise(logits, known)
            if "counted" not in self.taken:
                background = logits.new_full((1, logits.shape[1], 1, 1, 1), -CERTAIN)
                background[:, 0] = CERTAIN
                logits = torch.where(counted[:, None], logits, background)
            given = {"known": known, "counted": counted}
            target = counting.as_known(target, known) if "known" in self.taken else target
            index = target[:, None] if self.target_channel else target
            return LossParts(self.loss(logits, index, **{name: given[name] for name in self.taken}))


class DiceCELoss(DeepSupervision):
    """Cross entropy minus Dice without background, summed over the resolutions of deep supervision.

    Ignored voxels are in no sum. Everything is computed in float32, also under autocast. Batch Dice is over
    the patches of a step, those of all devices. Classes and targets are as in `UNet`. Unless `partial` is
    `none`, Dice counts a class over the samples that know it, and its mean over classes leaves out one that
    no sample knows. `smooth` is added to Dice's numerator and denominator; with `batch_dice` voxels are
    counted over all patches together, else per patch. `class_weights` has the weight of single classes by
    name in the mean of Dice, 1 for others; a weight of no class or below 0 is refused, and that none is left.
    """

    class_weights: Tensor

    def __init__(
        self,
        classes: Mapping[str, Mapping[str, Any]],
        targets: str,
        *,
        dice_weight: float,
        ce_weight: float,
        smooth: float,
        batch_dice: bool,
        class_weights: Mapping[str, float] | None,
        supervise_lowest: bool,
        partial: str = "none",
    ) -> None:
        super().__init__(supervise_lowest=supervise_lowest, partial=partial)
        self.dice_weight, self.ce_weight = dice_weight, ce_weight
        self.smooth, self.batch_dice = smooth, batch_dice
        weights = _output_weights(ClassList.from_config(classes), targets, class_weights or {})
        self.register_buffer("class_weights", weights, persistent=False)

    def compare(self, logits: Tensor, target: Tensor, known: Tensor, counted: Tensor) -> LossParts:
        """Compare at one resolution: cross entropy minus Dice, weighted, and what `partial` adds."""
        how: Any = {"smooth": self.smooth, "batch_dice": self.batch_dice}
        known = torch.ones_like(known) if self.partial == "none" else known
        with torch.autocast(logits.device.type, enabled=False):
            if self.partial == "masked":
                members = F.one_hot(target, logits.shape[1]).movedim(-1, 1).bool()
                dices, ce = counting.masked_dice_and_ce(logits, members, counted, known, **how)
            else:
                merged = logits if self.partial == "none" else counting.marginalise(logits, known)
                dices, ce = dice_and_ce(merged, target, counted, known, **how)
            dice = self._mean(dices, known)
            loss = self.ce_weight * ce - self.dice_weight * dice
            if self.partial == "exclusion":
                claims, claimed = counting.exclude(logits, target, counted, known, batch_dice=self.batch_dice)
                loss = loss + self.ce_weight * claimed + self.dice_weight * self._mean(claims, ~known)
        return LossParts(loss, dice, ce)

    def _mean(self, dices: Tensor, known: Tensor) -> Tensor:
        """Average `(C,)` over the foreground outputs that some sample of some process knows, else give 0."""
        weights = self.class_weights * (counting.sum_over_ranks(known.float().sum(dim=0)) > 0)[1:]
        share = self.class_weights.sum() / weights.sum().clamp(min=counting.DENOMINATOR_GUARD)
        return (dices[1:] * weights).sum() * share


def dice_and_ce(
    logits: Tensor, target: Tensor, counted: Tensor, known: Tensor, *, smooth: float, batch_dice: bool
) -> tuple[Tensor, Tensor]:
    """Compute `(C,)` Dice, background included, and the mean cross entropy, over the voxels that count.

    Dice is as in `soft_dice`, of softmax probabilities; both are float32. A class that is absent from the
    target scores near 0, unless the network is sure of that everywhere. Tensors are as in `compare`.

    Reference: nnU-Net 1.7 `SoftDiceLoss`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probabilities = F.log_softmax(logits.float(), dim=1)
        log_correct = log_probabilities.gather(1, target[:, None])[:, 0]
        correct = log_correct.exp()
        is_class = [(target == index) & counted for index in range(logits.shape[1])]
        # (B, C) each; predicted = tp + fp and in_target = tp + fn
        true_positive = torch.stack([(correct * members).sum((1, 2, 3)) for members in is_class], dim=1)
        in_target = torch.stack([members.sum((1, 2, 3)) for members in is_class], dim=1)
        predicted = (log_probabilities.exp() * counted[:, None]).sum((2, 3, 4))
        counts = torch.stack((true_positive, predicted, in_target))
        dices = counting.soft_dice(counts, known, smooth=smooth, batch_dice=batch_dice)
        return dices, -(log_correct * counted).mean() * counting.share_of(counted)


def reduce_target(target: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a target `(B, Z, Y, X)` to a lower resolution `(B, *size)`, extents aligned.

    Of each group the voxel at or above its centre is taken, as nnU-Net's resampling picks it.
    """
    steps = [divmod(full, reduced) for full, reduced in zip(target.shape[1:], size, strict=True)]
    if any(rest for _, rest in steps):
        return F.interpolate(target[:, None], size=tuple(size), mode="nearest-exact")[:, 0]
    z, y, x = (slice(step // 2, None, step) for step, _ in steps)
    return target[:, z, y, x]


def _output_weights(classes: ClassList, targets: str, class_weights: Mapping[str, float]) -> Tensor:
    """Give the normalised Dice weight of every foreground output."""
    for name, weight in class_weights.items():
        if name not in classes.names:
            raise FlareError(f"loss.class_weights: no class is named {name!r}; there are {classes.names}")
        if weight < 0:
            raise FlareError(f"loss.class_weights.{name}: {weight}, expected a weight of 0 or more")
    names = [classes.name_of(class_id) for class_id in classes.outputs(targets)[1:]]
    weights = torch.tensor([float(class_weights.get(name, 1.0)) for name in names])
    if weights.sum() <= 0:
        raise FlareError(f"loss.class_weights: every class that targets={targets} trains has weight 0")
    return weights / weights.sum()


def poly_factor(epoch: int, *, decay_epochs: int, power: float) -> float:
    """Give the share of the initial rate after some epochs: `max(0, 1 - epoch / decay_epochs) ** power`.

    The base is clamped at 0: the paper prints a decay over 1000 epochs for a training of 1500.

    Reference: FLARE23 paper, table of the training protocol (power 0.9); nnU-Net 1.7 `poly_lr`.
    """
    return max(0.0, 1.0 - epoch / decay_epochs) ** power


class PolyLR(LambdaLR):
    """Learning rate that falls by `poly_factor`, stepped once an epoch, and is 0 from `decay_epochs` on."""

    def __init__(self, optimizer: Optimizer, *, decay_epochs: int, power: float) -> None:
        super().__init__(optimizer, partial(poly_factor, decay_epochs=decay_epochs, power=power))
