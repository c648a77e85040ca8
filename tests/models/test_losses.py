"""Dice, cross entropy and deep supervision against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from composed import composed
from flare.core.classes import IGNORE
from flare.core.errors import FlareError
from flare.models.losses import AnyLoss, DiceCELoss, dice_and_ce, reduce_target
from flare.training.build import build_loss
from flare.training.settings import TrainingSettings

CLASSES: dict[str, dict[str, Any]] = {
    "liver": {"id": 1, "short": "Liver", "role": "organ", "tolerance_mm": 5, "slice_range": False},
    "spleen": {"id": 3, "short": "Spleen", "role": "organ", "tolerance_mm": 3, "slice_range": False},
    "tumor": {"id": 9, "short": "Lesion", "role": "tumor", "tolerance_mm": 2, "slice_range": False},
}
SMOOTH = 1e-5


def loss(targets: str = "organs_tumor", **changes: Any) -> DiceCELoss:
    """The paper's loss."""
    settings: dict[str, Any] = {
        "smooth": SMOOTH,
        "dice_weight": 1.0,
        "ce_weight": 1.0,
        "batch_dice": True,
        "class_weights": None,
        "supervise_lowest": False,
        **changes,
    }
    return DiceCELoss(CLASSES, targets, **settings)


def as_logits(probabilities: list[list[float]]) -> torch.Tensor:
    """Logits `(1, C, 1, 1, X)` of the probabilities of each voxel."""
    return torch.tensor(probabilities).T.log()[None, :, None, None]


def row(*target: int) -> torch.Tensor:
    """A target `(1, 1, 1, X)`."""
    return torch.tensor(target)[None, None, None]


