"""Batches as a function of (seed, step): determinism, resume, ranks, targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.cache import sample_foreground, store_array
from flare.data.loaders import (
    CaseArrays,
    PatchDataset,
    SampleKey,
    StepLoader,
    StepSampler,
)
from flare.data.settings import PatchSettings

PATCH = (6, 12, 16)
CONFIG = Path(__file__).parents[2] / "conf" / "data" / "default.yaml"
INTENSITY = Intensity(lower=-200, upper=300, mean=50, std=100)


def write_cases(folder: Path, count: int = 3) -> list[tuple[str, CaseArrays]]:
    """Images of -500 HU with an organ at 50 HU and a tumor at 500 HU, and their labels."""
    cases = []
    for index in range(count):
        shape = (8 + index, 20, 24)
        label = np.zeros(shape, dtype=np.uint8)
        label[2:7, 4:14, 5:15] = 1 + index
        label[3:5, 6:9, 6:9] = 14
        image = np.choose((label > 0).astype(int) + (label == 14), [-500, 50, 500]).astype(np.int16)
        arrays = CaseArrays(folder / f"{index}-image.b2nd", folder / f"{index}-label.b2nd")
        store_array(arrays.image, image)
        store_array(arrays.label, label, foreground=sample_foreground(label, 1000))
        cases.append((f"case-{index}", arrays))
    return cases


def foreground(patch: tuple[int, int, int], share: float, outputs: Iterable[int]) -> PatchSettings:
    """Batches of two patches, of which the last ones are centred on foreground."""
    return PatchSettings(patch, (1, 1, 1), 2, share, 0.0, 0, {}, tuple(outputs), tumor=14, seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PatchDataset:
    settings = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)["augmentation"]
    settings["extra"] = [{"_target_": "torchio.RandomGhosting", "intensity": [1, 2]}]
    return PatchDataset(
        cases=write_cases(tmp_path_factory.mktemp("cache")),
        settings=foreground(PATCH, 0.33, range(15)),
        intensity=INTENSITY,
        augmenter=Augmenter(PATCH, settings),
    )


def unchanged(dataset: PatchDataset) -> PatchDataset:
    """The same patches without augmentation."""
    settings = {
        name: {**section, "probability": 0.0} if isinstance(section, dict) else section
        for name, section in dataset.augmenter.settings.items()
    }
    return replace(dataset, augmenter=Augmenter(PATCH, {**settings, "extra": []}))


def sampler(**changes: Any) -> StepSampler:
    values = {"batch_size": 2, "epoch_length": 10, "step": lambda: 0, "rank": 0}
    return StepSampler(**{**values, **changes})


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return (
        torch.equal(first["image"], second["image"])
        and torch.equal(first["target"], second["target"])
        and first["case"] == second["case"]
    )


def test_a_sample_is_a_function_of_seed_step_and_number(dataset: PatchDataset) -> None:
    key = SampleKey(step=4, sample=1)
    first = dataset[key]
    dataset[SampleKey(step=9, sample=0)]
    assert equal(first, dataset[key])
    assert not equal(first, dataset[key._replace(step=5)])
    assert not equal(first, dataset[key._replace(sample=3)])
    assert not equal(first, replace(dataset, settings=replace(dataset.settings, seed=1))[key])


def test_a_patch_has_documented_shapes_and_types(dataset: PatchDataset) -> None:
    patch = dataset[SampleKey(0, 1)]
    assert tuple(patch["image"].shape) == (1, *PATCH)
    assert patch["image"].dtype == torch.float32
    assert tuple(patch["target"].shape) == PATCH
    assert patch["target"].dtype == torch.uint8


def test_images_are_clipped_and_normalised_and_labels_lie_on_them(dataset: PatchDataset) -> None:
    patch = unchanged(dataset)[SampleKey(0, 1)]
    image, target = patch["image"][0], patch["target"]
    # (-200 - 50) / 100, (50 - 50) / 100, (300 - 50) / 100
    assert set(image.unique().tolist()) == {-2.5, 0.0, 2.5}
    assert torch.equal(target == 14, image == 2.5)
    assert torch.equal(target == 0, image == -2.5)


@pytest.mark.parametrize(
    ("targets", "organ", "tumor"), [("organs", 1, 0), ("tumor", 0, 1), ("organs_tumor", 1, 14)]
)
def test_targets_are_output_channels(
    dataset: PatchDataset, labels: ClassList, targets: str, organ: int, tumor: int
) -> None:
    settings = replace(dataset.settings, outputs=labels.outputs(targets))
    only = replace(unchanged(dataset), cases=dataset.cases[:1], settings=settings)
    target, image = only[SampleKey(0, 1)]["target"], only[SampleKey(0, 1)]["image"][0]
    assert set(target[image == 0].tolist()) == {organ}
    assert set(target[image == 2.5].tolist()) == {tumor}
    assert set(target[image == -2.5].tolist()) == {0}


def test_cases_are_drawn_uniformly(dataset: PatchDataset) -> None:
    plain = unchanged(dataset)
    drawn = [plain[SampleKey(step, 0)]["case"] for step in range(600)]
    counts = [drawn.count(case_id) for case_id, _ in dataset.cases]
    assert all(abs(count - 200) < 4 * np.sqrt(600 * 2 / 9) for count in counts)


def test_an_epoch_is_a_number_of_steps() -> None:
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 10
    assert batches[3] == [SampleKey(3, 0), SampleKey(3, 1)]


def test_the_next_epoch_goes_on_with_the_steps() -> None:
    assert [batch[0].step for batch in sampler(step=lambda: 20)] == list(range(20, 30))


def test_a_resumed_epoch_holds_what_is_left_of_it() -> None:
    whole = list(sampler(step=lambda: 10))
    assert list(sampler(step=lambda: 17)) == whole[7:]


def test_the_step_is_asked_anew_for_each_epoch() -> None:
    step = [0]
    endless = sampler(step=lambda: step[0])
    list(endless)
    step[0] = 30
    assert next(iter(endless))[0].step == 30


def test_ranks_draw_together_what_one_process_draws_at_the_joint_batch() -> None:
    shares = [list(sampler(rank=rank, batch_size=3)) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == list(sampler(batch_size=6))


def test_workers_give_the_same_batches_in_the_same_order(dataset: PatchDataset) -> None:
    inside, outside = (
        list(StepLoader(dataset, sampler(epoch_length=4), workers=workers, pin_memory=False))
        for workers in (0, 2)
    )
    assert len(inside) == 4
    assert all(equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert tuple(inside[0]["image"].shape) == (2, 1, *PATCH)
    assert len(inside[0]["case"]) == 2


def test_batches_in_flight_fit_the_shared_memory_of_a_container(
    dataset: PatchDataset, config: Callable[..., DictConfig]
) -> None:
    """Workers hand batches over in /dev/shm, of which a container has 64 MiB unless it is given more."""
    data = config("train", "data=flare23", "data.root=x").data  # the paper's patch
    loader = StepLoader(dataset, sampler(), workers=data.workers, pin_memory=False).loader
    patch = dataset[SampleKey(0, 0)]
    tensors = [value for value in patch.values() if isinstance(value, torch.Tensor)]
    a_voxel = sum(t.nbytes for t in tensors) / np.prod(PATCH)
    batches = data.workers * loader.prefetch_factor + 1  # one more is worked on
    assert a_voxel >= 5  # float32 and uint8
    assert batches * data.batch_size * np.prod(data.patch_size) * a_voxel < 64 * 2**20


def test_a_patch_takes_one_thread_and_gives_the_others_back(dataset: PatchDataset) -> None:
    before = torch.get_num_threads()
    seen = []

    class Spy(Augmenter):
        def apply(self, *given: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().apply(*given)

    torch.set_num_threads(2)
    try:
        replace(dataset, augmenter=Spy(PATCH, dataset.augmenter.settings))[SampleKey(0, 0)]
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_persistent_workers_follow_the_step(dataset: PatchDataset) -> None:
    step = [0]
    keys = sampler(epoch_length=2, step=lambda: step[0])
    loader = StepLoader(unchanged(dataset), keys, workers=1, pin_memory=False)
    first = list(loader)
    step[0] = 1
    assert equal(next(iter(loader)), first[1])


def test_workers_that_leak_are_renewed_and_go_on_with_the_same_patches(
    dataset: PatchDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flare.data.loaders.RENEWED", 2)
    step, processes, batches = [0], [], []
    keys = sampler(epoch_length=1, step=lambda: step[0])
    loader = StepLoader(unchanged(dataset), keys, workers=1, pin_memory=False)
    try:
        for step[0] in range(5):
            batches += list(loader)
            processes.append(loader.loader._iterator._workers[0].pid)
    finally:
        loader.close()
    first, again, second, _, third = processes
    assert first == again
    assert len({first, second, third}) == 3
    alone = StepLoader(unchanged(dataset), keys, workers=0, pin_memory=False)
    for step[0], batch in enumerate(batches):
        assert equal(next(iter(alone)), batch)
