"""DICOM folders as they are exported: kinds C and K of the field reports."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bad_files import truncate, write_array, write_series
from flare.core.checks import Checks, reading
from flare.core.dicom import is_dicom
from flare.core.errors import CaseError, FlareError
from flare.core.volumes import find_images, read_image, spread_series, unique_cases

HEIGHTS = (0.0, 3.0, 6.0, 9.0, 12.0)
LIKE_CT = {"shape": (12, 16), "spacing_xy": (1.5, 1.25)}
EXPLICIT = b"1.2.840.10008.1.2.1\0"


def series(folder: Path, heights: tuple[float, ...] = HEIGHTS, **more: object) -> Path:
    return write_series(folder, [(-5.0, -6.0, z) for z in heights], **{**LIKE_CT, **more})


def refused(path: Path) -> str:
    with reading(Checks()), pytest.raises(CaseError) as refusal:
        read_image(path, "a")
    return refusal.value.reason


def without_preamble(path: Path, *, keep_meta: bool) -> Path:
    """A slice as old scanners write it: the bare data set, with or without the group of its file."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    length = int.from_bytes(content[140:144], "little")
    path.write_bytes(content[132:] if keep_meta else content[144 + length :])
    return path


def as_object(path: Path, sop_class: str, uid: str = "9.8.7") -> Path:
    """A DICOM file of another class and without pixels, as RT structures and reports are."""
    kind_of_object, series_uid = (text.encode() + b"\0" * (len(text) % 2) for text in (sop_class, uid))

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
        return tag + kind + len(value).to_bytes(2, "little") + value

    meta = element(2, 2, b"UI", kind_of_object) + element(2, 0x10, b"UI", EXPLICIT)
    body = element(8, 0x16, b"UI", kind_of_object) + element(0x20, 0x0E, b"UI", series_uid)
    size = element(2, 0, b"UL", len(meta).to_bytes(4, "little"))
    path.write_bytes(bytes(128) + b"DICM" + size + meta + body)
    return path


def drop(folder: Path, tag: tuple[int, int]) -> Path:
    """Take an element out of every slice."""
    for path in folder.iterdir():
        content = path.read_bytes()
        key = tag[0].to_bytes(2, "little") + tag[1].to_bytes(2, "little")
        at = content.index(key, 132)
        length = int.from_bytes(content[at + 4 : at + 8], "little")  # implicit: GDCM writes it so
        path.write_bytes(content[:at] + content[at + 8 + length :])
    return folder


# --- C: nothing is skipped without a word


@pytest.mark.parametrize("name", ["000.dcm", "004.dcm", "IM0005", "slice.ima"])
@pytest.mark.parametrize("kept", [0, 40, 200, 0.5])
def test_a_cut_slice_is_never_left_out(tmp_path: Path, name: str, kept: float) -> None:
    folder = series(tmp_path / "s")
    if not (folder / name).exists():
        (folder / "004.dcm").rename(folder / name)
    truncate(folder / name, kept if kept < 1 else kept / (folder / name).stat().st_size)
    assert f"cannot be read: {name}" in refused(folder)


@pytest.mark.parametrize("keep_meta", [True, False])
def test_a_cut_slice_without_a_preamble_is_never_left_out(tmp_path: Path, keep_meta: bool) -> None:
    folder = series(tmp_path / "s")
    for path in folder.iterdir():
        without_preamble(path.rename(path.with_suffix("")), keep_meta=keep_meta)
    truncate(folder / "004", 0.5)
    assert "cannot be read: 004" in refused(folder)


@pytest.mark.parametrize("keep_meta", [True, False])
def test_slices_without_a_preamble_are_found_and_read(tmp_path: Path, keep_meta: bool) -> None:
    folder = series(tmp_path / "s")
    known = read_image(folder)
    for path in folder.iterdir():
        without_preamble(path.rename(path.with_suffix("")), keep_meta=keep_meta)
    assert find_images(tmp_path) == [folder]
    found = read_image(folder)
    np.testing.assert_array_equal(found.array, known.array)
    assert found.geometry == known.geometry


