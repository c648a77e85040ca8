"""One case before the network: by torch, by hand, and in any voxel order."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from flare.core.errors import FlareError
from flare.core.geometry import Geometry, Volume
from flare.core.preprocessing import Intensity, normalise, preprocess, resample_classes, separate_axis

TARGET = (4.0, 1.2, 1.2)
SIGNED_PERMUTATIONS = [
    np.eye(3)[list(p)] * np.array(signs)
    for p, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3))
]


def scan(
    shape: tuple = (6, 10, 12), spacing: tuple = (5.0, 0.8, 0.8), matrix: np.ndarray | None = None
) -> Volume:
    array = np.random.default_rng(0).integers(-1000, 1500, shape).astype(np.int16)
    directions = np.diag([-1.0, -1, 1]) if matrix is None else matrix
    return Volume(array, Geometry(shape, spacing, (0.0, 0.0, 0.0), tuple(directions.ravel())))


def test_an_image_by_torch() -> None:
    volume = scan()
    found = preprocess(volume, TARGET, "linear")
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(volume.array)[None, None].double(), size=(8, 7, 8), mode="trilinear"
    )[0, 0].numpy()  # 6 x 5 / 4 = 7.5 to even, 10 x 0.8 / 1.2 = 6.67, 12 x 0.8 / 1.2 = 8
    assert found.array.dtype == np.int16
    assert np.abs(found.array - expected).max() <= 0.5 + 1e-3
    assert found.ras == volume.geometry


@given(st.sampled_from(SIGNED_PERMUTATIONS), st.sampled_from(["linear", "cubic", "nnunet"]))
def test_any_voxel_order_gives_the_same_array(matrix: np.ndarray, order: str) -> None:
    """The scan is stored in another order by hand; what the network sees is the same."""
    ras = scan()
    # axis i of the stored array runs along physical axis `axes[i]`, forwards in RAS or not
    axes = [int(np.argmax(np.abs(matrix[:, i]))) for i in range(3)]
    array, spacing = (
        ras.array.transpose(2, 1, 0).transpose(axes),
        np.array(ras.geometry.spacing_mm[::-1])[axes],
    )
    for i, axis in enumerate(axes):
        if matrix[axis, i] != ras.geometry.matrix[axis, axis]:
            array = np.flip(array, i)
    stored = array.transpose(2, 1, 0)
    geometry = Geometry(stored.shape, tuple(spacing[::-1]), (0.0, 0.0, 0.0), tuple(matrix.ravel()))
    found = preprocess(Volume(stored, geometry), TARGET, order)
    np.testing.assert_array_equal(found.array, preprocess(ras, TARGET, order).array)
    np.testing.assert_array_equal(found.orientation.invert(ras.array), stored)


def shares_by_scipy(labels: np.ndarray, shape: tuple[int, ...], apart: int | None) -> dict[int, np.ndarray]:
    """Share of each class in each voxel, by SciPy's zoom on the grid of voxel extents as scikit-image has it.

    It is nnU-Net 1.7's order: plane by plane, then the nearest plane.
    """

    def linear(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        factors = [new / old for new, old in zip(size, mask.shape, strict=True)]
        return ndimage.zoom(mask.astype(float), factors, order=1, mode="nearest", grid_mode=True)

    classes = sorted(set(labels.ravel().tolist()))
    if apart is None:
        return {value: linear(labels == value, shape) for value in classes}
    planes = np.moveaxis(labels, apart, 0)
    old, new = len(planes), shape[apart]
    size = tuple(n for axis, n in enumerate(shape) if axis != apart)
    nearest = [min(old - 1, int(np.floor((k + 0.5) * old / new))) for k in range(new)]
    found = {value: np.stack([linear(plane == value, size) for plane in planes]) for value in classes}
    return {value: np.moveaxis(share[nearest], 0, apart) for value, share in found.items()}


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 5), st.integers(2, 8), st.integers(2, 8)),
    st.tuples(st.integers(1, 7), st.integers(1, 11), st.integers(1, 11)),
    st.sampled_from([None, 0, 2]),
)
def test_labels_by_class_are_nnunets(
    seed: int, shape: tuple[int, int, int], wanted: tuple[int, int, int], apart: int | None
) -> None:
    labels = np.random.default_rng(seed).choice([0, 1, 5, 14], shape).astype(np.uint8)
    expected, is_tie = np.zeros(wanted, np.uint8), np.zeros(wanted, bool)
    for value, share in shares_by_scipy(labels, wanted, apart).items():
        expected[share >= 0.5] = value
        is_tie |= np.abs(share - 0.5) < 1e-3  # what rounds to either side
    found = resample_classes(labels, wanted, separate_axis=apart)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[~is_tie], expected[~is_tie])


def test_of_two_classes_that_share_a_voxel_the_higher_stands() -> None:
    labels = np.array([[[1, 14, 14, 0]]], np.uint8)
    assert resample_classes(labels, (1, 1, 2)).tolist() == [[[14, 14]]]


def test_half_voxels() -> None:
    """Twice as fine: the outer quarter repeats the border, the rest is a quarter off each centre."""
    array = np.array([0, 100, 200, 300], np.int16).reshape(1, 1, 4).repeat(2, 0).repeat(2, 1)
    volume = Volume(array, Geometry((2, 2, 4), (1.0, 1.0, 1.0), (0, 0, 0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)))
    found = preprocess(volume, (1.0, 1.0, 0.5), "linear").array[0, 0]
    assert found.tolist() == [0, 25, 75, 125, 175, 225, 275, 300]


def test_values_outside_int16_are_clipped_not_wrapped() -> None:
    array = np.full((2, 2, 2), 1e6, np.float32)
    array[0] = -1e6
    volume = Volume(array, Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0, 0, 0), tuple(np.eye(3).ravel())))
    assert np.unique(preprocess(volume, (1.0, 1.0, 1.0), "linear").array).tolist() == [-32768, 32767]


def test_an_unknown_order() -> None:
    with pytest.raises(FlareError, match=r"data\.interpolation"):
        preprocess(scan(), TARGET, "spline")


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((5.0, 0.8, 0.8), (4.0, 1.2, 1.2), 0),  # thick slices
        ((1.0, 1.0, 1.0), (4.0, 1.2, 1.2), 0),  # only the training grid has thick slices
        ((0.8, 0.8, 5.0), (4.0, 1.2, 1.2), 2),  # a sagittal scan: the scan's own axis counts
        ((0.8, 5.0, 5.0), (4.0, 1.2, 1.2), None),  # two coarse axes
        ((3.0, 1.0, 1.0), (3.0, 1.0, 1.0), None),  # a ratio of 3 is not above 3
    ],
)
def test_the_axis_that_nnunet_treats_apart(spacing: tuple, target: tuple, expected: int | None) -> None:
    assert separate_axis(spacing, target) == expected


def test_normalising_by_hand() -> None:
    intensity = Intensity(lower=-100, upper=200, mean=50, std=25)
    found = normalise(np.array([-1000, -100, 50, 75, 200, 3000], np.int16), intensity)
    assert found.dtype == np.float32
    assert found.tolist() == [-6, -6, 0, 1, 6, 6]


def test_normalising_leaves_its_input_alone() -> None:
    array = np.array([0.0, 500.0], np.float32)
    normalise(array, Intensity(0, 100, 50, 10))
    assert array.tolist() == [0, 500]


def test_a_constant_cohort_is_not_divided_by_zero() -> None:
    assert np.isfinite(normalise(np.zeros(3, np.int16), Intensity(0, 0, 0, 0))).all()


def test_intensities_as_plain_values() -> None:
    intensity = Intensity(-1.5, 2, 3, 4)
    assert Intensity.from_dict(intensity.to_dict()) == intensity
    with pytest.raises(KeyError):
        Intensity.from_dict({"lower": 1})
