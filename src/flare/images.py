"""Images and label maps from and to disk, with every refusal named. The only module that calls SimpleITK."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# ITK refuses an sform that is off by 1e-6; we check it ourselves and say what is wrong
os.environ.setdefault("ITK_NIFTI_SFORM_PERMISSIVE", "1")

import numpy as np
import SimpleITK as sitk

from flare.errors import CaseError
from flare.files import PARTIAL, atomic
from flare.geometry import Geometry, Volume, orientation_to_ras
from flare.labels import LabelSet

log = logging.getLogger(__name__)
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings name files on the console; ours name cases

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
SNAP = 1e-3  # how far a direction may be from orthonormal (interface: bad input)


def strip_extension(name: str) -> str:
    """A file name less its image extension."""
    return next((name[: -len(e)] for e in EXTENSIONS if name.lower().endswith(e)), name)


def case_id(path: Path) -> str:
    """Id of the case that a path holds: file name less extension less `_0000`; a DICOM folder's name."""
    return strip_extension(Path(path).name).removesuffix("_0000")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its magic number; names say little."""
    if path.name == "DICOMDIR" or path.name.lower().endswith(EXTENSIONS):
        return False
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def find_images(root: Path) -> list[Path]:
    """All images below a path, sorted: files by extension, and folders that hold a DICOM series.

    Args:
        root: One file, a DICOM folder, or a folder to search recursively.
    """
    root = Path(root)
    if root.is_file():
        return [root]
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(d for d in inner if not d.startswith(PARTIAL))
        found = [Path(folder) / n for n in sorted(names) if n.lower().endswith(EXTENSIONS)]
        yield from found
        others = (Path(folder) / n for n in sorted(names) if not n.startswith("."))
        if not found and any(is_dicom(p) for p in others):
            yield Path(folder)


def read_geometry(path: Path, case: str | None = None) -> Geometry:
    """The voxel grid of an image from its header alone; the refusals of `read_image` that a header shows."""
    case = case or case_id(path)
    return _geometry(_header(Path(path), case), Path(path), case)


def read_image(path: Path, case: str | None = None) -> Volume:
    """Read a CT image.

    Args:
        path: .nii, .nii.gz, .nrrd, .mha, or a folder with one DICOM series.
        case: Case id for messages, by default from the path.

    Returns:
        HU, int16 if the file holds integers that fit, else float32.

    Raises:
        CaseError: As interface's table of bad input says; the rest of a cohort can go on.
    """
    path = Path(path)
    case = case or case_id(path)
    geometry = read_geometry(path, case)
    array = sitk.GetArrayFromImage(_read(path, case))
    if tuple(array.shape) != geometry.shape:
        raise CaseError(case, f"{path} holds {array.shape} voxels, its header says {geometry.shape}")
    if np.issubdtype(array.dtype, np.integer):
        lowest, highest = int(array.min()), int(array.max())
        limits = np.iinfo(np.int16)
        fits = limits.min <= lowest and highest <= limits.max
        return Volume(array.astype(np.int16 if fits else np.float32), geometry)
    if not np.isfinite(array).all():
        raise CaseError(case, f"{path} has NaN or infinite values; expected finite HU")
    return Volume(array.astype(np.float32), geometry)


def read_labels(
    path: Path, labels: LabelSet, label_map: Mapping[Any, int] | None = None, case: str | None = None
) -> Volume:
    """Read a label map.

    Args:
        path: As for `read_image`.
        labels: The class list; other values are refused.
        label_map: `data.label_map`: value in the file -> class id, and `rest` -> id of all others.
        case: Case id for messages.

    Returns:
        uint8 class ids.

    Raises:
        CaseError: If values are not integers or not in the class list, or the file is bad.
    """
    path = Path(path)
    case = case or case_id(path)
    volume = read_image(path, case)
    found = _values(volume.array)
    if found.dtype.kind == "f" and (found != np.rint(found)).any():
        broken = found[found != np.rint(found)][:5].tolist()
        raise CaseError(case, f"{path} has label values that are not integers: {broken}")
    table = _lookup(found.astype(int).tolist(), labels, label_map, path, case)
    array = np.zeros(volume.array.shape, np.uint8)
    if volume.array.dtype == np.int16:
        full = np.zeros(1 << 16, np.uint8)
        for value, wanted in table.items():
            full[value] = wanted  # negative values index from the end, as the int16 pattern does
        array = full[volume.array]
    else:
        for value, wanted in table.items():
            if wanted:
                array[volume.array == value] = wanted
    return Volume(array, volume.geometry)


def _values(array: np.ndarray) -> np.ndarray:
    """Distinct values, fast for the common integer case."""
    if array.dtype == np.int16:
        return np.flatnonzero(np.bincount(array.ravel().astype(np.int32) + 32768, minlength=1 << 16)) - 32768
    return np.unique(array)


def _lookup(
    found: list[int], labels: LabelSet, label_map: Mapping[Any, int] | None, path: Path, case: str
) -> dict[int, int]:
    """Class id of each value found, or a refusal naming the values."""
    known = {0, *labels.ids}
    given = {str(k): int(v) for k, v in (label_map or {}).items()}
    table = {}
    for value in found:
        wanted = given.get(str(value), given.get("rest", None if given else value))
        if given and wanted is None and value == 0:
            wanted = 0
        table[value] = -1 if wanted is None else wanted
    bad = sorted(v for v, wanted in table.items() if wanted not in known)
    if bad:
        raise CaseError(
            case,
            f"{path} has label values {bad[:20]} outside the class list {sorted(known)}; "
            "renumber them with data.label_map",
        )
    return table


def match_grid(labels: Volume, image: Volume | Geometry, case: str) -> Volume:
    """Bring a label map to the voxel order of its image, losslessly.

    Args:
        labels: The label map.
        image: The image, or its grid.
        case: Case id for messages.

    Returns:
        The labels in the image's voxel order, with the image's geometry.

    Raises:
        CaseError: If the grids are not the same set of points within 1e-3 mm, with both values.
    """
    geometry = image if isinstance(image, Geometry) else image.geometry
    ours, theirs = orientation_to_ras(labels.geometry), orientation_to_ras(geometry)
    different = theirs.apply_geometry(geometry).differences(ours.apply_geometry(labels.geometry))
    if different:
        raise CaseError(
            case, "image and label have different grids (both in RAS order): " + "; ".join(different)
        )
    return Volume(np.ascontiguousarray(theirs.invert(ours.apply(labels.array))), geometry)


def write_labels(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a label map as compressed uint8 NIfTI, atomically.

    Args:
        path: `<case>.nii.gz`.
        array: `(Z, Y, X)` class ids.
        geometry: The grid it belongs to.
    """
    write_image(path, array.astype(np.uint8), geometry)


