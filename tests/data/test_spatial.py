"""Rotation, scaling and elastic deformation: effects measured on patterns whose images are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from flare.data.augment import Augmentation
from flare.data.spatial import (
    Elastic,
    displacement,
    resample_image,
    resample_label,
    sampling_grid,
    smooth,
    source_box,
)

PATCH = (9, 33, 41)
CENTRE = np.array([4.0, 16.0, 20.0])
PADDING = 60  # voxels of context on every side of the test patterns


def place(drawn: Augmentation, *, dummy_2d: bool) -> torch.Tensor:
    grid = sampling_grid(drawn, PATCH, dummy_2d=dummy_2d)
    assert grid is not None
    return grid


def blob(offset: tuple[float, float, float]) -> np.ndarray:
    """A Gaussian of sigma 2 at an offset from the patch's centre, in a volume larger than the patch."""
    axes = [
        np.arange(n + 2 * PADDING) - PADDING - c - o for n, c, o in zip(PATCH, CENTRE, offset, strict=True)
    ]
    squares = np.meshgrid(*[a**2 for a in axes], indexing="ij")
    return np.exp(-sum(squares) / 8).astype(np.float32)


def augmented(volume: np.ndarray, drawn: Augmentation, how: str, *, dummy_2d: bool) -> np.ndarray:
    """Read what the grid needs, as `Augmenter` does, and resample it."""
    grid = place(drawn, dummy_2d=dummy_2d)
    lower, upper = source_box(grid, PATCH, cubic=how == "cubic")
    box = volume[tuple(slice(a + PADDING, b + PADDING) for a, b in zip(lower, upper, strict=True))]
    grid = grid - torch.tensor(lower[-len(grid) :]).view(-1, *[1] * (grid.ndim - 1))
    return resample_image(torch.from_numpy(box.copy()), grid, how).numpy()


def centroid(image: np.ndarray) -> np.ndarray:
    """Centre of mass counted from the patch's centre."""
    return np.array(ndimage.center_of_mass(image)) - CENTRE


def test_nothing_drawn_means_no_grid() -> None:
    assert sampling_grid(Augmentation(gamma=1.2, mirror=(0,)), PATCH, dummy_2d=True) is None