def test_an_explicit_data_set_without_a_preamble(real_data: Path, tmp_path: Path) -> None:
    """As scanners of today write it, without what says so."""
    known = real_data / "field" / "D_multiframe" / "plain" / "multi.dcm"
    (tmp_path / "s").mkdir()
    path = Path(shutil.copyfile(known, tmp_path / "s" / "IM1"))
    without_preamble(path, keep_meta=False)
    assert find_images(tmp_path) == [tmp_path / "s"]
    np.testing.assert_array_equal(read_image(tmp_path / "s").array, read_image(known).array)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_is_no_missing_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = series(tmp_path / "s")
    known = Path.open

    def fails(path: Path, *args: object, **kwargs: object) -> object:
        if path.name in ("000.dcm", "004.dcm"):
            raise OSError(number, "fails", str(path))
        return known(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fails)
    assert is_dicom(folder / "000.dcm")
    assert find_images(tmp_path) == [folder]
    assert unique_cases([folder]) == (
        {"s": folder},
        {},
    )  # reading it is what fails, and costs this case alone
    with pytest.raises(OSError, match="fails") as error:
        read_image(folder)
    assert error.value.errno == number


def test_a_slice_behind_a_dangling_link_is_missed(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    (folder / "004.dcm").unlink()
    (folder / "004.dcm").symlink_to(tmp_path / "away" / "004.dcm")
    assert is_dicom(folder / "004.dcm")
    with pytest.raises(FileNotFoundError):
        read_image(folder)


def test_a_folder_that_cannot_be_listed_stops_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    series(tmp_path / "s")
    known = os.scandir

    def fails(path: str) -> object:
        if str(path).endswith("/s"):
            raise PermissionError(errno.EACCES, "no access", str(path))
        return known(path)

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(FlareError, match="cannot be searched"):
        find_images(tmp_path)


def test_a_folder_of_damaged_slices_is_named(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    for path in folder.iterdir():
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert find_images(tmp_path) == [folder]
    assert "cannot be read: 000.dcm" in refused(folder)


@pytest.mark.parametrize("name", ["x.nhdr", "x.mhd", "x.hdr", "x.img", "x.mgz", "x.nii.bz2"])
def test_formats_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    write_array(tmp_path / "good.nii.gz", np.zeros((4, 5, 6), np.int16))
    (tmp_path / name).write_bytes(b"0" * 400)
    assert set(find_images(tmp_path)) == {tmp_path / "good.nii.gz", tmp_path / name}
    assert "of a format that is not read" in refused(tmp_path / name)
    write_array(tmp_path / "x.nrrd", np.zeros((4, 5, 6), np.int16))  # the same scan, converted
    assert set(find_images(tmp_path)) == {tmp_path / "good.nii.gz", tmp_path / "x.nrrd"}


@pytest.mark.parametrize("folder", ["C_analyze_pair", "C_detached_nrrd"])
def test_formats_from_the_field_are_named_once(real_data: Path, folder: str) -> None:
    place = real_data / "field" / folder
    (found,) = find_images(place)
    assert found.suffix in (".hdr", ".nhdr")
    assert "convert it" in refused(found)


# --- K: series


def test_objects_without_pixels_are_no_slices(tmp_path: Path) -> None:
    folder = series(tmp_path / "s")
    known = read_image(folder).array
    for number, sop_class in enumerate(
        ("481.3", "481.5", "88.33", "88.59", "11.1", "104.1", "66.1", "9.1.1")
    ):
        as_object(folder / f"object{number}.dcm", f"1.2.840.10008.5.1.4.1.1.{sop_class}")
    np.testing.assert_array_equal(read_image(folder).array, known)
    only = tmp_path / "structures"
    only.mkdir()
    as_object(only / "rs", "1.2.840.10008.5.1.4.1.1.481.3")
    assert find_images(tmp_path) == [folder]


def test_a_ct_without_pixels_is_a_damaged_slice(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", uid="1.2.3")
    as_object(folder / "004.dcm", "1.2.840.10008.5.1.4.1.1.2", "1.2.3")
    assert "cannot be read: 004.dcm" in refused(folder)
    as_object(folder / "004.dcm", "1.2.840.10008.5.1.4.1.1.2")  # then of a series of its own
    assert "cannot be read: 004.dcm" in refused(folder / "series-9.8.7")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spacing_xy": (1.5, 1.2)}, "different voxel size, 1.5 x 1.25 mm and 1.5 x 1.2 mm"),
        ({"axes": (1, 0, 0, 0, np.cos(0.1), np.sin(0.1))}, "different orientation"),
        ({"axes": (-1, 0, 0, 0, 1, 0)}, "different orientation"),
        ({"shape": (12, 15)}, "different sizes"),
    ],
)
@pytest.mark.parametrize("place", [2, 4])
def test_every_slice_is_compared(tmp_path: Path, change: dict, said: str, place: int) -> None:
    folder = series(tmp_path / "s")
    other = series(tmp_path / "other" / "s", **change)
    shutil.copy(other / f"{place:03d}.dcm", folder)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("heights", "said"),
    [
        ((0, 3, 6, 12, 15), "1 missing between 002.dcm and 003.dcm, 6 mm apart"),
        ((0, 3, 12, 15, 18), "2 missing between 001.dcm and 002.dcm, 9 mm apart"),
        ((0, 3, 3, 6, 9), "001.dcm and 002.dcm lie in the same place, one is doubled"),
        ((0, 3, 6.4, 9, 12), "no regular stack"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, heights: tuple, said: str) -> None:
    assert said in refused(series(tmp_path / "s", heights))


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ((0x0020, 0x0032), "without ImagePositionPatient"),
        ((0x0020, 0x0037), "does not state its ImageOrientationPatient"),
    ],
)
def test_absent_places_are_not_called_missing_slices(tmp_path: Path, tag: tuple, said: str) -> None:
    assert said in refused(drop(series(tmp_path / "s"), tag))


