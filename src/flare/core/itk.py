"""DICOM, NRRD and MetaImage: read by ITK, after all that their headers claim is held against the files."""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import SimpleITK as sitk

from flare.core.errors import BadFileError
from flare.core.files import BLOCK, DEFLATE_RATIO, GZIP, require_held
from flare.core.geometry import SNAP, Geometry, checked_grid, require_scalar

log = logging.getLogger(__name__)
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings name files on the console; ours name cases

KINDS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
HEADER_BYTES = 1 << 20  # at most (ours)
MOST_PIXELS = 2**24  # a compressed frame of 4096 x 4096 (ours)
FRAME_BYTES = 8  # the least that a compressed frame takes: the header of its item
# DICOM: transfer syntaxes (PS3.5, section 10), value representations by the width
# of their length (section 7.1)
IMPLICIT, BIG_ENDIAN = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2"
DEFLATED, COMPRESSED = b"1.2.840.10008.1.2.1.99", (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
UNDEFINED, PIXELS, ITEM, SEQUENCE_END = 2**32 - 1, (0x7FE0, 0x0010), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)


def read_nrrd(path: Path, case: str) -> tuple[np.ndarray, Geometry]:
    """Voxels `(Z, Y, X)` as stored, and the grid; a damaged file, or another kind, is a `BadFileError`."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise BadFileError("is of an unknown format; expected .nii, .nii.gz, .nrrd, .mha or DICOM")
    with path.open("rb") as stream:
        fields = _text_fields(stream)
        # ITK ends the process at another number of dimensions
        if re.fullmatch("[1-9]", dimensions := fields.get("ndims", "3")) is None:
            raise BadFileError(f"has NDims {dimensions[:20]}; expected a 3D image")
        if {"data file", "datafile"} & fields.keys() or fields.get("elementdatafile", "local") != "local":
            raise BadFileError("has its voxels in another file; expected them in the same")
        reader = _reader(path, kind)
        voxel_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        _require_voxels(
            stream, fields, path.stat().st_size - stream.tell(), math.prod(reader.GetSize()), voxel_bytes
        )
        return _read_whole(reader, case)


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
    """Voxels `(Z, Y, X)` after DICOM's rescaling, and the grid: a file of frames, or a folder of one series.

    Whatever is damaged, and a slice that is missing or of another size, is a `BadFileError`.
    """
    if not path.is_dir():
        return _read_whole(_slice(path), case)
    slices = _slices(path)
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
    with _itk_errors():
        return sitk.GetArrayFromImage(reader.Execute()), geometry


def _reader(path: Path, kind: str) -> sitk.ImageFileReader:
    """A reader that has read the header of a file of scalars; ITK would try all of its formats."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    with _itk_errors():
        reader.ReadImageInformation()
        require_scalar(reader.GetNumberOfComponents())
    return reader


def _read_whole(reader: sitk.ImageFileReader, case: str) -> tuple[np.ndarray, Geometry]:
    """Voxels `(Z, Y, X)` and grid of a 3D file, whose header ITK has read and the file can hold."""
    size, spacing, origin = reader.GetSize(), reader.GetSpacing(), reader.GetOrigin()
    directions = np.asarray(reader.GetDirection()).reshape(len(size), -1)
    geometry = checked_grid(size, spacing, origin, directions, directions, case)
    with _itk_errors():
        return sitk.GetArrayFromImage(reader.Execute()), geometry


@contextmanager
def _itk_errors() -> Iterator[None]:
    """Turn what ITK raises while the block reads a file into a refusal; no memory is no fault of the file."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # where in ITK it was raised, and a stale errno
        lines = [line for line in lines if not line.startswith(("Exception thrown", "Reason:"))]
        telling = [line for line in lines if "ERROR" in line or line.startswith("[nrrd]")]
        reason = (telling[-1:] + lines + ["unknown error"])[0][:200]
        if any(said in str(error) for said in ("bad_alloc", "allocate memory")):
            raise MemoryError(reason) from None
        raise BadFileError(f"cannot be read: {reason}") from None


def _text_fields(stream: IO[bytes]) -> dict[str, str]:
    """Fields before the voxels, in small letters: `key: value` to an empty line, or `key = value`."""
    fields: dict[str, str] = {}
    while "elementdatafile" not in fields and (raw := stream.readline(HEADER_BYTES)):
        line = raw.decode("latin-1").strip().lower()
        if not line:
            return fields
        if stream.tell() >= HEADER_BYTES:
            break
        key, _, value = line.replace(":", "=", 1).partition("=")
        fields[key.strip()] = value.strip()
    if "elementdatafile" not in fields:
        raise BadFileError("cannot be read: its header has no end")  # ITK ends the process at some of these
    return fields


def _require_voxels(
    stream: IO[bytes], fields: dict[str, str], held: int, voxels: int, voxel_bytes: int
) -> None:
    """Hold the size that ITK found in a header against the `held` bytes that follow it in the stream.

    ITK takes memory before it reads, and a damaged MetaImage file as whatever was in memory; so compressed
    voxels are unpacked once, block by block, for their number and checksum.
    """
    claimed = voxels * voxel_bytes
    packed = fields.get("compresseddatasize", "0")
    if re.fullmatch("[0-9]{1,19}", packed) is None:
        raise BadFileError(f"has CompressedDataSize {packed[:20]}; expected a number of bytes")
    require_held(int(packed), held)
    encoding = fields.get("encoding", "text" if fields.get("binarydata") == "false" else "raw")
    if encoding in ("gzip", "gz") or fields.get("compresseddata") == "true":
        require_held(claimed, held * DEFLATE_RATIO)
        found = 0
        for block in _unpacked(stream):
            found += len(block)
            if found > claimed:
                raise BadFileError(f"holds more than the {claimed} bytes of its header")
        require_held(claimed, found)
    else:  # a number written as text takes a byte or more
        require_held(claimed, held if encoding == "raw" else held * voxel_bytes)


def _unpacked(stream: IO[bytes]) -> Iterator[bytes]:
    """Blocks of a zlib or gzip stream, of at most `BLOCK * DEFLATE_RATIO` bytes each."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    while block := stream.read(BLOCK):
        while block:
            yield unpacker.decompress(block)
            block = unpacker.unused_data
            if unpacker.eof:
                if not block.startswith(GZIP):  # gzip files may follow each other in one
                    return
                unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    if not unpacker.eof:
        raise BadFileError("is truncated: its compressed stream has no end")


def _slices(folder: Path) -> dict[str, sitk.ImageFileReader]:
    """Path -> a reader that has read its header, of all slices in a folder."""
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
    return slices


def _slice(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of a file which holds what it claims."""
    content = path.read_bytes()
    syntax, held = _check_elements(content), len(content)
    reader = _reader(path, "GDCMImageIO")
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
    """Gap (mm) and direction of slices whose first voxels lie at `(slices, 3)`; uneven gaps are refused."""
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
    """Follow a file from element to element, into sequences, and give the UID of its transfer syntax."""
    # GDCM takes memory for any claimed length
    at = 132
    if content[128:132] != b"DICM":
        at = 0  # a bare data set, as old scanners write it, starts with group 8
        if content[:2] != b"\x08\0":
            raise BadFileError("is no DICOM file")
    # this element is explicit and little-endian in every file (PS3.10, section 7.1)
    stated = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", content[:BLOCK], re.DOTALL)
    syntax = stated[1] if stated else IMPLICIT
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
