"""NIfTI voxels against nibabel's reading and against headers edited by hand."""

from __future__ import annotations

import errno
import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from bad_files import DATATYPE, DIM, OFFSET, PIXDIM, QFORM_CODE, SLOPE, SROW, patch_bytes, truncate
from flare.core.checks import Checks, reading
from flare.core.errors import BadFileError, CaseError
from flare.core.files import require_no_bomb
from flare.core.geometry import Geometry
from flare.core.nifti import read_nifti
from flare.core.volumes import read_image, write_labels

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
    found = read_nifti(save(tmp_path / "a.nii", array), "a")[0]
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, array.T)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_versions_byte_orders_and_packing(tmp_path: Path, kind: type, order: str, name: str) -> None:
    found = read_nifti(save(tmp_path / name, ARRAY, kind, order), "a")[0]
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, ARRAY.T)


def test_scaled_values(tmp_path: Path) -> None:
    path = patch_bytes(save(tmp_path / "a.nii"), (SLOPE, "<2f", (0.5, -1024.0)))
    found = read_nifti(path, "a")[0]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ARRAY.T * 0.5 - 1024)
    np.testing.assert_array_equal(found.T, np.asanyarray(nib.load(path).dataobj))


@pytest.mark.parametrize("slope", [(0.0, 7.0), (1.0, 0.0), (float("nan"), 0.0)])
def test_no_scaling(tmp_path: Path, slope: tuple[float, float]) -> None:
    found = read_nifti(patch_bytes(save(tmp_path / "a.nii"), (SLOPE, "<2f", slope)), "a")[0]
    np.testing.assert_array_equal(found, ARRAY.T)
    assert found.dtype == np.int16


def test_bytes_between_header_and_voxels_are_passed_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ARRAY, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 200))
    nib.save(image, tmp_path / "a.nii.gz")
    (offset,) = struct.unpack_from("<f", gzip.decompress((tmp_path / "a.nii.gz").read_bytes()), OFFSET)
    assert offset > 352
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz", "a")[0], ARRAY.T)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    "lie",
    [
        (DIM, "<4h", [3, 5, 6, 6]),  # a slice less, of 5 x 6 x 7
        (DIM, "<4h", [3, 5, 5, 7]),
        (DIM, "<4h", [3, 4, 6, 7]),
        (DATATYPE, "<2h", [2, 8]),  # bytes
    ],
)
def test_more_voxels_than_the_header_claims(tmp_path: Path, name: str, lie: tuple) -> None:
    content = patch_bytes(save(tmp_path / "whole.nii"), lie).read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(CaseError, match=r"more voxels than its header claims.*data\.checks\.size=warn"):
        read_image(path, "a")
    with reading(Checks(size="warn")):
        found = read_image(path, "a").array
    shape = nib.load(path).shape
    np.testing.assert_array_equal(found.T, np.asarray(nib.load(path).dataobj))
    assert found.T.shape == shape