def test_an_absent_voxel_size_is_said(real_data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real_data / "slab_dicom" / "series", tmp_path / "s")
    spacing = b"\x28\0\x30\0DS"
    for path in folder.iterdir():
        path.chmod(0o644)
        content = path.read_bytes()
        at = content.index(spacing)
        length = int.from_bytes(content[at + 6 : at + 8], "little")
        path.write_bytes(content[:at] + content[at + 8 + length :])
    assert "does not state its PixelSpacing" in refused(folder)


def spread(root: Path, split: Callable[[int], str]) -> None:
    """One series over folders, by the number of a slice."""
    for number, path in enumerate(sorted(series(root / "all").iterdir())):
        target = root / "export" / split(number)
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
    (root / "all").rmdir()


def test_a_series_in_two_folders_is_refused(tmp_path: Path) -> None:
    spread(tmp_path, lambda number: f"part{number // 3}")
    series(tmp_path / "export" / "other")
    folders = find_images(tmp_path)
    assert [f.name for f in folders] == ["other", "part0", "part1"]
    found, bad = unique_cases(folders)
    assert list(found) == ["other"]
    assert set(bad) == {"part0", "part1"}
    assert all("one DICOM series in 2 folders" in reason for reason in bad.values())
    assert all(str(folder) in bad["part0"] for folder in folders[1:])
    assert not spread_series([folders[0], folders[1]])


def test_a_file_of_frames_alone_in_its_folder(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    shutil.copy(real_data / "field" / "D_multiframe" / "plain" / "multi.dcm", tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("no slice")
    assert find_images(tmp_path) == [tmp_path / "s"]
    assert read_image(tmp_path / "s").array.shape == (43, 67, 76)
    shutil.copy(tmp_path / "s" / "multi.dcm", tmp_path / "s" / "again.dcm")
    assert "several files of frames" in refused(tmp_path / "s")
    (tmp_path / "s" / "again.dcm").unlink()
    path = tmp_path / "s" / "multi.dcm"
    content = path.read_bytes()
    for number in (0x88, 0x50):  # another number, which says nothing
        tag = b"\x18\0" + bytes([number]) + b"\0DS"
        content = content.replace(tag, b"\x18\0\x51\0DS")
    path.chmod(0o644)
    path.write_bytes(content)
    assert "does not state its SpacingBetweenSlices" in refused(tmp_path / "s")