def write_image(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write any array of a grid, atomically; the format goes by the extension."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(tuple(float(s) for s in geometry.spacing_mm[::-1]))
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    with atomic(Path(path)) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=str(path).endswith(("gz", "nrrd", "mha")))


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's many, which says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "unknown error"


def _series(folder: Path, case: str) -> list[str]:
    """Files of the only DICOM series in a folder, in order along the slice normal."""
    ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not ids:
        raise CaseError(case, f"{folder} holds no readable DICOM series")
    if len(ids) > 1:
        raise CaseError(case, f"{folder} holds {len(ids)} DICOM series; give each a folder of its own")
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), ids[0]))


def _header(path: Path, case: str) -> sitk.ImageFileReader:
    """A reader that has read the header: of the file, or of a series' first slice."""
    if not path.exists():
        raise CaseError(case, f"{path} does not exist")
    name = _series(path, case)[0] if path.is_dir() else str(path)
    if Path(name).stat().st_size == 0:
        raise CaseError(case, f"{path} is empty")
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise CaseError(case, f"{path} cannot be read: {_reason(error)}") from None
    return reader


def _read(path: Path, case: str) -> sitk.Image:
    try:
        if path.is_dir():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(_series(path, case))
            return reader.Execute()
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise CaseError(case, f"{path} cannot be read: {_reason(error)}") from None


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
    declared = [float(reader.GetMetaData(f"pixdim[{i}]")) for i in (1, 2, 3) if _has(reader, f"pixdim[{i}]")]
    if min(declared + spacing) <= 0 or not np.isfinite(declared + spacing).all():
        raise CaseError(case, f"{path} has spacing {tuple(declared or spacing)} mm; expected more than 0")
    matrix = _orthonormal(_sform(reader), np.asarray(direction).reshape(3, 3), path, case)
    return Geometry(
        shape=tuple(size[::-1]),  # type: ignore[arg-type]
        spacing_mm=tuple(spacing[::-1]),  # type: ignore[arg-type]
        origin_mm=tuple(origin),
        direction=tuple(float(v) for v in matrix.ravel()),
    )


def _has(reader: sitk.ImageFileReader, key: str) -> bool:
    return bool(reader.HasMetaDataKey(key))


def _sform(reader: sitk.ImageFileReader) -> np.ndarray | None:
    """Directions as a NIfTI sform states them, columns normalised; None where there is none."""
    rows = [f"srow_{a}" for a in "xyz"]
    if not all(_has(reader, r) for r in rows) or reader.GetMetaData("sform_code") in ("0", ""):
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
        CaseError: If gaps are uneven or the stack is sheared (gantry tilt).
    """
    positions, normals = [], []
    for name in _series(folder, case):
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise CaseError(case, f"{name} cannot be read: {_reason(error)}") from None
        positions.append(np.asarray(reader.GetOrigin())[:3])
        normals.append(np.asarray(reader.GetDirection()).reshape(3, 3)[:, 2])
    steps = np.diff(np.stack(positions), axis=0)
    if len(steps) == 0:
        raise CaseError(case, f"{folder} holds one slice; expected at least 2")
    gaps = np.linalg.norm(steps, axis=1)
    gap = float(gaps.mean())
    if gap <= 0 or np.abs(gaps - gap).max() > SNAP * max(gap, 1.0):
        raise CaseError(
            case,
            f"{folder} has uneven slice gaps, {gaps.min():.4g} to {gaps.max():.4g} mm: slices are missing "
            "or doubled",
        )
    normal = steps.sum(axis=0) / np.linalg.norm(steps.sum(axis=0))
    tilt = 1 - abs(float(normal @ normals[0]))
    if tilt > SNAP:
        raise CaseError(
            case, f"{folder} is sheared by {np.degrees(np.arccos(1 - tilt)):.2f} degrees: gantry tilt"
        )
    return len(positions), gap, tuple(float(v) for v in positions[0]), normal  # type: ignore[return-value]
