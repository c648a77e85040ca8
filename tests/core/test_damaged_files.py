"""Whatever is done to a file, reading it gives a volume or a refusal, and takes little memory."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import damaged_files
from bad_files import DIM, OFFSET, patch_bytes, write_series
from damaged_files import FORMATS, HU, MAY, SERIES, WHY
from flare.core.errors import CaseError
from flare.core.volumes import read_image
from flare.runs.work import LocalExecutor

pytestmark = pytest.mark.slow

MOST = 64 << 20  # bytes that reading files of some kilobytes may take


def read_apart(*arguments: object) -> dict[str, dict[str, Any]]:
    """Read in a process of its own, which a damaged file may end, and which may take little memory.

    It says nothing on the console but what our own log does.
    """
    line = [sys.executable, damaged_files.__file__, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    found = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (done.returncode, "after", list(found), done.stderr[-2000:])
    assert [line for line in done.stderr.splitlines() if not line.startswith("case a: ")] == []
    return found


def assert_bounded(found: dict[str, Any]) -> None:
    assert found["other"] == []
    assert not [reason for reason in found["refused"] if "memory" in reason.lower()]
    assert [reason for reason in found["refused"] if not damaged_files.is_plain(reason)] == []
    assert found["grown"] < MOST


def test_damaged_files_are_read_or_refused() -> None:
    found = read_apart(0, 16, *FORMATS, *SERIES)
    assert list(found) == [*FORMATS, *SERIES]
    for name, of_format in found.items():
        assert_bounded(of_format)
        assert len(of_format["refused"]) >= 4
        assert sum(of_format["read"].values()) + len(of_format["refused"]) == 16
        assert {why for why, count in of_format["read"].items() if count} <= set(MAY[name])


@pytest.mark.long
@pytest.mark.slow
def test_thousands_of_damaged_files(thorough: bool) -> None:
    found = read_apart(1000, 500 if thorough else 100, *FORMATS, *SERIES)
    for name, of_format in found.items():
        assert_bounded(of_format)
        assert {why for why, count in of_format["read"].items() if count} <= set(MAY[name])
    for why in WHY:  # each is met, so that the rest of the formats may be said to be free of it
        assert sum(of_format["read"][why] for of_format in found.values())


def text(path: Path, before: bytes, after: bytes) -> Path:
    content = path.read_bytes()
    assert before in content
    path.write_bytes(content.replace(before, after))
    return path


def whole(path: Path, *, compressed: bool) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(HU), str(path), useCompression=compressed)
    return path


def petabytes(path: Path) -> Path:
    """NIfTI-2: a million voxels an axis."""
    nib.save(nib.Nifti2Image(HU.T, np.eye(4)), path)
    return patch_bytes(path, (16, "<8q", [3, 10**6, 10**6, 10**6, 1, 1, 1, 1]))


def packed(path: Path) -> Path:
    target = path.with_name(f"{path.name}.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


def zeros(path: Path) -> Path:
    """Few kilobytes that hold 8 MB of zeros, behind a header that claims 16 MB: within the ratio of gzip."""
    header = nib.Nifti1Header()
    header.set_data_shape((200, 200, 200))
    header["vox_offset"], header["magic"], header["sform_code"] = 352, b"n+1", 0
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        stream.write(bytes(8 << 20))
    return path


def large_slices(folder: Path, compressor: str = "") -> Path:
    """A series, all of whose slices claim 65534 rows and columns."""
    damaged_files.series(folder, compressor)
    kind = b"US\2\0" if compressor else b"\2\0\0\0"  # explicit or implicit
    for path in folder.iterdir():
        for tag, known in ((b"\x28\0\x10\0", 6), (b"\x28\0\x11\0", 8)):
            text(path, tag + kind + struct.pack("<H", known), tag + kind + struct.pack("<H", 65534))
    return folder


def many_frames(folder: Path) -> Path:
    """A file that claims 999,999 frames: the number is written in place of another text of six digits."""
    (path, *_) = write_series(folder, [(0, 0, 0)], t0018_1000="123456").iterdir()
    serial, bits = struct.pack("<2HI", 0x18, 0x1000, 6) + b"123456", struct.pack("<2H", 0x28, 0x10)
    content = path.read_bytes().replace(serial, b"")
    frames = struct.pack("<2HI", 0x28, 0x08, 6) + b"999999"
    path.write_bytes(content.replace(bits, frames + bits))
    return path


def long_element(folder: Path) -> Path:
    """A slice, one of whose elements claims 3.8 GB."""
    path = sorted(write_series(folder, [(0, 0, z) for z in (0, 2, 4)]).iterdir())[1]
    tag = struct.pack("<2H", 0x08, 0x60)  # modality
    text(path, tag + struct.pack("<I", 2), tag + struct.pack("<I", 0xE0000000))
    return folder


def lied(folder: Path, name: str, before: bytes, after: bytes) -> Path:
    """A file whose text header is changed; packed if its folder says so."""
    return text(whole(folder / name, compressed="packed" in folder.name), before, after)


def a_row_less(folder: Path) -> Path:
    """A series whose slices hold a row more than they claim."""
    for path in damaged_files.series(folder, "") and sorted(folder.iterdir()):
        text(path, b"\x28\0\x10\0\2\0\0\0\6\0", b"\x28\0\x10\0\2\0\0\0\5\0")
    return folder


def small(folder: Path, *edit: Any) -> Path:
    """A NIfTI file with a number changed."""
    return patch_bytes(whole(folder / "a.nii", compressed=False), edit)


SIZES, DIMS = (b"sizes: 8 7 6", b"sizes: 900 900 900"), (b"DimSize = 8 7 6", b"DimSize = 900 900 900")
LIES: dict[str, Callable[[Path], Path]] = {
    "nifti": lambda p: small(p, DIM, "<4h", [3, 600, 600, 600]),
    "nifti packed": lambda p: packed(small(p, DIM, "<4h", [3, 600, 600, 600])),
    "nifti far offset": lambda p: packed(small(p, OFFSET, "<f", [3e38])),
    "nifti-2": lambda p: petabytes(p / "a.nii"),
    "nifti-2 packed": lambda p: packed(petabytes(p / "a.nii")),
    "nifti zeros": lambda p: zeros(p / "a.nii.gz"),
    "nrrd": lambda p: lied(p, "a.nrrd", *SIZES),
    "nrrd, a slice less": lambda p: lied(p, "a.nrrd", b"sizes: 8 7 6", b"sizes: 8 7 5"),
    "nrrd packed": lambda p: lied(p, "a.nrrd", *SIZES),
    "nrrd packed, a slice more": lambda p: lied(p, "a.nrrd", b"sizes: 8 7 6", b"sizes: 8 7 7"),
    "nrrd packed, a slice less": lambda p: lied(p, "a.nrrd", b"sizes: 8 7 6", b"sizes: 8 7 5"),
    "mha": lambda p: lied(p, "a.mha", *DIMS),
    "mha, a slice less": lambda p: lied(p, "a.mha", b"DimSize = 8 7 6", b"DimSize = 8 7 5"),
    "mha packed": lambda p: lied(p, "a.mha", *DIMS),
    "mha packed, a slice more": lambda p: lied(p, "a.mha", b"DimSize = 8 7 6", b"DimSize = 8 7 7"),
    "mha packed, its size": lambda p: lied(p, "a.mha", b"DataSize = ", b"DataSize = 9999999"),
    "mha packed, no size": lambda p: lied(p, "a.mha", b"DataSize = ", b"DataSize = 1e300 "),
    "mha dimensions": lambda p: lied(p, "a.mha", b"NDims = 3", b"NDims = 99999"),
    "dicom": lambda p: large_slices(p / "a"),
    "dicom, a row less": lambda p: a_row_less(p / "a"),
    "dicom JPEG2000": lambda p: large_slices(p / "a", "JPEG2000"),
    "dicom frames": lambda p: many_frames(p / "a"),
    "dicom element": lambda p: long_element(p / "a"),
}  # fmt: skip


def test_a_header_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    paths = {}
    for lie, write in LIES.items():
        (tmp_path / lie).mkdir()
        paths[lie] = str(write(tmp_path / lie))
    found = read_apart(*paths.values())
    for lie, path in paths.items():
        assert_bounded(found[path])
        (reason,) = found[path]["refused"] or [f"{lie}: read"]
        assert reason.startswith(f"case a: {path} "), reason
    for lie, said in (
        ("nifti zeros", f"{(8 << 20)} of 32000000 bytes"),
        ("dicom", "claims 8589410312 bytes of voxels"),
        ("dicom JPEG2000", "65534 x 65534 pixels"),
        ("dicom frames", "claims 95999904 bytes"),
        ("nrrd, a slice less", "more voxels than its header claims"),
        ("mha, a slice less", "more voxels than its header claims"),
        ("dicom, a row less", "more voxels than its header claims"),
    ):
        assert said in found[paths[lie]]["refused"][0], (lie, found[paths[lie]]["refused"])


def test_what_is_wrong_tells_reasons_apart(tmp_path: Path) -> None:
    """Files of one fault count as refused for one reason, of two faults for two."""
    jobs = {}
    for number in (1, 2):
        for lie in ("nifti", "nifti far offset", "mha", "mha dimensions"):
            folder = tmp_path / f"{number}" / lie
            folder.mkdir(parents=True)
            jobs[f"{lie} {number}"] = {"path": LIES[lie](folder)}
    outcomes = LocalExecutor(workers=0, retries=0).run(read_image, jobs)
    kinds = {o.case_id: o.kind for o in outcomes}
    assert all(kinds[f"{lie[:-2]} 1"] == kinds[f"{lie[:-2]} 2"] for lie in kinds)
    assert kinds["nifti 1"] == kinds["mha 1"]  # both claim more than the file holds
    assert len(set(kinds.values())) == 3


def test_a_damaged_slice_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(
        CaseError, match=r"cannot be read: 001\.dcm \(.*element 0008,0060 claims 3758096384 bytes"
    ):
        read_image(long_element(tmp_path / "a"))


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG", "JPEGLS", ""])
def test_compressed_slices_are_read(tmp_path: Path, compressor: str) -> None:
    damaged_files.series(tmp_path / "s", compressor)
    assert read_image(tmp_path / "s").array[:, 0, 0].tolist() == [-100, -90, -80]


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_both_byte_orders_are_read(tmp_path: Path, name: str, order: str) -> None:
    """Written by hand: ITK writes the machine's order alone."""
    sizes = "8 7 6"  # x, y, z
    nrrd = f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
    nrrd += f"space directions: (1,0,0) (0,2,0) (0,0,3)\nencoding: raw\nendian: {order}\n\n"
    mha = f"NDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {order == 'big'}\nDimSize = {sizes}\n"
    mha += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 2 3\n"
    mha += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    voxels = HU.astype(">i2" if order == "big" else "<i2").tobytes()
    (tmp_path / name).write_bytes((nrrd if name == "a.nrrd" else mha).encode() + voxels)
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found.array, HU)
    assert found.geometry.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("fields", [b"data file: b.raw\n", b"datafile: b.raw\n"])
def test_voxels_in_another_file(tmp_path: Path, fields: bytes) -> None:
    path = whole(tmp_path / "a.nrrd", compressed=False)
    text(path, b"encoding: raw\n", b"encoding: raw\n" + fields)
    (tmp_path / "b.raw").write_bytes(HU.tobytes())
    with pytest.raises(CaseError, match="in another file"):
        read_image(path)
    path = text(
        whole(tmp_path / "a.mha", compressed=False), b"ElementDataFile = LOCAL", b"ElementDataFile = b.raw"
    )
    with pytest.raises(CaseError, match="in another file"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.img", "a.nhdr", "a.mhd", "a.png", "a"])
def test_other_formats_are_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"0" * 400)
    with pytest.raises(CaseError, match=r"not read; expected \.nii, \.nii\.gz, \.nrrd, \.mha or DICOM"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_a_checksum_that_is_wrong(tmp_path: Path, name: str) -> None:
    path = whole(tmp_path / name, compressed=True)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # of the checksum alone
    path.write_bytes(content)
    with pytest.raises(CaseError):
        read_image(path)
