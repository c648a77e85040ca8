"""The ignore value from the cache to the loss: no centre of a patch, no class, no gradient, no score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from test_loaders import foreground
from test_transforms import certain, settings
from torch import Tensor, nn
from torch.nn import functional as F

from flare.core.classes import IGNORE, ClassList
from flare.core.errors import FlareError
from flare.core.geometry import Geometry, Volume
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.cache import Stored, cache_image, cache_labels
from flare.data.loaders import CaseArrays, PatchDataset, SampleKey, StepLoader, StepSampler
from flare.data.spatial import resample_label
from flare.models.losses import AnyLoss, DeepSupervision, DiceCELoss, LossParts, reduce_target
from flare.training.module import score_case

GRID = Geometry((12, 24, 28), (3.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
PATCH = (8, 16, 16)
SMOOTH = 1e-5
LIVER, TUMOR = 1, 14


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, labels: ClassList) -> PatchDataset:
    """A cached case: bright where it is liver, dark elsewhere, and a block whose label is not known."""
    folder = tmp_path_factory.mktemp("cache")
    array = np.zeros(GRID.shape, np.uint8)
    array[3:9, 4:14, 4:14] = LIVER
    array[3:9, 4:14, 14:24] = IGNORE
    image = np.where(array == LIVER, 200, np.where(array == IGNORE, 100, 0)).astype(np.int16)
    arrays = CaseArrays(folder / "image.b2nd", folder / "label.b2nd")
    cache_image(
        Volume(image, GRID), arrays.image, spacing_mm=GRID.spacing_mm, interpolation="linear", case_id="a"
    )
    cache_labels(Volume(array, GRID), arrays.label, image=arrays.image, case_id="a")
    outputs = labels.outputs("organs_tumor")
    return PatchDataset(
        cases=[("a", arrays)],
        settings=foreground(PATCH, 1.0, outputs),
        intensity=Intensity(0, 200, 0, 100),
        augmenter=Augmenter(PATCH, settings(rotation={"probability": 0}, extra=[])),
    )


def with_augmentation(dataset: PatchDataset, values: Mapping[str, Any]) -> PatchDataset:
    return replace(dataset, augmenter=Augmenter(PATCH, values))


def off(**changes: Any) -> dict[str, Any]:
    """No augmentation."""
    plain = settings(extra=[], **changes)
    return {k: {**v, "probability": 0.0} if isinstance(v, dict) else v for k, v in plain.items()}


def test_the_cache_keeps_it_and_no_patch_is_centred_on_it(dataset: PatchDataset) -> None:
    label = Stored(dataset.cases[0][1].label)
    assert set(np.unique(label[:, :, :])) == {0, LIVER, IGNORE}
    assert label.foreground_classes == (LIVER,)
    centres = label.foreground(LIVER)
    assert (label[:, :, :][tuple(centres.T)] == LIVER).all()


def test_a_batch_has_it_where_the_case_has_it_and_every_class_is_known(dataset: PatchDataset) -> None:
    sampler = StepSampler(batch_size=2, epoch_length=3, step=lambda: 0, rank=0)
    for batch in StepLoader(with_augmentation(dataset, off()), sampler, workers=0, pin_memory=False):
        image, target = batch["image"][:, 0], batch["target"]
        assert torch.equal(target == IGNORE, image == 1)  # 100 HU of a deviation of 100
        assert torch.equal(target == dataset.settings.outputs.index(LIVER), image == 2)
        assert (target == IGNORE).any()
        assert batch["known"].shape == (2, len(dataset.settings.outputs))
        assert batch["known"].dtype == torch.bool
        assert batch["known"].all()


def test_a_batch_knows_what_its_case_annotates(dataset: PatchDataset) -> None:
    """Which may be classes that this round does not train."""
    outputs = (0, LIVER, 3, TUMOR)
    cases = [("a", dataset.cases[0][1]._replace(known=ids)) for ids in ((), (LIVER, 2), None)]
    own = replace(dataset, settings=replace(dataset.settings, outputs=outputs), cases=cases)
    seen = {tuple(own[SampleKey(step, 0)]["known"].tolist()) for step in range(30)}
    assert seen == {(True, False, False, False), (True, True, False, False), (True, True, True, True)}


@pytest.mark.parametrize("how", ["nearest", "linear"])
@pytest.mark.parametrize("dummy_2d", [True, False])
def test_augmentation_makes_no_class_of_it(dataset: PatchDataset, how: str, dummy_2d: bool) -> None:
    extra = [{"_target_": "torchio.RandomAffine", "degrees": 20}]
    values = certain(dummy_2d=dummy_2d, label_interpolation=how, extra=extra)
    changed = with_augmentation(dataset, values)
    targets = torch.stack([changed[SampleKey(step, 1)]["target"] for step in range(8)])
    assert set(targets.unique().tolist()) == {0, LIVER, IGNORE}


def grids(label: torch.Tensor, two_d: bool, rng: np.random.Generator) -> torch.Tensor:
    """Coordinates about those of the inner voxels."""
    axes = [np.linspace(1, n - 2, n - 2) for n in label.shape[-2 if two_d else -3 :]]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    return torch.from_numpy(grid + rng.uniform(-0.9, 0.9, grid.shape)).float()


@settings_of_hypothesis(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), two_d=st.booleans(), share=st.sampled_from([0.01, 0.2, 0.9]))
def test_linear_labels_are_unknown_exactly_where_they_depend_on_the_unknown(
    seed: int, two_d: bool, share: float
) -> None:
    rng = np.random.default_rng(seed)
    known = [0.5 * (1 - share), 0.3 * (1 - share), 0.2 * (1 - share)]
    label = torch.from_numpy(rng.choice([0, 1, 4, IGNORE], p=[*known, share], size=(5, 9, 9))).byte()
    grid = grids(label, two_d, rng)
    # whatever the ignored voxels are filled with, all of them alike or not
    fills = [torch.where(label == IGNORE, value, label) for value in (0, 1, 4)]
    outcomes = torch.stack([resample_label(filled.byte(), grid, "linear") for filled in fills])
    agreed = (outcomes == outcomes[0]).all(0)
    found = resample_label(label, grid, "linear")
    assert torch.equal(found[agreed], outcomes[0][agreed])
    assert (found[~agreed] == IGNORE).all()


def test_what_is_not_moved_stays() -> None:
    label = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 4, IGNORE], size=(4, 8, 8))).byte()
    still = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in label.shape], indexing="ij"))
    assert torch.equal(resample_label(label, still, "linear"), label)


def test_lower_resolutions_keep_it() -> None:
    target = torch.zeros(1, 4, 8, 8, dtype=torch.uint8)
    target[0, 2:, 4:] = IGNORE
    for size in ((2, 4, 4), (4, 3, 8)):
        assert set(reduce_target(target, size).unique().tolist()) == {0, IGNORE}


def ours(labels: ClassList, **changes: Any) -> DiceCELoss:
    values: dict[str, Any] = {"dice_weight": 1.0, "ce_weight": 1.0, "smooth": SMOOTH, "batch_dice": True}
    values |= {"class_weights": None, "supervise_lowest": True, **changes}
    return DiceCELoss(labels.to_config(), "organs", **values)


def example(ignored: bool = True) -> tuple[Tensor, Tensor]:
    """Logits of 14 outputs and a target of which a third is unknown."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 14, (2, 4, 8, 8), generator=generator, dtype=torch.uint8)
    if ignored:
        target[torch.rand(target.shape, generator=generator) < 1 / 3] = IGNORE
    return torch.randn(2, 14, 4, 8, 8, generator=generator, requires_grad=True), target


