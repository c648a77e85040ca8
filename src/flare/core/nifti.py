"""NIfTI files: header by nibabel, voxels from the same stream, and the checks that nibabel lacks.

ITK fills what a truncated file lacks and takes a spacing of 0 for 1, nibabel reads voxels from inside the
header if the offset says so, all without a word.

Reference: https://nifti.nimh.nih.gov/nifti-1, `nifti1.h` and `nifti2.h`.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from flare.core.errors import BadFileError, NoRoomError
from flare.core.files import BLOCK, DEFLATE_RATIO, GZIP, require_held
from flare.core.geometry import SNAP, Geometry, checked_grid, require_scalar

Form = tuple[np.ndarray, np.ndarray]  # directions as columns, and origin, both LPS
KINDS = {348: Nifti1Header, 540: Nifti2Header}  # by the first number of the file
UNITS_MM = {1: 1000.0, 3: 0.001}  # metre and micron; everything else counts as millimetre
TO_LPS = np.diag([-1.0, -1.0, 1.0])
USUAL_RATIO = 16  # CT packs to a half or a quarter; a file that holds more is met by doubling


def is_nifti(path: Path) -> bool:
    """Whether a file is named as NIfTI."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path, case: str) -> tuple[np.ndarray, Geometry]:
    """Voxels `(Z, Y, X)` of the stored type, or float32 where the header scales it, and the grid.

    A truncated file, and a header that contradicts itself or the file, is a `BadFileError`.
    """
    with _opened(path) as stream:
        header = _read_header(stream)
        dtype, offset, slope, intercept = _storage(header)
        geometry = _grid(header, dtype, case)
        claimed = math.prod(geometry.shape) * dtype.itemsize
        buffer = _read_voxels(stream, claimed, offset, path.stat().st_size)
    stored = buffer.view(dtype).reshape(geometry.shape)
    if (slope, intercept) == (1, 0):
        return stored.astype(dtype.newbyteorder("="), copy=False), geometry
    array = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # who calls refuses what is not finite
        for z, plane in enumerate(stored):  # slice by slice: float64 for the sum, not for the volume
            array[z] = plane * np.float64(slope) + intercept
    return array, geometry


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked where its content is gzip, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        try:
            with gzip.open(file) if packed else file as stream:
                yield stream  # type: ignore[misc]
        except EOFError:
            raise BadFileError("is truncated: its compressed stream has no end") from None


def _read_voxels(stream: IO[bytes], claimed: int, offset: int, size: int) -> np.ndarray:
    """The claimed bytes behind an offset, packed or not; memory grows with what a file of a size holds."""
    most = size * DEFLATE_RATIO  # bytes of the unpacked file
    stream.seek(min(offset, most))
    require_held(claimed, most if isinstance(stream, gzip.GzipFile) else size - offset)
    buffer, done = np.empty(min(claimed, size * USUAL_RATIO), np.uint8), 0
    while done < claimed:
        if done == len(buffer):
            buffer.resize(min(claimed, 2 * done), refcheck=False)
        count = stream.readinto(buffer[done : done + BLOCK].data)  # type: ignore[attr-defined]
        if not count:
            raise BadFileError(f"is truncated: {done} of {claimed} bytes of voxels")
        done += count
    stream.read(1)  # the checksum of a gzip file is looked at behind its last byte
    return buffer


def _read_header(stream: IO[bytes]) -> Nifti1Header:
    """The header, its kind and byte order by its first number; not mended by nibabel."""
    first = stream.read(4)
    kinds = {struct.pack(order + "i", n): (kind, order) for n, kind in KINDS.items() for order in "<>"}
    kind, order = kinds.get(first, (None, ""))
    if kind is None:
        raise BadFileError(f"is no NIfTI file, or is truncated: it starts with {first!r}")
    raw = first + stream.read(kind.sizeof_hdr - 4)
    if len(raw) < kind.sizeof_hdr:
        raise BadFileError(f"is truncated: {len(raw)} of {kind.sizeof_hdr} bytes of its header")
    header = kind(raw, endianness=order, check=False)
    if header["magic"].item() != kind.single_magic:
        raise BadFileError(f"is no NIfTI file: its magic number is {header['magic'].item()!r}")
    return header


