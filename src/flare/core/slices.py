"""DICOM files by their bytes: which are slices, and whether their elements are whole."""

from pathlib import Path

import SimpleITK as sitk

from flare.core import series
from flare.core.errors import BadFileError
from flare.core.files import printable


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM object with pixels, by its content; what nobody can read may be one."""
    if not series.may_be_slice(path):
        return False
    try:
        with path.open("rb") as stream:
            head = stream.read(series.HEAD_BYTES)
        if series.has_no_pixels(head):
            return False
        if head[128:132] == b"DICM":
            return True
        if series.starts_at(head) is None:
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


def check_elements(content: bytes) -> bytes:
    """Follow a file from element to element, into sequences, and give the UID of its transfer syntax."""
    # GDCM takes memory for any claimed length
    at = series.starts_at(content)
    if at is None:
        raise BadFileError("is no DICOM file")
    syntax = series.transfer_syntax(content, at)
    if syntax == series.DEFLATED:
        raise BadFileError("is a deflated DICOM file; expected one that is not, or with compressed pixels")
    in_pixels = False
    while at + 8 <= len(content):
        tag, at, length = series.element_at(content, at, syntax)
        if length == series.UNDEFINED:
            in_pixels = tag == series.PIXELS
            continue
        if at + length > len(content):
            raise BadFileError(f"is truncated: element {tag[0]:04x},{tag[1]:04x} claims {length} bytes")
        if tag == series.SEQUENCE_END:
            in_pixels = False
        is_item = tag == series.ITEM and not in_pixels
        if not is_item and content[at : at + 4] not in (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0"):
            at += length  # else what lies inside is followed, too
    return syntax