@pytest.mark.parametrize("batch_dice", [True, False])
def test_dice_and_cross_entropy_are_over_the_other_voxels(labels: ClassList, batch_dice: bool) -> None:
    logits, target = example()
    parts = ours(labels, batch_dice=batch_dice)([logits], target)
    probabilities = logits.detach().double().softmax(1).movedim(1, -1)
    tp, fp, fn = np.zeros((3, 2, 14))
    ce = []
    for voxel in np.ndindex(*target.shape):
        right = int(target[voxel])
        if right == IGNORE:
            continue
        p = probabilities[voxel].numpy()
        ce.append(-np.log(p[right]))
        tp[voxel[0], right] += p[right]
        fn[voxel[0], right] += 1 - p[right]
        wrong = np.arange(14) != right
        fp[voxel[0], wrong] += p[wrong]
    if batch_dice:
        tp, fp, fn = (counts.sum(0, keepdims=True) for counts in (tp, fp, fn))
    dice = ((2 * tp + SMOOTH) / (2 * tp + fp + fn + SMOOTH + 1e-8)).mean(0)[1:].mean()
    assert parts.ce.item() == pytest.approx(np.mean(ce), rel=1e-5)
    assert parts.dice.item() == pytest.approx(dice, rel=1e-5)
    parts.loss.backward()
    moved = (logits.grad != 0).any(1)
    assert torch.equal(moved, target != IGNORE)