@pytest.mark.parametrize("how", ["linear", "cubic"])
@pytest.mark.parametrize("degrees", [90.0, -30.0, 137.0])
def test_the_angle_about_z_is_the_one_drawn(degrees: float, how: str) -> None:
    drawn = Augmentation(rotation=(degrees, 0, 0))
    # a blob at +8 along y; out[p] = in[R p], so the blob moves by the inverse rotation
    _, y, x = centroid(augmented(blob((0, 8, 0)), drawn, how, dummy_2d=True))
    assert np.hypot(y, x) == pytest.approx(8, abs=0.02)
    assert np.degrees(np.arctan2(-x, y)) == pytest.approx(degrees, abs=0.3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_space_each_angle_turns_about_its_own_axis(axis: int) -> None:
    drawn = Augmentation(rotation=tuple(20.0 if a == axis else 0.0 for a in range(3)))
    shape = [n + 2 * PADDING for n in PATCH]
    # images of the three coordinates tell at each voxel where it came from
    fields = np.meshgrid(*[np.arange(n) - n / 2 + 0.5 for n in shape], indexing="ij")
    found = [augmented(f.astype(np.float32), drawn, "linear", dummy_2d=False)[4, 16, :] for f in fields]
    direction = np.array([part[-1] - part[0] for part in found]) / 40
    if axis == 2:
        np.testing.assert_allclose(direction, [0, 0, 1], atol=1e-5)
    else:
        assert direction[axis] == pytest.approx(0, abs=1e-5)
        assert np.degrees(np.arccos(direction[2])) == pytest.approx(20, abs=0.01)
    found = [augmented(f.astype(np.float32), drawn, "linear", dummy_2d=False)[4, :, 20] for f in fields]
    direction = np.array([part[-1] - part[0] for part in found]) / 32
    assert np.degrees(np.arccos(min(direction[1], 1))) == pytest.approx(0 if axis == 1 else 20, abs=0.1)


@pytest.mark.parametrize("how", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_scale_above_one_shrinks_the_anatomy(scale: float, how: str) -> None:
    image = augmented(blob((0, 6, -6)), Augmentation(scale=scale), how, dummy_2d=True)
    z, y, x = centroid(image)
    assert (y, x) == pytest.approx((6 / scale, -6 / scale), abs=0.05)
    assert z == pytest.approx(0, abs=1e-4)


def test_in_dummy_2d_slices_share_the_grid_and_keep_their_place() -> None:
    drawn = Augmentation((33.0, 0.0, 0.0), 1.2, Elastic(alpha=100, sigma=9, seed=3))
    volume = np.zeros([n + 2 * PADDING for n in PATCH], dtype=np.float32)
    volume += np.arange(volume.shape[0], dtype=np.float32)[:, None, None] - PADDING
    image = augmented(volume, drawn, "linear", dummy_2d=True)
    np.testing.assert_allclose(image, np.arange(9)[:, None, None] * np.ones(PATCH), atol=1e-5)


@pytest.mark.parametrize("dummy_2d", [True, False])
def test_one_resampling_equals_displacement_then_rotation_then_scale(dummy_2d: bool) -> None:
    elastic = Elastic(alpha=150, sigma=9, seed=5)
    grid = place(Augmentation((25.0, 0.0, 0.0), 1.3, elastic), dummy_2d=dummy_2d)
    shape = PATCH[1:] if dummy_2d else PATCH
    moved = displacement(elastic, shape)
    at = (3, 30) if dummy_2d else (2, 3, 30)
    start = np.array(at) - CENTRE[-len(at) :] + moved[(slice(None), *at)].numpy()
    cosine, sine = np.cos(np.radians(25)), np.sin(np.radians(25))
    y, x = start[-2:]
    expected = [1.3 * (cosine * y - sine * x), 1.3 * (sine * y + cosine * x)]
    found = grid[(slice(None), *at)].numpy() - CENTRE[-len(at) :]
    np.testing.assert_allclose(found[-2:], expected, atol=1e-4)
    if not dummy_2d:
        assert found[0] == pytest.approx(1.3 * start[0], abs=1e-4)


@pytest.mark.parametrize("shape", [(40, 56), (12, 40, 56)])
def test_displacement_is_smoothed_uniform_noise_times_alpha(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(11)
    noise = torch.rand(len(shape), *shape, generator=generator).numpy() * 2 - 1
    expected = [ndimage.gaussian_filter(part, 9.5, mode="constant", cval=0) * 120 for part in noise]
    found = displacement(Elastic(alpha=120, sigma=9.5, seed=11), shape)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_displacement_at_the_papers_strength_is_a_few_voxels() -> None:
    # deviation of smoothed noise: sqrt(1/3) / (2 sqrt(pi) sigma) in plane, 0.0148 at sigma 11
    found = displacement(Elastic(alpha=200, sigma=11, seed=0), (400, 400))[:, 50:-50, 50:-50]
    assert found.std() == pytest.approx(200 * 0.0148, rel=0.2)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 12.0])
@pytest.mark.parametrize("border", ["reflect", "constant"])
def test_smoothing_equals_scipy(sigma: float, border: str) -> None:
    array = np.random.default_rng(0).standard_normal((7, 20, 31)).astype(np.float32)
    expected = ndimage.gaussian_filter(array, sigma, mode=border)
    found = smooth(torch.from_numpy(array), sigma, dimensions=3, border=border)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize(("how", "order"), [("linear", 1), ("cubic", 3)])
def test_interpolation_equals_scipy(how: str, order: int, dummy_2d: bool) -> None:
    volume = np.random.default_rng(0).standard_normal([n + 2 * PADDING for n in PATCH]).astype(np.float32)
    drawn = Augmentation((40.0, 0.0, 0.0) if dummy_2d else (20.0, -15.0, 10.0), 0.8)
    grid = place(drawn, dummy_2d=dummy_2d).numpy()
    if dummy_2d:
        slices = np.arange(PATCH[0], dtype=np.float32)[:, None, None]
        grid = np.stack([np.broadcast_to(part, PATCH) for part in (slices, grid[0], grid[1])])
    expected = ndimage.map_coordinates(volume, grid + PADDING, order=order)
    found = augmented(volume, drawn, how, dummy_2d=dummy_2d)
    linear = 1e-4 if dummy_2d else 1e-3  # in space a place is right to 1e-4 voxels, and this is noise
    np.testing.assert_allclose(found, expected, atol=linear if order == 1 else 5e-3)


def test_the_box_is_the_patch_and_what_a_turn_brings_in() -> None:
    lower, upper = source_box(place(Augmentation((90.0, 0, 0)), dummy_2d=True), PATCH, cubic=False)
    # 33 x 41 voxels on end: y from 16 - 20 to 16 + 20, x from 20 - 16 to 20 + 16 (and rounding)
    assert (lower[0], upper[0]) == (0, 9)
    assert lower[1] in (-5, -4)
    assert upper[1] in (37, 38)
    assert lower[2] in (3, 4)
    assert upper[2] in (37, 38)


def four_classes(*, dummy_2d: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A label map of four classes in large pieces, and a grid within it."""
    wide = (25, 81, 81)
    ids = np.array([0, 1, 4, 14], dtype=np.uint8)[
        (ndimage.gaussian_filter(np.random.default_rng(2).random(wide), 2.5).argsort(None).argsort() * 4)
        .__floordiv__(np.prod(wide))
        .reshape(wide)
    ]
    drawn = Augmentation((15.0, 0.0, 0.0) if dummy_2d else (15.0, 5.0, 5.0), 0.9)
    grid = place(drawn, dummy_2d=dummy_2d)
    shift = torch.tensor([8, 24, 20])[-len(grid) :]
    grid = grid + shift.view(-1, *[1] * (grid.ndim - 1))
    return torch.from_numpy(ids if not dummy_2d else ids[8:17]), grid


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("how", ["nearest", "linear"])
def test_labels_follow_the_image_and_gain_no_class(how: str, dummy_2d: bool) -> None:
    volume, grid = four_classes(dummy_2d=dummy_2d)
    label = resample_label(volume, grid, how)
    assert label.dtype == torch.uint8
    assert tuple(label.shape) == PATCH
    assert set(label.unique().tolist()) <= {0, 1, 4, 14}
    # where a class fills the whole neighbourhood, both interpolations give that class
    for class_id in (1, 4, 14):
        share = resample_image((volume == class_id).float(), grid, "linear")
        assert (label[share > 0.999] == class_id).all()
        assert (label[share < 0.001] != class_id).all()


@pytest.mark.parametrize("dummy_2d", [True, False])
def test_linear_labels_are_the_class_that_scipy_finds_to_fill_one_half(dummy_2d: bool) -> None:
    volume, grid = four_classes(dummy_2d=dummy_2d)
    places = grid.numpy()
    if dummy_2d:
        slices = np.arange(PATCH[0], dtype=np.float32)[:, None, None]
        places = np.stack([np.broadcast_to(part, PATCH) for part in (slices, *places)])
    classes = (0, 1, 4, 14)
    shares = np.stack(
        [ndimage.map_coordinates((volume.numpy() == c) * 1.0, places, order=1) for c in classes]
    )
    expected = np.zeros(PATCH, dtype=np.uint8)
    for class_id, share in zip(classes, shares, strict=True):
        expected[share >= 0.5] = class_id
    clear = (abs(shares - 0.5) > 1e-4).all(axis=0)  # single precision decides the others
    label = resample_label(volume, grid, "linear").numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(label[clear], expected[clear])
    # of three or more classes none may fill one half: that is background
    undecided = (shares < 0.4999).all(axis=0)
    assert undecided.any()
    assert (label[undecided] == 0).all()
    nearest = resample_label(volume, grid, "nearest").numpy()
    assert 0.005 < (label != nearest).mean() < 0.2
