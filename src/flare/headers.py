"""Voxel grids from the headers of image files and DICOM series, and what is refused about them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

# ITK refuses an sform that is off by 1e-6; we check it ourselves and say what is wrong
os.environ.setdefault("ITK_NIFTI_SFORM_PERMISSIVE", "1")

import numpy as np
import SimpleITK as sitk

from flare import nifti
from flare.errors import AwayError, CaseError
from flare.geometry import Geometry

log = logging.getLogger(__name__)
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings name files on the console; ours name cases

SNAP = 1e-3  # how far a direction may be from orthonormal (interface: bad input)


def read_geometry(path: Path, case: str) -> Geometry:
    """The voxel grid of an image from its header alone.

    Args:
        path: An image file or a folder with one DICOM series.
        case: Case id for messages.

    Raises:
        CaseError: For everything in interface's table of bad input that a header shows.
    """
    return _geometry(_header(path, case), path, case)


def reason(error: RuntimeError) -> str:
    """The one line of ITK's many that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # where in ITK it was raised, and a stale errno
    lines = [line for line in lines if not line.startswith(("Exception thrown", "Reason:"))]
    telling = [line for line in lines if "ERROR" in line or line.startswith("[nrrd]")]
    return (telling[-1:] + lines + ["unknown error"])[0][:200]


def series_files(folder: Path, case: str) -> list[str]:
    """Files of the only DICOM series in a folder, in order along the slice normal.

    Raises:
        CaseError: If there is not exactly one series, or a slice that GDCM would leave out without a word.
    """
    ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not ids:
        _require_access(p for p in folder.iterdir() if _is_slice(p))
        raise CaseError(case, f"{folder} holds no readable DICOM series")
    if len(ids) > 1:
        raise CaseError(case, f"{folder} holds {len(ids)} DICOM series; give each a folder of its own")
    names = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), ids[0]))
    unread = {p.name for p in folder.iterdir() if _is_slice(p)} - {Path(n).name for n in names}
    if unread:
        _require_access(folder / name for name in sorted(unread))
        raise CaseError(case, f"{folder} has slices that cannot be read: {', '.join(sorted(unread)[:5])}")
    return names


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM slice, by its magic number; names say little."""
    if path.name == "DICOMDIR":
        return False
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody can say that it is none, and what is left out is missed by nobody


def unreadable(path: Path, case: str, error: RuntimeError) -> CaseError | MemoryError:
    """What an error of ITK says: memory that ran out is no fault of the file."""
    if any(said in str(error) for said in ("bad_alloc", "allocate memory")):
        return MemoryError(f"{path}: {reason(error)}")
    return CaseError(case, f"{path} cannot be read: {reason(error)}")


def _require_access(paths: Iterable[Path]) -> None:
    """Let the system's own error out, if it is why ITK read nothing."""
    for path in paths:
        with path.open("rb"):
            pass


def _is_slice(path: Path) -> bool:
    """Whether a file of a DICOM folder is meant as a slice, be it damaged."""
    if path.is_dir() or path.name.startswith("."):
        return False
    is_gone = not path.exists()  # a link to what is away
    return path.suffix.lower() == ".dcm" or is_gone or path.stat().st_size == 0 or is_dicom(path)


def _header(path: Path, case: str) -> sitk.ImageFileReader:
    """A reader that has read the header: of the file, or of a series' first slice."""
    if not path.exists():
        raise AwayError(case, f"{path} does not exist")
    name = series_files(path, case)[0] if path.is_dir() else str(path)
    _require_access([Path(name)])
    if Path(name).stat().st_size == 0:
        raise CaseError(case, f"{path} is empty")
    if nifti.is_nifti(path):
        nifti.read_header(path, case)
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, case, error) from None
    return reader


