"""Voxel grids: all 48 orientations there and back, positions in space, resampling by other routes."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from flare.core.errors import FlareError
from flare.core.geometry import Geometry, Volume, orientation_to, pad_to, reorient_to_ras
from flare.core.preprocessing import resample, resampled_shape

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(p)] * np.array(signs)
    for p, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3))
]
shapes = st.tuples(*[st.integers(2, 6)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 0.78125, 1.2, 2.0, 5.0])] * 3)
small_turns = st.tuples(*[st.floats(-0.4, 0.4)] * 3)
RAS = np.diag([-1.0, -1.0, 1.0])


def volume_of(shape: tuple, spacing: tuple, matrix: np.ndarray) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    geometry = Geometry(shape, spacing, (-12.5, 3.0, 40.0), tuple(float(v) for v in matrix.ravel()))
    return Volume(array, geometry)


def itk_position(geometry: Geometry, index_zyx: tuple) -> np.ndarray:
    """Where ITK sees a voxel."""
    image = sitk.Image([int(n) for n in geometry.shape[::-1]], sitk.sitkUInt8)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return np.array(image.TransformIndexToPhysicalPoint([int(i) for i in index_zyx[::-1]]))


@given(shapes, spacings, st.sampled_from(SIGNED_PERMUTATIONS), small_turns)
def test_positions_are_itks(shape: tuple, spacing: tuple, matrix: np.ndarray, turn: tuple) -> None:
    geometry = volume_of(shape, spacing, Rotation.from_euler("xyz", turn).as_matrix() @ matrix).geometry
    index = tuple(n - 1 for n in shape)
    np.testing.assert_allclose(geometry.to_mm(index), itk_position(geometry, index), atol=1e-9)


@pytest.mark.parametrize("matrix", SIGNED_PERMUTATIONS)
def test_all_48_orientations_become_ras(matrix: np.ndarray) -> None:
    ras, _ = reorient_to_ras(volume_of((2, 3, 4), (3.0, 2.0, 1.0), matrix))
    np.testing.assert_array_equal(ras.geometry.matrix, RAS)
    assert ras.array.flags.c_contiguous


@given(shapes, spacings, st.sampled_from(SIGNED_PERMUTATIONS), small_turns)
def test_reorienting_there_and_back(shape: tuple, spacing: tuple, matrix: np.ndarray, turn: tuple) -> None:
    volume = volume_of(shape, spacing, Rotation.from_euler("xyz", turn).as_matrix() @ matrix)
    ras, orientation = reorient_to_ras(volume)
    assert ras.array.shape == ras.geometry.shape
    np.testing.assert_array_equal(orientation.invert(ras.array), volume.array)
    np.testing.assert_array_equal(orientation.apply(volume.array), ras.array)
    # every voxel keeps its place in space
    for value in (0, volume.array.size // 2, volume.array.size - 1):
        before, after = (tuple(np.argwhere(v.array == value)[0]) for v in (volume, ras))
        np.testing.assert_allclose(
            ras.geometry.to_mm(after), itk_position(volume.geometry, before), atol=1e-9
        )
    assert not orientation_to(ras.geometry).flips.count(True)
    assert orientation_to(ras.geometry).permutation == (0, 1, 2)


@given(shapes, spacings, st.sampled_from(SIGNED_PERMUTATIONS), st.floats(-0.7, 0.7))
def test_oblique_grids_go_to_the_nearest_axes(
    shape: tuple, spacing: tuple, matrix: np.ndarray, turn: float
) -> None:
    """A gantry turned by less than 45 degrees about one axis is still named by that axis."""
    oblique = Rotation.from_euler("x", turn).as_matrix() @ matrix
    straight = orientation_to(volume_of(shape, spacing, matrix).geometry)
    assert orientation_to(volume_of(shape, spacing, oblique).geometry) == straight


@given(shapes, st.sampled_from(SIGNED_PERMUTATIONS), st.sampled_from(SIGNED_PERMUTATIONS), small_turns)
def test_one_grid_in_the_order_of_another(
    shape: tuple, ours: np.ndarray, theirs: np.ndarray, turn: tuple
) -> None:
    turned = Rotation.from_euler("xyz", turn).as_matrix()
    volume = volume_of(shape, (3.0, 2.0, 1.0), turned @ ours)
    orientation = orientation_to(volume.geometry, turned @ theirs)
    np.testing.assert_allclose(
        orientation.apply_geometry(volume.geometry).matrix, turned @ theirs, atol=1e-12
    )


def test_a_worked_example() -> None:
    """LPS as DICOM has it, to RAS: x and y run backwards, the first voxel is the opposite corner."""
    ras, orientation = reorient_to_ras(volume_of((2, 3, 4), (5.0, 2.0, 1.0), np.eye(3)))
    assert orientation.flips == (False, True, True)
    assert ras.geometry.origin_mm == (-12.5 + 3 * 1.0, 3.0 + 2 * 2.0, 40.0)
    np.testing.assert_array_equal(ras.array[0], np.arange(12).reshape(3, 4)[::-1, ::-1])


def test_differences_name_what_differs_with_both_values() -> None:
    one = volume_of((2, 3, 4), (5.0, 2.0, 1.0), np.eye(3)).geometry
    assert one.differences(one) == []
    other = Geometry((2, 3, 5), (5.0, 2.0, 1.002), (-12.5, 3.0, 41.0), tuple((-np.eye(3)).ravel()))
    text = "; ".join(one.differences(other))
    for part in ("size (2, 3, 4) and (2, 3, 5)", "(5, 2, 1) and (5, 2, 1.002) mm", "40) and (-12.5, 3, 41)"):
        assert part in text
    assert "direction" in text


def turned(degrees: float) -> tuple[float, ...]:
    return tuple(Rotation.from_euler("z", degrees, degrees=True).as_matrix().ravel().tolist())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        # 0.45 mm at the last slice, 0.005 at the last column, and 0.0015, which six digits hide
        ({"spacing_mm": (2.0009, 1.0, 1.0)}, r"spacing \(2, 1, 1\) and \(2\.0009, 1, 1\) mm"),
        ({"spacing_mm": (2.0, 1.0, 1.00001)}, r"and \(2, 1, 1\.00001\) mm"),
        ({"spacing_mm": (2.0, 1.0, 1.000003)}, r"spacing \(2, 1, 1\) and \(2, 1, 1\.000003\)"),
        ({"direction": turned(0.05)}, "direction"),  # cosines off by less than 1e-3 move a corner by 0.6 mm
        ({"origin_mm": (0.0, 0.002, 0.0)}, r"origin \(0, 0, 0\) and \(0, 0\.002, 0\) mm"),
        ({"origin_mm": (0.0008, 0.0008, 0.0)}, "origin"),  # each axis within, the distance not
    ],
)
def test_grids_are_told_apart_by_their_corner_voxels(changes: dict[str, Any], named: str) -> None:
    one = Geometry((501, 512, 512), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), turned(0))
    other = replace(one, **changes)
    text = "; ".join(one.differences(other))
    assert re.search(named, text)
    assert re.search(r"corner voxels up to [\d.e-]+ mm apart, expected 0\.001 at most", text)
    assert one.differences(other, tolerance_mm=1.0) == []


def test_what_moves_no_voxel_is_no_difference() -> None:
    one = Geometry((3, 4, 5), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), turned(0))
    assert one.differences(replace(one, spacing_mm=(2.0004, 1.0, 1.0))) == []  # 0.0008 mm at slice 3
    assert one.differences(replace(one, origin_mm=(0.0009, 0.0, 0.0))) == []


# --- resampling


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "expected"),
    [
        ((100, 512, 512), (5.0, 0.78125, 0.78125), (4.0, 1.2, 1.2), (125, 333, 333)),
        ((112, 101, 122), (3.0, 3.0, 3.0), (4.0, 1.2, 1.2), (84, 252, 305)),  # 252.5 to even
        ((3, 5, 5), (1.0, 0.5, 0.5), (1.0, 1.0, 1.0), (3, 2, 2)),  # 2.5 to even
        ((1, 2, 2), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0), (1, 1, 1)),
    ],
)
def test_resampled_shapes(shape: tuple, spacing: tuple, target: tuple, expected: tuple) -> None:
    assert resampled_shape(shape, spacing, target) == expected


@given(shapes, shapes, st.integers(0, 99))
def test_linear_is_interpolation_at_half_voxel_centres(shape: tuple, wanted: tuple, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    at = np.meshgrid(
        *((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(shape, wanted, strict=True)), indexing="ij"
    )
    expected = ndimage.map_coordinates(array, at, order=1, mode="nearest")
    found = resample(array, wanted, "linear")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(shapes, shapes, st.integers(0, 99))
def test_nearest_is_torchs_exact_nearest(shape: tuple, wanted: tuple, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 15, shape).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(array)[None, None].double(), size=wanted, mode="nearest-exact"
    )
    found = resample(array, wanted, "nearest")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected[0, 0].numpy())


@given(shapes, st.tuples(*[st.integers(2, 9)] * 3), st.integers(0, 99))
def test_cubic_is_scipys_grid_zoom(shape: tuple, wanted: tuple, seed: int) -> None:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    factors = [m / n for n, m in zip(shape, wanted, strict=True)]
    expected = ndimage.zoom(array.astype(float), factors, order=3, mode="nearest", grid_mode=True)
    expected = np.clip(expected, array.min(), array.max())
    found = resample(array, wanted, "cubic")
    assert found.dtype == np.float32
    if shape != wanted:
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nnunet_takes_the_nearest_slice_and_is_cubic_in_plane(axis: int) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    wanted = (7, 8, 9)
    found = resample(array, wanted, "nnunet", separate_axis=axis)
    assert found.shape == wanted
    for index in range(wanted[axis]):
        source = int((index + 0.5) * array.shape[axis] / wanted[axis])
        plane = np.take(array, source, axis)
        in_plane = tuple(m for a, m in enumerate(wanted) if a != axis)
        factors = [m / n for n, m in zip(plane.shape, in_plane, strict=True)]
        expected = ndimage.zoom(plane.astype(float), factors, order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(
            np.take(found, index, axis), np.clip(expected, plane.min(), plane.max()), atol=2e-4
        )
    np.testing.assert_array_equal(
        resample(array, wanted, "nnunet", separate_axis=None), resample(array, wanted, "cubic")
    )


@pytest.mark.parametrize("order", ["linear", "cubic", "nnunet", "nearest"])
@given(shapes, st.integers(0, 99))
def test_the_same_size_is_the_same_array(order: str, shape: tuple, seed: int) -> None:
    array = np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)
    np.testing.assert_array_equal(resample(array, shape, order), array)


@pytest.mark.parametrize("order", ["linear", "cubic", "nnunet"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@given(shapes, shapes, st.integers(0, 99))
def test_resampling_commutes_with_flips(
    order: str, axis: int, shape: tuple, wanted: tuple, seed: int
) -> None:
    if order == "nnunet":  # ties between two slices go one way
        wanted = (shape[0], *wanted[1:])
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    flipped = np.flip(resample(array, wanted, order), axis)
    np.testing.assert_allclose(resample(np.flip(array, axis), wanted, order), flipped, atol=2e-4)


@pytest.mark.parametrize("factor", [2, 3])
def test_extents_are_aligned(factor: int) -> None:
    """A ramp along x stays the ramp of its positions in millimetres, off the borders."""
    array = np.tile(np.arange(12, dtype=np.float32), (3, 3, 1))  # centres at 0.5, 1.5, ...
    found = resample(array, (3, 3, 12 // factor), "linear")
    centres = (np.arange(12 // factor) + 0.5) * factor - 0.5
    np.testing.assert_allclose(found[1, 1], centres, atol=1e-6)


def test_labels_stay_labels_and_halves_keep_their_side() -> None:
    array = np.zeros((2, 2, 8), np.uint8)
    array[..., 4:] = 13
    assert resample(array, (2, 2, 5), "nearest")[0, 0].tolist() == [0, 0, 13, 13, 13]
    assert resample(array, (2, 2, 16), "nearest")[0, 0].tolist() == [0] * 8 + [13] * 8


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 3)])
def test_an_unknown_order_is_refused_by_its_key(shape: tuple) -> None:
    with pytest.raises(FlareError, match=r"data\.interpolation.*'cubik'"):
        resample(np.zeros((2, 2, 2)), shape, "cubik")


@given(shapes, shapes, st.integers(-5, 5))
def test_padding_is_centred_and_undone_by_its_offsets(shape: tuple, patch: tuple, value: int) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    padded, before = pad_to(array, patch, value)
    assert padded.shape == tuple(max(n, p) for n, p in zip(shape, patch, strict=True))
    assert before == tuple(max(0, p - n) // 2 for n, p in zip(shape, patch, strict=True))
    inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
    np.testing.assert_array_equal(padded[inner], array)
    assert padded.sum() == pytest.approx(array.sum() + value * (padded.size - array.size))
