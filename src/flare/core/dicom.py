"""DICOM: which files are slices, whether their elements are whole, and slices or frames as a volume."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from flare.core import series
from flare.core.checks import current_checks
from flare.core.errors import BadFileError
from flare.core.files import printable, require_held, require_no_bomb, stand_in
from flare.core.geometry import SNAP, Geometry, checked_grid
from flare.core.itk import Reader, itk_errors, judge_direction, opened, stated_grid
from flare.core.series import BIG_ENDIAN, COMPRESSED, PIXELS, scan_files, series_in

log = logging.getLogger(__name__)
NAMED = 3  # places that a message names
MOST_PIXELS = 2**24  # a compressed frame of 4096 x 4096 (ours)
FRAME_BYTES = 8  # the least that a compressed frame takes: the header of its item
# what says where a slice lies, by keyword: tags of which one is enough
PLACE = {
    "ImagePositionPatient": [(0x0020, 0x0032)],
    "ImageOrientationPatient": [(0x0020, 0x0037)],
    "PixelSpacing": [(0x0028, 0x0030), (0x0018, 0x1164), (0x0018, 0x2010)],
    "SpacingBetweenSlices": [(0x0018, 0x0088), (0x0018, 0x0050)],  # or SliceThickness; of frames alone
}


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
        with itk_errors():
            reader.ReadImageInformation()
        return True
    except FileNotFoundError:
        return path.is_symlink()
    except (BadFileError, MemoryError):
        return False
    except OSError:
        return True  # nobody can say that it is none, and what is left out is missed by nobody


def check_elements(content: bytes) -> tuple[bytes, int]:
    """Follow all elements, into sequences; give the UID of the transfer syntax and what its pixels claim."""
    # GDCM takes memory for any claimed length
    at = series.starts_at(content)
    if at is None:
        raise BadFileError("is no DICOM file")
    syntax = series.transfer_syntax(content, at)
    if syntax == series.DEFLATED:
        raise BadFileError("is a deflated DICOM file; expected one that is not, or with compressed pixels")
    in_pixels, pixels = False, 0
    while at + 8 <= len(content):
        tag, at, length = series.element_at(content, at, syntax)
        if length == series.UNDEFINED:
            in_pixels = tag == series.PIXELS
            continue
        if at + length > len(content):
            raise BadFileError(
                f"is truncated or damaged: element {tag[0]:04x},{tag[1]:04x} claims {length} bytes"
            )
        if tag == series.PIXELS:
            pixels = length  # of the last: an icon may come before
        if tag == series.SEQUENCE_END:
            in_pixels = False
        is_item = tag == series.ITEM and not in_pixels
        if not is_item and content[at : at + 4] not in (b"\xfe\xff\0\xe0", b"\xff\xfe\xe0\0"):
            at += length  # else what lies inside is followed, too
    return syntax, pixels


@dataclass(frozen=True)
class _Slice:
    """A DICOM file of one frame or several, whose header was read and which holds what it claims."""

    path: Path
    reader: sitk.ImageFileReader
    absent: frozenset[str]  # what it does not say about its place, by DICOM's keywords
    frames: int
    series: str  # UID; empty if it states none
    origin: np.ndarray  # place of its first voxel (mm)
    axes: np.ndarray  # directions of its rows and columns, `(3, 2)`

    @classmethod
    def read(cls, path: Path, case: str) -> "_Slice":
        """Read a file's header, after its claims were held against its content."""
        content = path.read_bytes()
        (syntax, pixels), held = check_elements(content), len(content)
        reader = opened(path, "GDCMImageIO")

        def stated(key: str) -> str:
            return reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""

        columns, rows, frames = (*reader.GetSize(), 1)[:3]
        bits = stated("0028|0100").strip()
        claimed = columns * rows * frames * max(1, int(bits) // 8 if bits.isdecimal() else 1)
        if not syntax.startswith(COMPRESSED):
            require_held(claimed, held)
            if pixels - claimed >= claimed // max(1, columns, rows):
                current_checks().tell_more(case)
        elif columns * rows > MOST_PIXELS or frames * FRAME_BYTES > held:
            raise BadFileError(
                f"claims {frames} compressed frames of {columns} x {rows} pixels in {held} bytes; "
                f"expected at most {held // FRAME_BYTES} frames of {MOST_PIXELS} pixels"
            )
        else:
            require_no_bomb(claimed, held)
        order: Literal["little", "big"] = "big" if syntax == BIG_ENDIAN else "little"

        def raw(tag: tuple[int, int]) -> bytes:
            return b"".join(number.to_bytes(2, order) for number in tag)

        # anywhere before the pixels: a file of frames has them inside sequences, which ITK does not show
        header = content[: content.rfind(raw(PIXELS))]
        absent = (word for word, tags in PLACE.items() if not any(raw(tag) in header for tag in tags))
        origin = np.asarray(reader.GetOrigin()[:3])
        axes = np.asarray(reader.GetDirection()).reshape(len(reader.GetSize()), -1)[:3, :2]
        return cls(path, reader, frozenset(absent), frames, stated("0020|000e"), origin, axes)


def open_dicom(path: Path, case: str) -> tuple[Reader, Geometry]:
    """A reader of the voxels after DICOM's rescaling, and the grid: of a file of frames, or a folder's scan.

    The headers of all slices are checked. Localizers and scouts beside it are left out; one of several scans
    has the name of its series. Damage, and a slice that is missing or unlike the others, is a `BadFileError`.
    """
    is_file = path.is_file()
    slices = [_Slice.read(path, case)] if is_file else _slices(path, case)
    if len({s.series for s in slices}) > 1:
        raise BadFileError("has slices that do not state of which series they are")
    absent = sorted(set().union(*(s.absent for s in slices)))
    of_frames = ("SpacingBetweenSlices",) if slices[0].frames > 1 else ()
    for word in {"PixelSpacing", *of_frames} & set(absent):
        current_checks().judge("size", case, f"does not state its {word}", "1 mm is taken")
    if "ImagePositionPatient" in absent and len(slices) > 1:
        raise BadFileError("has slices without ImagePositionPatient: nothing says in which order they lie")
    if "ImageOrientationPatient" in absent:
        judge_direction(case, "does not state its ImageOrientationPatient")
    if len(slices) == 1:
        if slices[0].frames > 1 or is_file:
            return slices[0].reader, stated_grid(slices[0].reader, case)
        raise BadFileError("holds one slice; expected at least 2")
    _require_alike(slices)
    axes = slices[0].axes
    normal = np.cross(*axes.T)
    slices.sort(key=lambda s: float(s.origin @ normal))
    gap, normal = _slice_gap(slices, case)
    size = (*slices[0].reader.GetSize()[:2], len(slices))
    spacing = (*slices[0].reader.GetSpacing()[:2], gap)
    geometry = checked_grid(size, spacing, slices[0].origin, np.column_stack([axes, normal]), case)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")  # else a name or a lacking preamble decides who reads
    reader.SetFileNames([str(s.path) for s in slices])
    return reader, geometry


def _slices(place: Path, case: str) -> list[_Slice]:
    """All slices of a folder's scan, or of a named series; what says nothing of itself is one as well."""
    files = scan_files(place)
    if place.is_dir():
        scans, skipped = series_in(place)
        if len(scans) > 1:
            raise BadFileError(f"holds {len(scans)} DICOM series; name one of them, as {scans[0].path}")
        if not scans:
            beside = f" but {'; '.join(skipped.values())}" if skipped else ""
            raise BadFileError(f"holds no readable DICOM series{beside}")
        files = list(scans[0].files)
    slices: list[_Slice] = []
    unread: dict[str, str] = {}
    for path in sorted(files):
        try:
            slices.append(_Slice.read(path, case))
        except BadFileError as error:
            unread[path.name] = stand_in(path) or str(error)
    if unread:
        names = sorted(unread)
        raise BadFileError(f"has slices that cannot be read: {', '.join(names[:5])} ({unread[names[0]]})")
    return slices


def _require_alike(slices: list[_Slice]) -> None:
    """Refuse a series of which a slice differs from the others in more than its place."""
    first, tolerance_mm = slices[0], current_checks().tolerance_mm
    sizes = {s.reader.GetSize()[:2] for s in slices}
    if len(sizes) > 1:
        raise BadFileError(f"has slices of different sizes {sorted(sizes)} (x, y)")
    if any(s.frames > 1 for s in slices):
        raise BadFileError("has several files of frames; expected one, or files of one slice")
    if len(kinds := {s.reader.GetPixelIDValue() for s in slices}) > 1:
        names = sorted(map(sitk.GetPixelIDValueAsString, kinds))
        raise BadFileError(f"has slices of different types of numbers, {', '.join(names)}")
    for s in slices[1:]:
        pair = f"({first.path.name}, {s.path.name})"
        spacings = [np.asarray(one.reader.GetSpacing()[:2]) for one in (first, s)]
        if (np.abs(spacings[0] - spacings[1]) * first.reader.GetSize()[:2]).max() > tolerance_mm:
            told = " and ".join(f"{x:.6g} x {y:.6g} mm" for x, y in spacings)
            raise BadFileError(f"has slices of different voxel size, {told} {pair}")
        if np.abs(s.axes - first.axes).max() > SNAP:
            told = " and ".join(str(one.axes.T.ravel().round(4).tolist()) for one in (first, s))
            raise BadFileError(f"has slices of different orientation, {told} {pair}")


def _slice_gap(slices: list[_Slice], case: str) -> tuple[float, np.ndarray]:
    """Gap (mm) and direction of slices in their order; uneven gaps are refused."""
    steps = np.diff([s.origin for s in slices], axis=0)
    gaps = np.linalg.norm(steps, axis=1)
    gap = float(gaps.mean())
    uneven = float(np.abs(gaps - gap).max())
    if not (gap > 0 and uneven <= SNAP * max(gap, 1.0)):
        told = "; ".join(_told_gaps(gaps, [s.path.name for s in slices]))
        raise BadFileError(f"has uneven slice gaps, {gaps.min():.4g} to {gaps.max():.4g} mm: {told}")
    if uneven > 1e-5:
        log.warning("case %s: slice gaps are uneven by %.2g mm, snapped", case, uneven)
    whole = steps.sum(axis=0)
    return gap, whole / np.linalg.norm(whole)


def _told_gaps(gaps: np.ndarray, names: list[str]) -> Iterable[str]:
    """Say between which slices some are missing, and which lie in one place; the first few."""
    usual = float(np.median(gaps[gaps > SNAP])) if (gaps > SNAP).any() else 0.0
    told = []
    for gap, pair in zip(gaps, pairwise(names), strict=True):
        if gap <= SNAP:
            told.append(f"{' and '.join(pair)} lie in the same place, one is doubled")
        elif gap > 1.5 * usual:
            count = round(gap / usual) - 1
            told.append(f"{count} missing between {' and '.join(pair)}, {gap:.4g} mm apart")
    return told[:NAMED] or ["they are no regular stack"]
