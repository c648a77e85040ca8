"""Compressed MetaImage files checked, because ITK reads damaged ones as whatever was in memory."""

from __future__ import annotations

import zlib
from pathlib import Path

from flare.errors import CaseError

BLOCK = 1 << 20  # bytes


def is_metaimage(path: Path) -> bool:
    """Whether a file is named as MetaImage with its voxels inside."""
    return path.name.lower().endswith(".mha")


def check_compression(path: Path, case: str) -> None:
    """Unpack compressed voxels once, for their checksum.

    Raises:
        CaseError: If the stream is damaged or has no end.
    """
    with path.open("rb") as stream:
        compressed = False
        for line in stream:
            key, _, value = (part.strip().lower() for part in line.partition(b"="))
            compressed |= key == b"compresseddata" and value == b"true"
            if key == b"elementdatafile":
                break
        if not compressed or value != b"local":
            return
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib or gzip
        try:
            while not unpacker.eof and (block := stream.read(BLOCK)):
                unpacker.decompress(block)
        except zlib.error as error:
            raise CaseError(case, f"{path} cannot be read: {error}") from None
    if not unpacker.eof:
        raise CaseError(case, f"{path} is truncated: its compressed voxels have no end")
