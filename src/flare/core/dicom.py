"""DICOM files and series: read by ITK, after all that they claim is held against the files."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from flare.core.geometry import Geometry
from flare.core.headers import (
    BLOCK,
    SNAP,
    BadFileError,
    checked_grid,
    itk_errors,
    read_information,
    read_whole,
    require_held,
)

log = logging.getLogger(__name__)
MOST_PIXELS = 2**24  # a compressed frame of 4096 x 4096 (ours)
FRAME_BYTES = 8  # the least that a compressed frame takes: the header of its item
# DICOM: transfer syntaxes (PS3.5, section 10), value representations by the width
# of their length (section 7.1)
IMPLICIT, BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2"
DEFLATED, COMPRESSED = b"1.2.840.10008.1.2.1.99", (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
UNDEFINED, PIXELS, ITEM, SEQUENCE_END = 2**32 - 1, (0x7FE0, 0x0010), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)


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


def read_dicom(path: Path, case: str) -> tuple[np.ndarray, Geometry]:
    """Read a file of several frames, or a folder with one series.

    Returns:
        `(Z, Y, X)` as DICOM's rescaling has it, and the grid.

    Raises:
        BadFileError: If something is damaged, or a slice missing.
    """
    if path.is_dir():
        return _read_series(path, case)
    return read_whole(_slice(path), case)


def _read_series(folder: Path, case: str) -> tuple[np.ndarray, Geometry]:
    """Voxels and grid of the only DICOM series in a folder, slices in order along their normal.

    Raises:
        BadFileError: If there is not exactly one series, or a slice is damaged, of another size or missing.
    """
    slices: dict[str, sitk.ImageFileReader] = {}
    unread: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if not p.is_dir() and not p.name.startswith(".")):
        try:
            slices[str(path)] = _slice(path)
        except BadFileError as error:
            if path.suffix.lower() == ".dcm" or path.stat().st_size == 0 or is_dicom(path):
                unread[path.name] = str(error)
    if unread:
        name = min(unread)
        raise BadFileError(
            f"has slices that cannot be read: {', '.join(sorted(unread)[:5])} ({unread[name]})"
        )
    ids = {r.GetMetaData("0020|000e") if r.HasMetaDataKey("0020|000e") else "" for r in slices.values()}
    if not ids:
        raise BadFileError("holds no readable DICOM series")
    if len(ids) > 1:
        raise BadFileError(f"holds {len(ids)} DICOM series; give each a folder of its own")
    first = next(iter(slices.values()))
    sizes = {header.GetSize()[:2] for header in slices.values()}
    if len(slices) == 1:
        raise BadFileError("holds one slice; expected at least 2")
    if len(sizes) > 1:
        raise BadFileError(f"has slices of different sizes {sorted(sizes)} (x, y)")
    axes = np.asarray(first.GetDirection()).reshape(len(first.GetSize()), -1)[:3, :2]
    origins = {name: np.asarray(header.GetOrigin()[:3]) for name, header in slices.items()}
    names = sorted(origins, key=lambda name: float(origins[name] @ np.cross(*axes.T)))
    gap, normal = _slice_gap(np.stack([origins[name] for name in names]), case)
    size, spacing = (*first.GetSize()[:2], len(names)), (*first.GetSpacing()[:2], gap)
    directions = np.column_stack([axes, normal])
    geometry = checked_grid(size, spacing, origins[names[0]], directions, directions, case)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    with itk_errors():
        return sitk.GetArrayFromImage(reader.Execute()), geometry


def _slice(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of a file which holds what it claims."""
    content = path.read_bytes()
    syntax, held = _check_elements(content), len(content)
    reader = read_information(path, "GDCMImageIO")
    bits = reader.GetMetaData("0028|0100") if reader.HasMetaDataKey("0028|0100") else ""
    columns, rows, frames = (*reader.GetSize(), 1)[:3]
    if not syntax.startswith(COMPRESSED):
        require_held(columns * rows * frames * (2 if bits == "16" else 1), held)
    elif columns * rows > MOST_PIXELS or frames * FRAME_BYTES > held:
        raise BadFileError(
            f"claims {frames} compressed frames of {columns} x {rows} pixels in {held} bytes; "
            f"expected at most {held // FRAME_BYTES} frames of {MOST_PIXELS} pixels"
        )
    return reader


def _slice_gap(origins: np.ndarray, case: str) -> tuple[float, np.ndarray]:
    """Gap (mm) and direction of slices whose first voxels lie at `(slices, 3)`.

    Raises:
        BadFileError: If gaps are uneven.
    """
    steps = np.diff(origins, axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    gap = float(gaps.mean())
    uneven = float(np.abs(gaps - gap).max())
    if not (gap > 0 and uneven <= SNAP * max(gap, 1.0)):
        raise BadFileError(
            f"has uneven slice gaps, {gaps.min():.4g} to {gaps.max():.4g} mm: slices are missing or doubled"
        )
    if uneven > 1e-5:
        log.warning("case %s: slice gaps are uneven by %.2g mm, snapped", case, uneven)
    whole = steps.sum(axis=0)
    return gap, whole / np.linalg.norm(whole)


def _check_elements(content: bytes) -> bytes:
    """Follow a file from element to element, into sequences: GDCM takes memory for any claimed length.

    Returns:
        How it is written, see `_transfer_syntax`.
    """
    at = 132
    if content[128:132] != b"DICM":
        at = 0  # a bare data set, as old scanners write it, starts with group 8
        if content[:2] != b"\x08\0":
            raise BadFileError("is no DICOM file")
    syntax = _transfer_syntax(content)
    if syntax == DEFLATED:
        raise BadFileError("is a deflated DICOM file; expected one that is not, or with compressed pixels")
    in_pixels = False
    while at + 8 <= len(content):
        is_meta = content[at : at + 2] == b"\x02\0"  # explicit and little-endian in every file
        order: Literal["little", "big"] = "big" if syntax == BIG_ENDIAN and not is_meta else "little"
        tag = tuple(int.from_bytes(content[i : i + 2], order) for i in (at, at + 2))
        kind = b"" if tag[0] == 0xFFFE or (syntax == IMPLICIT and not is_meta) else content[at + 4 : at + 6]
        start, end = (8, 12) if kind in LONG else (6, 8) if kind in SHORT else (4, 8)
        length = int.from_bytes(content[at + start : at + end], order)
        at += end
        if length == UNDEFINED:
            in_pixels = tag == PIXELS
            continue
        if at + length > len(content):
            raise BadFileError(f"is truncated: element {tag[0]:04x},{tag[1]:04x} claims {length} bytes")
        if tag == SEQUENCE_END:
            in_pixels = False
        is_item = tag == ITEM and not in_pixels
        if not is_item and content[at : at + 4] not in (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0"):
            at += length  # else what lies inside is followed, too
    return syntax


def _transfer_syntax(start: bytes) -> bytes:
    """UID of how a DICOM file is written; its element is explicit and little-endian (PS3.10, section 7.1)."""
    found = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", start[:BLOCK], re.DOTALL)
    return found[1] if found else IMPLICIT
