"""NRRD and MetaImage: read by ITK, after all that their headers claim is held against the files."""

import ctypes
import math
import os
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import SimpleITK as sitk

from flare.core.checks import current_checks
from flare.core.errors import BadFileError
from flare.core.files import BLOCK, DEFLATE_RATIO, GZIP, NOT_UTF8, printable, require_held, require_no_bomb
from flare.core.geometry import Geometry, checked_grid, require_scalar

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings name files on the console; ours name cases

Reader: TypeAlias = sitk.ImageFileReader | sitk.ImageSeriesReader
KINDS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
# fields by which the voxels do not follow the header at once
SKIPS = {"line skip", "lineskip", "byte skip", "byteskip", "headersize", "compresseddatasize"}
_QUIET = threading.Lock()
HEADER_BYTES = 1 << 20  # at most (ours)
# lengths in millimetres by the names that NRRD and MetaImage have for them
UNITS_MM = {"um": 1e-3, "\u00b5m": 1e-3, "micron": 1e-3, "microns": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}
UNITS_MM |= {"micrometer": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "meter": 1000.0, "metre": 1000.0}


def open_nrrd(path: Path, case: str) -> tuple[sitk.ImageFileReader, Geometry]:
    """A reader of the voxels as stored, and the grid, after all checks; a bad file is a `BadFileError`."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise BadFileError(
            "is of a format that is not read; expected .nii, .nii.gz, .nrrd, .mha or DICOM: convert it"
        )
    with path.open("rb") as stream:
        fields = _text_fields(stream)
        # ITK ends the process at another number of dimensions
        if re.fullmatch("[1-9]", dimensions := fields.get("ndims", "3")) is None:
            raise BadFileError(f"has NDims {dimensions[:20]!r}; expected a 3D image")
        if {"data file", "datafile"} & fields.keys() or fields.get("elementdatafile", "local") != "local":
            raise BadFileError("has its voxels in another file; expected them in the same")
        reader = opened(path, kind)
        voxel_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        held = path.stat().st_size - stream.tell()
        _require_voxels(stream, fields, held, reader.GetSize(), voxel_bytes, case)
        if not {"space directions", "transformmatrix", "rotation", "orientation"} & fields.keys():
            judge_direction(case, "does not state its directions")
        return reader, stated_grid(reader, case, _unit_mm(fields, reader, case))


def _unit_mm(fields: dict[str, str], reader: sitk.ImageFileReader, case: str) -> float:
    """Millimetres in the unit of a text header, which ITK passes over."""
    stated = fields.get("space units", fields.get("distanceunits", ""))
    names = {name for name in re.findall('[^"\\s]+', stated) if name in UNITS_MM}  # others say nothing
    if len({UNITS_MM[name] for name in names}) > 1:
        raise BadFileError(f"has axes of different units {sorted(names)}; expected one")
    name = min(names, default="mm")
    return current_checks().unit_mm(UNITS_MM[name], name, reader.GetSize(), reader.GetSpacing(), case)


def judge_direction(case: str, problem: str) -> None:
    """Refuse a file that does not say how it lies in the patient, or take ITK's axes."""
    current_checks().judge("direction", case, problem, "x runs to the left, y to the back, z to the head")


def opened(path: Path, kind: str) -> sitk.ImageFileReader:
    """A reader that has read the header of a file of scalars; ITK would try all of its formats."""
    if printable(path) != str(path):  # SimpleITK ends the process at such a name
        raise BadFileError(NOT_UTF8)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    with itk_errors():
        reader.ReadImageInformation()
        require_scalar(reader.GetNumberOfComponents())
    return reader


def stated_grid(reader: sitk.ImageFileReader, case: str, unit_mm: float = 1.0) -> Geometry:
    """Grid of a 3D file, whose header ITK has read and the file can hold."""
    size = reader.GetSize()
    spacing, origin = (tuple(unit_mm * v for v in of()) for of in (reader.GetSpacing, reader.GetOrigin))
    directions = np.asarray(reader.GetDirection()).reshape(len(size), -1)
    return checked_grid(size, spacing, origin, directions, case)


@contextmanager
def itk_errors() -> Iterator[None]:
    """Turn what ITK raises while the block reads a file into a refusal; no memory is no fault of the file."""
    try:
        with _silence():
            yield
    except RuntimeError as error:
        if any(said in str(error) for said in ("bad_alloc", "allocate memory")):
            raise MemoryError("cannot allocate memory for the voxels") from None
        # ITK tells places in its own code; of NRRD the field as well
        field = re.search(r"_nrrdReadNrrdParse_(\w+)", str(error))
        told = f"field {field[1]} of its header is" if field else "its header or its voxels are"
        raise BadFileError(f"cannot be read: {told} damaged, or of a kind that is not read") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Let libraries in C write nothing to the console, in one thread at a time.

    What Python writes is lost as well, unless its streams have descriptors of their own, see `runs.door`.
    """
    flush = ctypes.CDLL(None).fflush  # what C's streams hold
    with _QUIET, Path(os.devnull).open("wb") as nowhere:
        flush(None)
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            flush(None)
            for number, own in kept.items():
                os.dup2(own, number)
                os.close(own)


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
    stream: IO[bytes], fields: dict[str, str], held: int, size: Sequence[int], voxel_bytes: int, case: str
) -> None:
    """Hold the size that ITK found in a header against the `held` bytes that follow it in the stream.

    ITK takes memory before it reads, and a damaged MetaImage file as whatever was in memory; so compressed
    voxels are unpacked once, block by block, for their number and checksum.
    """
    claimed = math.prod(size) * voxel_bytes
    packed = fields.get("compresseddatasize", "0")
    if re.fullmatch("[0-9]{1,19}", packed) is None:
        raise BadFileError(f"has CompressedDataSize {packed[:20]!r}; expected a number of bytes")
    require_held(int(packed), held)
    encoding = fields.get("encoding", "text" if fields.get("binarydata") == "false" else "raw")
    if encoding in ("gzip", "gz") or fields.get("compresseddata") == "true":
        require_held(claimed, held * DEFLATE_RATIO)
        require_no_bomb(claimed, held)
        found = 0
        for block in _unpacked(stream):
            found += len(block)
            if found > claimed:
                raise BadFileError(f"holds more than the {claimed} bytes of its header")
        require_held(claimed, found)
    else:  # a number written as text takes a byte or more
        require_held(claimed, held if encoding == "raw" else held * voxel_bytes)
        if encoding == "raw" and not SKIPS & fields.keys() and held - claimed >= claimed // max(1, *size):
            current_checks().tell_more(case)


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