@pytest.mark.parametrize("count", [1, 59])  # the least plane has 5 x 6 voxels of 2 bytes
def test_padding_is_passed_over_to_the_checksum(tmp_path: Path, count: int) -> None:
    content = save(tmp_path / "whole.nii").read_bytes() + b"x" * count
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii", "a").array, ARRAY.T)
    packed = bytearray(gzip.compress(content))
    (tmp_path / "a.nii.gz").write_bytes(packed)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz", "a").array, ARRAY.T)
    packed[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(packed)
    with pytest.raises(CaseError, match="checksum differs"):
        read_image(tmp_path / "a.nii.gz", "a")


def test_a_checksum_behind_more_voxels_than_are_claimed(tmp_path: Path) -> None:
    whole = patch_bytes(save(tmp_path / "whole.nii"), (DIM, "<4h", [3, 5, 6, 2])).read_bytes()
    packed = bytearray(gzip.compress(whole))
    packed[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(packed)
    with reading(Checks(size="warn")), pytest.raises(CaseError, match="checksum differs"):
        read_image(tmp_path / "a.nii.gz", "a")


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """Half a gigabyte and a voxel, at most, from a two-hundredth of it; less or an honest file is read."""
    require_no_bomb(2**29, 1)
    require_no_bomb(200 * 2**23, 2**23)
    with pytest.raises(BadFileError, match="no scan is packed so small"):
        require_no_bomb(2**29 + 1, 1)
    nib.save(nib.Nifti1Image(ARRAY, np.diag([0.5, 0.5, 1, 1])), tmp_path / "a.nii")
    path = patch_bytes(tmp_path / "a.nii", (DIM, "<4h", [3, 1024, 1024, 300]))
    block = gzip.compress(bytes(1 << 24), 9)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()[:352]) + 40 * block)
    with pytest.raises(CaseError, match=r"unpacks to 629145600 bytes of voxels from \d+: no scan"):
        read_image(tmp_path / "a.nii.gz", "a")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    path = save(tmp_path / name, RANDOM.integers(-1000, 1000, (20, 20, 20)).astype(np.int16))
    with pytest.raises(CaseError, match="truncated"):
        read_image(truncate(path, share), "a")


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii")
    content = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    content[-100] ^= 1  # a voxel: only the checksum shows it
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(content)
    with pytest.raises(CaseError, match="checksum differs"):
        read_image(packed, "a")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ((344, "<4s", [b"oops"]), "magic"),
        ((0, "<i", [999]), "no NIfTI file"),
        ((DIM, "<8h", [3, 0, 6, 7, 1, 1, 1, 1]), "at least 1 voxel"),
        ((DIM, "<8h", [9, 5, 6, 7, 1, 1, 1, 1]), "has size"),
        ((DIM, "<8h", [3, 1000, 1000, 1000, 1, 1, 1, 1]), "litres"),
        ((DATATYPE, "<2h", [128, 24]), "3 components"),
        ((DATATYPE, "<2h", [32, 64]), "2 components"),
        ((DATATYPE, "<2h", [0, 0]), "datatype 0"),
        ((DATATYPE, "<2h", [1, 1]), "datatype 1"),
        ((DATATYPE, "<2h", [7777, 16]), "datatype 7777"),
        ((DATATYPE, "<2h", [1536, 128]), "datatype 1536"),
        ((DATATYPE, "<h", [16]), "bitpix 16 and NIfTI datatype 16; expected 32"),
        ((DIM, "<8h", [3, -5, 6, 7, 1, 1, 1, 1]), "at least 1 voxel"),
        ((DIM, "<8h", [7] + [32767] * 7), "components"),
        ((DIM, "<8h", [3, 32767, 32767, 32767, 1, 1, 1, 1]), "at most"),
        ((SLOPE, "<2f", [float("inf"), 0.0]), "scl_slope inf"),
        ((SLOPE, "<2f", [1.0, float("nan")]), "scl_inter nan"),
        ((SLOPE, "<2f", [3e38, 3e38]), "NaN or infinite"),
        ((OFFSET, "<f", [0.0]), "vox_offset 0; expected .* at least 352"),
        ((OFFSET, "<f", [351.0]), "vox_offset 351"),
        ((OFFSET, "<f", [352.5]), "vox_offset 352.5"),
        ((OFFSET, "<f", [-352.0]), "vox_offset -352"),
        ((OFFSET, "<f", [float("nan")]), "vox_offset nan"),
        ((OFFSET, "<f", [float("inf")]), "vox_offset inf"),
        ((OFFSET, "<f", [3e38]), "truncated"),
        ((PIXDIM + 4, "<f", [1e30]), "litres"),
        ((PIXDIM + 4, "<f", [0.0]), "spacing"),
        ((PIXDIM + 8, "<f", [-1.0]), "spacing"),
        ((PIXDIM + 12, "<f", [float("nan")]), "spacing"),
        ((DIM, "<8h", [3, 400, 400, 400, 1, 1, 1, 1]), "truncated"),
        ((SROW + 12, "<f", [float("inf")]), "sform that is not finite"),
        ((SROW, "<f", [float("nan")]), "sform that is not finite"),
        ((QFORM_CODE, "<2h6f", [1, 0, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0]), "no rotation"),
        ((QFORM_CODE, "<2h6f", [1, 0, 0.0, 0.0, 0.0, float("nan"), 0.0, 0.0]), "qform that is not finite"),
    ],
)
def test_bad_headers(tmp_path: Path, edit: tuple, message: str) -> None:
    with pytest.raises(CaseError, match=message):
        read_image(patch_bytes(save(tmp_path / "a.nii"), edit), "a")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("offset", [0, 352, 540, -1])
