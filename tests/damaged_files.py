"""Damaged image files of every format, by a seed; as a program, read them in little memory.

`python damaged_files.py FIRST COUNT FORMAT...` reads so many of each, `python damaged_files.py PATH...` those
that are named. A line of JSON each: how many were read, why others were refused, what else was raised, and by
how many bytes the process has grown at most.
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from bad_files import unchanged_locale, write_array, write_series
from flare.core.checks import Checks, reading
from flare.core.errors import CaseError
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


def nifti(path: Path, kind: type = nib.Nifti1Image) -> bytes:
    nib.save(kind(HU.T, np.diag([2.0, 3, 4, 1])), path.with_name("whole.nii"))
    return path.with_name("whole.nii").read_bytes()


def itk(path: Path, *, compressed: bool) -> bytes:
    whole = path.with_name(f"whole{path.suffix}")
    sitk.WriteImage(sitk.GetImageFromArray(HU), str(whole), useCompression=compressed)
    return whole.read_bytes()


def ascii_nrrd(_: Path) -> bytes:
    fields = "NRRD0004\ntype: short\ndimension: 3\nsizes: 8 7 6\nencoding: ascii\n\n"
    return (fields + " ".join(map(str, HU.ravel()))).encode()


# format -> file name, content of a whole file, whether the damaged content is packed afterwards
FORMATS: dict[str, tuple[str, Callable[[Path], bytes], bool]] = {
    "nifti": ("a.nii", nifti, False),
    "nifti packed": ("a.nii.gz", nifti, True),
    "nifti damaged packing": ("a.nii.gz", lambda path: gzip.compress(nifti(path)), False),
    "nifti-2": ("a.nii", lambda path: nifti(path, nib.Nifti2Image), False),
    "nrrd": ("a.nrrd", lambda path: itk(path, compressed=False), False),
    "nrrd packed": ("a.nrrd", lambda path: itk(path, compressed=True), False),
    "nrrd ascii": ("a.nrrd", ascii_nrrd, False),
    "mha": ("a.mha", lambda path: itk(path, compressed=False), False),
    "mha packed": ("a.mha", lambda path: itk(path, compressed=True), False),
}
SERIES = ("dicom", "dicom JPEG2000", "dicom JPEG")


def damage(content: bytes, dice: random.Random) -> bytes:
    """Flip bits, cut, write extremes into the header, or numbers in its text."""
    found = bytearray(content)
    how = dice.choice(("flip", "flip header", "cut", "lie", "lie", "text", "text"))
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
    else:
        spots = [m.span() for m in re.finditer(rb"[-+.\d]+", content[:reach])]
        start, end = dice.choice(spots or [(0, 0)])
        found[start:end] = dice.choice(NUMBERS)
    return bytes(found)


def series(folder: Path, compressor: str) -> list[bytes]:
    """The slices of a whole DICOM series."""
    write_series(folder, [(0, 0, z) for z in (0, 2, 4)])
    for path in sorted(folder.iterdir()) if compressor else ():
        writer, image = sitk.ImageFileWriter(), sitk.ReadImage(str(path))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(path))
        with unchanged_locale():
            writer.Execute(image)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def write_damaged(which: str, seeds: range, folder: Path) -> Iterator[Path]:
    """Write a damaged file, or series, a seed, over the one before."""
    if which not in SERIES:
        name, make, packed = FORMATS[which]
        path = folder / name
        whole = make(path)
        for seed in seeds:
            content = damage(whole, random.Random(f"{which} {seed}"))
            path.write_bytes(gzip.compress(content, 1) if packed else content)
            yield path
        return
    path = folder / "series"
    slices = series(path, which.partition(" ")[2])
    for seed in seeds:
        every = seed % 2 == 0  # all slices in one way, or one slice
        for number, content in enumerate(slices):
            bad = damage(content, random.Random(f"{which} {seed}"))
            (path / f"{number:03d}.dcm").write_bytes(bad if every or number == seed % 3 else content)
        yield path


def read_all(paths: Iterable[Path]) -> dict[str, Any]:
    """Read files one after the other, and say what came of them."""
    read, refused, other = 0, [], []
    for path in paths:
        try:
            volume = read_image(path, "a")
            assert volume.array.shape == volume.geometry.shape
            assert np.isfinite(volume.array).all()
            read += 1
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
        jobs: Iterable[tuple[str, Iterable[Path]]]
        if arguments[0].isdecimal():
            first, count = int(arguments[0]), int(arguments[1])
            seeds = range(first, first + count)
            jobs = ((which, write_damaged(which, seeds, Path(folder))) for which in arguments[2:])
        else:
            jobs = ((path, [Path(path)]) for path in arguments)
        for name, paths in jobs:
            found = read_all(paths)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            print(json.dumps({"name": name, "grown": grown, **found}), flush=True)


if __name__ == "__main__":
    with reading(Checks(direction="warn")):  # some of the files do not say it
        main(sys.argv[1:])
