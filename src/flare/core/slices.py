"""DICOM files by their bytes: which are slices, of which series, and whether their elements are whole."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Literal

import SimpleITK as sitk

from flare.core.errors import BadFileError
from flare.core.files import BLOCK, printable

# DICOM: transfer syntaxes (PS3.5, section 10), value representations by the width
# of their length (section 7.1)
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
UNDEFINED, PIXELS, ITEM, SEQUENCE_END = 2**32 - 1, (0x7FE0, 0x0010), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM object with pixels, by its content; what nobody can read may be one."""
    if not may_be_slice(path):
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(BLOCK)
        if has_no_pixels(head):
            return False
        if head[128:132] == b"DICM":
            return True
        if head[:2] not in BARE:
            return False
        check_elements(path.read_bytes())  # before GDCM, which takes memory for any claimed length
        if printable(path) != str(path):
            return True  # SimpleITK ends the process at such a name; whoever reads the case says so
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return True
    except FileNotFoundError:
        return path.is_symlink()
    except (BadFileError, RuntimeError):
        return False
    except OSError:
        return True  # nobody can say that it is none, and what is left out is missed by nobody


def may_be_slice(path: Path) -> bool:
    """Whether a file beside slices is not known to be anything else."""
    name, suffix = path.name, path.suffix.lower()
    if (
        name.startswith(".")
        or name in NO_SLICE_NAMES
        or suffix in NO_SLICE
        or name.lower().endswith(".nii.gz")
    ):
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
    stated = re.search(rb"\x02\0\x02\0UI..([0-9.]+)", content[:BLOCK], re.DOTALL)
    stated = stated or re.search(rb"\x08\0\x16\0(?:UI..|.{4})([0-9.]+)", content[:BLOCK], re.DOTALL)
    return stated is not None and NO_PIXELS.fullmatch(stated[1]) is not None


def series_uid(folder: Path) -> str:
    """UID of the series of the first slice in a folder; empty if there is none, or none that can be read."""
    try:
        first = next((path for path in sorted(folder.iterdir()) if is_dicom(path)), None)
        if first is None:
            return ""
        with first.open("rb") as stream:
            content = stream.read(BLOCK)
    except OSError:
        return ""  # whoever reads the case says so
    stated = re.search(rb"\x20\0\x0e\0(?:UI..|.{4})([0-9.]+)", content, re.DOTALL)
    return stated[1].decode() if stated else ""


def check_elements(content: bytes) -> bytes:
    """Follow a file from element to element, into sequences, and give the UID of its transfer syntax."""
    # GDCM takes memory for any claimed length
    at = 132
    if content[128:132] != b"DICM":
        at = 0  # a bare data set, as old scanners write it, starts with group 8, or with that of its file
        if content[:2] not in BARE:
            raise BadFileError("is no DICOM file")
    # this element is explicit and little-endian in every file (PS3.10, section 7.1)
    stated = re.search(rb"\x02\x00\x10\x00UI..([0-9.]+)", content[:BLOCK], re.DOTALL)
    is_explicit = not stated and content[at + 4 : at + 6] in SHORT | LONG
    syntax = stated[1] if stated else EXPLICIT if is_explicit else IMPLICIT
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
