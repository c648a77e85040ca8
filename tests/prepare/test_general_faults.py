"""A fault that many cases meet stops a run before a training, and deletes nothing that was made earlier."""

import errno
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from cohort_files import image_array, label_array, write, write_case, write_dicom
from flare.core import volumes as images
from flare.core.cases import read_index
from flare.core.errors import CaseError, FlareError
from flare.core.files import read_csv
from flare.core.geometry import Geometry
from flare.core.volumes import find_images, read_image
from flare.prepare.cohort import prepare, prepare_cohort
from flare.runs.folders import prepared_folder

pytestmark = pytest.mark.slow

CASES = [f"c{number}" for number in range(8)]

Build = Callable[..., DictConfig]


@pytest.fixture
def build(tmp_path: Path, build: Build) -> Build:
    """A configuration for a cohort of eight cases."""
    for seed, case in enumerate(CASES):
        write_case(tmp_path / "d", case, 1, 14, seed=seed)
    return partial(build, f"data.root={tmp_path / 'd'}")


@pytest.fixture
def made(tmp_path: Path, build: Build) -> Iterator[dict[Path, bytes]]:
    """What a first start made: it must be there, byte by byte, after every general fault."""
    prepare(build())
    kept = {p: p.read_bytes() for p in sorted((tmp_path / "cache").rglob("*")) if p.is_file()}
    kept = {p: content for p, content in kept.items() if p.name != "integrity.csv"}
    yield kept
    assert kept == {p: p.read_bytes() for p in kept}


