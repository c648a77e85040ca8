"""DICOM folders by the heads of their files: which slices are of which series, and which are localizers."""

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

HEAD_BYTES = 1 << 16  # that a file says of itself what counts here
FEWEST = 3  # places of the slices of a scan; fewer beside a scan of the same study are a scout (ours)
SERIES = "series-"  # and a UID: names one of several series in a folder, as if it were a folder in it
# DICOM: transfer syntaxes (PS3.5, section 10), value representations by the width of their length (7.1)
IMPLICIT, EXPLICIT = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1"
BIG_ENDIAN = b"1.2.840.10008.1.2.2"
DEFLATED, COMPRESSED = b"1.2.840.10008.1.2.1.99", (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
# what lies beside slices and is none: by suffix, by name, by the class of a DICOM object that has no pixels
# (PS3.4, section B.5: RT structures, plans and records, reports, presentation states, waveforms, documents)
NO_SLICE = {
    *(".bat", ".bmp", ".csv", ".db", ".dll", ".doc", ".docx", ".exe", ".gif", ".gipl", ".hdr", ".htm"),
    *(".html", ".inf", ".ini", ".jpeg", ".jpg", ".js", ".json", ".log", ".md", ".mgh", ".mgz", ".mha"),
    *(".mhd", ".mnc", ".nhdr", ".nii", ".nrrd", ".pdf", ".png", ".py", ".sh", ".tif", ".tiff", ".tsv"),
    *(".txt", ".vti", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip"),
}
NO_SLICE_NAMES = {"DICOMDIR", "LOCKFILE", "VERSION", "README", "LICENSE", "Thumbs.db", "desktop.ini"}
NO_PIXELS = re.compile(
    rb"1\.2\.840\.10008\.(1\.3\.10|5\.1\.4\.(38|39)\.1|5\.1\.4\.1\.1\."
    rb"(481\.(?![12]$).+|(88|11|9|104|78|79|80)\..+|66(\.[12356])?|67))"
)
BARE = (b"\x08\0", b"\x02\0")  # groups that a data set without a preamble begins with
UNDEFINED, PIXELS = 2**32 - 1, (0x7FE0, 0x0010)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
# what a file states of itself, at the top level: tag -> keyword (PS3.6)
STATED = {
    (0x0008, 0x0008): "ImageType",
    (0x0020, 0x000D): "StudyInstanceUID",
    (0x0020, 0x000E): "SeriesInstanceUID",
    (0x0020, 0x0032): "ImagePositionPatient",
    (0x0028, 0x0008): "NumberOfFrames",
}


def may_be_slice(path: Path) -> bool:
    """Whether a file beside slices is not known to be anything else."""
    name, suffix = path.name, path.suffix.lower()
    is_other = name.startswith(".") or name in NO_SLICE_NAMES or suffix in NO_SLICE
    if is_other or name.lower().endswith(".nii.gz"):
        return False
    if suffix in (".img", ".raw", ".gz") and any(
        path.with_name(name.split(".")[0] + header).exists() for header in (".hdr", ".mhd", ".nhdr")
    ):
        return False  # the voxels of an image of another format
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def has_no_pixels(content: bytes) -> bool:
    """Whether a DICOM object is of a class that has none, whatever its series."""
    stated = re.search(rb"\x02\0\x02\0UI..([0-9.]+)", content[:HEAD_BYTES], re.DOTALL)
    stated = stated or re.search(rb"\x08\0\x16\0(?:UI..|.{4})([0-9.]+)", content[:HEAD_BYTES], re.DOTALL)
    return stated is not None and NO_PIXELS.fullmatch(stated[1]) is not None


def starts_at(content: bytes) -> int | None:
    """Where the elements of a DICOM file begin; None if it is none."""
    if content[128:132] == b"DICM":
        return 132
    return 0 if content[:2] in BARE else None  # a bare data set, as old scanners write it


def transfer_syntax(content: bytes, at: int) -> bytes:
    """UID of the transfer syntax of a file whose elements begin at a place."""
    # this element is explicit and little-endian in every file (PS3.10, section 7.1)
    stated = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", content[:HEAD_BYTES], re.DOTALL)
    is_explicit = not stated and content[at + 4 : at + 6] in SHORT | LONG
    return stated[1] if stated else EXPLICIT if is_explicit else IMPLICIT


def element_at(content: bytes, at: int, syntax: bytes) -> tuple[tuple[int, int], int, int]:
    """Tag of the element at a place, where its value begins, and the length that it claims."""
    is_meta = content[at : at + 2] == b"\x02\0"  # explicit and little-endian in every file
    order: Literal["little", "big"] = "big" if syntax == BIG_ENDIAN and not is_meta else "little"
    group, number = (int.from_bytes(content[i : i + 2], order) for i in (at, at + 2))
    kind = b"" if group == 0xFFFE or (syntax == IMPLICIT and not is_meta) else content[at + 4 : at + 6]
    start, end = (8, 12) if kind in LONG else (6, 8) if kind in SHORT else (4, 8)
    return (group, number), at + end, int.from_bytes(content[at + start : at + end], order)


def read_stated(content: bytes) -> dict[str, str]:
    """What a file states before its pixels, of `STATED`; sequences may tell of others, and are left out."""
    found: dict[str, str] = {}
    at = starts_at(content)
    syntax = b"" if at is None else transfer_syntax(content, at)
    depth = 0
    while at is not None and at + 8 <= len(content) and len(found) < len(STATED):
        tag, at, length = element_at(content, at, syntax)
        if depth == 0 and tag >= PIXELS:
            break
        if length == UNDEFINED:
            depth += 1
        elif tag in (ITEM_END, SEQUENCE_END):
            depth -= 1
        else:
            value = content[at : at + length].decode("latin-1").strip("\0 ")
            if depth == 0 and tag in STATED and value.isprintable() and "/" not in value:
                found[STATED[tag]] = value  # a damaged UID may be no name of a path
            at += length
    return found


@dataclass(frozen=True)
class Head:
    """What a slice says of itself; all of it is empty where it cannot be read."""

    series: str = ""
    study: str = ""
    place: str = ""
    frames: int = 1
    is_localizer: bool = False

    @classmethod
    def read(cls, path: Path) -> "Head | None":
        """Read the head of a file; None for an object without pixels."""
        try:
            with path.open("rb") as stream:
                content = stream.read(HEAD_BYTES)
                said = read_stated(content)
                if "SeriesInstanceUID" not in said and starts_at(content) is not None:
                    content += stream.read()
                    said = read_stated(content)
        except OSError:
            return cls()  # whoever reads the case says so
        if has_no_pixels(content):
            return None
        frames = said.get("NumberOfFrames", "")
        return cls(
            said.get("SeriesInstanceUID", ""),
            said.get("StudyInstanceUID", ""),
            said.get("ImagePositionPatient", ""),
            int(frames) if frames.isdigit() else 1,
            "LOCALIZER" in said.get("ImageType", "").upper().split("\\"),
        )


def heads(folder: Path) -> Mapping[Path, Head]:
    """The slices in a folder, each with its head: every file that is not known to be anything else."""
    files = sorted(p for p in folder.iterdir() if not p.is_dir())
    return _heads(tuple((p, (state := p.lstat()).st_size, state.st_mtime_ns) for p in files))


@lru_cache(maxsize=64)
def _heads(state: tuple[tuple[Path, int, int], ...]) -> Mapping[Path, Head]:
    found = {path: Head.read(path) for path, *_ in state if may_be_slice(path)}
    return {path: head for path, head in found.items() if head is not None}


@dataclass(frozen=True)
class Series:
    """The slices of one series in one folder."""

    path: Path  # the folder, or the name of the series in it where it is one of several, see `SERIES`
    uid: str  # empty where none of its slices states it
    study: str  # UID of its study, or the folder where none is stated
    files: tuple[Path, ...]  # its slices, and those that do not say whose they are
    places: int  # in how many places they lie


def series_in(folder: Path) -> tuple[list[Series], dict[Path, str]]:
    """The scans among the DICOM files of a folder, and why others are none, by folder or name of series."""
    found = heads(folder)
    slices = {path: head for path, head in found.items() if not head.is_localizer}
    by_uid: dict[str, list[Path]] = defaultdict(list)
    for path, head in slices.items():
        by_uid[head.series].append(path)
    unknown = by_uid.pop("", [])
    series = []
    for uid, files in (by_uid or ({"": []} if unknown else {})).items():
        of = [slices[path] for path in files]
        places = len({head.place or path.name for path, head in zip(files, of, strict=True)}) + len(unknown)
        study = next((head.study for head in of if head.study), str(folder))
        places = max([places, *(head.frames for head in of)])
        series.append(Series(folder / f"{SERIES}{uid}", uid, study, (*files, *unknown), places))
    scans, scouts = without_scouts(series)
    skipped: dict[Path, str] = dict(scouts)
    localizers = Counter(head.series for head in found.values() if head.is_localizer)
    for uid, count in localizers.items():
        name = folder / f"{SERIES}{uid}" if series else folder
        skipped[name] = f"{count if series else localizers.total()} localizers (ImageType)"
    if len(scans) == 1:
        scans = [replace(scans[0], path=folder)]
    return scans, skipped


def without_scouts(series: Sequence[Series]) -> tuple[list[Series], dict[Path, str]]:
    """Give the scans, and by path why others are none: a few places beside a scan, as of bolus tracking."""
    places: dict[str, int] = defaultdict(int)  # the slices of one series may lie in many folders
    for s in series:
        places[s.uid or str(s.path)] += s.places
    few = [s for s in series if places[s.uid or str(s.path)] < FEWEST]
    scanned = {s.study for s in series if places[s.uid or str(s.path)] >= FEWEST}
    others = {s.path: s.places for s in few if s.study in scanned}
    told = {path: f"slices in {n} places, beside a scan of the same study" for path, n in others.items()}
    return [s for s in series if s.path not in others], told


def named_series(path: Path) -> tuple[Path, str] | None:
    """The folder and UID that the name of one of several series stands for; None for any other path."""
    if path.name.startswith(SERIES) and path.parent.is_dir() and not path.exists():
        return path.parent, path.name.removeprefix(SERIES)
    return None


def scan_files(path: Path) -> list[Path]:
    """The files of a scan: one, all those in a folder, or those of one of several series in it."""
    named = named_series(path)
    if named:
        found = {p: head.series for p, head in heads(named[0]).items() if not head.is_localizer}
        return [p for p, uid in found.items() if uid in ("", named[1])] if named[1] in found.values() else []
    return [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]


def is_there(path: Path, mode: int = os.F_OK) -> bool:
    """Whether a file, anything in a folder, or one of several series in it is there, and so accessible."""
    try:
        if path.is_dir():
            return any(os.access(p, mode) for p in path.iterdir())
        return any(os.access(p, mode) for p in (scan_files(path) if named_series(path) else [path]))
    except OSError:
        return False


def series_uid(path: Path) -> str:
    """UID of a named series, or of a file or the first slice in a folder that states one; else empty."""
    named = named_series(path)
    if named:
        return named[1]
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError:
        return ""  # whoever reads the case says so
    localizer = ""
    for head in (Head.read(p) for p in files if may_be_slice(p) and not p.is_dir()):
        if head and head.series and not head.is_localizer:
            return head.series
        localizer = localizer or (head.series if head else "")
    return localizer