def _geometry(reader: sitk.ImageFileReader, path: Path, case: str) -> Geometry:
    """Grid from a header, after all checks of it."""
    size, spacing = list(reader.GetSize()), list(reader.GetSpacing())
    origin, direction = reader.GetOrigin(), reader.GetDirection()
    if path.is_dir():
        count, gap, origin, normal = _slice_positions(path, case)
        size, spacing = [*size[:2], count], [*spacing[:2], gap]
        first = np.asarray(direction).reshape(len(reader.GetSize()), -1)[:3, :2]
        direction = tuple(np.column_stack([first, normal]).ravel())
    if reader.GetNumberOfComponents() != 1:
        raise CaseError(case, f"{path} has {reader.GetNumberOfComponents()} components a voxel; expected 1")
    if len(size) != 3:
        raise CaseError(case, f"{path} has {len(size)} dimensions {tuple(size)}; expected a 3D image")
    if min(size) < 2:
        raise CaseError(
            case, f"{path} has {tuple(size)} voxels (x, y, z); expected at least 2 along each axis"
        )
    if min(spacing) <= 0 or not np.isfinite(spacing).all():
        raise CaseError(case, f"{path} has spacing {tuple(spacing)} mm (x, y, z); expected more than 0")
    if not np.isfinite(origin).all():
        raise CaseError(case, f"{path} has origin {tuple(origin)} mm (x, y, z); expected finite numbers")
    matrix = _orthonormal(_sform(reader), np.asarray(direction).reshape(3, 3), path, case)
    return Geometry(
        shape=tuple(size[::-1]),
        spacing_mm=tuple(spacing[::-1]),
        origin_mm=tuple(origin),
        direction=tuple(float(v) for v in matrix.ravel()),
    )


def _sform(reader: sitk.ImageFileReader) -> np.ndarray | None:
    """Directions as a NIfTI sform states them, columns normalised; None where there is none."""
    rows = [f"srow_{a}" for a in "xyz"]
    if not all(reader.HasMetaDataKey(r) for r in rows) or reader.GetMetaData("sform_code") in ("0", ""):
        return None
    matrix = np.array([[float(v) for v in reader.GetMetaData(r).split()[:3]] for r in rows])
    norms = np.linalg.norm(matrix, axis=0)
    return matrix / norms if (norms > 0).all() else None


def _orthonormal(stated: np.ndarray | None, read: np.ndarray, path: Path, case: str) -> np.ndarray:
    """The directions as read, after a check of how orthonormal the stated ones are."""
    matrix = read if stated is None else stated
    error = float(np.abs(matrix.T @ matrix - np.eye(3)).max())
    if not error <= SNAP:
        raise CaseError(
            case,
            f"{path} has directions that are not orthonormal (off by {error:.4g}, at most {SNAP:g}): "
            "gantry tilt or shear; resample it to a regular grid first",
        )
    if error > 1e-5:
        log.warning("case %s: directions are off orthonormal by %.2g, snapped", case, error)
    u, _, vt = np.linalg.svd(read)
    return read if np.abs(read.T @ read - np.eye(3)).max() < 1e-6 else u @ vt


def _slice_positions(folder: Path, case: str) -> tuple[int, float, tuple[float, float, float], np.ndarray]:
    """Slice count, gap (mm), first origin and slice direction of a DICOM series.

    Raises:
        CaseError: If sizes differ or gaps are uneven.
    """
    positions, sizes = [], set()
    for name in series_files(folder, case):
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise unreadable(Path(name), case, error) from None
        positions.append(np.asarray(reader.GetOrigin())[:3])
        sizes.add(reader.GetSize()[:2])
    if len(positions) == 1:
        raise CaseError(case, f"{folder} holds one slice; expected at least 2")
    if len(sizes) > 1:
        raise CaseError(case, f"{folder} has slices of different sizes {sorted(sizes)} (x, y)")
    steps = np.diff(np.stack(positions), axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    gap = float(gaps.mean())
    uneven = float(np.abs(gaps - gap).max())
    if gap <= 0 or uneven > SNAP * max(gap, 1.0):
        raise CaseError(
            case,
            f"{folder} has uneven slice gaps, {gaps.min():.4g} to {gaps.max():.4g} mm: slices are missing "
            "or doubled",
        )
    if uneven > 1e-5:
        log.warning("case %s: slice gaps are uneven by %.2g mm, snapped", case, uneven)
    x, y, z = (float(v) for v in positions[0])
    return len(positions), gap, (x, y, z), steps.sum(axis=0) / np.linalg.norm(steps.sum(axis=0))
