"""Whether a file holds what its header claims, found before memory is taken on the header's word."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import SimpleITK as sitk

from flare.core.geometry import Geometry

DEFLATE_RATIO = 1032  # the most that a byte of a deflated stream holds: https://zlib.net/zlib_tech.html
USUAL_RATIO = 16  # CT packs to a half or a quarter; a file that holds more is met by doubling
BLOCK = 1 << 16  # bytes
GZIP = b"\x1f\x8b"


class BadFileError(ValueError):
    """What is wrong with a file, to be read behind its path; `read_image` adds the path and the case."""


def require_held(claimed: int, held: int) -> None:
    """Refuse a header that claims more bytes of voxels than the file can hold."""
    if claimed > held:
        raise BadFileError(
            f"is truncated or its header is damaged: it claims {claimed} bytes of voxels, "
            f"the file holds at most {max(held, 0)}"
        )


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked where its content is gzip, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        try:
            with gzip.open(file) if packed else file as stream:
                yield stream  # type: ignore[misc]
        except EOFError:
            raise BadFileError("is truncated: its compressed stream has no end") from None


def skip(stream: IO[bytes], count: int) -> None:
    """Pass over bytes, or to the end of the stream."""
    while count > 0 and (block := stream.read(min(BLOCK, count))):
        count -= len(block)


def read_voxels(stream: IO[bytes], claimed: int, offset: int, size: int) -> np.ndarray:
    """Read voxels, packed or not; memory grows with what is there, not with what is claimed.

    Args:
        stream: From `opened`, at the first voxel.
        claimed: Bytes to read.
        offset: Bytes of the unpacked file before the first voxel.
        size: Bytes of the file.

    Raises:
        BadFileError: If the file holds fewer.
    """
    require_held(claimed, size * DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else size - offset)
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


log = logging.getLogger(__name__)

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings name files on the console; ours name cases

MOST_VOXELS = 2**31  # 2,048 slices of 1024 x 1024 (ours)
MOST_LITRES = 3000  # 1 m x 1 m x 3 m (ours): a wrong unit asks for petabytes when it is resampled
SNAP = 1e-3  # how far a direction may be from orthonormal (interface: bad input)


def read_information(path: Path, kind: str) -> sitk.ImageFileReader:
    """A reader of ITK's that has read the header of a file of scalars.

    Args:
        path: The file.
        kind: ITK's name of the format; ITK would try all of them.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    with itk_errors():
        reader.ReadImageInformation()
        require_scalar(reader.GetNumberOfComponents())
    return reader


def read_whole(reader: sitk.ImageFileReader, case: str) -> tuple[np.ndarray, Geometry]:
    """Voxels `(Z, Y, X)` and grid of a 3D file, whose header ITK has read and the file can hold."""
    size, spacing, origin = reader.GetSize(), reader.GetSpacing(), reader.GetOrigin()
    require_3d(size)
    directions = np.asarray(reader.GetDirection()).reshape(3, 3)
    geometry = checked_grid(size, spacing, origin, directions, directions, case)
    with itk_errors():
        return sitk.GetArrayFromImage(reader.Execute()), geometry


@contextmanager
def itk_errors() -> Iterator[None]:
    """Turn what ITK raises while the block reads a file into a refusal.

    Raises:
        MemoryError: If memory ran out, which is no fault of the file.
    """
    try:
        yield
    except RuntimeError as error:
        if any(said in str(error) for said in ("bad_alloc", "allocate memory")):
            raise MemoryError(_reason(error)) from None
        raise BadFileError(f"cannot be read: {_reason(error)}") from None


def _reason(error: RuntimeError) -> str:
    """The one line of ITK's many that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # where in ITK it was raised, and a stale errno
    lines = [line for line in lines if not line.startswith(("Exception thrown", "Reason:"))]
    telling = [line for line in lines if "ERROR" in line or line.startswith("[nrrd]")]
    return (telling[-1:] + lines + ["unknown error"])[0][:200]


def require_scalar(components: int) -> None:
    """Refuse voxels of several numbers: colours, vectors, complex numbers."""
    if components != 1:
        raise BadFileError(f"has {components} components a voxel; expected 1")


def require_3d(size: Sequence[int]) -> None:
    """Refuse an image of another number of dimensions."""
    if len(size) != 3:
        raise BadFileError(f"has {len(size)} dimensions {tuple(size)}; expected a 3D image")


def checked_grid(
    size: Sequence[int],
    spacing: Sequence[float],
    origin: Sequence[float] | np.ndarray,
    directions: np.ndarray,
    stated: np.ndarray,
    case: str,
) -> Geometry:
    """The grid of a header of any format, after all checks of it.

    Args:
        size: Voxels along x, y, z.
        spacing: Voxel size in mm along x, y, z.
        origin: Centre of the first voxel in mm, LPS.
        directions: `(3, 3)`, columns the directions of x, y, z in LPS.
        stated: Directions as the header states them, which must be orthonormal.
        case: Case id, for a warning.

    Raises:
        BadFileError: If it is no grid of a 3D image, or of one too large to be a CT.
    """
    if min(size) < 2:
        raise BadFileError(f"has {tuple(size)} voxels (x, y, z); expected at least 2 along each axis")
    if min(spacing) <= 0 or not np.isfinite(spacing).all():
        raise BadFileError(f"has spacing {tuple(spacing)} mm (x, y, z); expected more than 0")
    if not np.isfinite(origin).all():
        raise BadFileError(f"has origin {tuple(origin)} mm (x, y, z); expected finite numbers")
    if math.prod(size) > MOST_VOXELS or math.prod(size) * math.prod(spacing) > MOST_LITRES * 1e6:
        raise BadFileError(
            f"has {tuple(size)} voxels of {tuple(spacing)} mm (x, y, z); expected at most {MOST_VOXELS} "
            f"voxels and {MOST_LITRES} litres"
        )
    x, y, z = (float(v) for v in origin)
    return Geometry(
        shape=tuple(size[::-1]),  # type: ignore[arg-type]
        spacing_mm=tuple(spacing[::-1]),  # type: ignore[arg-type]
        origin_mm=(x, y, z),
        direction=tuple(float(v) for v in _orthonormal(stated, directions, case).ravel()),
    )


def _orthonormal(stated: np.ndarray, read: np.ndarray, case: str) -> np.ndarray:
    """The directions as read, after a check of how orthonormal the stated ones are."""
    error = float(np.abs(stated.T @ stated - np.eye(3)).max())
    if not error <= SNAP:
        raise BadFileError(
            f"has directions that are not orthonormal (off by {error:.4g}, at most {SNAP:g}): "
            "gantry tilt or shear; resample it to a regular grid first"
        )
    if error > 1e-5:
        log.warning("case %s: directions are off orthonormal by %.2g, snapped", case, error)
    u, _, vt = np.linalg.svd(read)
    return read + 0.0 if np.abs(read.T @ read - np.eye(3)).max() < 1e-6 else u @ vt