def test_where_nothing_is_ignored_the_bits_are_those_of_the_plain_formula(labels: ClassList) -> None:
    found = []
    for formula in ("ours", "plain"):
        logits, target = example(ignored=False)
        if formula == "ours":
            loss = ours(labels)([logits], target).loss
        else:
            index = target.long()
            log_probabilities = F.log_softmax(logits, dim=1)
            log_correct = log_probabilities.gather(1, index[:, None])[:, 0]
            correct, members = log_correct.exp(), [index == c for c in range(14)]
            tp = torch.stack([(correct * m).sum((1, 2, 3)) for m in members], 1)
            there = torch.stack([m.sum((1, 2, 3)) for m in members], 1)
            counts = torch.stack((tp, log_probabilities.exp().sum((2, 3, 4)), there)).sum(1, keepdim=True)
            dice = ((2 * counts[0] + SMOOTH) / (counts[1] + counts[2] + SMOOTH + 1e-8)).mean(0)
            loss = 1.0 * -log_correct.mean() - 1.0 * (dice[1:] * torch.full((13,), 1.0 / 13)).sum()
        loss.backward()
        found.append((loss, logits.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_patch_of_which_nothing_is_known_moves_no_weight(labels: ClassList) -> None:
    logits, target = example()
    loss = ours(labels)([logits], torch.full_like(target, IGNORE)).loss
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def monais() -> nn.Module:
    from monai.losses import DiceLoss

    return DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=SMOOTH,
                    smooth_dr=SMOOTH)  # fmt: skip


@pytest.mark.parametrize(("loss", "channel"), [(nn.CrossEntropyLoss(), False), (monais(), True)])
def test_a_loss_of_others_sees_certain_background_there(
    loss: nn.Module, channel: bool, labels: ClassList
) -> None:
    logits, target = example()
    parts = AnyLoss(loss, target_channel=channel, supervise_lowest=True)([logits], target)
    parts.loss.backward()
    assert torch.equal((logits.grad != 0).any(1), target != IGNORE)
    counted = target != IGNORE
    if channel:  # no tp, fp or fn: exactly ours
        assert parts.loss.item() == pytest.approx(1 - ours(labels)([logits], target).dice.item(), abs=1e-6)
    else:  # no error, but one of the voxels of the mean
        expected = F.cross_entropy(logits.movedim(1, -1)[counted], target[counted].long())
        assert parts.loss.item() == pytest.approx(expected.item() * counted.float().mean().item(), rel=1e-6)


def test_a_loss_is_handed_what_its_signature_takes() -> None:
    logits, target = example()
    known = torch.rand(2, 14) > 0.5
    given: dict[str, Tensor] = {}

    def partial(logits: Tensor, index: Tensor, known: Tensor, counted: Tensor) -> Tensor:
        given.update(logits=logits, index=index, known=known, counted=counted)
        return logits.sum()

    AnyLoss(partial, supervise_lowest=True)([logits], target, known)
    assert torch.equal(given["logits"], logits)  # as they are: it leaves voxels out itself
    assert torch.equal(given["known"], known)
    assert torch.equal(given["counted"], target != IGNORE)
    index = torch.where(target == IGNORE, 0, target).long()
    is_known = torch.stack([known[sample, of] for sample, of in enumerate(index)])
    assert torch.equal(given["index"], torch.where(is_known, index, 0))


class Counting(DeepSupervision):
    """A subclass of somebody else's."""

    def compare(self, logits: Tensor, target: Tensor, known: Tensor, counted: Tensor) -> LossParts:
        assert known.all()
        return LossParts(counted.float().sum() + 0 * logits.sum())


def test_a_subclass_is_given_the_same_at_each_resolution() -> None:
    logits, target = example()
    lower = logits[:, :, ::2, ::2, ::2]
    value = Counting(supervise_lowest=True)([logits, lower], target).loss.item()
    counts = [int((t != IGNORE).sum()) for t in (target, reduce_target(target, lower.shape[2:]))]
    assert value == pytest.approx(2 / 3 * counts[0] + 1 / 3 * counts[1], rel=1e-6)


def test_scores_of_validation_leave_it_out(labels: ClassList) -> None:
    reference = np.zeros(GRID.shape, np.uint8)
    reference[2:6, 2:10, 2:10] = LIVER
    segmentation = reference.copy()
    reference[2:6, 2:10, 6:10] = IGNORE
    segmentation[2:6, 2:10, 6:8] = TUMOR  # whatever it says there
    segmentation[2:6, 8:10, 2:6] = 0
    image = Volume(np.zeros(GRID.shape, np.int16), GRID)
    scores = score_case(
        {"image": image, "reference": reference, "segmentation": segmentation},
        classes=labels,
        outputs=labels.outputs("organs_tumor"),
        nsd=True,
    )
    assert scores["dsc/liver"] == pytest.approx(2 * 96 / (96 + 128))
    assert set(scores) == {"dsc/liver", "nsd/liver"}


def test_no_class_may_have_its_id(labels: ClassList) -> None:
    taken = labels.to_config()
    taken["liver"]["id"] = IGNORE
    with pytest.raises(FlareError, match="254"):
        ClassList.from_config(taken)


def drawn(dataset: PatchDataset, weights: tuple[float, ...], count: int) -> list[str]:
    cases = [(f"{n}", dataset.cases[0][1]._replace(weight=w)) for n, w in enumerate(weights)]
    weighted = replace(dataset, cases=cases, augmenter=Augmenter(PATCH, off()))
    return [weighted[SampleKey(step, 0)]["case"] for step in range(count)]


def test_cases_are_drawn_by_weight_as_a_function_of_seed_and_step(dataset: PatchDataset) -> None:
    found = drawn(dataset, (1, 0, 3), 200)
    assert found == drawn(dataset, (1, 0, 3), 200)
    assert found == drawn(dataset, (0.25, 0, 0.75), 200)
    assert set(found) == {"0", "2"}
    assert abs(found.count("2") / 200 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 200)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_equal_weights_draw_what_no_weights_do(dataset: PatchDataset, weight: float) -> None:
    # the first draw of a patch's generator, a whole number below the number of cases
    expected = [str(np.random.default_rng((0, step, 0)).integers(3)) for step in range(40)]
    assert drawn(dataset, (weight,) * 3, 40) == expected


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (1, float("nan")), (1, float("inf"))])
def test_weights_that_mean_nothing_are_refused(dataset: PatchDataset, weights: tuple[float, ...]) -> None:
    with pytest.raises(FlareError, match="weights"):
        drawn(dataset, weights, 1)


def test_training_through_lightning_hands_on_what_the_batch_says(dataset: PatchDataset) -> None:
    from flare.training.module import SegmentationModule

    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(Counting):
        def forward(self, outputs: Any, target: Tensor, known: Tensor | None = None) -> LossParts:
            assert known is not None
            seen.append((target, known))
            return super().forward(outputs, target, known)

    batch = next(iter(StepLoader(dataset, StepSampler(2, 1, lambda: 0, 0), workers=0, pin_memory=False)))
    step = SegmentationModule.training_step
    module: Any = type("Module", (), {})()
    module.loss, module.net = Spy(supervise_lowest=True), lambda image: [image.repeat(1, 15, 1, 1, 1)]
    module.log_dict = lambda values, **_: None
    module.log = lambda name, value, **_: None
    module.optimizers = lambda: SimpleNamespace(param_groups=[{"lr": 0.1}])
    step(module, batch, 0)
    assert torch.equal(seen[0][0], batch["target"])
    assert torch.equal(seen[0][1], batch["known"])
