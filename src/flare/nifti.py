"""NIfTI files read byte by byte.

ITK fills what a truncated file lacks, turns NaN into 0 and a spacing of 0 into 1, all without a word.

Reference: https://nifti.nimh.nih.gov/nifti-1, `nifti1.h` and `nifti2.h`.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from flare.errors import CaseError, NoRoomError

TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
# struct formats and offsets of: dim, datatype, pixdim, vox_offset, scl_slope and scl_inter,
# qform_code and sform_code, quaternion with offsets, sform
FIELDS = {
    348: (("8h", 40), ("h", 70), ("8f", 76), ("f", 108), ("2f", 112), ("2h", 252), ("6f", 256), ("12f", 280)),
    540: (
        ("8q", 16),
        ("h", 12),
        ("8d", 104),
        ("q", 168),
        ("2d", 176),
        ("2i", 344),
        ("6d", 352),
        ("12d", 400),
    ),
}
MAGICS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}
HEADER_BYTES = 352  # of NIfTI-1, as ITK writes it
DEFLATE_LIMIT = 1032  # no byte of a gzip file holds more


@dataclass(frozen=True)
class Header:
    """What is needed to read the voxels.

    Args:
        order: Byte order, `<` or `>`.
        size: Voxels along x, y, z and what else there is.
        datatype: NIfTI's code of the voxel type.
        offset: Bytes before the first voxel.
        slope: Factor of the stored values; 0 or not finite: none.
        intercept: What is added to them.
    """

    order: str
    size: tuple[int, ...]
    datatype: int
    offset: int
    slope: float
    intercept: float


def is_nifti(path: Path) -> bool:
    """Whether a file is named as NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_header(path: Path, case: str) -> Header:
    """Read a header and check the numbers that ITK would mend in silence.

    Raises:
        CaseError: If it is no NIfTI file, or spacing, position or directions are no proper numbers.
    """
    with _opened(path, case) as stream:
        raw = stream.read(540)
    length = next((n for n in FIELDS if raw[:4] in (struct.pack("<i", n), struct.pack(">i", n))), None)
    if length is None or len(raw) < length:
        raise CaseError(case, f"{path} is no NIfTI file, or its header is truncated")
    where, magic = MAGICS[length]
    if raw[where : where + len(magic)] != magic:
        raise CaseError(case, f"{path} is no NIfTI file: its magic number is {raw[where : where + 4]!r}")
    order = "<" if raw[:4] == struct.pack("<i", length) else ">"
    dim, (datatype,), pixdim, (offset,), (slope, intercept), codes, qform, sform = (
        struct.unpack_from(order + form, raw, at) for form, at in FIELDS[length]
    )
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise CaseError(
            case, f"{path} has size {dim[1 : max(dim[0], 0) + 1]}; expected at least 1 voxel an axis"
        )
    spacing = pixdim[1 : min(dim[0], 3) + 1]
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise CaseError(case, f"{path} has spacing {spacing} mm (x, y, z); expected more than 0")
    for name, code, numbers in zip(("qform", "sform"), codes, (qform, sform), strict=True):
        if code > 0 and not np.isfinite(numbers).all():
            raise CaseError(case, f"{path} has a {name} that is not finite: {numbers}")
    return Header(order, tuple(dim[1 : dim[0] + 1]), datatype, int(offset), slope, intercept)


def read_voxels(path: Path, case: str) -> np.ndarray:
    """Read all voxels, exactly as many as the header promises.

    Returns:
        `(Z, Y, X)`; the stored type, or float32 where the header scales it.

    Raises:
        CaseError: If the file is truncated or damaged, or holds a type that is no plain number.
    """
    header = read_header(path, case)
    if header.datatype not in TYPES:
        raise CaseError(case, f"{path} has NIfTI datatype {header.datatype}; expected one of {list(TYPES)}")
    dtype = np.dtype(header.order + TYPES[header.datatype])
    wanted = math.prod(header.size) * dtype.itemsize
    if wanted > path.stat().st_size * DEFLATE_LIMIT:
        raise CaseError(
            case, f"{path} is truncated: it cannot hold the {wanted} bytes of {header.size} voxels"
        )
    buffer = np.empty(wanted, np.uint8)
    with _opened(path, case) as stream:
        stream.read(header.offset)
        got = _fill(stream, buffer.data)
        if got < wanted:
            raise CaseError(case, f"{path} is truncated: {got} of {wanted} bytes of voxels")
        stream.read(1)  # the checksum of a gzip file is looked at behind its last byte
    stored = buffer.view(dtype).reshape(header.size[2::-1])
    scaled = math.isfinite(header.slope) and header.slope != 0 and (header.slope, header.intercept) != (1, 0)
    if not scaled:
        return stored.astype(dtype.newbyteorder("="), copy=False)
    array = np.empty(stored.shape, np.float32)
    for z, plane in enumerate(stored):  # slice by slice: float64 for the sum, not for the volume
        array[z] = plane * np.float64(header.slope) + header.intercept
    return array


def require_whole(path: Path, voxel_bytes: int) -> None:
    """Refuse a file that was just written if it lacks voxels: ITK does not notice a full disk.

    Args:
        path: NIfTI-1, packed or not.
        voxel_bytes: Size of the voxels.

    Raises:
        NoRoomError: If it is too short.
    """
    size = path.stat().st_size
    if path.name.endswith(".gz"):
        with path.open("rb") as stream:
            stream.seek(-min(size, 4), os.SEEK_END)
            size = int.from_bytes(stream.read(), "little")  # a gzip file ends with its unpacked size
    if (size - HEADER_BYTES - voxel_bytes) % 2**32:
        raise NoRoomError(f"{path.name} cannot be written whole: is the disk full?")


@contextmanager
def _opened(path: Path, case: str) -> Iterator[IO[bytes]]:
    """The file's content, unpacked where it is packed, whatever its name says."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                yield file
                return
            with gzip.open(file) as stream:
                yield stream  # type: ignore[misc]
    except EOFError:
        raise CaseError(case, f"{path} is truncated: its gzip stream has no end") from None
    except (OSError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the system's: access, a path that is gone, a device; what the file holds has no number
        raise CaseError(case, f"{path} cannot be read: {error}") from None


def _fill(stream: IO[bytes], view: memoryview) -> int:
    """Read into a buffer until it is full or the stream ends; the number of bytes read."""
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done
