"""A cohort of good cases among damaged ones of every kind, by a seed, and what must become of each.

A case is refused with a reason that a person understands, or it may be used for one of the reasons of
`damaged_files.WHY`, which is checked against the whole file.
"""

from __future__ import annotations

import gzip
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

import bad_cohort
import damaged_files
from bad_cohort import TUMOR, image, label, put
from bad_files import (
    DATATYPE,
    DIM,
    SFORM_CODE,
    SLOPE,
    patch_bytes,
    truncate,
    unchanged_locale,
    write_array,
    write_series,
)
from damaged_files import CLASSES, FORMATS, HU, MAY, SERIES, is_plain, why_it_may, write_whole
from flare.core.checks import Checks, reading
from flare.core.geometry import Volume
from flare.core.volumes import read_image

BIG = 2 << 30  # bytes that a bomb holds


def _bomb(path: Path, shape: tuple[int, int, int]) -> None:
    """Two megabytes that unpack to two gigabytes of zeros, behind a header of a size (x, y, z)."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_sform(np.diag([0.7, 0.7, 2, 1]), 1)
    header["pixdim"][1:4] = 0.7, 0.7, 2
    block = gzip.compress(bytes(1 << 24), 9)  # members follow each other
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)) + block * (BIG >> 24))


def _text_bomb(path: Path, head: str, body: bytes) -> None:
    path.write_bytes(head.encode() + body)


def _nrrd_bomb(path: Path) -> None:
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 900 900 900\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: gzip\nendian: little\n\n"
    _text_bomb(path, head, gzip.compress(bytes(1 << 24), 9) * 90)


def _mha_bomb(path: Path) -> None:
    body = zlib.compress(bytes(1 << 24), 9) + bytes(1 << 20)  # it is refused before it is unpacked
    head = "NDims = 3\nBinaryData = True\nCompressedData = True\n"
    head += f"CompressedDataSize = {len(body)}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    head += (
        "ElementSpacing = 1 1 1\nDimSize = 1024 1024 384\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    _text_bomb(path, head, body)


def _colours(path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.zeros((20, 16, 10), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), path
    )


def _typed(path: Path, dtype: type) -> None:
    nib.save(nib.Nifti1Image(image().T.astype(dtype), np.diag([2, 2, 5, 1])), path)


def _many(path: Path, *more: int) -> None:
    nib.save(nib.Nifti1Image(np.zeros((20, 16, 10, *more), np.int16), np.diag([2, 2, 5, 1])), path)


def _nan(path: Path) -> None:
    array = image().astype(np.float32)
    array[3, 4, 5] = np.nan
    put(path, array)


def _header(path: Path, *edit: object) -> None:
    patch_bytes(put(path, image()), edit)  # type: ignore[arg-type]


def _swapped(path: Path) -> None:
    """Its first number in the other byte order, and no other."""
    _header(path, 0, ">i", [348])


SLICES = [(0.0, 0.0, 5.0 * z) for z in range(6)]
LIKE_CT = {"shape": (16, 20), "spacing_xy": (2.0, 2.0)}


def _series(folder: Path, places: Sequence[Sequence[float]] = SLICES, **more: object) -> Path:
    return write_series(folder, places, **{**LIKE_CT, **more})  # type: ignore[arg-type]


def _missing(folder: Path) -> None:
    (_series(folder) / "003.dcm").unlink()


def _doubled(folder: Path) -> None:
    content = (_series(folder) / "003.dcm").read_bytes()
    (folder / "copy.dcm").write_bytes(content)


def _other_size(folder: Path) -> None:
    uid = f"1.2.{zlib.crc32(folder.name.encode())}"
    _series(folder, uid=uid)
    write_series(folder, [(0, 0, 30)], uid=uid, prefix="z", shape=(8, 10), spacing_xy=(4, 4))


def _other_place(folder: Path) -> None:
    uid = f"1.2.{zlib.crc32(folder.name.encode())}"
    _series(folder, uid=uid)
    _series(folder, [(7, 0, 27)], uid=uid, prefix="z")


def _compressed_cut(folder: Path) -> None:
    damaged_files.series(folder, "JPEG2000")
    truncate(sorted(folder.iterdir())[1], 0.8)


def _frames(folder: Path) -> None:
    """Two files of frames, of one series."""
    folder.mkdir()
    stack = sitk.GetImageFromArray(image().astype(np.uint8))
    stack.SetSpacing((2, 2, 5))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in (1, 2):
        for key, uid in {"0020|000e": "1.2.8", "0020|000d": "1.2.9", "0008|0018": f"1.2.8.{number}"}.items():
            stack.SetMetaData(key, uid)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        with unchanged_locale():
            writer.Execute(stack)


def _localizers(folder: Path) -> None:
    _series(folder, t0008_0008="ORIGINAL\\PRIMARY\\LOCALIZER")


def _coloured_slices(folder: Path) -> None:
    folder.mkdir(parents=True)
    for z in range(3):
        sitk.WriteImage(
            sitk.GetImageFromArray(np.zeros((16, 20, 3), np.uint8), isVector=True), str(folder / f"{z}.dcm")
        )


def _no_slice(folder: Path) -> None:
    (_series(folder) / "004.dcm").write_text("this is no slice" * 50)


# by the end of a name: how an image is made that must be refused, and what is said of it
IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name.replace("_0000", ""): found for name, found in bad_cohort.IMAGES.items()},
    "bomb.nii.gz": (lambda p: _bomb(p, (1024, 1024, 1000)), "no scan is packed so small"),
    "bomb_behind.nii.gz": (lambda p: _bomb(p, (20, 16, 10)), "more voxels than its header claims"),
    "bomb.nrrd": (_nrrd_bomb, "no scan is packed so small"),
    "bomb.mha": (_mha_bomb, "no scan is packed so small"),
    "nan.nrrd": (_nan, "NaN or infinite"),
    "nan.mha": (_nan, "NaN or infinite"),
    "colours.nii": (_colours, "components a voxel"),
    "complex.nii.gz": (lambda p: _typed(p, np.complex64), "components a voxel|numbers of 1 to 8"),
    "long_double.nii": (lambda p: _header(p, DATATYPE, "<2h", [1536, 128]), "numbers of 1 to 8 bytes"),
    "time.nii.gz": (lambda p: _many(p, 3), "4 dimensions"),
    "five.nii.gz": (lambda p: _many(p, 1, 3), "components a voxel"),
    "flat.mha": (lambda p: write_array(p, image(shape=(16, 20))), "2 dimensions"),
    "flat.nrrd": (lambda p: write_array(p, image(shape=(16, 20))), "2 dimensions"),
    "time.nrrd": (lambda p: write_array(p, image(shape=(2, 10, 16, 20))), "4 dimensions"),
    "smaller.nii": (lambda p: _header(p, DIM, "<4h", [3, 20, 16, 9]), "more voxels than its header claims"),
    "narrower.nii": (lambda p: _header(p, DIM, "<4h", [3, 19, 16, 10]), "more voxels than its header claims"),
    "larger.nii": (lambda p: _header(p, DIM, "<4h", [3, 20, 16, 11]), "truncated"),
    "bytes.nii": (lambda p: _header(p, DATATYPE, "<2h", [2, 8]), "more voxels than its header claims"),
    "doubles.nii": (lambda p: _header(p, DATATYPE, "<2h", [64, 64]), "truncated"),
    "swapped.nii": (_swapped, "size|vox_offset|datatype"),
    "infinite_slope.nii": (lambda p: _header(p, SLOPE, "<2f", [1, np.inf]), "scl_slope"),
    "no_forms.nii": (lambda p: _header(p, SFORM_CODE - 2, "<2h", [0, 0]), "does not state its directions"),
    "missing": (_missing, "1 missing between 002.dcm and 004.dcm"),
    "doubled": (_doubled, "lie in the same place, one is doubled"),
    "other_size": (_other_size, "slices of different sizes"),
    "other_place": (_other_place, "uneven slice gaps"),
    "compressed_cut": (_compressed_cut, "cannot be read: 001.dcm"),
    "frames": (_frames, "several files of frames|uneven slice gaps|does not state"),
    "coloured_slices": (_coloured_slices, "components a voxel"),
    "no_slice": (_no_slice, "is no DICOM file"),
}  # fmt: skip
# label maps that must be refused beside a good image
LABELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "moved.nii.gz": (lambda p: put(p, label(), origin=(0.5, 0.0, 0.0)), "origin"),
    "finer.nrrd": (lambda p: put(p, label(), spacing_xyz=(2.0, 2.0, 4.9)), "spacing"),
    "cropped.nii.gz": (lambda p: put(p, label()[:9]), "size|voxels"),
    "unknown.mha": (lambda p: put(p, np.where(label() == TUMOR, 77, label()).astype(np.uint8)), r"\[77\]"),
    "negative.nii.gz": (lambda p: put(p, label().astype(np.int16) - 1), r"\[-1\]"),
    "broken.nii.gz": (lambda p: put(p, (label() * 0.5).astype(np.float32)), "not integers"),
    "nan.nii.gz": (_nan, "NaN or infinite"),
    "cut.nii.gz": (lambda p: truncate(put(p, label()), 0.5), "truncated"),
    "text.nii.gz": (lambda p: p.write_text("no label map" * 50), "no NIfTI file"),
    "colours.nii": (_colours, "components a voxel"),
    "image.nii.gz": (lambda p: put(p, image()), "outside the class list"),
    "bomb.nii.gz": (lambda p: _bomb(p, (1024, 1024, 1000)), "no scan is packed so small"),
}  # fmt: skip
# what looks odd and is used; a localizer or scout beside a scan is left out
GOOD: dict[str, Callable[[Path], object]] = {
    **{f"plain{n}.nii.gz": lambda p: put(p, image(3)) for n in range(4)},
    "padded.nii": lambda p: put(p, image()).write_bytes(p.read_bytes() + bytes(100)),
    "packed.nrrd": lambda p: put(p, image()),
    "packed.mha": lambda p: put(p, image()),
    "slices": _series,
    "packed_slices": lambda p: damaged_files.series(p, "JPEG2000"),
    "with_localizer": lambda p: (_localizers(p), _series(p, uid="1.2.5", prefix="s")),
}
ALONE = {"only_localizers": _localizers}  # skipped: no case


@dataclass(frozen=True)
class Damaged:
    """A case of the cohort."""

    kind: str  # format, name of a crafted fault, or `good`
    path: Path  # what is damaged
    said: str | None = None  # what the reason must say, if it must be refused
    is_header_kept: bool = False
    is_label: bool = False


def _stem(name: str) -> str:
    return name.replace(".", "_")


def _crafted(root: Path) -> dict[str, Damaged]:
    found = {}
    for name, (make, said) in IMAGES.items():
        end = name if "." in name else ""
        path = root / "unlabeled" / (f"x_{_stem(name)}_0000{end[end.index('.') :]}" if end else f"x_{name}")
        make(path)
        found[f"x_{_stem(name)}" if end else f"x_{name}"] = Damaged(name, path, said)
    for name, (make, said) in LABELS.items():
        case = f"l_{_stem(name)}"
        put(root / "images" / f"{case}_0000.nii.gz", image(1))
        path = root / "labels" / f"{case}{name[name.index('.') :]}"
        make(path)
        found[case] = Damaged(name, path, said, is_label=True)
    for name, made in GOOD.items():
        end = name[name.index(".") :] if "." in name else ""
        case = f"good_{_stem(name)}"
        path = root / "unlabeled" / f"{case}{end}"
        made(path)
        found[case] = Damaged("good", path)
    for case in ("a", "b"):
        put(root / "images" / f"good_{case}_0000.nii.gz", image(5))
        put(root / "labels" / f"good_{case}.nii.gz", label())
        found[f"good_{case}"] = Damaged("good", root / "labels" / f"good_{case}.nii.gz", is_label=True)
    return found


def write_cohort(root: Path, seeds: range, label_seeds: range) -> dict[str, Damaged]:
    """Write `images`, `labels` and `unlabeled`: each crafted kind, and of each format a file a seed."""
    for name in ("images", "labels", "unlabeled", "work"):
        (root / name).mkdir(parents=True)
    found = _crafted(root)
    for name, make in ALONE.items():
        make(root / "unlabeled" / name)
        found[name] = Damaged("skipped", root / "unlabeled" / name)
    for which in (*FORMATS, *SERIES):
        for number, (path, is_kept) in zip(
            seeds, damaged_files.write_damaged(which, seeds, root / "work"), strict=True
        ):
            case = f"{which.replace(' ', '_')}_{number}"
            if path.is_dir():
                place = shutil.copytree(path, root / "unlabeled" / case)
            else:
                place = shutil.copy(path, root / "unlabeled" / f"{case}{path.name[1:]}")
            found[case] = Damaged(which, Path(place), is_header_kept=is_kept)
    for which in FORMATS:
        image_of_it = write_whole(which, root / "work")
        pairs = zip(
            label_seeds, damaged_files.write_damaged(which, label_seeds, root / "work", CLASSES), strict=True
        )
        for number, (path, is_kept) in pairs:
            case = f"label_{which.replace(' ', '_')}_{number}"
            target = root / "labels" / f"{case}{path.name[1:]}"
            shutil.copy(path, target)
            shutil.copy(image_of_it, root / "images" / f"{case}_0000{path.name[1:]}")
            found[case] = Damaged(which, target, is_header_kept=is_kept, is_label=True)
    return found


def judge(
    found: Mapping[str, Damaged], rows: Sequence[Mapping[str, str]], work: Path
) -> tuple[Counter[str], list[str]]:
    """Hold the rows of `integrity.csv` against what must become of each case.

    Gives how many were refused, used for a reason of `WHY`, and good and done; and what is wrong.
    """
    counts: Counter[str] = Counter()
    by_case: dict[str, list[Mapping[str, str]]] = {}
    by_folder: dict[str, list[Mapping[str, str]]] = {}  # a slice of another series has an id of its own
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
        by_folder.setdefault(str(Path(row["path"]).parent), []).append(row)
    wholes = {
        (which, array is CLASSES): read_image(write_whole(which, work, array), "a")
        for which in (*FORMATS, *SERIES)
        for array in ((HU, CLASSES) if which in FORMATS else (HU,))
    }
    wrong = []
    for case, damaged in found.items():
        own = by_case.get(case, []) + by_folder.get(str(damaged.path), [])
        try:
            with np.errstate(all="ignore"):  # a header may name any origin
                counts[_became(case, damaged, own, wholes)] += 1
        except AssertionError as error:
            wrong.append(f"{case} ({damaged.kind}): {str(error).splitlines()[0]}")
    return counts, wrong


def _became(
    case: str,
    damaged: Damaged,
    rows: Sequence[Mapping[str, str]],
    wholes: Mapping[tuple[str, bool], Volume],
) -> str:
    """What became of a case, if that is right."""
    statuses = {row["status"] for row in rows}
    assert statuses, "no row at all"
    assert statuses <= {"ok", "warning", "refused", "skipped"}, rows
    for row in rows:
        if row["status"] == "refused":
            assert is_plain(row["reason"]), f"not plain: {row['reason']!r}"
    if damaged.kind in ("good", "skipped"):
        wanted = {"good": {"ok", "warning"}, "skipped": {"skipped"}}[damaged.kind]
        assert statuses - {"skipped"} <= wanted, rows
        return damaged.kind
    if "refused" in statuses:
        told = " ".join(row["reason"] for row in rows)
        assert re.search(damaged.said or "", told), f"another reason: {told!r}"
        return "refused"
    assert damaged.said is None, "was used"
    with reading(Checks(direction="warn", intensity="off")):
        volume = read_image(damaged.path, case)
    whole = wholes[damaged.kind, damaged.is_label]
    why = why_it_may(volume, whole, is_header_kept=damaged.is_header_kept)
    assert why in MAY[damaged.kind], f"used though {why}"
    return why
