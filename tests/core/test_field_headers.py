"""Headers that contradict themselves, say nothing or cannot be: kinds A, D and J of the field reports."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bad_files import PIXDIM, QFORM_CODE, SFORM_CODE, SROW, patch_bytes, write_array
from flare.core.checks import Checks, reading
from flare.core.classes import ClassList
from flare.core.errors import CaseError, FlareError
from flare.core.geometry import Geometry
from flare.core.volumes import match_grid, read_image, read_labels, read_scan, write_labels

RANDOM = np.random.default_rng(0)
ARRAY = RANDOM.integers(-1000, 1000, (12, 14, 16)).astype(np.int16)  # z, y, x
UNITS, QUATERNION, QOFFSET = 123, 256, 268
TURN = (0.9689, -0.2474, 0, 0.2474, 0.9689, 0, 0, 0, 1)
DEFAULTS = Checks()


def nifti(path: Path, **geometry: object) -> Path:
    return write_array(path, ARRAY, **{"spacing_xyz": (2, 3, 4), "origin": (5, 6, 7), **geometry})


def refused(path: Path, checks: Checks = DEFAULTS) -> str:
    with reading(checks), pytest.raises(CaseError) as refusal:
        read_scan(path, "a")
    assert "\n" not in str(refusal.value)
    return refusal.value.reason


def warned(path: Path, caplog: pytest.LogCaptureFixture, **checks: str) -> tuple[Geometry, str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING), reading(Checks(**checks)):
        grid = read_image(path, "a").geometry
    assert str(path.parent) not in caplog.text  # privacy: no path in a log
    return grid, caplog.text


def forms(path: Path) -> dict[str, list[float]]:
    """What a header says of the place of its voxels, by nibabel."""
    header = nib.load(path).header
    names = ["qform_code", "sform_code", "xyzt_units", *(f"quatern_{a}" for a in "bcd")]
    names += [f"qoffset_{a}" for a in "xyz"] + [f"srow_{a}" for a in "xyz"]
    return {**{n: np.ravel(header[n]).tolist() for n in names}, "pixdim": header["pixdim"][:4].tolist()}


# --- A: contradictions


def test_pixdim_of_1_beside_a_true_sform(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = patch_bytes(nifti(tmp_path / "a.nii"), (PIXDIM + 4, "<3f", [1, 1, 1]), (QFORM_CODE, "<h", [0]))
    said = refused(path)
    assert "(4, 3, 2) and (1, 1, 1) mm" in said
    assert "data.checks.forms=warn" in said
    grid, text = warned(path, caplog, forms="warn")
    assert grid.spacing_mm == pytest.approx((4, 3, 2))
    assert "the sform counts" in text
    assert "(4, 3, 2) and (1, 1, 1) mm" in text


@pytest.mark.parametrize(
    "edit",
    [
        (QOFFSET, "<f", [-35.0]),  # shifted
        (QUATERNION, "<3f", [0.0, 0.1, 1.0 - 0.0051]),  # turned
        (PIXDIM, "<f", [-1.0]),  # mirrored along z
        (PIXDIM + 12, "<f", [4.1]),
    ],
)
def test_sform_and_qform_of_two_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture, edit: tuple) -> None:
    path = nifti(tmp_path / "a.nii")
    known = read_image(path).geometry
    patch_bytes(path, edit)
    assert "an sform and a qform with pixdim that differ" in refused(path)
    grid, text = warned(path, caplog, forms="warn")
    assert not grid.differences(known)
    assert "the sform counts" in text


def test_both_forms_survive_into_the_output(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", direction=TURN)
    for codes in ((1, 1), (1, 0), (0, 2), (2, 4)):
        image = nib.load(path)
        image.header["qform_code"], image.header["sform_code"] = codes
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), tmp_path / "b.nii")
        if codes == (2, 4):
            patch_bytes(tmp_path / "b.nii", (QOFFSET, "<f", [-35.0]))
        with reading(Checks(forms="warn")):
            volume = read_image(tmp_path / "b.nii")
            write_labels(tmp_path / "c.nii.gz", volume.array > 0, volume.geometry)
            again = read_image(tmp_path / "c.nii.gz")
        assert forms(tmp_path / "c.nii.gz") == forms(tmp_path / "b.nii")
        assert again.geometry == volume.geometry
        np.testing.assert_array_equal(again.array, volume.array > 0)


def test_a_form_of_rounded_quaternions_agrees(tmp_path: Path) -> None:
    """Near half a turn single precision leaves a quaternion few digits: up to 2e-4 of a direction."""
    for degrees in (179.9, 179.99, 90.01, 45.0):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine = np.diag([0.9, 0.9, 1.5, 1]) @ np.eye(4)
        affine[:2, :2] = np.array([[c, -s], [s, c]]) * 0.9
        image = nib.Nifti1Image(ARRAY, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, tmp_path / "a.nii")
        with reading(DEFAULTS):
            grid = read_image(tmp_path / "a.nii").geometry
        lps = np.diag([-1, -1, 1]) @ affine[:3, :3] / [0.9, 0.9, 1.5]
        np.testing.assert_allclose(grid.matrix, lps, atol=1e-6)


def test_neither_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = patch_bytes(nifti(tmp_path / "a.nii"), (QFORM_CODE, "<2h", [0, 0]))
    assert "does not state its directions" in refused(path)
    grid, text = warned(path, caplog, direction="warn")
    assert grid.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert "x runs to the left" in text


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_other_headers_without_directions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = nifti(tmp_path / name)
    lines = path.read_bytes().split(b"\n")
    dropped = (b"space", b"TransformMatrix")
    kept = [b"spacings: 2 3 4" if li.startswith(b"space dir") else li for li in lines]
    path.write_bytes(
        b"\n".join(li for li in kept if not li.startswith(dropped) or li.startswith(b"spacings"))
    )
    assert "does not state its directions" in refused(path)
    assert warned(path, caplog, direction="warn")[0].spacing_mm == (4, 3, 2)


@pytest.mark.parametrize(("code", "name"), [(1, "metre"), (3, "micron")])
def test_a_wrong_unit(tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, name: str) -> None:
    path = patch_bytes(nifti(tmp_path / "a.nii"), (UNITS, "<B", [code]))
    said = refused(path)
    assert f"the unit {name}" in said
    assert "data.checks.size=warn" in said
    grid, text = warned(path, caplog, size="warn")
    assert grid.spacing_mm == pytest.approx((4, 3, 2))
    assert "taken as millimetres" in text


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.nrrd", b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:'),
        ("a.mha", b"DimSize", b"DistanceUnits = cm\nDimSize"),
    ],
)
def test_units_count_in_every_format(tmp_path: Path, name: str, before: bytes, after: bytes) -> None:
    path = nifti(tmp_path / name, spacing_xyz=(0.2, 0.3, 0.4), origin=(0.5, 0.6, 0.7))
    path.write_bytes(path.read_bytes().replace(before, after))
    with reading(DEFAULTS):
        grid = read_image(path).geometry
    assert grid.spacing_mm == pytest.approx((4, 3, 2))
    assert grid.origin_mm == pytest.approx((5, 6, 7))
    path.write_bytes(path.read_bytes().replace(b"cm", b"um"))
    assert "the unit um" in refused(path) or "voxels of" in refused(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    ("spacing", "said"),
    [((0.04, 3, 4), "voxels of 0.04 x"), ((21, 3, 4), "voxels of 21 x"), ((0.5, 3, 4), "extents of 8 x"),
     ((2, 3, 300), "voxels of 2 x 3 x 300")],
)  # fmt: skip
def test_sizes_that_no_ct_has(tmp_path: Path, name: str, spacing: tuple, said: str) -> None:
    assert said in refused(nifti(tmp_path / name, spacing_xyz=spacing))


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("spacing", [(0.7, 0.8, 1), (20, 20, 20), (2, 3, 0.85)])
def test_sizes_that_a_ct_may_have(tmp_path: Path, name: str, spacing: tuple) -> None:
    with reading(DEFAULTS):
        found, _ = read_scan(nifti(tmp_path / name, spacing_xyz=spacing), "a")
    assert found.geometry.spacing_mm == pytest.approx(spacing[::-1])


def test_a_scan_larger_than_anybody_is_refused_whatever_the_checks(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nrrd", spacing_xyz=(2000, 3000, 4000))
    assert "litres" in refused(path, Checks(size="warn"))


def test_labels_are_held_against_the_same_checks(tmp_path: Path, labels: ClassList) -> None:
    path = write_array(tmp_path / "a.nii", (ARRAY > 0).astype(np.uint8), spacing_xyz=(2, 3, 4))
    patch_bytes(path, (SFORM_CODE, "<h", [2]), (SROW + 12, "<f", [40.0]))
    with reading(DEFAULTS), pytest.raises(CaseError, match="that differ"):
        read_labels(path, labels)


# --- A, D: the files at hand


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("A_pixdim_1_true_sform", "an sform and a pixdim that differ"),
        ("A_forms_of_two_frames", "an sform and a qform with pixdim that differ"),
        ("A_unit_flag_micron", "the unit micron"),
    ],
)
def test_contradictions_from_the_field(real_data: Path, folder: str, said: str) -> None:
    (path,) = (real_data / "field" / folder).iterdir()
    assert said in refused(path)


def test_pixdim_from_the_field_has_a_way_out(real_data: Path) -> None:
    known = read_image(real_data / "field" / "reference_0000.nii.gz")
    for folder, checks in (
        ("A_pixdim_1_true_sform", {"forms": "warn"}),
        ("A_unit_flag_micron", {"size": "warn"}),
    ):
        (path,) = (real_data / "field" / folder).iterdir()
        with reading(Checks(**checks)):
            found = read_image(path)
        assert not found.geometry.differences(known.geometry)
        np.testing.assert_array_equal(found.array, known.array)


@pytest.mark.parametrize("folder", ["D_gzip_named_nii", "D_nifti2", "D_multiframe/plain"])
def test_header_and_voxels_from_one_reader(real_data: Path, folder: str) -> None:
    place = real_data / "field" / folder
    known = read_image(real_data / "field" / "reference_0000.nii.gz")
    with reading(DEFAULTS):
        for path in (*place.iterdir(), *([place] if "multi" in folder else [])):
            found = read_image(path)
            assert not found.geometry.differences(known.geometry)
            np.testing.assert_array_equal(found.array, known.array)


# --- J: strictness with a way out


@pytest.mark.parametrize("value", [2.9999998, 2.99995, 3.0009, -0.0004 + 3])
def test_labels_within_a_thousandth_of_an_integer(
    tmp_path: Path, labels: ClassList, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    array = np.zeros(ARRAY.shape, np.float32)
    array[0, 0, :5] = value
    path = write_array(tmp_path / "a.nii", array, spacing_xyz=(2, 3, 4))
    with caplog.at_level(logging.WARNING):
        found = read_labels(path, labels, case="a").array
    assert np.unique(found).tolist() == [0, 3]
    assert (found == 3).sum() == 5
    assert "rounded" in caplog.text
    with reading(Checks(labels="refuse")), pytest.raises(CaseError, match="not integers"):
        read_labels(path, labels)


def test_scaled_labels_from_the_field(real_data: Path, labels: ClassList) -> None:
    """Those off by less than a thousandth are the plain ones; 8 bits and interpolated ones are refused."""
    folder = real_data / "field" / "J_scaled_labels" / "in" / "labelsTr"
    plain = read_labels(folder / "plain.nii.gz", labels).array
    for name in ("auto16", "float1e6", "float29999"):
        np.testing.assert_array_equal(read_labels(folder / f"{name}.nii.gz", labels).array, plain)
    for name in ("auto8", "interp"):
        with pytest.raises(CaseError, match="not integers"):
            read_labels(folder / f"{name}.nii.gz", labels)


def test_one_tolerance_on_corner_voxels(tmp_path: Path, labels: ClassList) -> None:
    image = nifti(tmp_path / "a.nii")
    array = (ARRAY > 0).astype(np.uint8)
    moved = write_array(tmp_path / "m.nii", array, spacing_xyz=(2, 3, 4), origin=(5.002, 6, 7))
    finer = write_array(tmp_path / "f.nii", array, spacing_xyz=(2.0009, 3, 4), origin=(5, 6, 7))
    ct = read_image(image)
    for path, distance in ((moved, 0.002), (finer, 0.0009 * 15)):
        target = read_labels(path, labels)
        with pytest.raises(CaseError, match=f"up to {distance:.2g}.*data.checks.tolerance_mm"):
            match_grid(target, ct, "a")
        with reading(Checks(tolerance_mm=distance * 1.01)):
            assert match_grid(target, ct, "a").geometry == ct.geometry


def test_checks_are_read_from_the_configuration(config) -> None:
    cfg = config(
        "infer", "data.checks.forms=warn", "data.intensity_check=off", "data.checks.tolerance_mm=0.1"
    )
    assert Checks.from_config(cfg) == Checks(forms="warn", intensity="off", tolerance_mm=0.1)
    assert Checks.from_config(config("prepare")) == DEFAULTS
    for line in ("data.checks.size=of", "data.intensity_check=maybe", "data.checks.tolerance_mm=-1"):
        with pytest.raises(FlareError, match=line.split("=")[0]):
            Checks.from_config(config("prepare", line))


def test_a_copy_has_the_same_grid_in_every_format(tmp_path: Path) -> None:
    """What was right: any voxel order, any format, one grid."""
    first = read_image(nifti(tmp_path / "a.nii", direction=TURN)).geometry
    for name in ("b.nii.gz", "b.nrrd", "b.mha"):
        assert not read_image(nifti(tmp_path / name, direction=TURN)).geometry.differences(first)
    shutil.copy(tmp_path / "b.nii.gz", tmp_path / "c.nii")
    assert read_image(tmp_path / "c.nii").geometry == read_image(tmp_path / "b.nii.gz").geometry
