"""NIfTI files: header by nibabel, voxels from the same stream, the checks that it lacks, and the way back.

ITK fills truncated files and takes spacing 0 for 1, nibabel reads voxels from a header, all without a word.

Reference: https://nifti.nimh.nih.gov/nifti-1, `nifti1.h` and `nifti2.h`.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from flare.core.checks import Checks, current_checks
from flare.core.errors import BadFileError
from flare.core.files import BLOCK, DAMAGED, DEFLATE_RATIO, GZIP, require_held, require_no_bomb
from flare.core.geometry import SNAP, Geometry, checked_grid, require_scalar

try:  # several times as fast, where it is installed (`flare[gzip]`)
    from isal.igzip import IGzipFile as GzipFile
    from isal.isal_zlib import error as DamageError
except ImportError:
    GzipFile, DamageError = gzip.GzipFile, zlib.error

Form = tuple[np.ndarray, np.ndarray]  # directions as columns, and origin, both LPS
KINDS = {348: Nifti1Header, 540: Nifti2Header}  # by the first number of the file
UNITS_MM = {1: ("metre", 1000.0), 3: ("micron", 0.001)}  # everything else counts as millimetre
# where the voxels lie; a file that is written has them as the file that gave the grid
FORM_FIELDS = ("pixdim", "xyzt_units", "qform_code", "sform_code", *(f"quatern_{a}" for a in "bcd"))
FORM_FIELDS += (*(f"qoffset_{a}" for a in "xyz"), *(f"srow_{a}" for a in "xyz"))
GZIP_LEVEL = 1  # more saves little of a label map and takes several times as long (ours)
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
        # a wrong size or type leaves a plane of voxels and more, what is less is padding; the checksum of a
        # gzip file is looked at behind its last byte
        least = claimed // max(geometry.shape)
        if len(stream.read(least)) == least:
            current_checks().tell_more(case)
            while stream.read(BLOCK):
                pass
    stored = buffer.view(dtype).reshape(geometry.shape)
    if (slope, intercept) == (1, 0):
        return stored.astype(dtype.newbyteorder("="), copy=False), geometry
    array = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # who calls refuses what is not finite
        for z, plane in enumerate(stored):  # slice by slice: float64 for the sum, not for the volume
            array[z] = plane * np.float64(slope) + intercept
    return array, geometry


def nifti_grid(path: Path, case: str) -> Geometry:
    """The grid that a header states, after the same checks of it; no voxel is read."""
    with _opened(path, gzip.GzipFile) as stream:  # isal would unpack more than is asked for
        header = _read_header(stream)
        dtype, offset, *_ = _storage(header)
        geometry = _grid(header, dtype, case)
        require_held(math.prod(geometry.shape) * dtype.itemsize, _most(stream, offset, path.stat().st_size))
        return geometry


@contextmanager
def _opened(path: Path, unpacker: type[gzip.GzipFile] | None = None) -> Iterator[IO[bytes]]:
    """Open a file, unpacked where its content is gzip, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        try:
            with (unpacker or GzipFile)(fileobj=file, mode="rb") if packed else file as stream:
                yield stream  # type: ignore[misc]
        except EOFError:
            raise BadFileError("is truncated: its compressed stream has no end") from None
        except (DamageError, zlib.error, gzip.BadGzipFile) as error:
            raise BadFileError(DAMAGED) from error


def _read_voxels(stream: IO[bytes], claimed: int, offset: int, size: int) -> np.ndarray:
    """The claimed bytes behind an offset, packed or not; memory grows with what a file of a size holds."""
    stream.seek(min(offset, size * DEFLATE_RATIO))
    require_held(claimed, _most(stream, offset, size))
    if isinstance(stream, gzip.GzipFile):
        require_no_bomb(claimed, size)
    buffer, done = np.empty(min(claimed, size * USUAL_RATIO), np.uint8), 0
    while done < claimed:
        if done == len(buffer):
            buffer.resize(min(claimed, 2 * done), refcheck=False)
        count = stream.readinto(buffer[done : done + BLOCK].data)  # type: ignore[attr-defined]
        if not count:
            raise BadFileError(f"is truncated: {done} of {claimed} bytes of voxels")
        done += count
    return buffer


