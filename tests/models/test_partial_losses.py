"""Losses that know what a case annotates, against formulas written out voxel by voxel."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss as MonaiDiceCE
from torch import Tensor

from flare.core.classes import IGNORE
from flare.core.errors import FlareError
from flare.models.counting import as_known, marginalise, masked_dice_and_ce
from flare.models.losses import AnyLoss, DiceCELoss, LossParts

ENTRY = {"role": "organ", "tolerance_mm": 5, "slice_range": False}
CLASSES: dict[str, dict[str, Any]] = {
    name: {"id": number, "short": name, **ENTRY} for number, name in enumerate("abc", start=1)
}
SMOOTH = 1e-5
ALL = [True] * 4


def loss(partial: str, **changes: Any) -> DiceCELoss:
    given: dict[str, Any] = {
        "dice_weight": 1.0,
        "ce_weight": 1.0,
        "smooth": SMOOTH,
        "batch_dice": True,
        "class_weights": None,
        "supervise_lowest": True,
        **changes,
    }
    return DiceCELoss(CLASSES, "organs", partial=partial, **given)


def example(samples: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of four outputs and a target, some voxels of which are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, 4, 2, 3, 4, generator=generator)
    target = torch.randint(0, 4, (samples, 2, 3, 4), generator=generator).to(torch.uint8)
    target[:, 0, 0, :2] = IGNORE
    return logits.to(dtype).requires_grad_(), target


def tell(*rows: list[bool]) -> Tensor:
    return torch.tensor(rows)


def gradient(of: DiceCELoss | AnyLoss, logits: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    parts = of([logits], target, known)
    (found,) = torch.autograd.grad(parts.loss, logits)
    return found


def by_hand(
    logits: Tensor, target: Tensor, known: Tensor, *, batch_dice: bool, weights: tuple[float, ...] = (1, 1, 1)
) -> LossParts:
    """The marginal loss, a voxel and a class at a time, in the precision of the logits."""
    samples, outputs = known.shape
    counts = torch.zeros(3, samples, outputs, dtype=logits.dtype)
    entropies = []
    for b in range(samples):
        merged = [c for c in range(outputs) if c == 0 or not known[b, c]]
        for voxel in torch.cartesian_prod(*map(torch.arange, target.shape[1:])).tolist():
            z, y, x = voxel
            label = int(target[b, z, y, x])
            if label == IGNORE:
                continue
            probabilities = logits[b, :, z, y, x].softmax(0)
            joint = {c: probabilities[c] for c in range(outputs) if c not in merged}
            joint[0] = sum(probabilities[c] for c in merged)
            label = 0 if label in merged else label
            entropies.append(-joint[label].log())
            for c, p in joint.items():
                addition = torch.stack((p * (c == label), p, torch.tensor(float(c == label), dtype=p.dtype)))
                counts = counts.index_put(
                    (torch.arange(3), torch.full((3,), b), torch.full((3,), c)), addition, accumulate=True
                )

    def dice(tp: Tensor, predicted: Tensor, members: Tensor) -> Tensor:
        return (2 * tp + SMOOTH) / (predicted + members + SMOOTH + 1e-8)

    scores = []
    for c in range(1, outputs):
        who = [b for b in range(samples) if known[b, c]]
        if who and batch_dice:
            scores.append((weights[c - 1], dice(*counts[:, who, c].sum(1))))
        elif who:
            scores.append((weights[c - 1], sum(dice(*counts[:, b, c]) for b in who) / len(who)))
    total = sum(w for w, _ in scores)
    mean = sum(w * d for w, d in scores) / total if total else torch.zeros((), dtype=logits.dtype)
    entropy = torch.stack(entropies).mean()
    return LossParts(entropy - mean, mean, entropy)


MASKS = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=2)


@settings(max_examples=25, deadline=None)
@given(rows=MASKS, batch_dice=st.booleans(), seed=st.integers(0, 1000))
def test_marginal_has_the_values_and_gradients_of_the_formula(
    rows: list[list[bool]], batch_dice: bool, seed: int
) -> None:
    logits, target = example(seed=seed)
    known = tell(*([True, *row] for row in rows))
    exact = logits.detach().double().requires_grad_()
    expected = by_hand(exact, target, known, batch_dice=batch_dice)
    own = loss("marginal", batch_dice=batch_dice)
    found = own([logits], target, known)
    for part, value in zip(found, expected, strict=True):
        assert part is not None
        assert value is not None
        assert part.item() == pytest.approx(value.item(), abs=2e-6)
    (wanted,) = torch.autograd.grad(expected.loss, exact)
    torch.testing.assert_close(gradient(own, logits, target, known).double(), wanted, atol=2e-6, rtol=1e-4)


def test_weights_of_classes_are_those_among_the_known() -> None:
    logits, target = example()
    known = tell([True, True, False, False], [True, True, True, False])
    found = loss("marginal", class_weights={"a": 1, "b": 3, "c": 5})([logits], target, known)
    expected = by_hand(logits.double(), target, known, batch_dice=True, weights=(1, 3, 5))
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=2e-6)
    lonely = loss("marginal", class_weights={"a": 0, "b": 0})([logits], target, known)  # only c has a weight
    assert lonely.dice is not None
    assert lonely.dice.item() == 0


@pytest.mark.parametrize("partial", ["marginal", "exclusion"])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_where_all_is_known_it_is_none_to_the_last_bit(
    partial: str, batch_dice: bool, dtype: torch.dtype
) -> None:
    weights = {"a": 0.7, "b": 0.3}
    logits, target = example(dtype=dtype)
    losses = [loss(p, batch_dice=batch_dice, class_weights=weights) for p in ("none", partial)]
    plain, own = (of([logits], target, torch.ones(2, 4, dtype=torch.bool)) for of in losses)
    assert all(torch.equal(a, b) for a, b in zip(plain, own, strict=True))  # type: ignore[arg-type]
    pair = [gradient(of, logits, target, None) for of in losses]
    assert torch.equal(*pair)


def test_none_takes_every_class_as_known() -> None:
    logits, target = example()
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(
        gradient(loss("none"), logits, target, nothing), gradient(loss("none"), logits, target, None)
    )


@pytest.mark.parametrize("partial", ["marginal", "exclusion", "masked"])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_where_nothing_is_known_nothing_is_learned(partial: str, batch_dice: bool) -> None:
    logits, target = example()
    own = loss(partial, batch_dice=batch_dice)
    nothing = tell([True, False, False, False], [True, False, False, False])
    assert not gradient(own, logits, target, nothing).any()
    half = gradient(own, logits, target, tell(ALL, [True, False, False, False]))
    assert half[0].any()
    assert not half[1].any()


@settings(max_examples=25, deadline=None)
@given(rows=MASKS, seed=st.integers(0, 1000))
def test_how_background_and_unknown_classes_share_their_mass_is_the_networks(
    rows: list[list[bool]], seed: int
) -> None:
    logits, target = example(seed=seed)
    known = tell(*([True, *row] for row in rows))
    shared = logits.detach().clone()
    for b in range(2):
        merged = [0, *(c for c in range(1, 4) if not known[b, c])]
        shared[b, merged] = shared[b, merged].roll(1, 0)
    values = [loss("marginal")([of], target, known).loss for of in (logits, shared)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("partial", ["marginal", "exclusion", "masked"])
def test_it_is_finite_in_half_precision(partial: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(torch.float16).max
    logits, target = example(dtype=dtype)
    extreme = (logits.detach().sign() * largest).requires_grad_()
    known = tell([True, False, True, False], [True, True, False, False])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = loss(partial)([extreme], target, known)
    (found,) = torch.autograd.grad(parts.loss, extreme)
    assert all(part.dtype == torch.float32 and part.isfinite() for part in parts if part is not None)
    assert found.isfinite().all()


def test_deep_supervision_hands_what_is_known_to_each_resolution() -> None:
    logits, target = example()
    lower = logits.detach()[:, :, :1, ::3, ::2].contiguous().requires_grad_()
    known = tell(ALL, [True, False, False, False])
    found = loss("marginal")([logits, lower], target, known).loss
    for of in (logits, lower):
        (moved,) = torch.autograd.grad(found, of, retain_graph=True)
        assert moved[0].any()
        assert not moved[1].any()


def test_losses_of_others_get_marginalised_logits() -> None:
    logits, target = example(seed=3)
    target = torch.where(target == IGNORE, 0, target)
    known = tell(ALL, [True, False, True, False])
    monai = MonaiDiceCE(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    own = AnyLoss(monai, target_channel=True, supervise_lowest=True, partial="marginal")
    found = own([logits], target, known).loss
    index = as_known(target.long(), known)
    assert found.item() == pytest.approx(monai(marginalise(logits, known), index[:, None]).item(), abs=1e-6)
    assert found.item() == pytest.approx(1 + by_hand_of_monai(logits, index, known), abs=1e-4)
    assert not gradient(
        own, logits, target, tell([True, False, False, False], [True, False, False, False])
    ).any()


def by_hand_of_monai(logits: Tensor, index: Tensor, known: Tensor) -> float:
    """Cross entropy minus Dice, every class in the mean, unknown ones of probability 0."""
    p = logits.detach().double().softmax(1)
    joint = p * known[..., None, None, None]
    joint[:, 0] += (p * ~known[..., None, None, None]).sum(1)
    entropy = -joint.gather(1, index[:, None]).log().mean()
    dices = []
    for c in range(1, 4):
        members = (index == c).double()
        dices.append(
            (2 * (joint[:, c] * members).sum() + SMOOTH) / (joint[:, c].sum() + members.sum() + SMOOTH)
        )
    return float(entropy - sum(dices) / 3)


def test_a_loss_that_knows_gets_logits_as_they_are() -> None:
    logits, target = example()
    known = tell(ALL, [True, False, True, False])
    seen: dict[str, Tensor] = {}

    def own(logits: Tensor, index: Tensor, known: Tensor) -> Tensor:
        seen.update(logits=logits, index=index, known=known)
        return logits.sum()

    target = torch.where(target == IGNORE, 0, target)
    AnyLoss(own, supervise_lowest=True, partial="marginal")([logits], target, known)
    assert torch.equal(seen["logits"], logits)
    assert torch.equal(seen["known"], known)
    assert torch.equal(seen["index"], as_known(target.long(), known))


@pytest.mark.parametrize("partial", ["exclusion", "masked", "soft"])
def test_what_a_loss_of_others_cannot_do_is_refused(partial: str) -> None:
    with pytest.raises(FlareError, match=r"loss\.partial.*none, marginal"):
        AnyLoss(torch.nn.CrossEntropyLoss(), partial=partial)


@settings(max_examples=25, deadline=None)
@given(rows=MASKS, batch_dice=st.booleans(), seed=st.integers(0, 1000))
def test_exclusion_adds_what_unknown_classes_claim_of_known_foreground(
    rows: list[list[bool]], batch_dice: bool, seed: int
) -> None:
    logits, target = example(seed=seed)
    known = tell(*([True, *row] for row in rows))
    exact = logits.detach().double().requires_grad_()
    p = exact.softmax(1)
    total, count = torch.zeros((), dtype=torch.double), int((target != IGNORE).sum())
    sums = {}
    for b, c in product(range(2), range(1, 4)):
        if known[b, c]:
            continue
        inside = torch.zeros(target.shape[1:], dtype=torch.bool)
        for label in range(1, 4):
            inside |= (target[b] == label) & known[b, label]
        everywhere = target[b] != IGNORE
        sums[b, c] = torch.stack((p[b, c][inside].sum(), p[b, c][everywhere].sum(), inside.sum()))
        total = total + (1 + p[b, c][inside]).log().sum() / count
    dices = []
    for c in range(1, 4):
        found = [sums[b, c] for b in range(2) if (b, c) in sums]
        groups = [sum(found)] if batch_dice and found else found
        if groups:
            dices.append(sum(2 * g[0] / (g[1] + g[2] + 1e-8) for g in groups) / len(groups))
    expected = by_hand(exact, target, known, batch_dice=batch_dice).loss + total
    expected = expected + (sum(dices) / len(dices) if dices else 0)
    own = loss("exclusion", batch_dice=batch_dice)
    assert own([logits], target, known).loss.item() == pytest.approx(expected.item(), abs=2e-6)
    (wanted,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(gradient(own, logits, target, known).double(), wanted, atol=2e-6, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(rows=MASKS, batch_dice=st.booleans(), seed=st.integers(0, 1000))
def test_masked_scores_each_known_class_by_a_sigmoid_of_its_own(
    rows: list[list[bool]], batch_dice: bool, seed: int
) -> None:
    logits, target = example(seed=seed)
    known = tell(*([True, *row] for row in rows))
    exact = logits.detach().double().requires_grad_()
    counted = target != IGNORE
    entropies, dices = [], []
    for c in range(1, 4):
        groups = []
        for b in range(2):
            if known[b, c]:
                p, members = exact[b, c].sigmoid()[counted[b]], (target[b] == c)[counted[b]].double()
                entropies.append(-(members * p.log() + (1 - members) * (1 - p).log()))
                groups.append(torch.stack(((p * members).sum(), p.sum(), members.sum())))
        groups = [sum(groups)] if batch_dice and groups else groups
        if groups:
            scores = [(2 * g[0] + SMOOTH) / (g[1] + g[2] + SMOOTH + 1e-8) for g in groups]
            dices.append(sum(scores) / len(scores))
    expected = (torch.cat(entropies).mean() - sum(dices) / len(dices)) if dices else 0 * exact.sum()
    own = loss("masked", batch_dice=batch_dice)
    assert own([logits], target, known).loss.item() == pytest.approx(expected.item(), abs=2e-6)
    (wanted,) = torch.autograd.grad(expected, exact)
    found = gradient(own, logits, target, known)
    torch.testing.assert_close(found.double(), wanted, atol=2e-6, rtol=1e-4)
    assert not found[:, 0].any()


def test_masked_classes_may_overlap() -> None:
    members = torch.zeros(1, 4, 1, 1, 3, dtype=torch.bool)
    members[0, 1, 0, 0, :2] = True
    members[0, 2, 0, 0, 1:] = True  # the middle voxel is of both
    logits = torch.where(members, 50.0, -50.0)
    counted = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    known = torch.ones(1, 4, dtype=torch.bool)
    dices, entropy = masked_dice_and_ce(logits, members, counted, known, smooth=SMOOTH, batch_dice=True)
    # a class that is nowhere is as good as the guard of 1e-8 beside the smoothing lets it be
    torch.testing.assert_close(dices[1:], torch.ones(3), atol=2e-3, rtol=0)
    assert entropy.item() == pytest.approx(0, abs=1e-6)
    missed = torch.where(members.roll(1, -1), 50.0, -50.0)
    dices, _ = masked_dice_and_ce(missed, members, counted, known, smooth=SMOOTH, batch_dice=True)
    torch.testing.assert_close(dices[1:3], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)
