"""Image files with one fault each, made by hand for the tests of reading and of the scripts."""

from __future__ import annotations

import locale
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

# offsets in a NIfTI-1 header: https://nifti.nimh.nih.gov/nifti-1
DIM, DATATYPE, PIXDIM, OFFSET, SLOPE, QFORM_CODE = 40, 70, 76, 108, 112, 252
SFORM_CODE, QUATERNION, SROW = 254, 256, 280


def write_array(
    path: Path,
    array: np.ndarray,
    *,
    spacing_xyz: Sequence[float] | None = None,
    origin: Sequence[float] | None = None,
    direction: Sequence[float] | None = None,
    vector: bool = False,
) -> Path:
    """Write by SimpleITK alone, so that what reads it is tested against another hand."""
    image = sitk.GetImageFromArray(array, isVector=vector)
    if spacing_xyz is not None:
        image.SetSpacing([float(s) for s in spacing_xyz])
    if origin is not None:
        image.SetOrigin([float(o) for o in origin])
    if direction is not None:
        image.SetDirection([float(d) for d in direction])
    sitk.WriteImage(image, str(path), useCompression=path.name.endswith((".gz", ".nrrd", ".mha")))
    return path


def patch_bytes(path: Path, *edits: tuple[int, str, Sequence[float]]) -> Path:
    """Overwrite numbers of an uncompressed file: (offset, struct format, values)."""
    content = bytearray(path.read_bytes())
    for offset, form, values in edits:
        struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)
    return path


def truncate(path: Path, share: float) -> Path:
    """Cut a file after this share of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@contextmanager
def unchanged_locale() -> Iterator[None]:
    """Undo what GDCM does when it writes: it leaves the process in the locale `C`, which reads no UTF-8."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def write_series(
    folder: Path,
    positions: Sequence[Sequence[float]],
    *,
    uid: str | None = None,
    prefix: str = "",
    axes: Sequence[float] = (1, 0, 0, 0, 1, 0),
    shape: tuple[int, int] = (6, 8),
    spacing_xy: tuple[float, float] = (0.8, 0.7),
    **tags: Any,
) -> Path:
    """Write a DICOM series: slice i at `positions[i]` (x, y, z in LPS mm) holds the value 10 i - 100.

    Args:
        folder: Made if need be.
        positions: Of the first voxel of each slice.
        uid: Of the series; by default another one for each name of a folder.
        prefix: Of the file names.
        axes: Directions of rows and columns.
        shape: Rows and columns.
        spacing_xy: Voxel size.
        tags: More tags, `t0028_1052="0"`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or f"1.2.3.{zlib.crc32(folder.name.encode())}"
    row, column = np.array(axes, float).reshape(2, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, position in enumerate(positions):
        image = sitk.GetImageFromArray(np.full((1, *shape), 10 * index - 100, np.int16))
        image.SetSpacing((*spacing_xy, 1.0))
        image.SetOrigin([float(p) for p in position])
        image.SetDirection(np.column_stack([row, column, np.cross(row, column)]).ravel())
        metadata = {
            "0008|0008": "DERIVED\\SECONDARY",
            "0008|0018": f"{uid}.{index + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2.9",
            "0020|000e": uid,
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{a:.8f}" for a in axes),
            "0028|1052": "0",
            "0028|1053": "1",
        } | {k[1:].replace("_", "|"): v for k, v in tags.items()}
        for key, value in metadata.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{prefix}{index:03d}.dcm"))
        with unchanged_locale():
            writer.Execute(image)
    return folder