def change(root: Path, *cases: str) -> None:
    """Let the images of cases be read again."""
    for case in cases:
        write(root / "d" / "images" / f"{case}_0000.nii.gz", image_array(99))


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception, *cases: str) -> None:
    """Let the reading of cases' images end in an error."""
    unpatched = images.read_nifti

    def read_nifti(path: Path, case: str) -> tuple[np.ndarray, Geometry]:
        if case in cases and "images" in str(path):
            raise error
        return unpatched(path, case)

    monkeypatch.setattr(images, "read_nifti", read_nifti)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 4 GiB"),
        AttributeError("an error of the program"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
@pytest.mark.usefixtures("made")
def test_many_faults_of_any_kind_stop_prepare(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    change(tmp_path, *CASES[:3])
    with monkeypatch.context() as patch:
        fail(patch, error, *CASES[:3])
        with pytest.raises(FlareError) as report:
            prepare_cohort(build())
    (line,) = str(report.value).splitlines()
    assert line.startswith("prepare, caching: 3 of 8 cases failed by no fault of their files")
    assert "more than executor.max_failed=0.05" in line
    assert f"3 x {type(error).__name__}: {error}" in line
    assert "case c0" in line
    assert "or give executor.max_failed=1 to go on without them" in line
    assert [r["case"] for r in read_csv(tmp_path / "cache/integrity.csv")][:3] == CASES[:3]


def test_with_max_failed_of_1_no_number_of_faults_stops_prepare(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, MemoryError("Unable to allocate 4 GiB"), *CASES[:7])
    cohort = prepare_cohort(build("executor.max_failed=1"))
    assert [c.id for c in cohort.cases] == CASES[7:]
    assert [f.case_id for f in cohort.failures] == CASES[:7]


def test_a_few_faults_stop_nothing_and_cost_nothing(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(build())
    change(tmp_path, *CASES[:2])
    kept = {case: prepared_folder(build()).image(case).read_bytes() for case in CASES[:2]}
    with monkeypatch.context() as patch:
        fail(patch, PermissionError(errno.EACCES, "Permission denied"), *CASES[:2])
        cohort = prepare_cohort(build())
    assert [f.case_id for f in cohort.failures if f.is_fault] == CASES[:2]
    assert [c.id for c in cohort.cases] == CASES[2:]
    assert kept == {case: cohort.folder.image(case).read_bytes() for case in CASES[:2]}
    assert prepare_cohort(build()).processed == CASES[:2]  # tried again, and well


@pytest.mark.usefixtures("made")
def test_label_files_that_cannot_be_opened_stop_prepare(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in CASES[:3]:
        write(tmp_path / "d" / "labels" / f"{case}.nii.gz", label_array(2))
    unpatched = Path.open

    def no_access(path: Path, *arguments: object, **more: object) -> object:
        if path.parent.name == "labels" and path.name.endswith(".nii.gz"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return unpatched(path, *arguments, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", no_access)
        with pytest.raises(FlareError, match=r"caching: 3 of 8 cases .*Permission denied.*\(case c0\)"):
            prepare_cohort(build())


def test_statistics_stay_when_the_only_labelled_cases_failed(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in CASES[2:]:
        (tmp_path / "d" / "images" / f"{case}_0000.nii.gz").unlink()
        (tmp_path / "d" / "labels" / f"{case}.nii.gz").unlink()
    statistics = prepare(build()).folder.statistics
    kept = statistics.read_bytes()
    change(tmp_path, *CASES[:2])
    fail(monkeypatch, MemoryError("no 4 GiB"), *CASES[:2])
    cohort = prepare_cohort(build())
    assert statistics.read_bytes() == kept
    with pytest.raises(
        FlareError, match=r"no labelled training case is left(.|\n)*c0: MemoryError: no 4 GiB"
    ):
        cohort.require_intensity()


# --- refused for one reason


@pytest.mark.parametrize("reason", ["values", "grid", "missing"])
def test_a_folder_refused_for_one_reason_stops_prepare(tmp_path: Path, build: Build, reason: str) -> None:
    for number, case in enumerate(CASES[:5]):
        path = tmp_path / "d" / "labels" / f"{case}.nii.gz"
        if reason == "missing":
            path.unlink()
        else:
            array = label_array(77 + number) if reason == "values" else label_array(1)
            write(path, array, origin=(number if reason == "grid" else 0.0, 0.0, 0.0))
    write(tmp_path / "d/images/c0_0000.nii.gz", image_array(0), origin=(-3.0, 0, 0))
    for seed in range(12):  # other folders do not make it less
        write(tmp_path / "d/more" / f"u{seed}_0000.nii.gz", image_array(seed))
    said = {"values": r"label values \[77\]", "grid": "differ", "missing": "image without a label"}[reason]
    message = (
        rf"^prepare, .*: 5 of 8 cases of data\.labeled_images .* 5 x .*{said}.* \(case c0\).*max_failed=1"
    )
    with pytest.raises(FlareError, match=message):
        prepare_cohort(build("data.unlabeled_images=more"))
    assert not prepared_folder(build()).index.exists()
    cohort = prepare_cohort(build("data.unlabeled_images=more", "executor.max_failed=1"))
    assert [c.id for c in cohort.cases if c.is_labeled] == CASES[5:]


def test_a_source_refused_for_one_reason_stops_prepare(tmp_path: Path, build: Build) -> None:
    """Three of eight are not half of the folder, but nearly all of their source."""
    for case in CASES[:3]:
        write(tmp_path / "d" / "labels" / f"{case}.nii.gz", label_array(77))
    assert len(prepare_cohort(build()).cases) == 5
    sources = "data.sources=[{match: 'c[0-3]', annotates: [liver]}]"
    with pytest.raises(FlareError, match=r"3 of 4 cases of data\.sources \(c\[0-3\]\) were refused"):
        prepare_cohort(build(sources))


def test_bad_files_of_several_kinds_stop_nothing(tmp_path: Path, build: Build) -> None:
    images = tmp_path / "d/images"
    for case, content in (("c0", b""), ("c1", b""), ("c2", b"this is no image"), ("c3", b"\x1f\x8b")):
        (images / f"{case}_0000.nii.gz").write_bytes(content)
    write(tmp_path / "d/labels/c4.nii.gz", label_array(77))
    cohort = prepare_cohort(build())
    assert [c.id for c in cohort.cases] == CASES[5:]
    assert not any(f.is_fault for f in cohort.failures)


# --- gone since the last start


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_file_that_is_gone_stops_prepare_until_it_is_back(tmp_path: Path, build: Build, what: str) -> None:
    (path,) = (tmp_path / "d" / what).glob("c3*")
    path.rename(tmp_path / "elsewhere.nii.gz")
    for _ in range(2):  # the refusal is not forgotten
        with pytest.raises(FlareError) as report:
            prepare_cohort(build())
        assert str(path) in str(report.value)
        assert "1 files" in str(report.value)
        assert "data.accept_removed=true" in str(report.value)
    (tmp_path / "elsewhere.nii.gz").rename(path)
    assert len(prepare_cohort(build()).cases) == 8


def test_a_removal_is_confirmed_once(tmp_path: Path, build: Build) -> None:
    prepare(build())
    for folder in ("images", "labels"):
        (path,) = (tmp_path / "d" / folder).glob("c3*")
        path.unlink()
    with pytest.raises(FlareError, match=r"2 files .* are gone"):
        prepare_cohort(build())
    rest = [case for case in CASES if case != "c3"]
    assert [c.id for c in prepare_cohort(build("data.accept_removed=true")).cases] == rest
    assert [c.id for c in prepare_cohort(build()).cases] == rest
    assert prepared_folder(build()).image("c3").exists()


@pytest.mark.usefixtures("made")
def test_links_to_a_share_that_is_away(tmp_path: Path, build: Build) -> None:
    """The names are there, what they name is not: a first start and a later one."""
    images, share = tmp_path / "d/images", tmp_path / "share"
    images.rename(share)
    images.mkdir()
    for path in share.iterdir():
        (images / path.name).symlink_to(path)
    prepare(build())
    share.rename(tmp_path / "away")
    with pytest.raises(FlareError, match=r"8 files that the last start saw are gone.*c0_0000"):
        prepare_cohort(build())
    with pytest.raises(
        FlareError, match=r"caching: 8 of 8 cases failed by no fault of their files.*does not exist"
    ):
        prepare_cohort(build(f"data.cache={tmp_path / 'new'}"))
    (tmp_path / "away").rename(share)
    assert len(prepare_cohort(build()).cases) == 8


def test_the_files_of_an_optional_folder_that_is_away(tmp_path: Path, build: Build) -> None:
    write(tmp_path / "d/more/u_0000.nii.gz", image_array(3))
    write_dicom(tmp_path / "d/more/series", image_array(0), [5.0 * z for z in range(6)])
    more = "data.unlabeled_images=more"
    prepare(build(more))
    (tmp_path / "d/more").rename(tmp_path / "away")
    with pytest.raises(FlareError, match=r"2 files .* are gone.*series.*u_0000"):
        prepare_cohort(build(more))
    assert len(prepare_cohort(build("data.unlabeled_images=null", "data.accept_removed=true")).cases) == 8


def test_a_series_whose_folder_is_empty_is_gone(tmp_path: Path, build: Build) -> None:
    write_dicom(tmp_path / "d/more/series", image_array(0), [5.0 * z for z in range(6)])
    prepare(build("data.unlabeled_images=more"))
    for path in (tmp_path / "d/more/series").iterdir():
        path.unlink()
    with pytest.raises(FlareError, match=r"1 files .* are gone.*series"):
        prepare_cohort(build("data.unlabeled_images=more"))


def test_what_was_moved_or_is_not_asked_for_is_not_gone(tmp_path: Path, build: Build) -> None:
    write(tmp_path / "d/more/u_0000.nii.gz", image_array(3))
    prepare(build("data.unlabeled_images=more"))
    assert len(prepare_cohort(build()).cases) == 8  # the folder is there, but not asked for
    (tmp_path / "d").rename(tmp_path / "e")
    assert [c.id for c in prepare_cohort(build(f"data.root={tmp_path / 'e'}")).cases] == CASES
    assert str(tmp_path / "e") in str(read_index(tmp_path / "cache/index.csv")[0].image)


# --- access


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a/x.nii.gz", image_array())
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("os.scandir", _no_access_to(tmp_path / "closed"))
    with pytest.raises(FlareError, match=r"closed cannot be searched for images: Permission denied"):
        find_images(tmp_path)


def _no_access_to(folder: Path) -> Callable[..., object]:
    import os

    unpatched = os.scandir

    def scandir(path: object) -> object:
        if str(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return unpatched(path)  # type: ignore[call-overload]

    return scandir


@pytest.mark.parametrize("all_of_them", [False, True])
def test_slices_that_are_links_to_nothing_are_no_fault_of_the_series(
    tmp_path: Path, all_of_them: bool
) -> None:
    folder = write_dicom(tmp_path / "s", image_array(0), [5.0 * z for z in range(6)])
    for path in sorted(folder.iterdir())[0 if all_of_them else 5 :]:
        path.unlink()
        path.symlink_to(tmp_path / "away" / path.name)
    with pytest.raises(FileNotFoundError):
        read_image(folder)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "series"])
def test_what_itk_cannot_open_is_told_from_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    if name == "series":
        write_dicom(path, image_array(0), [5.0 * z for z in range(6)])
    else:
        write(path, image_array())
    unpatched = Path.open

    def no_access(path: Path, *arguments: object, **more: object) -> object:
        if path.suffix in (".nrrd", ".mha", ".dcm"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return unpatched(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", no_access)
    with pytest.raises(PermissionError):
        read_image(path)


def test_memory_that_ends_in_itk_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.nrrd", image_array())

    def fails(*_: object) -> None:
        raise RuntimeError("Exception thrown in SimpleITK\nFailed to allocate memory for image.")

    with monkeypatch.context() as patch:
        patch.setattr("SimpleITK.ImageFileReader.Execute", fails)
        with pytest.raises(MemoryError, match="allocate memory"):
            read_image(path)
    path.write_bytes(b"this is no image")
    with pytest.raises(CaseError, match="cannot be read"):
        read_image(path)
