"""Small image files in the real formats, good and broken, for tests of whole cohorts."""

import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from bad_files import unchanged_locale

SHAPE = (6, 8, 10)
PIXDIM, SFORM_CODE, SROW, MAGIC = 76, 254, 280, 344  # byte offsets in a NIfTI-1 header


def image_array(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 300, shape).astype(np.int16)


def label_array(*class_ids: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Ten voxels of each class, in scan order."""
    array = np.zeros(shape, np.uint8)
    for place, class_id in enumerate(class_ids):
        array.reshape(-1)[10 * place : 10 * place + 10] = class_id
    return array


def write(
    path: Path, array: np.ndarray, spacing: tuple[float, ...] = (2.0, 2.0, 5.0), **geometry: tuple
) -> Path:
    """Write an image; spacing, origin and direction in ITK's (x, y, z) order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin(geometry.get("origin", (0.0, 0.0, 0.0)))
        image.SetDirection(geometry.get("direction", (1.0, 0, 0, 0, 1, 0, 0, 0, 1)))
    sitk.WriteImage(image, str(path))
    return path


def write_case(root: Path, case: str, *class_ids: int, seed: int = 0) -> None:
    """A labelled case in the challenge's layout."""
    write(root / "images" / f"{case}_0000.nii.gz", image_array(seed))
    write(root / "labels" / f"{case}.nii.gz", label_array(*class_ids))


def write_dicom(folder: Path, array: np.ndarray, positions: list[float]) -> Path:
    """A DICOM series of one slice a position (mm along z)."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, (plane, position) in enumerate(zip(array, positions, strict=True)):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((2.0, 2.0))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.4.{number + 1}",
            "0020|000d": "1.2.3.5",
            "0020|000e": "1.2.3.6",
            "0020|0013": str(number + 1),
            "0020|0032": f"0\\0\\{position}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number:03d}.dcm"))
        with unchanged_locale():
            writer.Execute(image)
    return folder


def patch(path: Path, offset: int, form: str, *values: float) -> None:
    """Overwrite bytes of an uncompressed file."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(content)


def shear(path: Path) -> None:
    """Tilt the z axis of an uncompressed NIfTI file, as a gantry does."""
    patch(path, SFORM_CODE, "h", 1)
    patch(path, SROW, "12f", -2, 0, 0.5, 0, 0, -2, 0, 0, 0, 0, 5, 0)


@contextmanager
def little_room(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