def test_an_offset_inside_a_nifti_2_header(tmp_path: Path, name: str, offset: int) -> None:
    path = patch_bytes(save(tmp_path / "b.nii", kind=nib.Nifti2Image), (168, "<q", [offset]))
    content = path.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(CaseError, match=rf"vox_offset {offset}; expected .* at least 544"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_gzip_counts_by_its_content_not_by_its_name(tmp_path: Path, kind: type, order: str) -> None:
    packed = save(tmp_path / "a.nii.gz", ARRAY, kind, order)
    known = read_image(packed)
    plain = packed.rename(tmp_path / "b.nii")
    np.testing.assert_array_equal(read_image(plain).array, ARRAY.T)
    assert read_image(plain).geometry == known.geometry
    assert known.geometry.spacing_mm == (4, 3, 2)
    save(tmp_path / "c.nii", ARRAY, kind, order).rename(tmp_path / "c.nii.gz")
    assert read_image(tmp_path / "c.nii.gz").geometry == known.geometry


def oblique(path: Path, codes: tuple[int, int], *, handed: int = 1, unit: str = "mm") -> Path:
    """A turned grid of 2 x 3 x 4 mm, stated by a qform and an sform of these codes in a unit."""
    scale = {"micron": 1000, "meter": 0.001}.get(unit, 1)
    c, s = np.cos(0.3), np.sin(0.3)
    turned = np.array([[c, 0, -s, 5], [0, 1, 0, 6], [s, 0, c, 7], [0, 0, 0, 1]])
    affine = np.diag([scale, scale, scale, 1]) @ turned @ np.diag([2, 3, 4 * handed, 1])
    image = nib.Nifti1Image(ARRAY, None)
    image.header.set_qform(affine, codes[0])
    image.header["pixdim"][1:4] = np.array([2, 3, 4]) * scale
    image.header.set_sform(affine, codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def by_itk(path: Path) -> Geometry:
    """The grid as ITK alone has it."""
    image = sitk.ReadImage(str(path))
    size, spacing = image.GetSize(), image.GetSpacing()
    return Geometry(size[::-1], spacing[::-1], image.GetOrigin(), image.GetDirection())


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 2), (1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("handed", [1, -1])
@pytest.mark.parametrize("unit", ["mm", "micron", "meter", "unknown"])
def test_forms_that_agree(tmp_path: Path, codes: tuple[int, int], handed: int, unit: str) -> None:
    """As ITK reads them, and nibabel where both are given."""
    path = oblique(tmp_path / "a.nii", codes, handed=handed, unit=unit)
    found, expected = read_image(path).geometry, by_itk(path)
    np.testing.assert_allclose(found.spacing_mm, expected.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(found.origin_mm, expected.origin_mm, rtol=1e-6)
    np.testing.assert_allclose(found.direction, expected.direction, atol=1e-6)


def test_a_singleton_time_axis_is_no_dimension(tmp_path: Path) -> None:
    path = patch_bytes(save(tmp_path / "a.nii"), (DIM, "<8h", [5, 5, 6, 7, 1, 1, 1, 1]))
    np.testing.assert_array_equal(read_image(path).array, ARRAY.T)


def test_nan_is_handed_on(tmp_path: Path) -> None:
    array = np.zeros((3, 3, 3), np.float32)
    array[1, 1, 1] = np.nan
    assert np.isnan(read_nifti(save(tmp_path / "a.nii", array), "a")[0]).sum() == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EBADF])
def test_what_the_system_refuses_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = save(tmp_path / "a.nii")

    def fails(*_: object) -> None:
        raise OSError(number, "fails")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match="fails") as error:
        read_nifti(path, "a")
    assert error.value.errno == number


@pytest.mark.parametrize("kind", ["zlib", "isal"])
def test_what_packs_and_unpacks_a_file_changes_no_voxel(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """Either way every reader takes it, equal arrays give equal bytes, and damage is named."""
    if kind == "isal":
        igzip, damage = (
            pytest.importorskip("isal.igzip").IGzipFile,
            pytest.importorskip("isal.isal_zlib").error,
        )
    else:
        igzip, damage = gzip.GzipFile, zlib.error
    monkeypatch.setattr("flare.core.nifti.GzipFile", igzip)
    monkeypatch.setattr("flare.core.nifti.DamageError", damage)
    array = np.random.default_rng(0).integers(0, 15, (30, 40, 50)).astype(np.uint8)
    grid = Geometry(array.shape, (5.0, 0.5, 0.75), (1.0, 2.0, 3.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for path in paths:
        write_labels(path, array, grid)
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    assert len(gzip.decompress(content)) == 352 + array.size
    np.testing.assert_array_equal(np.asarray(nib.load(paths[0]).dataobj).T, array)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(paths[0]))), array)
    np.testing.assert_array_equal(read_image(paths[0]).array, array)
    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(CaseError, match="truncated"):
        read_image(tmp_path / "cut.nii.gz")
    bad_block = content[:10] + b"\x07" + content[11:]  # behind the header: a kind of block that there is not
    bad_sum = content[:-8] + bytes(4) + content[-4:]
    for broken in (bad_block, bad_sum):
        (tmp_path / "broken.nii.gz").write_bytes(broken)
        with pytest.raises(CaseError, match=r"broken\.nii\.gz is damaged"):
            read_image(tmp_path / "broken.nii.gz")
