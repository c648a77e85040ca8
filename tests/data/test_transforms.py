"""Intensity transforms and mirroring: each one's effect is measured on its output."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode

from flare.core.errors import FlareError
from flare.data.augment import (
    Augmentation,
    Augmenter,
    Boxes,
    Noise,
    apply_gamma,
    change_intensity,
    draw_augmentation,
    lower_resolution,
    scale_contrast,
)

CONFIG = Path(__file__).parents[2] / "conf" / "data" / "default.yaml"
PATCH = (8, 24, 32)


def settings(**changes: Any) -> dict[str, Any]:
    paper = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)["augmentation"]
    return {**deepcopy(paper), **changes}


def certain(**changes: Any) -> dict[str, Any]:
    """Settings where everything happens to every patch."""
    sure = settings(**changes)
    for section in sure.values():
        if isinstance(section, dict):
            section["probability"] = 1.0
            section.update({"channel_probability": 1.0} if "channel_probability" in section else {})
    return sure


def noise_image(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(PATCH).astype(np.float32))


def changed(image: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    return change_intensity(image, drawn, dummy_2d=True)


def test_nothing_drawn_changes_nothing() -> None:
    image = noise_image()
    assert torch.equal(changed(image, Augmentation()), image)


def test_noise_has_the_deviation_drawn_and_repeats_with_its_seed() -> None:
    image = torch.zeros(16, 64, 64)
    noisy = changed(image, Augmentation(noise=Noise(std=0.07, seed=1)))
    assert noisy.std() == pytest.approx(0.07, rel=0.02)
    assert noisy.mean() == pytest.approx(0, abs=0.002)
    assert torch.equal(noisy, changed(image, Augmentation(noise=Noise(std=0.07, seed=1))))
    assert not torch.equal(noisy, changed(image, Augmentation(noise=Noise(std=0.07, seed=2))))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    volume, label = np.zeros(PATCH, dtype=np.float32), np.zeros(PATCH, dtype=np.uint8)
    augmenter = Augmenter(PATCH, certain(extra=[{"_target_": "torchio.RandomNoise"}]))
    augmenter.apply(
        reader(volume, label, []), draw_augmentation(np.random.default_rng(1), augmenter.settings)
    )
    assert torch.equal(torch.rand(4), expected)


def test_blur_spreads_a_point_by_its_sigma() -> None:
    image = torch.zeros(17, 17, 17)
    image[8, 8, 8] = 1
    blurred = changed(image, Augmentation(blur=1.0))
    offsets = torch.arange(17) - 8
    for axis in range(3):
        profile = blurred.sum(dim=[other for other in range(3) if other != axis])
        assert (profile * offsets**2).sum() == pytest.approx(1.0, abs=0.02)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)


def test_blur_equals_scipy() -> None:
    image = noise_image()
    expected = ndimage.gaussian_filter(image.numpy(), 0.7)
    np.testing.assert_allclose(changed(image, Augmentation(blur=0.7)).numpy(), expected, atol=1e-5)


def test_brightness_multiplies() -> None:
    image = noise_image()
    torch.testing.assert_close(changed(image, Augmentation(brightness=1.2)), image * 1.2)


def test_contrast_scales_about_the_mean_and_keeps_the_range() -> None:
    image = noise_image() + 3
    result = scale_contrast(image, 1.25)
    assert (result.min(), result.max()) == (image.min(), image.max())
    inside = (result > image.min()) & (result < image.max())
    slope = ((result - image.mean()) / (image - image.mean()))[inside]
    torch.testing.assert_close(slope, torch.full_like(slope, 1.25), rtol=1e-2, atol=1e-2)
    weaker = scale_contrast(image, 0.75)
    assert weaker.std() == pytest.approx(0.75 * float(image.std()), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.7, 1.5])
def test_gamma_keeps_mean_and_deviation_and_is_recovered(gamma: float) -> None:
    image = noise_image() * 0.8 + 0.3
    result = apply_gamma(image, gamma)
    assert result.mean() == pytest.approx(float(image.mean()), abs=1e-5)
    assert result.std() == pytest.approx(float(image.std()), rel=1e-5)
    # undo the affine map of the result: ranks are kept and log(unit out) = gamma log(unit in)
    unit_in = (image - image.min()) / (image.max() - image.min())
    unit_out = (result - result.min()) / (result.max() - result.min())
    inner = (unit_in > 0.05) & (unit_in < 0.95)
    recovered = (unit_out[inner].log() / unit_in[inner].log()).median()
    assert recovered == pytest.approx(gamma, rel=1e-3)


def test_inverted_gamma_works_on_the_negated_image() -> None:
    image = noise_image()
    result = changed(image, Augmentation(gamma_inverted=1.4))
    torch.testing.assert_close(result, -apply_gamma(-image, 1.4))
    assert not torch.allclose(result, apply_gamma(image, 1.4), atol=1e-2)


def test_gamma_of_a_constant_patch_is_finite() -> None:
    torch.testing.assert_close(apply_gamma(torch.full(PATCH, 2.5), 1.3), torch.full(PATCH, 2.5))


def test_low_resolution_removes_detail_but_not_in_z() -> None:
    image = torch.zeros(PATCH)
    image[::2] = 1  # alternating slices survive where z is left alone
    torch.testing.assert_close(lower_resolution(image, 0.5, keep_z=True), image)
    checkered = torch.zeros(PATCH)
    checkered[:, ::2, ::2] = 1
    assert lower_resolution(checkered, 0.5, keep_z=True).std() < 1e-4
    assert lower_resolution(image, 0.5, keep_z=False).std() < 1e-4


@pytest.mark.parametrize("keep_z", [True, False])
def test_low_resolution_equals_scipys_spline_in_space(keep_z: bool) -> None:
    image = noise_image()
    small = [max(1, round(n * 0.6)) for n in PATCH]
    small[0] = PATCH[0] if keep_z else small[0]
    kept = [np.floor((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(PATCH, small, strict=True)]
    reduced = image.numpy()[np.ix_(*kept)]
    factors = [n / m for n, m in zip(PATCH, small, strict=True)]
    expected = ndimage.zoom(reduced, factors, order=3, mode="nearest", grid_mode=True)
    expected = expected.clip(reduced.min(), reduced.max())
    np.testing.assert_allclose(lower_resolution(image, 0.6, keep_z=keep_z).numpy(), expected, atol=2e-5)


def test_low_resolution_keeps_smooth_patterns_in_place() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(PATCH).contiguous()
    result = lower_resolution(ramp, 0.6, keep_z=True)
    assert (result - ramp)[:, :, 4:-4].abs().max() < 0.04
    assert result.min() >= ramp.min()
    assert result.max() <= ramp.max()


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2), ()])
def test_mirrored_labels_agree_with_the_image(axes: tuple[int, ...]) -> None:
    image = noise_image()
    label = (image > 0).to(torch.uint8)
    read = reader(image.numpy(), label.numpy(), [])
    flipped, flipped_label = Augmenter(PATCH, settings()).apply(read, Augmentation(mirror=axes))
    assert torch.equal(flipped, image.flip(axes))
    assert torch.equal(flipped_label, (flipped > 0).to(torch.uint8))
    assert flipped_label.dtype == torch.uint8


def reader(volume: np.ndarray, label: np.ndarray, requests: list[tuple[int, ...]]) -> Any:
    """Read from arrays with zeros around them, and note the sizes asked for."""

    def read(lower: tuple[int, ...], upper: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        requests.append(tuple(b - a for a, b in zip(lower, upper, strict=True)))
        index = np.ix_(*[np.arange(a, b) + 64 for a, b in zip(lower, upper, strict=True)])
        return np.pad(volume, 64)[index], np.pad(label, 64)[index]

    return read


def test_without_a_spatial_transform_the_patch_itself_is_read() -> None:
    volume = np.random.default_rng(0).standard_normal(PATCH).astype(np.float32)
    label = np.random.default_rng(0).integers(0, 15, PATCH).astype(np.uint8)
    requests: list[tuple[int, ...]] = []
    image, target = Augmenter(PATCH, settings()).apply(reader(volume, label, requests), Augmentation())
    assert requests == [PATCH]
    np.testing.assert_array_equal(image.numpy(), volume)
    np.testing.assert_array_equal(target.numpy(), label)


def test_everything_at_once_gives_a_patch_with_known_classes_only() -> None:
    rng = np.random.default_rng(0)
    volume = rng.standard_normal(PATCH).astype(np.float32)
    label = rng.choice([0, 3, 14], PATCH).astype(np.uint8)
    for dummy_2d in (True, False):
        for how in ("linear", "cubic"):
            extra = [{"_target_": "torchio.RandomGamma"}]
            augmenter = Augmenter(PATCH, certain(dummy_2d=dummy_2d, image_interpolation=how, extra=extra))
            drawn = draw_augmentation(np.random.default_rng(1), augmenter.settings)
            assert all(value is not None for value in vars(drawn).values())
            image, target = augmenter.apply(reader(volume, label, []), drawn)
            assert tuple(image.shape) == tuple(target.shape) == PATCH
            assert image.dtype == torch.float32
            assert image.isfinite().all()
            assert set(target.unique().tolist()) <= {0, 3, 14}
            again, _ = augmenter.apply(reader(volume, label, []), drawn)
            assert torch.equal(image, again)


@pytest.mark.parametrize("dummy_2d", [True, False])
def test_all_is_computed_on_the_device_of_the_boxes(dummy_2d: bool) -> None:
    """Tensors without numbers, of a device that is none here, refuse to meet others, as a GPU's would."""
    drawn = Augmentation(rotation=(9.0, 0.0, 0.0), blur=0.7, brightness=1.1, mirror=(2,))
    label = np.zeros(PATCH, dtype=np.uint8)
    for how in ("linear", "cubic"):
        augmenter = Augmenter(PATCH, settings(dummy_2d=dummy_2d, image_interpolation=how))
        boxes = augmenter.read(reader(label.astype(np.float32), label, []), drawn)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            there = [mode.from_tensor(t).to("lazy:0") for t in boxes[:3] if t is not None]
            image, target = augmenter.augment(Boxes(*there, drawn))  # type: ignore[call-arg]
        assert (image.device.type, target.device.type) == ("lazy", "lazy")
        assert tuple(image.shape) == tuple(target.shape) == PATCH


