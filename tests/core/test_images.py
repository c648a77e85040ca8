"""Reading and writing images and label maps: every row of the table of bad input that concerns reading."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from bad_files import patch_bytes, truncate, write_array, write_series
from flare.core.classes import ClassList
from flare.core.errors import CaseError
from flare.core.geometry import Geometry, Volume
from flare.core.volumes import (
    case_id,
    find_images,
    match_grid,
    read_image,
    read_labels,
    unique_cases,
    write_image,
    write_labels,
)

RANDOM = np.random.default_rng(0)
ARRAY = RANDOM.integers(-1000, 1000, (9, 10, 11)).astype(np.int16)
FORMATS = ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"]
SIDEWAYS = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


# --- good files


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1), SIDEWAYS])
def test_what_is_read_is_what_was_written(tmp_path: Path, name: str, direction: tuple) -> None:
    path = write_array(
        tmp_path / name, ARRAY, spacing_xyz=(0.5, 0.75, 2.0), origin=(-3, 4, 5.5), direction=direction
    )
    volume = read_image(path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, ARRAY)
    assert volume.geometry.shape == (9, 10, 11)
    assert volume.geometry.spacing_mm == (2.0, 0.75, 0.5)
    assert volume.geometry.origin_mm == (-3, 4, 5.5)
    assert volume.geometry.direction == pytest.approx(direction, abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "high", "expected"),
    [
        ("uint8", 255, np.int16),
        ("int32", 3000, np.int16),
        ("int32", 40000, np.float32),
        ("uint16", 32768, np.float32),
        ("float32", 3.5, np.float32),
        ("float64", 3.5, np.float32),
    ],
)
def test_types(tmp_path: Path, dtype: str, high: float, expected: type) -> None:
    array = np.zeros((3, 4, 5), dtype)
    array[1, 2, 3] = high
    volume = read_image(write_array(tmp_path / "a.nii.gz", array))
    assert volume.array.dtype == expected
    assert volume.array[1, 2, 3] == high


def test_a_dicom_series(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan_7", [(0, 0, z) for z in (6, 4, 2, 0)])
    volume = read_image(folder)
    assert volume.array.shape == (4, 6, 8)
    assert volume.array[:, 0, 0].tolist() == [-70, -80, -90, -100]  # from below to above


def test_a_dicom_series_that_was_scaled(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", [(0, 0, 0), (0, 0, 2)], t0028_1052="-1024")
    assert read_image(folder).array[:, 0, 0].tolist() == [-100, -90]


def test_the_real_series(real_data: Path) -> None:
    volume = read_image(real_data / "slab_dicom" / "series")
    assert volume.array.shape == (20, 512, 512)
    assert volume.geometry.spacing_mm == pytest.approx((2, 0.9765625, 0.9765625))
    assert volume.array.dtype == np.int16
    assert volume.array.min() == -1024


def test_the_real_label_grid_is_flipped_against_its_series(real_data: Path) -> None:
    folder = real_data / "slab_dicom"
    image = read_image(folder / "series")
    stored = read_image(folder / "slab_totalsegmentator.nii.gz")
    labels = ClassList.from_config(
        {"liver": {"id": 1, "short": "L", "role": "organ", "tolerance_mm": 5, "slice_range": False}}
    )
    liver = read_labels(folder / "slab_totalsegmentator.nii.gz", labels, {5: 1, "rest": 0})
    matched = match_grid(liver, image, "slab")
    assert matched.geometry == image.geometry
    assert matched.array.sum() == (stored.array == 5).sum() > 0
    assert not np.array_equal(matched.array, liver.array)
    # the liver is on the patient's right: in LPS, where x grows to the left
    index = np.argwhere(matched.array).mean(axis=0)
    middle = image.geometry.to_mm((0, 0, 255.5))[0]
    assert image.geometry.to_mm(index)[0] < middle
    assert 0 < image.array[matched.array == 1].mean() < 200


# --- bad files


def bad(tmp_path: Path, name: str, what: str) -> Path:
    """A file with one thing wrong."""
    path = tmp_path / name
    if what == "empty":
        path.write_bytes(b"")
    elif what == "magic":
        path.write_bytes(b"PK\3\4" + bytes(1000))
    elif what == "2D":
        write_array(path, ARRAY[0])
    elif what == "4D":
        write_array(path, np.stack([ARRAY, ARRAY]))
    elif what == "vector":
        write_array(path, np.zeros((4, 5, 6, 3), np.uint8), vector=True)
    elif what == "complex":
        write_array(path, ARRAY.astype(np.complex64))
    elif what == "one slice":
        write_array(path, ARRAY[:1])
    elif what == "one row":
        write_array(path, ARRAY[:, :1])
    else:
        array = ARRAY.astype(np.float64 if what == "1e300" else np.float32)
        array[1, 2, 3] = float(what)
        write_array(path, array)
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", "is empty"),
        ("magic", "NIfTI|cannot be read"),
        ("2D", "2 dimensions"),
        ("4D", "4 dimensions"),
        ("vector", "3 components"),
        ("complex", "2 components"),
        ("one slice", "at least 2"),
        ("one row", "at least 2"),
        ("nan", "NaN or infinite"),
        ("inf", "NaN or infinite"),
        ("-inf", "NaN or infinite"),
        ("1e300", "NaN or infinite"),
    ],
)
def test_refused(tmp_path: Path, name: str, what: str, message: str) -> None:
    with pytest.raises(CaseError, match=message) as refusal:
        read_image(bad(tmp_path, name, what), "case_9")
    assert refusal.value.case_id == "case_9"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95, 0.999])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    big = RANDOM.integers(-1000, 1000, (12, 30, 40)).astype(np.int16)
    with pytest.raises(CaseError, match=r"truncated|cannot be read"):
        read_image(truncate(write_array(tmp_path / name, big), share))


@pytest.mark.parametrize("value", [0.0, -1.5, float("nan"), float("inf")])
def test_spacing_in_a_nifti_header(tmp_path: Path, value: float) -> None:
    path = patch_bytes(write_array(tmp_path / "a.nii", ARRAY), (80, "<f", [value]))
    with pytest.raises(CaseError, match="spacing"):
        read_image(path)


@pytest.mark.parametrize("value", [b"0", b"-1.5"])
def test_spacing_in_other_headers(tmp_path: Path, value: bytes) -> None:
    path = write_array(tmp_path / "a.mha", ARRAY, spacing_xyz=(1.5, 2, 3))
    path.write_bytes(path.read_bytes().replace(b"Spacing = 1.5", b"Spacing = " + value))
    with pytest.raises(CaseError, match="spacing"):
        read_image(path)
    path = write_array(tmp_path / "a.nrrd", ARRAY, spacing_xyz=(1.5, 2, 3))
    path.write_bytes(path.read_bytes().replace(b"(1.5,0,0)", b"(0,0,0)"))
    with pytest.raises(CaseError, match="spacing"):
        read_image(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"case a: .*does not exist"):
        read_image(tmp_path / "a.nii.gz")


# --- label maps


def write_map(path: Path, *values: float, dtype: type = np.uint8) -> Path:
    array = np.zeros((3, 4, 5), dtype)
    array.ravel()[: len(values)] = values
    return write_array(path, array)


def test_labels_are_class_ids(tmp_path: Path, labels: ClassList) -> None:
    found = read_labels(write_map(tmp_path / "a.nii.gz", 1, 13, 14), labels)
    assert found.array.dtype == np.uint8
    assert found.array.ravel()[:4].tolist() == [1, 13, 14, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint16, np.float32, np.float64])
def test_labels_of_every_type(tmp_path: Path, labels: ClassList, dtype: type) -> None:
    found = read_labels(write_map(tmp_path / "a.nii.gz", 1, 13, 14, dtype=dtype), labels)
    assert found.array.ravel()[:4].tolist() == [1, 13, 14, 0]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ((1, 15), np.uint8, r"\[15\] outside the class list"),
        ((99, 15, 3), np.uint8, r"\[15, 99\]"),
        ((-1,), np.int16, r"\[-1\]"),
        ((70000,), np.int32, r"\[70000\]"),
        ((1.5, 2), np.float32, r"not integers: \[1.5\]"),
        ((2e-3,), np.float64, "not integers"),
    ],
)
def test_refused_values(tmp_path: Path, labels: ClassList, values: tuple, dtype: type, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        read_labels(write_map(tmp_path / "a.nii.gz", *values, dtype=dtype), labels)


def test_labels_without_foreground_are_no_error(tmp_path: Path, labels: ClassList) -> None:
    assert not read_labels(write_map(tmp_path / "a.nii.gz"), labels).array.any()


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_foreign_ids_are_renumbered_before_any_check(tmp_path: Path, labels: ClassList, dtype: type) -> None:
    path = write_map(tmp_path / "a.nii.gz", 5, 52, 117, -3, dtype=dtype)
    assert read_labels(path, labels, {5: 1, "52": 5, "rest": 0}).array.ravel()[:5].tolist() == [1, 5, 0, 0, 0]
    with pytest.raises(CaseError, match=r"\[-3, 117\]"):
        read_labels(path, labels, {5: 1, "52": 5})


def test_a_map_can_swap_ids(tmp_path: Path, labels: ClassList) -> None:
    found = read_labels(write_map(tmp_path / "a.nii.gz", 1, 2, 3), labels, {1: 2, 2: 1, 3: 3})
    assert found.array.ravel()[:4].tolist() == [2, 1, 3, 0]


def test_rest_leaves_the_background_alone(tmp_path: Path, labels: ClassList) -> None:
    found = read_labels(write_map(tmp_path / "a.nii.gz", 5, 6), labels, {5: 1, "rest": 14})
    assert found.array.ravel()[:3].tolist() == [1, 14, 0]


# --- grids


def grid(array: np.ndarray, *, turned: float = 0.0) -> Geometry:
    c, s = np.cos(turned), np.sin(turned)
    return Geometry(array.shape, (3.0, 2.0, 1.0), (-5.0, 6.0, 7.0), (c, -s, 0, s, c, 0, 0, 0, 1))


def reordered(volume: Volume, permutation: tuple, flips: tuple) -> Volume:
    """The same voxels at the same places in another order, worked out here by hand in x, y, z."""
    array = volume.array.transpose(2, 1, 0)  # x, y, z
    spacing = np.array(volume.geometry.spacing_mm[::-1])
    matrix, origin = volume.geometry.matrix.copy(), np.array(volume.geometry.origin_mm)
    for axis in np.flatnonzero(flips):
        origin = origin + matrix[:, axis] * spacing[axis] * (array.shape[axis] - 1)
        matrix[:, axis] *= -1
        array = np.flip(array, axis)
    array, spacing, matrix = array.transpose(permutation), spacing[list(permutation)], matrix[:, permutation]
    geometry = Geometry(array.shape[::-1], tuple(spacing[::-1]), tuple(origin), tuple(matrix.ravel()))
    return Volume(array.transpose(2, 1, 0), geometry)


@pytest.mark.parametrize("turned", [0.0, 0.2, np.pi / 4, 1.5])
def test_flipped_and_permuted_grids_are_equal(turned: float) -> None:
    labels = RANDOM.integers(0, 15, (4, 5, 6)).astype(np.uint8)
    image = Volume(ARRAY[:4, :5, :6], grid(labels, turned=turned))
    for permutation, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        other = reordered(Volume(labels, image.geometry), permutation, flips)
        matched = match_grid(other, image, "a")
        np.testing.assert_array_equal(matched.array, labels)
        assert matched.geometry == image.geometry


def test_reordering_survives_the_disk(tmp_path: Path, labels: ClassList) -> None:
    truth = RANDOM.integers(0, 15, (4, 5, 6)).astype(np.uint8)
    image = Volume(truth, grid(truth, turned=0.3))
    other = reordered(image, (2, 0, 1), (True, False, True))
    write_labels(tmp_path / "a.nii.gz", other.array, other.geometry)
    matched = match_grid(read_labels(tmp_path / "a.nii.gz", labels), image, "a")
    np.testing.assert_array_equal(matched.array, truth)


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ({"spacing_mm": (3.0, 2.0, 1.002)}, ["(3, 2, 1)", "(3, 2, 1.002)"]),
        ({"origin_mm": (-5.0, 6.0, 7.5)}, ["(-5, 6, 7)", "(-5, 6, 7.5)"]),
        ({"shape": (4, 5, 7)}, ["(4, 5, 6)", "(4, 5, 7)"]),
        ({"direction": (0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1)}, ["0.96", "(1, 0, 0"]),
    ],
)
def test_different_grids_are_refused_with_both_values(change: dict, both: list[str]) -> None:
    image = Volume(np.zeros((4, 5, 6)), Geometry((4, 5, 6), (3, 2, 1), (-5, 6, 7), tuple(np.eye(3).ravel())))
    other = Geometry(**{**image.geometry.__dict__, **change})
    with pytest.raises(CaseError) as refusal:
        match_grid(Volume(np.zeros(other.shape, np.uint8), other), image, "case_4")
    assert "case_4" in str(refusal.value)
    assert all(text in str(refusal.value) for text in both)


def test_grids_within_a_thousandth_are_equal() -> None:
    image = Volume(np.zeros((4, 5, 6)), grid(np.zeros((4, 5, 6))))
    near = Geometry(**{**image.geometry.__dict__, "origin_mm": (-5.0009, 6.0, 7.0)})
    assert match_grid(Volume(np.zeros((4, 5, 6), np.uint8), near), image, "a").geometry == image.geometry


# --- writing and finding


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_written_files_have_the_grid_exactly(tmp_path: Path, name: str) -> None:
    geometry = Geometry((4, 5, 6), (2.5, 0.78125, 0.78125), (-200.5, -180.25, 33.0), SIDEWAYS)
    write_labels(tmp_path / name, np.full((4, 5, 6), 14), geometry)
    image = sitk.ReadImage(str(tmp_path / name))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert image.GetSize() == (6, 5, 4)
    assert image.GetSpacing() == (0.78125, 0.78125, 2.5)
    assert image.GetOrigin() == (-200.5, -180.25, 33.0)
    assert image.GetDirection() == pytest.approx(SIDEWAYS, abs=1e-7)
    assert sitk.GetArrayFromImage(image).min() == 14
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("turned", [0.1, 0.5, 2.0])
def test_an_oblique_input_grid_comes_back(tmp_path: Path, turned: float) -> None:
    write_array(
        tmp_path / "image.nii.gz", ARRAY, spacing_xyz=(0.7, 0.8, 2.5), origin=(-1.1, 2.2, 3.3),
        direction=grid(ARRAY, turned=turned).direction,
    )  # fmt: skip
    first = read_image(tmp_path / "image.nii.gz").geometry
    write_labels(tmp_path / "labels.nii.gz", ARRAY > 0, first)
    again = read_image(tmp_path / "labels.nii.gz").geometry
    assert again.shape == first.shape
    assert again.spacing_mm == first.spacing_mm
    assert again.origin_mm == first.origin_mm
    assert again.direction == pytest.approx(first.direction, abs=1e-7)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_image(tmp_path / "a.unknown", ARRAY, grid(ARRAY))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("x/case_0000.nii.gz", "case"),
        ("case_7_0000.NII.GZ", "case_7"),
        ("case.nrrd", "case"),
        ("case.v2.mha", "case.v2"),
        ("scans/patient 3/", "patient 3"),
        ("case_0000_0000.nii", "case_0000"),
    ],
)
def test_case_ids(path: str, expected: str) -> None:
    assert case_id(Path(path)) == expected


def test_two_files_of_one_id_are_both_refused() -> None:
    found, refused = unique_cases([Path("u/a.nii.gz"), Path("v/a_0000.nii.gz"), Path("b.nii")])
    assert found == {"b": Path("b.nii")}
    told = "2 files of this id: u/a.nii.gz and v/a_0000.nii.gz; data.case_id=parent tells them apart"
    assert refused == {"a": told}


def test_a_label_map_may_be_called_as_its_case_is() -> None:
    paths = [Path("x_0000.nii.gz"), Path("x.nii.gz"), Path("y_0000.nii.gz")]
    found, refused = unique_cases(paths, known={"x_0000", "x", "y"})
    assert sorted(found) == ["x", "x_0000", "y"]
    assert not refused


def test_the_folder_one_stands_in_has_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scan_3").mkdir()
    monkeypatch.chdir(tmp_path / "scan_3")
    assert case_id(Path()) == "scan_3"


def test_images_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/1/x_0000.nii.gz", "b/y.NRRD", "c.mha", "b/notes.txt", "b/._x_0000.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0")
    (tmp_path / ".partial-1").mkdir()
    (tmp_path / ".partial-1" / "z.nii.gz").write_bytes(b"half")
    series = write_series(tmp_path / "d" / "scan", [(0, 0, 0), (0, 0, 1)])
    found = [tmp_path / "b/1/x_0000.nii.gz", tmp_path / "b/y.NRRD", tmp_path / "c.mha", series]
    assert find_images(tmp_path) == found
    assert find_images(series) == [series]
    assert find_images(tmp_path / "c.mha") == [tmp_path / "c.mha"]
    assert find_images(tmp_path / "nowhere") == []


def test_a_mask_beside_dicom_slices_hides_no_scan(tmp_path: Path) -> None:
    series = write_series(tmp_path / "scan", [(0, 0, 0), (0, 0, 1)])
    mask = series / "mask.nii.gz"
    mask.write_bytes(b"0")
    assert find_images(tmp_path) == [series, mask]
    mask.rename(series / "scan.nii.gz")
    found, refused = unique_cases(find_images(tmp_path), root=tmp_path)
    assert not found
    told = f"2 files of this id: {series} and {series / 'scan.nii.gz'}; data.case_id=path tells them apart"
    assert refused == {"scan": told}


def test_a_folder_that_links_reach_again_counts_once(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.nii.gz").write_bytes(b"0")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "c").symlink_to("b")
    assert find_images(tmp_path) == [tmp_path / "b" / "x.nii.gz"]
    assert find_images(tmp_path / "c") == [tmp_path / "c" / "x.nii.gz"]
