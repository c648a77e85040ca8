import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flare.core.errors import CaseError
from flare.core.geometry import Geometry, Volume
from flare.core.preprocessing import preprocess
from flare.data.cache import (
    Stored,
    cache_image,
    cache_labels,
    read_preprocessed,
    sample_foreground,
    store_array,
)

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def volume(
    array: np.ndarray, spacing: tuple[float, float, float], direction: tuple[float, ...] = RAS
) -> Volume:
    return Volume(array, Geometry(array.shape, spacing, (0.0, 0.0, 0.0), direction))


@settings(max_examples=25, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.int16, np.uint8]), arrays.array_shapes(min_dims=3, max_dims=3, max_side=40)
    )
)
def test_what_is_read_is_what_was_stored(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("store") / "a.b2nd"
    store_array(path, array, {"case": "a"})
    stored = Stored(path)
    assert stored.shape == array.shape
    assert stored[:].dtype == array.dtype
    assert np.array_equal(stored[:], array)
    assert stored.meta["case"] == "a"


@pytest.mark.parametrize("shape", [(5, 7, 9), (33, 130, 140), (1, 1, 200)])
def test_a_piece_is_the_piece_of_the_array(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    store_array(tmp_path / "a.b2nd", array)
    piece = (slice(0, 3), slice(1, 120), slice(2, 190))
    assert np.array_equal(Stored(tmp_path / "a.b2nd")[piece], array[piece])


def test_a_patch_is_read_without_the_rest_of_the_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (32, 256, 256)).astype(np.int16)
    path = tmp_path / "a.b2nd"
    store_array(path, noise)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50_000] = bytes(50_000)  # chunks in the middle of the file are destroyed
    path.write_bytes(content)
    first = (slice(0, 16), slice(0, 64), slice(0, 64))
    assert np.array_equal(Stored(path)[first], noise[first])