def test_what_comes_from_outside_the_volume_is_zero() -> None:
    volume = np.full(PATCH, 5, dtype=np.float32)
    label = np.ones(PATCH, dtype=np.uint8)
    augmenter = Augmenter(PATCH, settings())
    drawn = Augmentation(rotation=(90.0, 0.0, 0.0))
    image, target = augmenter.apply(reader(volume, label, []), drawn)
    # 24 x 32 on end covers only the middle 24 columns
    assert image[:, :, :3].abs().max() < 1e-4
    assert (target[:, :, :3] == 0).all()
    torch.testing.assert_close(image[:, :, 5:27], torch.full((8, 24, 22), 5.0))
    flipped, _ = augmenter.apply(reader(volume, label, []), replace(drawn, mirror=(2,)))
    torch.testing.assert_close(flipped, image.flip(2))


def extra_applied(
    extra: list[dict[str, Any]], seed: int = 1, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch with one bright organ after nothing but the transforms of `extra`."""
    label = np.zeros(PATCH, dtype=np.uint8)
    label[2:4, 4:10, 5:20] = 3
    augmenter = Augmenter(PATCH, settings(extra=extra), spacing_mm)
    return augmenter.apply(reader(label.astype(np.float32), label, []), Augmentation(extra=seed))


def test_extra_transforms_repeat_with_their_seed_alone() -> None:
    ghosts = [{"_target_": "torchio.RandomGhosting", "intensity": [1, 2]}]
    image, label = extra_applied(ghosts)
    torch.rand(5)
    np.random.rand(5)
    again, _ = extra_applied(ghosts)
    other, _ = extra_applied(ghosts, seed=2)
    assert torch.equal(image, again)
    assert not torch.equal(image, other)
    assert torch.equal(label == 3, extra_applied([])[1] == 3)  # the anatomy stays where it is
    assert image.shape == label.shape == PATCH
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)


def test_extra_spatial_transforms_move_the_labels_too() -> None:
    flipped, label = extra_applied(
        [{"_target_": "torchio.RandomFlip", "axes": ["LR"], "flip_probability": 1}]
    )
    before, _ = extra_applied([])
    assert torch.equal(flipped, before.flip(2))  # left and right lie along x
    assert torch.equal(label == 3, flipped == 3)


def test_extra_transforms_count_in_millimetres() -> None:
    shift = {"_target_": "torchio.RandomAffine", "scales": 0, "degrees": 0, "default_pad_value": 0}
    moved, _ = extra_applied([{**shift, "translation": [6, 6, 0, 0, 0, 0]}], spacing_mm=(4.0, 2.0, 3.0))
    before, _ = extra_applied([])
    columns = [int(image.amax((0, 1)).nonzero()[0]) for image in (before, moved)]
    assert abs(columns[1] - columns[0]) == 2  # 6 mm along x, voxels of 3 mm


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"_target_": "torchio.RandomGhosts"}, r"data.augmentation.extra\[0\]: .*RandomGhosts"),
        ({"_target_": "torchio.RandomNoise", "sigma": 1}, r"data.augmentation.extra\[0\]: .*sigma"),
        ({"_target_": "torch.nn.Identity"}, r"torch.nn.Identity is no transform of TorchIO"),
    ],
)
def test_what_is_no_transform_is_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(FlareError, match=message):
        Augmenter(PATCH, settings(extra=[extra]))


def test_torchios_transforms_are_refused_on_a_gpu() -> None:
    extra = [{"_target_": "torchio.RandomNoise"}]
    with pytest.raises(FlareError, match=r"^data.augmentation.device=gpu: .*expected extra=\[\]"):
        Augmenter(PATCH, settings(extra=extra, device="gpu"))


def test_a_transform_that_changes_the_size_is_refused() -> None:
    with pytest.raises(FlareError, match=r"data.augmentation.extra: gives \(8, 24, 30\) voxels"):
        extra_applied([{"_target_": "torchio.Crop", "cropping": [1, 1, 0, 0, 0, 0]}])
