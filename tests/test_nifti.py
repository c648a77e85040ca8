"""NIfTI voxels against nibabel's reading and against headers edited by hand."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bad_files import DATATYPE, DIM, PIXDIM, SLOPE, SROW, patch_bytes, truncate
from flare.errors import CaseError
from flare.nifti import read_header, read_voxels

RANDOM = np.random.default_rng(0)
ARRAY = RANDOM.integers(-1000, 1000, (5, 6, 7)).astype(np.int16)  # (x, y, z) as nibabel has it


def save(path: Path, array: np.ndarray = ARRAY, kind: type = nib.Nifti1Image, order: str = "<") -> Path:
    image = kind(array, np.diag([2.0, 3.0, 4.0, 1.0]), dtype=array.dtype)
    if order == ">":
        image = kind(array, image.affine, image.header.as_byteswapped(">"))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_of_number(tmp_path: Path, dtype: str) -> None:
    array = RANDOM.integers(0, 100, (3, 4, 5)).astype(dtype)
    found = read_voxels(save(tmp_path / "a.nii", array), "a")
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, array.T)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_versions_byte_orders_and_packing(tmp_path: Path, kind: type, order: str, name: str) -> None:
    found = read_voxels(save(tmp_path / name, ARRAY, kind, order), "a")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, ARRAY.T)


def test_scaled_values(tmp_path: Path) -> None:
    path = patch_bytes(save(tmp_path / "a.nii"), (SLOPE, "<2f", (0.5, -1024.0)))
    found = read_voxels(path, "a")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ARRAY.T * 0.5 - 1024)
    np.testing.assert_array_equal(found.T, np.asanyarray(nib.load(path).dataobj))


@pytest.mark.parametrize("slope", [(0.0, 7.0), (1.0, 0.0), (float("nan"), 0.0)])
def test_no_scaling(tmp_path: Path, slope: tuple[float, float]) -> None:
    found = read_voxels(patch_bytes(save(tmp_path / "a.nii"), (SLOPE, "<2f", slope)), "a")
    np.testing.assert_array_equal(found, ARRAY.T)
    assert found.dtype == np.int16


def test_bytes_between_header_and_voxels_are_passed_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ARRAY, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 200))
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_header(tmp_path / "a.nii.gz", "a").offset > 352
    np.testing.assert_array_equal(read_voxels(tmp_path / "a.nii.gz", "a"), ARRAY.T)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    path = save(tmp_path / name, RANDOM.integers(-1000, 1000, (20, 20, 20)).astype(np.int16))
    with pytest.raises(CaseError, match="truncated"):
        read_voxels(truncate(path, share), "a")


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    content = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    content[-100] ^= 1  # a voxel: only the checksum shows it
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(content)
    with pytest.raises(CaseError, match="CRC"):
        read_voxels(packed, "a")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ((344, "<4s", [b"oops"]), "magic"),
        ((0, "<i", [999]), "no NIfTI file"),
        ((DIM, "<8h", [3, 0, 6, 7, 1, 1, 1, 1]), "at least 1 voxel"),
        ((DIM, "<8h", [9, 5, 6, 7, 1, 1, 1, 1]), "has size"),
        ((DIM, "<8h", [3, 30000, 30000, 30000, 1, 1, 1, 1]), "truncated"),
        ((DATATYPE, "<h", [128]), "datatype 128"),
        ((PIXDIM + 4, "<f", [0.0]), "spacing"),
        ((PIXDIM + 8, "<f", [-1.0]), "spacing"),
        ((PIXDIM + 12, "<f", [float("nan")]), "spacing"),
        ((SROW + 12, "<f", [float("inf")]), "sform that is not finite"),
    ],
)
def test_bad_headers(tmp_path: Path, edit: tuple, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        read_voxels(patch_bytes(save(tmp_path / "a.nii"), edit), "a")


def test_nan_is_handed_on(tmp_path: Path) -> None:
    array = np.zeros((3, 3, 3), np.float32)
    array[1, 1, 1] = np.nan
    assert np.isnan(read_voxels(save(tmp_path / "a.nii", array), "a")).sum() == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EBADF])
def test_what_the_system_refuses_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = save(tmp_path / "a.nii")

    def fails(*_: object) -> None:
        raise OSError(number, "fails")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match="fails") as error:
        read_voxels(path, "a")
    assert error.value.errno == number
