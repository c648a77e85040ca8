"""NRRD and MetaImage files: read by ITK, after their headers are held against the files."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import SimpleITK as sitk

from flare.core.geometry import Geometry
from flare.core.headers import (
    BLOCK,
    DEFLATE_RATIO,
    GZIP,
    BadFileError,
    read_information,
    read_whole,
    require_held,
)

KINDS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
HEADER_BYTES = 1 << 20  # at most (ours)


def read_nrrd(path: Path, case: str) -> tuple[np.ndarray, Geometry]:
    """Read a file of either kind.

    Returns:
        `(Z, Y, X)` as stored, and the grid.

    Raises:
        BadFileError: If it is damaged, or of another kind.
    """
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
        reader = read_information(path, kind)
        voxel_bytes = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        held = path.stat().st_size - stream.tell()
        _require_voxels(stream, fields, held, math.prod(reader.GetSize()), voxel_bytes)
        return read_whole(reader, case)


def _require_voxels(
    stream: IO[bytes], fields: dict[str, str], held: int, voxels: int, voxel_bytes: int
) -> None:
    """Hold the size that ITK found in a header against what follows it.

    ITK takes memory before it reads, and a damaged MetaImage file as whatever was in memory; so compressed
    voxels are unpacked once, block by block, for their number and checksum.

    Args:
        stream: Behind the header.
        fields: The header.
        held: Bytes behind it.
        voxels: What it claims.
        voxel_bytes: Bytes of one.
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


def _text_fields(stream: IO[bytes]) -> dict[str, str]:
    """Fields before the voxels, in small letters: `key: value` to an empty line, or `key = value`.

    Raises:
        BadFileError: If the header has no end: ITK ends the process at some of these.
    """
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
        raise BadFileError("cannot be read: its header has no end")
    return fields


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
