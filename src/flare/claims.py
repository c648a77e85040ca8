"""Whether a file holds what its header claims, found before memory is taken on the header's word."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

DEFLATE_RATIO = 1032  # the most that a byte of a deflated stream holds: https://zlib.net/zlib_tech.html
USUAL_RATIO = 16  # CT packs to a half or a quarter; a file that holds more is met by doubling
BLOCK = 1 << 16  # bytes
GZIP = b"\x1f\x8b"


class BadFileError(ValueError):
    """What is wrong with a file, to be read behind its path; `read_image` adds the path and the case."""


def require_held(claimed: int, held: int) -> None:
    """Refuse a header that claims more bytes of voxels than the file can hold."""
    if claimed > held:
        raise BadFileError(
            f"is truncated or its header is damaged: it claims {claimed} bytes of voxels, "
            f"the file holds at most {max(held, 0)}"
        )


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked where its content is gzip, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
        file.seek(0)
        try:
            with gzip.open(file) if packed else file as stream:
                yield stream  # type: ignore[misc]
        except EOFError:
            raise BadFileError("is truncated: its compressed stream has no end") from None


def skip(stream: IO[bytes], count: int) -> None:
    """Pass over bytes, or to the end of the stream."""
    while count > 0 and (block := stream.read(min(BLOCK, count))):
        count -= len(block)


def read_voxels(stream: IO[bytes], claimed: int, offset: int, size: int) -> np.ndarray:
    """Read voxels, packed or not; memory grows with what is there, not with what is claimed.

    Args:
        stream: From `opened`, at the first voxel.
        claimed: Bytes to read.
        offset: Bytes of the unpacked file before the first voxel.
        size: Bytes of the file.

    Raises:
        BadFileError: If the file holds fewer.
    """
    require_held(claimed, size * DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else size - offset)
    buffer, done = np.empty(min(claimed, size * USUAL_RATIO), np.uint8), 0
    while done < claimed:
        if done == len(buffer):
            buffer.resize(min(claimed, 2 * done), refcheck=False)
        count = stream.readinto(buffer[done : done + BLOCK].data)  # type: ignore[attr-defined]
        if not count:
            raise BadFileError(f"is truncated: {done} of {claimed} bytes of voxels")
        done += count
    stream.read(1)  # the checksum of a gzip file is looked at behind its last byte
    return buffer
