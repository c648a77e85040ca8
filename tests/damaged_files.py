"""Damaged image files of every format, by a seed; as a program, read them in little memory.

`python damaged_files.py FIRST COUNT FORMAT...` reads so many of each, `python damaged_files.py PATH...` those
that are named. A line of JSON each: how many were read, and why they may (`WHY`), why others were refused,
what else was raised, and by how many bytes the process has grown at most.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from bad_files import unchanged_locale, write_array, write_series
from flare.core.checks import Checks, reading
from flare.core.errors import CaseError
from flare.core.geometry import Volume
from flare.core.volumes import read_image

ROOM = 1 << 30  # bytes that a process may take beyond what it has before it reads
EXTREMES = (
    *(struct.pack("<h", v) for v in (-1, 0, 1, 0x7FFF, -0x8000)),
    *(struct.pack("<i", v) for v in (-1, 0, 0x7FFFFFFF, -0x80000000)),
    *(struct.pack("<f", v) for v in (0, -1, float("nan"), float("inf"), -float("inf"), 3e38, 1e-40)),
    *(struct.pack("<q", v) for v in (-1, 1 << 62)),
)  # fmt: skip
NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"99999",
    b"4000000000",
    b"9" * 19,
    b"9" * 400,
    b"1e300",
    b"1e-300",
    b"nan",
    b"",
)
HU = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
CLASSES = (HU > 500).astype(np.int16)  # a label map of one class
SPACING_XYZ = (2.0, 3.0, 4.0)


def nifti(path: Path, array: np.ndarray = HU, kind: type = nib.Nifti1Image) -> bytes:
    nib.save(kind(array.T, np.diag([*SPACING_XYZ, 1])), path.with_name("whole.nii"))
    return path.with_name("whole.nii").read_bytes()


def itk(path: Path, array: np.ndarray, *, compressed: bool) -> bytes:
    whole = path.with_name(f"whole{path.suffix}")
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_XYZ)
    sitk.WriteImage(image, str(whole), useCompression=compressed)
    return whole.read_bytes()


def ascii_nrrd(_: Path, array: np.ndarray) -> bytes:
    fields = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 8 7 6\n"
    fields += "space directions: (2,0,0) (0,3,0) (0,0,4)\nencoding: ascii\n\n"
    return (fields + " ".join(map(str, array.ravel()))).encode()


# format -> file name, content of a whole file, whether the damaged content is packed afterwards
FORMATS: dict[str, tuple[str, Callable[[Path, np.ndarray], bytes], bool]] = {
    "nifti": ("a.nii", nifti, False),
    "nifti packed": ("a.nii.gz", nifti, True),
    "nifti damaged packing": ("a.nii.gz", lambda path, array: gzip.compress(nifti(path, array)), False),
    "nifti-2": ("a.nii", lambda path, array: nifti(path, array, nib.Nifti2Image), False),
    "nrrd": ("a.nrrd", lambda path, array: itk(path, array, compressed=False), False),
    "nrrd packed": ("a.nrrd", lambda path, array: itk(path, array, compressed=True), False),
    "nrrd ascii": ("a.nrrd", ascii_nrrd, False),
    "mha": ("a.mha", lambda path, array: itk(path, array, compressed=False), False),
    "mha packed": ("a.mha", lambda path, array: itk(path, array, compressed=True), False),
}
SERIES = ("dicom", "dicom JPEG2000", "dicom JPEG")


# why a damaged file may be read, by what of it is damaged
WHY = {
    "same": "every voxel and the grid are as they were: what is damaged says nothing that is read",
    "voxels": "voxels alone differ, and the format has no checksum of them",
    "header": "the header names another grid, type or scale, and nothing else in the file tells it",
}
HEADER = ("same", "header")
# the ways in which files of a format may pass; a packed stream has a checksum
MAY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("nifti", "nifti-2", "nifti packed", "nrrd", "nrrd ascii", "mha"), tuple(WHY)),
    **dict.fromkeys(("dicom", "dicom JPEG2000", "dicom JPEG"), tuple(WHY)),
    **dict.fromkeys(("nrrd packed", "mha packed"), HEADER),
    "nifti damaged packing": ("same",),
}
# fields of a binary header that a lie is told in: offsets in NIfTI-1 and -2, tags of DICOM
FIELDS = {
    "nifti": (
        0,
        40,
        42,
        44,
        46,
        48,
        70,
        72,
        76,
        80,
        84,
        88,
        108,
        112,
        116,
        123,
        252,
        254,
        256,
        268,
        280,
        300,
        328,
    ),
    "nifti-2": (
        0,
        12,
        14,
        16,
        24,
        32,
        40,
        48,
        104,
        112,
        120,
        128,
        168,
        176,
        184,
        344,
        348,
        352,
        400,
        440,
        500,
    ),
}
TAGS = (
    *((0x28, n) for n in (2, 8, 0x10, 0x11, 0x30, 0x100, 0x101, 0x102, 0x103, 0x1052, 0x1053)),
    (0x20, 0x32),
)
TAGS += ((0x20, 0x37), (0x20, 0x0E), (0x20, 0x0D), (0x08, 0x08), (0x02, 0x10))


def spots(which: str, content: bytes) -> list[int]:
    """Where the header of a whole file of a format has the numbers that decide how it is read."""
    if which in SERIES:
        found = [content.find(struct.pack("<2H", *tag)) for tag in TAGS]
        return [at + 8 for at in found if at >= 0]
    known = FIELDS.get("nifti-2" if which == "nifti-2" else which.split()[0], ())
    return list(known) if which != "nifti damaged packing" else []


def voxels_at(which: str, content: bytes) -> int:
    """Where the voxels of a whole file begin."""
    if which in SERIES:
        return content.rfind(b"\xe0\x7f\x10\x00")
    if which == "nifti damaged packing":
        return 0
    text = {"nrrd": b"\n\n", "mha": b"LOCAL\n"}.get(which.split()[0])
    return (544 if which == "nifti-2" else 352) if text is None else content.index(text) + len(text)


def damage(content: bytes, dice: random.Random, fields: Sequence[int] = ()) -> bytes:
    """Flip bits, cut, write extremes into the header or its fields, swap their bytes, or change its text."""
    found = bytearray(content)
    how = dice.choice(
        ("flip", "flip header", "cut", "lie", "text", "text", *("field", "swap") * bool(fields))
    )
    reach = len(found) if how == "flip" else min(len(found), dice.choice((60, 400, 1200)))
    if how.startswith("flip"):
        for _ in range(dice.choice((1, 1, 3, 20))):
            found[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    elif how == "cut":
        del found[dice.randrange(len(found)) :]
    elif how == "lie":
        for _ in range(dice.choice((1, 1, 2))):
            value = dice.choice(EXTREMES)
            at = dice.randrange(reach) & ~1
            found[at : at + len(value)] = value
    elif how in ("field", "swap"):
        at = dice.choice(fields)
        value = dice.choice(EXTREMES) if how == "field" else found[at : at + dice.choice((2, 4, 8))][::-1]
        found[at : at + len(value)] = value
    else:
        numbers = [m.span() for m in re.finditer(rb"[-+.\d]+", content[:reach])]
        start, end = dice.choice(numbers or [(0, 0)])
        found[start:end] = dice.choice(NUMBERS)
    return bytes(found)


def series(folder: Path, compressor: str) -> list[bytes]:
    """The slices of a whole DICOM series."""
    write_series(folder, [(0, 0, z) for z in (0, 5, 10)], spacing_xy=(2, 2.5))
    for path in sorted(folder.iterdir()) if compressor else ():
        writer, image = sitk.ImageFileWriter(), sitk.ReadImage(str(path))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(path))
        with unchanged_locale():
            writer.Execute(image)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def write_damaged(
    which: str, seeds: range, folder: Path, array: np.ndarray = HU
) -> Iterator[tuple[Path, bool]]:
    """Write a damaged file, or series, a seed, over the one before; and whether its header is as it was."""
    if which not in SERIES:
        name, make, packed = FORMATS[which]
        path = folder / name
        whole = make(path, array)
        for seed in seeds:
            content = damage(whole, random.Random(f"{which} {seed}"), spots(which, whole))
            path.write_bytes(gzip.compress(content, 1) if packed else content)
            at = voxels_at(which, whole)
            yield path, content[:at] == whole[:at]
        return
    path = folder / "series"
    slices = series(path, which.partition(" ")[2])
    for seed in seeds:
        every = seed % 2 == 0  # all slices in one way, or one slice
        is_kept = True
        for number, content in enumerate(slices):
            bad = content
            if every or number == seed % 3:
                bad = damage(content, random.Random(f"{which} {seed}"), spots(which, content))
            (path / f"{number:03d}.dcm").write_bytes(bad)
            at = voxels_at(which, content)
            is_kept &= bad[:at] == content[:at]
        yield path, is_kept


def write_whole(which: str, folder: Path, array: np.ndarray = HU) -> Path:
    """Write a whole file of a format."""
    if which in SERIES:
        series(folder / "whole", which.partition(" ")[2])
        return folder / "whole"
    name, make, packed = FORMATS[which]
    content = make(folder / name, array)
    path = folder / f"sound-{name}"
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def why_it_may(found: Volume, whole: Volume, *, is_header_kept: bool) -> str:
    """Say by what a damaged file that was read differs from the whole one, one of `WHY`."""
    assert found.array.shape == found.geometry.shape == whole.array.shape, "another size"
    assert np.isfinite(found.array).all()
    is_grid = not found.geometry.differences(whole.geometry)
    if is_grid and np.array_equal(found.array, whole.array):
        return "same"
    if is_header_kept:
        assert is_grid, "another grid by the same header"
    return "voxels" if is_header_kept else "header"


# words of libraries in C and Python, which tell a person nothing
RAW = re.compile(
    r"Traceback|ITK|sitk|itk::|GDCM|MetaIO|MetaImage:|_nrrd[A-Z]|\[nrrd\]|Error -?\d|CRC check"
    r"|Errno|errno|0x[0-9a-f]{6}|bad_alloc|literal/lengths|[\x00-\x08\x0e-\x1f\x7f]"
)


def is_plain(reason: str) -> bool:
    """Whether a person understands a reason: a sentence, and nothing that a library or a header wrote."""
    return RAW.search(reason) is None and len(reason.split()) >= 3


def read_all(paths: Iterable[tuple[Path, bool]], whole: Volume | None) -> dict[str, Any]:
    """Read files one after the other, and say what came of them."""
    read: dict[str, int] = dict.fromkeys(WHY, 0)
    refused, other = [], []
    for path, is_kept in paths:
        try:
            volume = read_image(path, "a")
            read[why_it_may(volume, whole or volume, is_header_kept=is_kept)] += 1
        except CaseError as error:
            refused.append(str(error))
        except Exception as error:
            other.append(f"{type(error).__name__}: {error}")
    return {"read": read, "refused": refused, "other": other}


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read_image(write_array(Path(folder) / "warm.nrrd", HU))  # libraries load what they need
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        jobs: Iterable[tuple[str, Iterable[tuple[Path, bool]], Volume | None]]
        if arguments[0].isdecimal():
            first, count = int(arguments[0]), int(arguments[1])
            seeds = range(first, first + count)
            place = Path(folder)
            jobs = (
                (which, write_damaged(which, seeds, place), read_image(write_whole(which, place), "a"))
                for which in arguments[2:]
            )
        else:
            jobs = ((path, [(Path(path), False)], None) for path in arguments)
        for name, paths, whole in jobs:
            found = read_all(paths, whole)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            print(json.dumps({"name": name, "grown": grown, **found}), flush=True)


if __name__ == "__main__":
    with reading(Checks(direction="warn")):  # some of the files do not say it
        main(sys.argv[1:])
