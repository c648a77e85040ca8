"""Images and label maps from and to disk, every refusal named; with `headers.py` all that uses SimpleITK."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from flare.errors import CaseError
from flare.files import PARTIAL, atomic
from flare.geometry import Geometry, Volume, orientation_to_ras
from flare.headers import read_geometry, reason, series_files
from flare.labels import LabelSet

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")


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


def _read(path: Path, case: str) -> sitk.Image:
    try:
        if path.is_dir():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(series_files(path, case))
            return reader.Execute()
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise CaseError(case, f"{path} cannot be read: {reason(error)}") from None