def _storage(header: Nifti1Header) -> tuple[np.dtype, int, float, float]:
    """Type of a voxel, bytes before the first, factor (0 and NaN mean none) and summand of the values."""
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype(np.void)
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if dtype.itemsize == 0 or (dtype.kind == "f" and dtype.itemsize > 8):
        raise BadFileError(f"has NIfTI datatype {code}; expected numbers of 1 to 8 bytes")
    if bits not in (0, 8 * dtype.itemsize):
        raise BadFileError(f"has bitpix {bits} and NIfTI datatype {code}; expected {8 * dtype.itemsize} bits")
    offset, least = float(header["vox_offset"]), header.single_vox_offset
    if not (math.isfinite(offset) and offset.is_integer() and offset >= least):
        raise BadFileError(f"has vox_offset {offset:g}; expected a whole number of bytes, at least {least}")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        slope, intercept = 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise BadFileError(f"has scl_slope {slope} and scl_inter {intercept}; expected finite numbers")
    return dtype, int(offset), slope, intercept


def _grid(header: Nifti1Header, dtype: np.dtype, case: str) -> Geometry:
    """The voxel grid, by ITK's choice of form.

    The sform counts where it is the only one or that of the scanner, else the qform; without either, axes
    are the patient's and the first voxel is at 0.
    """
    dim = [int(n) for n in header["dim"]]
    size = dim[1 : dim[0] + 1]
    if not 1 <= dim[0] <= 7 or min(size) < 1:
        raise BadFileError(f"has size {tuple(size)}; expected at least 1 voxel an axis")
    require_scalar({"c": 2, "V": len(dtype.names or "")}.get(dtype.kind, 1) * math.prod(size[4:]))
    size = size[:3] if size[3:4] == [1] else size[:4]
    unit = UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    qform, sform = _qform(header), _sform(header)
    chosen = sform if qform is None or header["sform_code"] == 1 else qform
    directions, origin = chosen or qform or (np.eye(3), np.zeros(3))
    spacing = [float(s) * unit for s in header["pixdim"][1:4]]
    stated = sform[0] if sform else directions
    return checked_grid(size, spacing, origin * unit, directions, stated, case)


def _sform(header: Nifti1Header) -> Form | None:
    """Directions and origin of the sform; None where there is none."""
    if header["sform_code"] <= 0:
        return None
    affine = header.get_sform().astype(float)
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (norms > 0).all()):
        raise BadFileError(f"has an sform that is not finite, or has no length: {affine[:3].tolist()}")
    return TO_LPS @ (affine[:3, :3] / norms), TO_LPS @ affine[:3, 3]


def _qform(header: Nifti1Header) -> Form | None:
    """Directions and origin of the qform; None where there is none."""
    if header["qform_code"] <= 0:
        return None
    vector = np.array([header[f"quatern_{a}"] for a in "bcd"], float)
    origin = np.array([header[f"qoffset_{a}"] for a in "xyz"], float)
    square = float(vector @ vector)
    if not (np.isfinite(origin).all() and square <= 1 + SNAP):
        raise BadFileError(f"has a qform that is not finite or no rotation: {[*vector, *origin]}")
    rotation = quat2mat([math.sqrt(max(0.0, 1 - square)), *vector])
    rotation[:, 2] *= -1 if header["pixdim"][0] < 0 else 1
    return TO_LPS @ rotation, TO_LPS @ origin


def require_whole(path: Path, voxel_bytes: int) -> None:
    """Refuse a NIfTI-1 file that was just written if it lacks voxels: ITK does not notice a full disk."""
    size = path.stat().st_size
    if path.name.endswith(".gz"):
        with path.open("rb") as stream:
            stream.seek(-min(size, 4), os.SEEK_END)
            size = int.from_bytes(stream.read(), "little")  # a gzip file ends with its unpacked size
    if (size - Nifti1Header.single_vox_offset - voxel_bytes) % 2**32:
        raise NoRoomError(f"{path.name} cannot be written whole: is the disk full?")
