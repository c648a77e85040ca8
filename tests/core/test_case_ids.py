"""What names a case, which DICOM series are cases, and what is passed over: kind H, and DICOM exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from bad_files import truncate, write_array, write_series
from flare.core.cases import case_rule
from flare.core.class_files import carried_classes
from flare.core.errors import CaseError, FlareError
from flare.core.files import stat_key
from flare.core.volumes import case_id, find_images, find_scans, read_image, unique_cases

LOCALIZER = {"t0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
ACROSS = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # rows and columns of a lateral view


def series(folder: Path, uid: str, count: int = 5, first: float = 0, **more: object) -> Path:
    """Slices 3 mm apart; those of a folder that has others get names of their own."""
    more = {"prefix": uid.replace(".", "_") + "-", "shape": (12, 16), "spacing_xy": (1.5, 1.25), **more}
    return write_series(folder, [(-5, -6, first + 3 * z) for z in range(count)], uid=uid, **more)


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return find_images(root)


# --- rules


@pytest.mark.parametrize(
    ("rule", "path", "expected"),
    [
        ("leaf", "p1/st1/ct_0000.nii.gz", "ct"),
        ("parent", "p1/st1/ct_0000.nii.gz", "st1"),
        ("path", "p1/st1/ct_0000.nii.gz", "p1_st1_ct"),
        ("dicom_series_uid", "p1/st1/ct_0000.nii.gz", "ct"),
        ("parent", "ct_0000.nii.gz", "ct"),  # directly in the folder that was searched
        ("path", "ct_0000.nii.gz", "ct"),
        ("parent", "s.1/ct.v2.nrrd", "s.1"),
        ("path", "s 1/deep er/ct.mha", "s 1_deep er_ct"),
    ],
)
def test_rules(tmp_path: Path, rule: str, path: str, expected: str) -> None:
    assert case_id(tmp_path / path, rule=rule, root=tmp_path) == expected


def test_a_rule_holds_where_the_search_began_with_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scans").mkdir()
    monkeypatch.chdir(tmp_path / "scans")
    (path,) = touch(Path(), "p1/ct.nii.gz")
    assert case_id(path, rule="path", root=Path()) == "p1_ct"
    assert case_id(path, rule="parent", root=Path()) == "p1"
    assert case_id(Path("ct.nii.gz"), rule="parent") == "scans"  # a single file, nothing searched


def test_a_label_that_has_an_images_id_is_its_label_whatever_the_rule(tmp_path: Path) -> None:
    known = {"s0001", "1.2.3"}
    for rule in ("leaf", "parent", "path", "dicom_series_uid"):
        assert case_id(tmp_path / "deep" / "s0001.nii.gz", known, rule=rule, root=tmp_path) == "s0001"
    assert case_id(tmp_path / "s0001" / "seg.nii.gz", known, rule="parent", root=tmp_path) == "s0001"


def test_file_is_another_word_for_leaf_and_other_words_are_refused() -> None:
    assert [case_rule(word) for word in ("leaf", "file", "parent", "path")] == [
        "leaf",
        "leaf",
        "parent",
        "path",
    ]
    for word in ("folder", None, 7):
        with pytest.raises(
            FlareError, match=rf"^data.case_id={word}: expected one of leaf, parent, path, dicom"
        ):
            case_rule(word)


def test_doubles_name_the_rule_that_tells_them_apart(tmp_path: Path) -> None:
    paths = touch(tmp_path, "s0001/ct.nii.gz", "s0002/ct.nii.gz")
    found, refused = unique_cases(paths, root=tmp_path)
    assert (found, list(refused)) == ({}, ["ct"])
    assert refused["ct"].endswith("; data.case_id=parent tells them apart")
    assert all(str(path) in refused["ct"] for path in paths)
    found, refused = unique_cases(paths, rule="parent", root=tmp_path)
    assert (sorted(found), refused) == (["s0001", "s0002"], {})


def test_doubles_by_their_parent_as_well(tmp_path: Path) -> None:
    paths = touch(tmp_path, *(f"p{p}/study/s{s}/ct.nii.gz" for p in (1, 2) for s in (1, 2)))
    for rule in ("leaf", "parent"):
        refused = unique_cases(paths, rule=rule, root=tmp_path)[1]
        assert all(reason.endswith("data.case_id=path tells them apart") for reason in refused.values())
    found, refused = unique_cases(paths, rule="path", root=tmp_path)
    assert sorted(found) == ["p1_study_s1_ct", "p1_study_s2_ct", "p2_study_s1_ct", "p2_study_s2_ct"]
    assert not refused


def test_doubles_that_no_rule_tells_apart_and_many(tmp_path: Path) -> None:
    paths = touch(tmp_path, "a/x.nii.gz", "a/x.nrrd")
    assert unique_cases(paths, root=tmp_path)[1]["x"].endswith("; give them different names")
    paths = touch(tmp_path / "many", *(f"s{n:04d}/ct.nii.gz" for n in range(200)))
    reason = unique_cases(paths, root=tmp_path / "many")[1]["ct"]
    assert "200 files of this id" in reason
    assert "and 195 more; data.case_id=parent" in reason


def test_a_pattern_stands_for_any_names(tmp_path: Path) -> None:
    """The layout of KiTS: image and label of a case in one folder."""
    touch(tmp_path, *(f"case_{n}/{kind}.nii.gz" for n in (1, 2) for kind in ("imaging", "segmentation")))
    found, _ = find_scans(tmp_path / "case_*" / "imaging.nii.gz")
    assert found == [tmp_path / f"case_{n}" / "imaging.nii.gz" for n in (1, 2)]
    assert len(find_images(tmp_path / "case_?")) == 4
    touch(tmp_path, "odd*name/x.nii.gz")
    assert find_images(tmp_path / "odd*name") == [
        tmp_path / "odd*name" / "x.nii.gz"
    ]  # that is there as it is


@pytest.mark.parametrize("hidden", [".snapshot", ".Trash-1000", ".git"])
def test_dot_folders_are_passed_over(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "labels" / hidden / "x").mkdir(parents=True)
    paths = touch(tmp_path / "labels", "x/a.nii.gz", f"{hidden}/x/a.nii.gz", f"x/{hidden}/a.nii.gz")
    assert paths == [tmp_path / "labels" / "x" / "a.nii.gz"]
    series(tmp_path / "labels" / hidden / "scan", "1.2.1")
    assert find_images(tmp_path / "labels") == paths
    (tmp_path / "labels" / hidden / "classes.json").write_text("{}")  # no class list at all
    assert carried_classes("labels", tmp_path / "labels") is None
    assert find_images(tmp_path / "labels" / hidden / "x") != []  # that somebody asks for


# --- series


def test_patient_study_series(tmp_path: Path) -> None:
    for number, patient in enumerate(("p1", "p2")):
        series(tmp_path / patient / "study" / "series", f"1.2.{number}.1")
    paths, skipped = find_scans(tmp_path)
    assert not skipped
    _, refused = unique_cases(paths, root=tmp_path)
    assert refused["series"].endswith("data.case_id=path tells them apart")
    for rule, ids in {
        "path": ["p1_study_series", "p2_study_series"],
        "dicom_series_uid": ["1.2.0.1", "1.2.1.1"],
    }.items():
        found, refused = unique_cases(paths, rule=rule, root=tmp_path)
        assert (sorted(found), refused) == (ids, {})


def test_series_of_one_folder_are_cases_of_their_own(tmp_path: Path) -> None:
    """An export without folders; the voxels are those of each series alone."""
    for place, uid in ((tmp_path / "p", "1.2.1"), (tmp_path / "p", "1.2.2"), (tmp_path / "one", "1.2.1")):
        series(place, uid, first=0 if uid == "1.2.1" else 100)
    alone = read_image(tmp_path / "one")
    shutil.rmtree(tmp_path / "one")
    paths = find_images(tmp_path)
    assert paths == [tmp_path / "p" / "series-1.2.1", tmp_path / "p" / "series-1.2.2"]
    found, refused = unique_cases(paths, root=tmp_path)
    assert not refused
    assert len(found) == 2
    assert all(case.startswith("p_") and "1.2" not in case for case in found)  # no text of a header
    assert sorted(found) == sorted(unique_cases(reversed(paths), root=tmp_path)[0])
    assert list(unique_cases(paths, rule="dicom_series_uid", root=tmp_path)[0]) == ["1.2.1", "1.2.2"]
    for path, height in zip(paths, (0, 100), strict=True):
        volume = read_image(path)
        np.testing.assert_array_equal(volume.array, alone.array)
        assert volume.geometry.origin_mm[2] == height
        assert find_images(path) == [path]  # a series can be named
    with pytest.raises(CaseError, match=r"holds 2 DICOM series; name one of them, as .*series-1\.2\.1"):
        read_image(tmp_path / "p")
    with pytest.raises(CaseError, match="does not exist"):
        read_image(tmp_path / "p" / "series-1.2.3")


def test_a_named_series_changes_with_its_files_alone(tmp_path: Path) -> None:
    for uid in ("1.2.1", "1.2.2"):
        series(tmp_path / "p", uid)
    one, other = (stat_key(path) for path in find_images(tmp_path))
    series(tmp_path / "p", "1.2.2", count=6)
    after = [stat_key(path) for path in find_images(tmp_path)]
    assert after[0] == one
    assert after[1] != other
    with pytest.raises(FileNotFoundError):
        stat_key(tmp_path / "p" / "series-1.2.3")


def test_a_cut_slice_refuses_every_series_that_may_be_its_own(tmp_path: Path) -> None:
    for uid in ("1.2.1", "1.2.2"):
        series(tmp_path / "p", uid)
    cut = tmp_path / "p" / "1_2_2-004.dcm"
    truncate(cut, 0.9)  # its head says whose it is
    assert read_image(tmp_path / "p" / "series-1.2.1").array.shape == (5, 12, 16)
    truncate(cut, 0.01)
    for path in find_images(tmp_path):
        with pytest.raises(CaseError, match=r"cannot be read: 1_2_2-004\.dcm"):
            read_image(path)


def test_uids_that_a_sequence_tells_are_of_others(tmp_path: Path) -> None:
    """A derived series names the series that it was made from, before its own."""
    for place, uid in (("a", "1.2.1"), ("b", "1.2.2")):
        for path in series(tmp_path / place, uid).iterdir():
            content = path.read_bytes()
            reference = b"\x20\0\x0e\0" + (6).to_bytes(4, "little") + b"9.9.9\0"
            item = b"\xfe\xff\0\xe0" + b"\xff" * 4 + reference + b"\xfe\xff\x0d\xe0" + bytes(4)
            sequence = b"\x08\0\x15\x11" + b"\xff" * 4 + item + b"\xfe\xff\xdd\xe0" + bytes(4)
            at = content.index(b"\x20\0\x0d\0", 132)  # the study's, behind group 8
            path.write_bytes(content[:at] + sequence + content[at:])
    assert find_images(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    for path in (tmp_path / "a").iterdir():
        shutil.copy(path, tmp_path / "b")
    assert find_images(tmp_path / "b") == [tmp_path / "b" / f"series-1.2.{n}" for n in (1, 2)]


def test_big_endian_series_are_split_as_well(tmp_path: Path) -> None:
    for uid in ("1.2.1", "1.2.2"):
        for path in series(tmp_path / uid, uid).iterdir():
            as_big_endian(path)
            (tmp_path / "p").mkdir(exist_ok=True)
            path.rename(tmp_path / "p" / path.name)
    found = find_images(tmp_path)
    assert found == [tmp_path / "p" / "series-1.2.1", tmp_path / "p" / "series-1.2.2"]
    assert read_image(found[0]).array[:, 0, 0].tolist() == [-100, -90, -80, -70, -60]


# value representations of what `write_series` writes (PS3.6)
KINDS = {
    0x0008: {0x08: "CS", 0x16: "UI", 0x18: "UI", 0x20: "DA", 0x30: "TM", 0x50: "SH", 0x60: "CS", 0x90: "PN"},
    0x0018: {0x50: "DS", 0x88: "DS", 0x1164: "DS"},
    0x0010: {0x10: "PN", 0x20: "LO", 0x30: "DA", 0x40: "CS"},
    0x0020: {0x0D: "UI", 0x0E: "UI", 0x10: "SH", 0x11: "IS", 0x13: "IS", 0x32: "DS", 0x37: "DS"},
    0x0028: {
        **{
            0x02: "US",
            0x04: "CS",
            0x10: "US",
            0x11: "US",
            0x30: "DS",
            0x1052: "DS",
            0x1053: "DS",
            0x1054: "LO",
        },
        **dict.fromkeys((0x100, 0x101, 0x102, 0x103), "US"),
    },
}


def as_big_endian(path: Path) -> None:
    """Write an implicit little-endian slice of 16 bits anew, element by element."""
    content = path.read_bytes()
    at, body = 144 + int.from_bytes(content[140:144], "little"), b""
    while at < len(content):
        group, number, size = (
            int.from_bytes(content[at + i : at + j], "little") for i, j in ((0, 2), (2, 4), (4, 8))
        )
        value = content[at + 8 : at + 8 + size]
        at += 8 + size
        head = group.to_bytes(2, "big") + number.to_bytes(2, "big")
        if group == 0x7FE0:
            body += (
                head
                + b"OW\0\0"
                + size.to_bytes(4, "big")
                + np.frombuffer(value, "<i2").astype(">i2").tobytes()
            )
        else:
            kind = KINDS[group][number]
            value = value[::-1] if kind == "US" else value
            body += head + kind.encode() + size.to_bytes(2, "big") + value
    syntax = b"1.2.840.10008.1.2.2\0"
    meta = b"\x02\0\x10\0UI" + len(syntax).to_bytes(2, "little") + syntax
    path.write_bytes(bytes(128) + b"DICM\x02\0\0\0UL\x04\0" + len(meta).to_bytes(4, "little") + meta + body)


# --- localizers and scouts


def test_localizers_in_folders_of_their_own_are_named(tmp_path: Path) -> None:
    scan = series(tmp_path / "st" / "scan", "1.2.1")
    scout = series(tmp_path / "st" / "topo", "1.2.2", count=4, **LOCALIZER)
    assert find_scans(tmp_path) == ([scan], {scout: "4 localizers (ImageType)"})
    assert find_scans(scout) == ([], {scout: "4 localizers (ImageType)"})
    with pytest.raises(CaseError, match=r"no readable DICOM series but 4 localizers"):
        read_image(scout)


def test_a_scan_among_its_localizers_keeps_the_name_of_its_folder(tmp_path: Path) -> None:
    """As a study is exported into one folder, or where the localizer is of the series itself."""
    scan = series(tmp_path / "scan", "1.2.1")
    known = read_image(scan)
    series(scan, "1.2.2", count=2, axes=ACROSS, **LOCALIZER)
    series(scan, "1.2.1", count=1, prefix="own", **LOCALIZER)
    paths, skipped = find_scans(tmp_path)
    assert paths == [scan]
    assert skipped == {
        scan / "series-1.2.1": "1 localizers (ImageType)", scan / "series-1.2.2": "2 localizers (ImageType)",
    }  # fmt: skip
    np.testing.assert_array_equal(read_image(scan).array, known.array)


@pytest.mark.parametrize("together", [True, False])
def test_a_few_slices_beside_a_scan_of_the_study_are_named(tmp_path: Path, together: bool) -> None:
    """A scout that does not say so, two views, a report as a picture, slices at one height for the bolus."""
    scan = series(tmp_path / "scan", "1.2.1")
    for number, more in enumerate(
        ({"count": 1}, {"count": 2, "axes": ACROSS}, {"count": 1, "shape": (5, 7)})
    ):
        series(scan if together else tmp_path / f"other{number}", f"1.3.{number}", **more)
    write_series(scan if together else tmp_path / "bolus", [(0, 0, 9)] * 12, uid="1.4", prefix="bolus")
    paths, skipped = find_scans(tmp_path)
    assert paths == [scan]
    assert [reason.split(",")[0] for reason in skipped.values()].count("slices in 1 places") == 3
    assert len(skipped) == 4
    assert read_image(scan).array.shape == (5, 12, 16)


def test_a_few_slices_that_are_all_there_is_are_no_scout(tmp_path: Path) -> None:
    """One slice alone is refused as ever, two are a scan, and so is what other studies have."""
    series(tmp_path / "a", "1.2.1", t0020_000d="1.8.1")
    one = series(tmp_path / "b", "1.2.2", count=1, t0020_000d="1.8.2")
    two = series(tmp_path / "c", "1.2.3", count=2, t0020_000d="1.8.3")
    paths, skipped = find_scans(tmp_path)
    assert not skipped
    assert {one, two} < set(paths)
    with pytest.raises(CaseError, match="holds one slice"):
        read_image(one)


def test_a_damaged_or_spread_series_is_no_scout(tmp_path: Path) -> None:
    series(tmp_path / "scan", "1.2.1")
    for path in sorted(series(tmp_path / "bad", "1.2.2").iterdir())[:4]:
        truncate(path, 0.01)
    for path in sorted(series(tmp_path / "all", "1.2.3").iterdir()):
        (tmp_path / "spread" / path.stem).mkdir(parents=True)
        path.rename(tmp_path / "spread" / path.stem / path.name)
    paths, skipped = find_scans(tmp_path)
    assert not skipped
    assert len(paths) == 2 + 5
    assert len(unique_cases(paths, rule="path", root=tmp_path)[1]) == 5  # of one series in 5 folders


def test_frames_are_places(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    shutil.copy(real_data / "field" / "D_multiframe" / "plain" / "multi.dcm", tmp_path / "frames")
    study = sitk.ImageFileReader()
    study.SetFileName(str(tmp_path / "frames" / "multi.dcm"))
    study.ReadImageInformation()
    uid = study.GetMetaData("0020|000d") if study.HasMetaDataKey("0020|000d") else "1.2.9"
    series(tmp_path / "scan", "1.2.1", t0020_000d=uid)
    assert find_scans(tmp_path) == ([tmp_path / "frames", tmp_path / "scan"], {})


def test_a_mask_beside_several_series_is_an_image_of_its_own(tmp_path: Path) -> None:
    for uid in ("1.2.1", "1.2.2"):
        series(tmp_path / "p", uid)
    mask = write_array(tmp_path / "p" / "mask.nii.gz", np.zeros((4, 5, 6), np.int16))
    assert set(find_images(tmp_path)) == {mask, *(tmp_path / "p" / f"series-1.2.{n}" for n in (1, 2))}
