from __future__ import annotations

import numpy as np
import pytest

from flare.core.geometry import bounding_box
from flare.merging.maps import Shell, components, dilated, shell_of, table


def brute_dilation(mask: np.ndarray, radius_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
    grid = np.argwhere(np.ones(mask.shape, bool)) * np.asarray(spacing_mm)
    points = np.argwhere(mask) * np.asarray(spacing_mm)
    squared = ((grid[:, None] - points[None]) ** 2).sum(-1).min(1)
    return (squared <= radius_mm**2 + 1e-9).reshape(mask.shape)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.78, 0.78), (2.5, 0.6, 1.3), (0.5, 3.0, 0.9)])
@pytest.mark.parametrize("radius_mm", [0.0, 1.5, 3.0, 7.0])
def test_dilation_is_an_exact_ball(spacing_mm: tuple[float, float, float], radius_mm: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        mask = rng.random((7, 12, 13)) < 0.01
        mask[3, 0, 5] = True
        found = dilated(mask, radius_mm, spacing_mm)
        assert found is not None
        whole = np.zeros_like(mask)
        whole[found[0]] = found[1]
        np.testing.assert_array_equal(whole, brute_dilation(mask, radius_mm, spacing_mm))


def test_single_precision_spacing_does_not_shrink_the_ball() -> None:
    mask = np.zeros((1, 1, 7), dtype=bool)
    mask[0, 0, 0] = True
    found = dilated(mask, 3.0, (1.0, 1.0, float(np.float32(0.6))))  # 0.60000002
    assert found is not None
    assert found[1].ravel().tolist() == [True] * 6


def test_an_empty_mask_has_no_box_no_ball_and_no_component() -> None:
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert bounding_box(empty) is None
    assert dilated(empty, 3.0, (1, 1, 1)) is None
    assert list(components(empty)) == []


def test_the_box_has_a_margin_within_the_volume() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[0, 2:4, 6] = True
    assert bounding_box(mask) == (slice(0, 1), slice(2, 4), slice(6, 7))
    assert bounding_box(mask, (1, 1, 3)) == (slice(0, 2), slice(1, 5), slice(3, 7))


def test_each_component_comes_in_its_own_box() -> None:
    mask = np.zeros((4, 6, 8), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # touch over a corner: one component
    mask[3, 4:6, 7] = True
    found = sorted(components(mask), key=lambda c: c.box[0].start)
    assert [c.voxels for c in found] == [2, 2]
    assert found[0].box == (slice(0, 3), slice(0, 3), slice(0, 3))
    assert found[1].box == (slice(2, 4), slice(3, 6), slice(6, 8))
    whole = np.zeros_like(mask)
    for component in found:
        whole[component.box] |= component.mask
    np.testing.assert_array_equal(whole, mask)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 1), (1, 3, 1), (1, 1, 1), (1, 5, 1)])
def test_thin_volumes_that_are_all_tumor_have_one_component(shape: tuple[int, ...]) -> None:
    (component,) = components(np.ones(shape, dtype=bool))
    assert component.mask.all()


def test_thin_volumes_with_gaps() -> None:
    # cc3d 4.1.1 stops with "maximum length exception" on some of these without a margin
    for shape in ((1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 1, 5), (5, 1, 1)):
        mask = np.zeros(shape, dtype=bool)
        mask.ravel()[::2] = True
        assert len(list(components(mask))) == mask.sum()


def test_a_shell_leaves_tumor_out_and_counts_organs() -> None:
    organ_map = np.zeros((3, 3, 3), dtype=np.uint8)
    organ_map[0], organ_map[2] = 2, 3
    tumor = np.zeros((3, 3, 3), dtype=bool)
    tumor[1, 1, 1] = tumor[0, 0, 0] = tumor[2, 2, :2] = True
    component = next(c for c in components(tumor) if c.mask.any())
    shell = shell_of(component, tumor, organ_map, table((2, 3)))
    # of 27 voxels four are tumor; eight are organ 2, seven organ 3, eight background
    assert shell == Shell(voxels=23, organ_voxels=15, organ=2)
    assert shell.fill == 2


@pytest.mark.parametrize(
    ("shell", "fill"), [(Shell(4, 2, 5), 5), (Shell(5, 2, 5), 0), (Shell(0, 0, 0), 0), (Shell(3, 0, 0), 0)]
)
def test_a_component_is_filled_when_half_of_its_shell_is_organ(shell: Shell, fill: int) -> None:
    assert shell.fill == fill