def test_an_open_array_pickles_as_its_path(tmp_path: Path) -> None:
    store_array(tmp_path / "a.b2nd", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    stored = Stored(tmp_path / "a.b2nd")
    stored[:]
    assert np.array_equal(pickle.loads(pickle.dumps(stored))[:], stored[:])


def test_the_same_array_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads blosc is told to take: each would store what it has done, in any order."""
    labels = np.random.default_rng(0).integers(0, 4, (20, 130, 140)).astype(np.uint8)
    for threads in ("1", "2", "4", "4"):
        monkeypatch.setenv("BLOSC_NTHREADS", threads)
        store_array(tmp_path / threads, labels, {"case": "x"}, sample_foreground(labels, 100))
        assert (tmp_path / threads).read_bytes() == (tmp_path / "1").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        store_array(tmp_path / "a.b2nd", np.zeros((2, 2, 2), np.int16), {"unstorable": object()})
    assert list(tmp_path.iterdir()) == []


def test_all_voxels_of_a_small_class_and_a_sample_of_a_large_one() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:8] = 1
    labels[0, 0, :3] = 5
    drawn = sample_foreground(labels, 50)
    assert sorted(drawn) == [1, 5]
    assert drawn[5].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert len(np.unique(drawn[1], axis=0)) == 50
    assert (labels[tuple(drawn[1].T)] == 1).all()
    assert np.array_equal(drawn[1], sample_foreground(labels, 50)[1])


def test_the_sample_covers_the_class_evenly() -> None:
    labels = np.ones((100, 10, 10), np.uint8)
    z = sample_foreground(labels, 2000)[1][:, 0]
    quarters = np.histogram(z, 4, (0, 100))[0] / 2000
    assert np.abs(quarters - 0.25).max() < 0.03


def test_image_and_labels_are_cached_on_one_grid(tmp_path: Path) -> None:
    """Twice the voxel size along x: pairs of equal voxels become one voxel."""
    hu = np.repeat(np.arange(24, dtype=np.int16).reshape(2, 3, 4), 2, axis=2)
    labels = (hu > 11).astype(np.uint8) * 3
    cache_image(
        volume(hu, (4.0, 1.2, 0.6)),
        tmp_path / "i.b2nd",
        spacing_mm=(4.0, 1.2, 1.2),
        interpolation="linear",
        case_id="a",
    )
    cache_labels(volume(labels, (4.0, 1.2, 0.6)), tmp_path / "l.b2nd", image=tmp_path / "i.b2nd", case_id="a")
    image, target = Stored(tmp_path / "i.b2nd"), Stored(tmp_path / "l.b2nd")
    expected = np.arange(24).reshape(2, 3, 4)
    assert image[:].dtype == np.int16
    assert target[:].dtype == np.uint8
    assert np.array_equal(image[:], expected)
    assert np.array_equal(target[:], (expected > 11) * 3)
    assert image.meta["spacing_mm"] == [4.0, 1.2, 1.2]
    assert target.foreground_classes == (3,)
    assert np.array_equal(target.foreground(3), np.argwhere(expected > 11))


def test_labels_by_class_are_cached_with_the_ignored_voxels_of_the_nearest(tmp_path: Path) -> None:
    """Half the voxel size along x; planes stay as they are, since z is the coarse axis."""
    labels = np.array([[[1, 0, 2, 2]], [[0, 0, 0, 3]]], np.uint8)
    fine = {"spacing_mm": (4.0, 1.2, 0.6), "interpolation": "linear", "case_id": "a"}
    cache_image(volume(np.zeros((2, 1, 4), np.int16), (4.0, 1.2, 1.2)), tmp_path / "i", **fine)
    ignore = np.zeros(labels.shape, bool)
    ignore[1, 0, 0] = True
    cache_labels(
        volume(labels, (4.0, 1.2, 1.2)), tmp_path / "l", image=tmp_path / "i", case_id="a",
        interpolation="nnunet", ignore=ignore,
    )  # fmt: skip
    # three quarters of a class or one quarter at the borders between voxels
    assert Stored(tmp_path / "l")[:].tolist() == [
        [[1, 1, 0, 0, 2, 2, 2, 2]],
        [[255, 255, 0, 0, 0, 0, 3, 3]],
    ]


def test_labels_in_another_voxel_order_end_on_the_same_voxels(tmp_path: Path) -> None:
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    labels = (hu % 5).astype(np.uint8)
    spacing = (4.0, 1.2, 1.2)
    cache_image(
        volume(hu, spacing), tmp_path / "i.b2nd", spacing_mm=spacing, interpolation="linear", case_id="a"
    )
    flipped = volume(labels[:, ::-1, ::-1].copy(), spacing, IDENTITY)  # LPS: x and y run the other way
    cache_labels(flipped, tmp_path / "l.b2nd", image=tmp_path / "i.b2nd", case_id="a")
    assert np.array_equal(Stored(tmp_path / "l.b2nd")[:], labels)


def test_the_cached_image_decides_the_size_of_its_labels(tmp_path: Path) -> None:
    """5 x 0.6 / 1.2 = 2.5 rounds to 2; a header off by 1e-7 alone would give 3."""
    spacing = (4.0, 1.2, 1.2)
    image, header = volume(np.zeros((2, 2, 5), np.int16), (4.0, 1.2, 0.6)), (4.0, 1.2, 0.6000001)
    cache_image(image, tmp_path / "i.b2nd", spacing_mm=spacing, interpolation="linear", case_id="a")
    labels = volume(np.ones((2, 2, 5), np.uint8), header)
    cache_labels(labels, tmp_path / "l.b2nd", image=tmp_path / "i.b2nd", case_id="a")
    assert Stored(tmp_path / "i.b2nd").shape == (2, 2, 2)
    assert Stored(tmp_path / "l.b2nd").shape == (2, 2, 2)


def test_labels_of_another_size_are_refused_with_both_sizes(tmp_path: Path) -> None:
    spacing = (4.0, 1.2, 1.2)
    image = volume(np.zeros((2, 3, 4), np.int16), spacing)
    cache_image(image, tmp_path / "i.b2nd", spacing_mm=spacing, interpolation="linear", case_id="a")
    labels = volume(np.ones((2, 3, 5), np.uint8), spacing)
    with pytest.raises(CaseError, match=r"case a: .*\(2, 3, 5\).*\(2, 3, 4\)"):
        cache_labels(labels, tmp_path / "l.b2nd", image=tmp_path / "i.b2nd", case_id="a")
    assert not (tmp_path / "l.b2nd").exists()


def test_a_cached_image_is_read_as_preprocessing_its_file_gives_it(tmp_path: Path) -> None:
    """Oblique, anisotropic, in another voxel order, with numbers that single precision does not hold."""
    turn = np.array([[0.0, -0.6, 0.8], [1.0, 0.0, 0.0], [0.0, 0.8, 0.6]])
    grid = Geometry((5, 9, 8), (2.1, 0.7, 0.9), (10.1, -20.3, 0.1), tuple(turn.ravel()))
    image = Volume(np.random.default_rng(0).integers(-1000, 1000, grid.shape).astype(np.int16), grid)
    spacing = (3.0, 1.2, 1.3)
    for order in ("linear", "cubic", "nnunet"):
        cache_image(image, tmp_path / order, spacing_mm=spacing, interpolation=order, case_id="a")
        found, expected = (
            read_preprocessed(tmp_path / order, spacing, order),
            preprocess(image, spacing, order),
        )
        assert found is not None
        assert np.array_equal(found.array, expected.array)
        assert (found.geometry, found.ras) == (grid, expected.ras)
        assert np.array_equal(found.orientation.invert(found.orientation.apply(image.array)), image.array)
    assert read_preprocessed(tmp_path / "linear", spacing, "cubic") is None
    assert read_preprocessed(tmp_path / "linear", (3.0, 1.2, 1.2), "linear") is None


def test_ignored_voxels_have_a_value_of_their_own_and_are_no_foreground(tmp_path: Path) -> None:
    grid, spacing = np.zeros((2, 3, 4), np.int16), (4.0, 1.2, 1.2)
    cache_image(
        volume(grid, spacing), tmp_path / "i.b2nd", spacing_mm=spacing, interpolation="linear", case_id="a"
    )
    labels, ignore = np.full(grid.shape, 3, np.uint8), np.zeros(grid.shape, bool)
    ignore[0, 1], ignore[1, 2, 3] = True, True
    cache_labels(
        volume(labels, spacing), tmp_path / "l", image=tmp_path / "i.b2nd", case_id="a", ignore=ignore
    )
    found = Stored(tmp_path / "l")
    assert np.array_equal(found[:], np.where(ignore, 255, 3))
    assert found.foreground_classes == (3,)
    assert np.array_equal(found.foreground(3), np.argwhere(~ignore))
