"""Grids from headers: DICOM series and directions, good and bad."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bad_files import (
    QFORM_CODE,
    QUATERNION,
    SFORM_CODE,
    SROW,
    patch_bytes,
    write_array,
    write_series,
)
from flare.core.dicom import is_dicom
from flare.core.errors import CaseError
from flare.core.geometry import Geometry
from flare.core.volumes import read_image

ARRAY = np.zeros((4, 6, 8), np.int16)


def grid_of(path: Path, case: str) -> Geometry:
    return read_image(path, case).geometry


def along_z(*heights: float) -> list[tuple[float, float, float]]:
    return [(-5.0, -6.0, z) for z in heights]


def test_a_series(tmp_path: Path) -> None:
    grid = grid_of(write_series(tmp_path / "s", along_z(0, 2, 4, 6)), "s")
    assert grid.shape == (4, 6, 8)
    assert grid.spacing_mm == pytest.approx((2.0, 0.7, 0.8))
    assert grid.origin_mm == pytest.approx((-5, -6, 0))
    assert grid.direction == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_slices_count_by_position_not_by_name(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", along_z(6, 4, 2, 0))
    assert read_image(folder).array[:, 0, 0].tolist() == [-70, -80, -90, -100]  # from below to above
    assert grid_of(folder, "s").origin_mm == pytest.approx((-5, -6, 0))


def test_an_oblique_series(tmp_path: Path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    positions = [(-5.0, -6.0 - 2 * i * s, 2 * i * c) for i in range(4)]
    grid = grid_of(write_series(tmp_path / "s", positions, axes=(1, 0, 0, 0, c, s)), "s")
    assert grid.spacing_mm == pytest.approx((2.0, 0.7, 0.8), abs=1e-5)
    assert grid.direction == pytest.approx((1, 0, 0, 0, c, -s, 0, s, c), abs=1e-5)
    np.testing.assert_allclose(grid.to_mm((3, 0, 0)), positions[3], atol=1e-5)


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ((0, 2, 6, 8), "uneven slice gaps, 2 to 4 mm"),
        ((0, 2, 2, 4), "uneven slice gaps, 0 to 2 mm"),
        ((0, 0), "uneven slice gaps"),
        ((0,), "one slice"),
        ((0, 2, 4.01, 6), "uneven slice gaps"),
    ],
)
def test_missing_doubled_and_single_slices(tmp_path: Path, heights: tuple, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        grid_of(write_series(tmp_path / "s", along_z(*heights)), "s")


def test_gaps_uneven_by_rounding_are_evened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        grid = grid_of(write_series(tmp_path / "s", along_z(0, 2, 4.0005, 6)), "s")
    assert grid.spacing_mm[0] == pytest.approx(2.0)
    assert "uneven" in caplog.text
    assert str(tmp_path) not in caplog.text  # privacy: no path in a log


def tilted(degrees: float) -> list[tuple[float, float, float]]:
    return [(-5.0, -6.0 + 2 * i * np.tan(np.radians(degrees)), 2.0 * i) for i in range(4)]


@pytest.mark.parametrize("degrees", [0.1, 1.0, 5.0, 20.0, -20.0])
def test_gantry_tilt(tmp_path: Path, degrees: float) -> None:
    with pytest.raises(CaseError, match="gantry tilt"):
        grid_of(write_series(tmp_path / "s", tilted(degrees)), "s")


def test_a_tilt_below_the_limit_is_snapped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        grid = grid_of(write_series(tmp_path / "s", tilted(0.04)), "s")  # sine 7e-4
    np.testing.assert_allclose(grid.matrix.T @ grid.matrix, np.eye(3), atol=1e-12)
    assert "case s" in caplog.text


def test_two_series_in_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "s", along_z(0, 2, 4))
    write_series(tmp_path / "s", along_z(0, 2, 4), uid="1.2.4", prefix="b")
    with pytest.raises(CaseError, match="2 DICOM series"):
        grid_of(tmp_path / "s", "s")


def test_slices_of_two_sizes(tmp_path: Path) -> None:
    write_series(tmp_path / "s", along_z(0, 2))
    write_series(tmp_path / "s", along_z(4, 6), prefix="b", shape=(5, 5))
    with pytest.raises(CaseError, match="different sizes"):
        grid_of(tmp_path / "s", "s")


@pytest.mark.parametrize("kept", [0, 200, 0.9])
@pytest.mark.parametrize("name", ["001.dcm", "003.dcm"])
def test_a_damaged_slice_is_not_left_out(tmp_path: Path, kept: float, name: str) -> None:
    folder = write_series(tmp_path / "s", along_z(0, 2, 4, 6))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(CaseError, match=f"cannot be read: {name}"):
        grid_of(folder, "s")


def test_other_files_in_a_series_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", along_z(0, 2))
    (folder / "README.txt").write_text("not a slice")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert grid_of(folder, "s").shape[0] == 2


def test_a_folder_without_series(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="no readable DICOM series"):
        grid_of(tmp_path, "s")


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", along_z(0, 2))
    bare = folder / "IM0001"
    (folder / "000.dcm").rename(bare)
    assert is_dicom(bare)
    (folder / "x.dcm").write_text("text")
    assert not is_dicom(folder / "x.dcm")


def sheared(path: Path, shear: float, *, qform: bool) -> Path:
    """The x axis leans by `shear` towards y, in the sform only."""
    write_array(path, ARRAY)
    edits = [(SROW, "<12f", (-1, 0, 0, 0, shear, -1, 0, 0, 0, 0, 1, 0))]
    return patch_bytes(path, *edits, (QFORM_CODE, "<h", [int(qform)]))


@pytest.mark.parametrize("qform", [True, False])
def test_shear_above_the_limit(tmp_path: Path, qform: bool) -> None:
    with pytest.raises(CaseError, match=r"not orthonormal \(off by 0.0012"):
        grid_of(sheared(tmp_path / "a.nii", 1.2e-3, qform=qform), "a")


@pytest.mark.parametrize("qform", [True, False])
def test_shear_below_the_limit(tmp_path: Path, qform: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        grid = grid_of(sheared(tmp_path / "a.nii", 0.8e-3, qform=qform), "a")
    np.testing.assert_allclose(grid.matrix.T @ grid.matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(grid.matrix, np.eye(3), atol=1e-3)
    assert "snapped" in caplog.text


def test_directions_of_a_nrrd_file(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.nrrd", ARRAY)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(1,0,0)", b"(1,0.01,0)"))
    with pytest.raises(CaseError, match="not orthonormal"):
        grid_of(path, "a")
    path.write_bytes(content.replace(b"(1,0,0)", b"(-1,0,0)"))  # runs to the right: no fault
    assert grid_of(path, "a").direction == pytest.approx((-1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_an_sform_of_zeros(tmp_path: Path) -> None:
    path = patch_bytes(
        write_array(tmp_path / "a.nii", ARRAY), (SROW, "<12f", [0] * 12), (QFORM_CODE, "<h", [0])
    )
    with pytest.raises(CaseError, match="sform"):
        grid_of(path, "a")


@pytest.mark.parametrize("code", [(QFORM_CODE, QUATERNION), (SFORM_CODE, SROW)])
def test_a_form_that_is_switched_off_may_hold_anything(tmp_path: Path, code: tuple[int, int]) -> None:
    path = write_array(tmp_path / "a.nii", ARRAY)
    patch_bytes(path, (code[0], "<h", [0]), (code[1], "<f", [float("nan")]))
    assert grid_of(path, "a").direction == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_an_origin_that_is_no_number(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.nrrd", ARRAY)
    path.write_bytes(path.read_bytes().replace(b"space origin: (0,0,0)", b"space origin: (0,inf,0)"))
    with pytest.raises(CaseError):
        grid_of(path, "a")
