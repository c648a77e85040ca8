"""Files that are whole or absent: atomic writing, hashes, small tables."""

import csv
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from flare.core.errors import BadFileError, NoRoomError
from flare.core.series import scan_files

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what every file would meet: a device or a share that is away or read-only, too many open files
GENERAL_FAULTS = (
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EROFS, errno.EMFILE, errno.ENFILE),
)
NO_ACCESS = (errno.EACCES, errno.EPERM)
DEFLATE_RATIO = 1032  # the most that a byte of a deflated stream holds: https://zlib.net/zlib_tech.html
BLOCK = 1 << 16  # bytes
# more than both is a bomb (ours): CT packs to a quarter, an empty label map to a thousandth, but has less
BOMB_RATIO, BOMB_BYTES = 200, 1 << 29
DAMAGED = "is damaged: its compressed content cannot be unpacked, or its checksum differs"
GZIP = b"\x1f\x8b"
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")  # of images
# what lies where a file should be: its first bytes -> what it is
STAND_INS = {
    rb"version https://git-lfs": "is a Git LFS pointer, not the file itself; `git lfs pull` fetches it",
    rb"[./]*/annex/objects/": "is a git-annex pointer, not the file itself; `git annex get` fetches it",
    rb"(\xef\xbb\xbf)?\s*<(!--|!doctype|html|\?xml)": "is a web page, not the file itself; download it again",
}
NOT_UTF8 = "has a name that is not UTF-8; rename it"
PARTIAL = ".partial-"  # prefix of temporary names; whoever lists a folder skips it


def require_held(claimed: int, held: int) -> None:
    """Refuse a header that claims more bytes of voxels than the file can hold."""
    if claimed > held:
        raise BadFileError(
            f"is truncated or its header is damaged: it claims {claimed} bytes of voxels, "
            f"the file holds at most {max(held, 0)}"
        )


def require_no_bomb(claimed: int, held: int) -> None:
    """Refuse compressed voxels that would fill the memory from a small file."""
    if claimed > max(BOMB_BYTES, BOMB_RATIO * held):
        raise BadFileError(
            f"unpacks to {claimed} bytes of voxels from {held}: no scan is packed so small; if it is one, "
            "store it without compression"
        )


def stand_in(path: Path) -> str | None:
    """Say what lies in the place of a file that cannot be read; None if that is not known."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        start = stream.read(BLOCK)
    told = (what for begins, what in STAND_INS.items() if re.match(begins, start, re.IGNORECASE))
    return next(told, None if start else "is empty")


def printable(text: str | Path) -> str:
    """The same text, but for what no file in UTF-8 can hold: bytes of file names are escaped."""
    return str(text).encode(errors="backslashreplace").decode()


def says_no_room(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from (torch wraps it), is that of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def told_if_full(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, raised while the block writes, into one that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not says_no_room(error):
            raise
        raise NoRoomError(
            f"{path.name} cannot be written, the disk is full in {path.parent}: make room and start again"
        ) from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; rename it when the block succeeds.

    The temporary name keeps the suffixes, so that writers which go by extension work. A killed process
    leaves at most a `.partial-` file, never a half file under the final name. A full disk is a `NoRoomError`.
    """
    path = Path(path)
    with told_if_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)
        temporary = Path(folder) / path.name
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.rmdir(folder)


def is_same_file(path: Path, other: Path) -> bool:
    """Whether two paths name one file, or one is a copy of the other that `name_file` has made."""
    if not (path.exists() and other.exists()):
        return False
    return path.samefile(other) or (stat_key(path) == stat_key(other) and sha256(path) == sha256(other))


def name_file(name: Path, file: Path, *, link: bool = True) -> None:
    """Give a file a second name, replacing at once what has the name.

    With `link`, a symbolic link relative to its folder, which can be moved with the file. A name that must
    survive the file, or lies where the file system makes no symbolic link (shares, memory sticks), is a hard
    link, and where that cannot be, a copy; these do not follow the file when it is replaced.
    """
    target = os.path.relpath(file, name.parent)
    if os.readlink(name) == target if name.is_symlink() else is_same_file(name, file):
        return
    with atomic(name) as temporary:
        if link:
            with suppress(OSError):
                return temporary.symlink_to(target)
        with suppress(OSError):
            return os.link(file.resolve(), temporary)
        shutil.copy2(file, temporary)


def is_whole(path: Path) -> bool:
    """Whether a packed file or a JSON file is whole, and not cut or damaged; another kind never is."""
    try:
        if path.suffix == ".json":
            read_json(path)
            return True
        with gzip.open(path) as stream:
            return sum(map(len, iter(lambda: stream.read(BLOCK), b""))) > 0  # its end holds a checksum
    except (EOFError, ValueError, OSError, zlib.error):
        return False


def searched(root: Path) -> tuple[Path, list[Path]]:
    """Where a search begins, and the paths that it is for: `root`, or what `*` and `?` in it stand for."""
    is_wild = ["*" in part or "?" in part for part in root.parts]
    if not any(is_wild) or root.exists():
        return root, [root]
    first = is_wild.index(True)
    top = Path(*root.parts[:first])
    found = [p.relative_to(top) for p in sorted(top.glob(str(Path(*root.parts[first:]))))]
    return top, [top / p for p in found if not any(part.startswith(".") for part in p.parts)]


def remove_partial(folder: Path, *, below: bool = False) -> None:
    """Remove what killed writers left in `folder`, and with `below` in all folders inside it."""
    for left in list(Path(folder).glob(f"**/{PARTIAL}*" if below else f"{PARTIAL}*")):
        shutil.rmtree(left, ignore_errors=True)  # a dying writer may still be at work in it


def write_text(path: Path, text: str) -> None:
    """Write text atomically, UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows atomically, by default all columns of the first; missing values and None are empty cells."""
    columns = list(columns if columns is not None else (rows[0] if rows else []))
    with (
        atomic(path) as temporary,
        # as `printable`
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)


def read_csv(path: Path, *, may_lack: bool = False) -> list[dict[str, str]]:
    """Read a csv file with a header; one that `may_lack` has no rows where it is absent."""
    if may_lack and not path.exists():
        return []
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def config_hash(config: Any) -> str:
    """Short digest of plain values, independent of key order."""
    return _config_hash(json.dumps(config, default=str))


@lru_cache(maxsize=16)  # thousands of cases have one config
def _config_hash(text: str) -> str:
    plain = json.loads(text)  # a map with 5 and "rest" as keys cannot be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def stat_key(path: Path | str) -> list[int]:
    """Size and modification time (ns) of a file; of folders and DICOM series, sums over files and number."""
    with suppress(FileNotFoundError):  # as one of several series in a folder is
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return [found.st_size, found.st_mtime_ns]
    files = scan_files(path := Path(path))
    stats = [p.stat() for p in files or ([] if path.is_dir() else [path])]
    return [sum(s.st_size for s in stats), sum(s.st_mtime_ns for s in stats), len(stats)]