def both(logits: torch.Tensor, target: torch.Tensor, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice and cross entropy over the voxels whose label is known."""
    counted = target != IGNORE
    known = torch.ones(logits.shape[:2], dtype=torch.bool)
    return dice_and_ce(logits, target.where(counted, 0).long(), counted, known, **settings)


def test_dice_and_ce_by_hand() -> None:
    # three voxels, three outputs; output 2 is in neither the target nor far from the prediction
    logits = as_logits([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.5, 0.25]])
    dice, ce = both(logits, row(0, 1, 1), smooth=SMOOTH, batch_dice=True)
    expected = [
        (2 * 0.7 + SMOOTH) / (1.05 + 1 + SMOOTH),
        (2 * 1.3 + SMOOTH) / (1.5 + 2 + SMOOTH),
        (0 + SMOOTH) / (0.45 + 0 + SMOOTH),
    ]
    assert dice.tolist() == pytest.approx(expected, rel=1e-5)
    assert ce.item() == pytest.approx(-(math.log(0.7) + math.log(0.8) + math.log(0.5)) / 3, rel=1e-6)


def test_dice_counts_the_whole_batch_together() -> None:
    # the first patch holds class 1 alone, the second none: per patch the second would score 0
    first, second = as_logits([[0.1, 0.9], [0.9, 0.1]]), as_logits([[0.8, 0.2], [0.8, 0.2]])
    dice, _ = both(
        torch.cat((first, second)), torch.cat((row(1, 0), row(0, 0))), smooth=SMOOTH, batch_dice=True
    )
    assert dice[1].item() == pytest.approx((1.8 + SMOOTH) / (1.4 + 1 + SMOOTH), rel=1e-5)


def test_dice_per_patch_is_averaged_over_patches() -> None:
    first, second = as_logits([[0.1, 0.9], [0.9, 0.1]]), as_logits([[0.8, 0.2], [0.2, 0.8]])
    dice, _ = both(
        torch.cat((first, second)), torch.cat((row(1, 0), row(1, 1))), smooth=SMOOTH, batch_dice=False
    )
    assert dice[1].item() == pytest.approx((1.8 / 2 + 2 / 3) / 2, rel=1e-4)


def test_loss_is_ce_minus_mean_foreground_dice() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, 4, generator=generator)
    target = torch.randint(0, 4, (2, 3, 5, 4), generator=generator)
    parts = loss()([logits], target)
    probabilities = logits.softmax(1)
    one_hot = F.one_hot(target, 4).movedim(-1, 1)
    axes = (0, 2, 3, 4)
    tp = (probabilities * one_hot).sum(axes)
    fp = (probabilities * (1 - one_hot)).sum(axes)
    fn = ((1 - probabilities) * one_hot).sum(axes)
    dice = ((2 * tp + SMOOTH) / (2 * tp + fp + fn + SMOOTH + 1e-8))[1:].mean()
    assert parts.dice.item() == pytest.approx(dice.item(), rel=1e-6)
    assert parts.ce.item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)
    assert parts.loss.item() == pytest.approx(parts.ce.item() - parts.dice.item(), rel=1e-6)


def test_a_perfect_prediction_reaches_minus_one_and_a_wrong_one_does_not() -> None:
    target = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    right = 50.0 * F.one_hot(target, 4).movedim(-1, 1).float()
    wrong = right.roll(1, dims=1)
    assert loss()([right], target).loss.item() == pytest.approx(-1, abs=1e-5)
    assert loss()([wrong], target).loss.item() > 10


def test_ratio_of_the_two_parts() -> None:
    logits, target = torch.randn(1, 4, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    parts = loss(dice_weight=0.5, ce_weight=2.0)([logits], target)
    assert parts.loss.item() == pytest.approx(2 * parts.ce.item() - 0.5 * parts.dice.item(), rel=1e-6)


def test_class_weights_are_by_name_and_only_of_trained_classes() -> None:
    logits = as_logits([[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]])
    target = row(0, 1, 3)
    dice, _ = both(logits, target, smooth=SMOOTH, batch_dice=True)
    weighted = loss(class_weights={"tumor": 2.0})([logits], target).dice
    assert weighted.item() == pytest.approx(((dice[1] + dice[2] + 2 * dice[3]) / 4).item(), rel=1e-6)
    assert loss("organs", class_weights={"tumor": 2.0}).class_weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lung": 1.0}, "no class is named 'lung'"),
        ({"liver": -1.0}, r"loss.class_weights.liver: -1.0"),
        ({"liver": 0, "spleen": 0, "tumor": 0}, "has weight 0"),
    ],
)
def test_bad_class_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(FlareError, match=message):
        loss(class_weights=weights)


def test_supervision_weights_of_the_paper_and_the_authors() -> None:
    assert loss(supervise_lowest=False).weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))
    assert loss(supervise_lowest=False).weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert loss(supervise_lowest=True).weights(4) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15))
    assert loss(supervise_lowest=False).weights(1) == (1.0,)


def test_resolutions_are_weighted_and_the_lowest_is_left_out() -> None:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 4, (1, 4, 8, 8), generator=generator)
    sizes = [(4, 8, 8), (4, 4, 4), (2, 2, 2)]
    outputs = [torch.randn(1, 4, *size, generator=generator, requires_grad=True) for size in sizes]
    parts = loss()(outputs, target)
    single = [loss()([o], reduce_target(target, o.shape[2:])).loss.item() for o in outputs]
    assert parts.loss.item() == pytest.approx(2 / 3 * single[0] + 1 / 3 * single[1], rel=1e-6)
    parts.loss.backward()
    assert outputs[1].grad is not None
    assert outputs[2].grad is None


def test_targets_are_reduced_to_their_nearest_neighbours() -> None:
    target = torch.arange(4 * 8 * 8, dtype=torch.float32).reshape(1, 4, 8, 8)
    for size in [(4, 8, 8), (4, 4, 4), (2, 2, 2), (1, 2, 4)]:
        expected = F.interpolate(target[:, None], size=size, mode="nearest-exact")[:, 0]
        assert torch.equal(reduce_target(target, size), expected)
    assert reduce_target(target, (2, 4, 4))[0, 0, 0, 0] == target[0, 1, 1, 1]


def test_computed_in_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 4, 4, 4, 4, generator=generator).bfloat16()
    target = torch.randint(0, 4, (1, 4, 4, 4), generator=generator)
    plain = loss()([logits.float()], target).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss()([logits], target).loss
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_no_target_value_gives_nan_when_a_class_is_absent_everywhere() -> None:
    logits = torch.full((1, 4, 2, 2, 2), -200.0)
    logits[:, 0] = 200.0
    logits.requires_grad_()
    parts = loss()([logits], torch.zeros(1, 2, 2, 2, dtype=torch.long))
    parts.loss.backward()
    assert parts.dice.item() == pytest.approx(1 / (1 + 1e-3), abs=1e-5)  # smooth / (smooth + guard)
    assert torch.isfinite(logits.grad).all()


def chosen(*overrides: str) -> Any:
    """The loss that a configuration builds."""
    return build_loss(TrainingSettings.from_config(composed("train", *overrides)))


def two_resolutions(seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Logits of 15 outputs at two resolutions, and a target that has every class in each of them."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 15, (2, 8, 16, 16), generator=generator, dtype=torch.uint8)
    sizes = [(8, 16, 16), (4, 8, 8)]
    return [torch.randn(2, 15, *size, generator=generator) for size in sizes], target


# 1 - Dice instead of -Dice; Tversky at 0.5, 0.5 is Dice with twice its smoothing, and no cross entropy
SAME_FORMULA = [
    (["loss=monai_dice_ce"], []),
    (["loss=monai_dice_ce", "loss.loss.lambda_ce=0.5"], ["loss.ce_weight=0.5"]),
    (["loss=monai_dice_ce", "loss.loss.batch=false"], ["loss.batch_dice=false"]),
    (["loss=tversky", "loss.loss.alpha=0.5", "loss.loss.beta=0.5"], ["loss.smooth=2e-5", "loss.ce_weight=0"]),
    (["loss=dice_focal", "loss.loss.lambda_focal=0"], ["loss.ce_weight=0"]),
]


@pytest.mark.parametrize(("theirs", "ours"), SAME_FORMULA)
@pytest.mark.parametrize("lowest", ["true", "false"])
def test_monais_losses_equal_ours_where_the_formula_is_the_same(
    theirs: list[str], ours: list[str], lowest: str
) -> None:
    found = []
    for overrides in (theirs, ours):
        outputs, target = two_resolutions(0)
        for logits in outputs:
            logits.requires_grad_()
        value = chosen(*overrides, f"loss.supervise_lowest={lowest}")(outputs, target).loss
        value.backward()
        found.append((value.item(), outputs))
    assert found[0][0] == pytest.approx(found[1][0] + 1, abs=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert (one.grad is None) == (other.grad is None) == (lowest == "false" and one.shape[2] == 4)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6)


def test_a_loss_of_torch_is_put_over_the_resolutions() -> None:
    settings = TrainingSettings.from_config(composed("train"))
    outputs, target = two_resolutions(1)
    built = build_loss(replace(settings, loss={"_target_": "torch.nn.CrossEntropyLoss"}))
    assert isinstance(built, AnyLoss)
    parts = built([*outputs, outputs[1]], target)
    reduced = reduce_target(target, (4, 8, 8))
    expected = [F.cross_entropy(o, t.long()).item() for o, t in ((outputs[0], target), (outputs[1], reduced))]
    assert parts.loss.item() == pytest.approx(2 / 3 * expected[0] + 1 / 3 * expected[1], rel=1e-6)
    assert (parts.dice, parts.ce) == (None, None)


def test_arguments_that_a_loss_lacks_are_refused_in_one_line() -> None:
    with pytest.raises(FlareError, match=r"^loss: .*focus") as refusal:
        chosen("loss=tversky", "+loss.loss.focus=1")
    assert "\n" not in str(refusal.value)


def test_a_target_is_reduced_to_sizes_that_do_not_divide_it() -> None:
    assert reduce_target(torch.arange(5.0).view(1, 1, 1, 5), (1, 1, 3)).flatten().tolist() == [0, 2, 4]