def _most(stream: IO[bytes], offset: int, size: int) -> int:
    """The most bytes of voxels behind an offset that a file of a size holds, packed or not."""
    return size * DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else size - offset


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
    """The voxel grid: by the sform, else by the qform, which must agree where both are given.

    Without either, axes are the patient's and the first voxel is at 0, if the checks let it pass.
    """
    dim = [int(n) for n in header["dim"]]
    size = dim[1 : dim[0] + 1]
    if not 1 <= dim[0] <= 7 or min(size) < 1:
        raise BadFileError(f"has size {tuple(size)}; expected at least 1 voxel an axis")
    require_scalar({"c": 2, "V": len(dtype.names or "")}.get(dtype.kind, 1) * math.prod(size[4:]))
    size = size[:3] if size[3:4] == [1] else size[:4]
    checks, spacing = current_checks(), [float(s) for s in header["pixdim"][1:4]]
    name, unit = UNITS_MM.get(int(header["xyzt_units"]) & 7, ("millimetre", 1.0))
    if len(size) == 3:
        unit = checks.unit_mm(unit, name, size, spacing, case)
    spacing = [s * unit for s in spacing]
    sform, qform = _sform(header, unit), _qform(header, unit)
    if sform is None and qform is None:
        problem = "does not state its directions: sform_code and qform_code are 0"
        checks.judge("direction", case, problem, "x runs to the left, y to the back, z to the head")
    directions, origin, norms = sform or (*(qform or (np.eye(3), np.zeros(3))), None)
    forms = tuple(float(number) for field in FORM_FIELDS for number in np.ravel(header[field]))
    grid = replace(checked_grid(size, spacing, origin, directions, case), forms=forms)
    return grid if norms is None else _agreed(grid, norms, qform, checks, case)


def _agreed(grid: Geometry, norms: np.ndarray, qform: Form | None, checks: Checks, case: str) -> Geometry:
    """A grid of the sform's place and pixdim's spacing, held against the sform's spacing and the qform."""
    by_sform = replace(grid, spacing_mm=tuple(norms[::-1].tolist()))
    other = grid
    if qform is not None:
        directions, origin = qform
        # quaternions in single precision lose digits where a rotation is near half a turn
        turned = np.abs(directions - grid.matrix).max() > SNAP
        own = tuple(directions.ravel().tolist()) if turned else grid.direction
        other = replace(grid, origin_mm=tuple(origin.tolist()), direction=own)
    found = by_sform.differences(other, checks.tolerance_mm)
    if not found:
        return grid
    names = "an sform and a pixdim" if qform is None else "an sform and a qform with pixdim"
    checks.judge("forms", case, f"has {names} that differ: {'; '.join(found)}", "the sform counts")
    return by_sform


def _sform(header: Nifti1Header, unit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Directions, origin and voxel size (mm) of the sform; None where there is none."""
    if header["sform_code"] <= 0:
        return None
    affine = header.get_sform().astype(float)
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and (norms > 0).all()):
        raise BadFileError(f"has an sform that is not finite, or has no length: {affine[:3].tolist()}")
    return TO_LPS @ (affine[:3, :3] / norms), TO_LPS @ affine[:3, 3] * unit, norms * unit


def _qform(header: Nifti1Header, unit: float) -> Form | None:
    """Directions and origin (mm) of the qform; None where there is none."""
    if header["qform_code"] <= 0:
        return None
    vector = np.array([header[f"quatern_{a}"] for a in "bcd"], float)
    origin = np.array([header[f"qoffset_{a}"] for a in "xyz"], float)
    square = float(vector @ vector)
    if not (np.isfinite(origin).all() and square <= 1 + SNAP):
        raise BadFileError(f"has a qform that is not finite or no rotation: {[*vector, *origin]}")
    rotation = quat2mat([math.sqrt(max(0.0, 1 - square)), *vector])
    rotation[:, 2] *= -1 if header["pixdim"][0] < 0 else 1
    return TO_LPS @ rotation, TO_LPS @ origin * unit


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write `(Z, Y, X)` as NIfTI-1, packed if it is named so; both forms are those of the grid's file."""
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape[::-1])
    header["vox_offset"], header["scl_slope"] = Nifti1Header.single_vox_offset, 1
    if geometry.forms:
        numbers = iter(geometry.forms)
        for name in FORM_FIELDS:
            field = header[name]
            header[name] = np.reshape([next(numbers) for _ in range(field.size)], field.shape)
    else:
        affine = np.eye(4)
        affine[:3, :3] = TO_LPS @ geometry.matrix * geometry.spacing_mm[::-1]
        affine[:3, 3] = TO_LPS @ geometry.origin_mm
        header.set_qform(affine, 1)
        header.set_sform(affine, 1)
        header["pixdim"][1:4] = geometry.spacing_mm[::-1]
        header.set_xyzt_units("mm")
    with path.open("wb") as file:
        packed = path.name.lower().endswith(".gz")
        # no time in it: the same array gives the same bytes
        stream = GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) if packed else file
        with stream:
            stream.write(header.binaryblock + bytes(4))  # no extension follows
            stream.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
