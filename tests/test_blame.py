"""Stand-ins for files, names, access: that the right thing is blamed, and nothing else stops (kind E)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

import bad_cohort
from bad_cohort import image, label, put
from bad_files import write_series
from flare.core.errors import CaseError, FlareError
from flare.core.files import printable, read_csv, write_text
from flare.core.volumes import find_images, read_image, unique_cases
from flare.inference.predict import infer
from flare.prepare import analysis
from flare.prepare.cohort import prepare
from flare.rounds.iterate import train
from flare.runs.checkpoints import load_checkpoint, read_weights_file
from flare.sweeps.callback import is_refusal
from tiny_run import ROOT, script

CHECKPOINT = ROOT / "tests" / "data" / "checkpoint_0_1.ckpt"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ANNEX = b"/annex/objects/MD5E-s12--0f343b0931126a20f133d67c2b018a3b.nii.gz\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
STAND_INS = [
    (POINTER, "is a Git LFS pointer, not the file itself"),
    (ANNEX, "is a git-annex pointer, not the file itself"),
    (PAGE, "is a web page, not the file itself"),
    (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    (b"", "is empty"),
]
PLACES = [(0, 0, 5 * z) for z in range(6)]
LATIN1 = os.fsdecode(b"caf\xe9")  # what an older system left


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot takes longer than all the rest."""
    drawn = SimpleNamespace(savefig=lambda path, **_: path.write_bytes(b""))
    monkeypatch.setattr(analysis, "draw_label_analysis", lambda *_: drawn)


# --- stand-ins


@pytest.mark.parametrize(
    ("content", "told"),
    [
        *STAND_INS,
        (b"Entry not found\n", "begins with the text 'Entry not found"),
        (b"\x00\x01\x02\xff" * 99, r"torch did not write it, it begins with b'\\x00"),
    ],
)
def test_what_lies_in_the_place_of_a_checkpoint(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(FlareError, match=rf"^checkpoint={path}: [^\n]*{told}") as refusal:
        read_weights_file(path)
    for advice in ("weights_only", "torch.load", "Pickle"):
        assert advice not in str(refusal.value)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_checkpoint_is_said_to_be_truncated(tmp_path: Path, is_zip: bool, share: float) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"w": torch.ones(4000), "x": "y" * 4000}, path, _use_new_zipfile_serialization=is_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FlareError, match=rf"^checkpoint={path}: is truncated; copy it again$"):
        read_weights_file(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "series"])
@pytest.mark.parametrize(("content", "told"), STAND_INS)
def test_what_lies_in_the_place_of_an_image(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    path = tmp_path / name
    if name == "series":
        write_series(path, PLACES)
        sorted(path.iterdir())[-1].write_bytes(content)
    else:
        path.write_bytes(content)
    with pytest.raises(CaseError, match=rf"{path}.*[ (]{told}"):
        read_image(path)


# --- names


def put_as(path: Path, array: np.ndarray) -> None:
    """Write under a name that SimpleITK cannot be given."""
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    plain = next(folder for folder in path.parents if printable(folder) == str(folder))
    put(plain / f"aside{suffix}", array).rename(path)


@pytest.mark.parametrize(
    "name", ["caf\udce9.nii.gz", "caf\udce9.nrrd", "caf\udce9/ct.nii.gz", "caf\udce9/ct.mha"]
)
def test_a_name_that_is_not_utf8_is_refused_by_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    put_as(tmp_path / name, image())
    put(tmp_path / "good.nii.gz", image())
    images, refused = unique_cases(find_images(tmp_path))
    assert refused == {}
    for case, path in images.items():
        case.encode()  # a case's id can be written
        if case == "good":
            read_image(path, case)
            continue
        with pytest.raises(CaseError, match=r"caf\\udce9\S* has a name that is not UTF-8; rename it$"):
            read_image(path, case)


@pytest.mark.parametrize("with_preamble", [True, False])
def test_a_slice_of_such_a_name_refuses_its_series(tmp_path: Path, with_preamble: bool) -> None:
    folder = tmp_path / "series"
    write_series(folder, PLACES)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path = folder / path.stem  # known by its content alone
        path.write_bytes(content if with_preamble else content[132:])
    path.rename(folder / LATIN1)
    assert find_images(tmp_path) == [folder]
    with pytest.raises(CaseError, match="not UTF-8"):
        read_image(folder)


def test_prepare_names_it_and_goes_on(tmp_path: Path, config: Callable[..., DictConfig]) -> None:
    for case in ("a", "b"):
        put(tmp_path / "images" / f"{case}_0000.nii.gz", image())
        put(tmp_path / "labels" / f"{case}.nii.gz", label())
    put_as(tmp_path / "images" / f"{LATIN1}_0000.nii.gz", image())
    put_as(tmp_path / "labels" / f"{LATIN1}.nii.gz", label())
    (tmp_path / "unlabeled").mkdir()
    put_as(tmp_path / "unlabeled" / f"u{LATIN1}.nii.gz", image())
    put_as(tmp_path / "labels" / f"lone{LATIN1}.nii.gz", label())
    cfg = config("prepare", *bad_cohort.overrides(tmp_path, tmp_path / "out"))
    with pytest.raises(FlareError) as report:
        prepare(cfg)
    told = str(report.value).encode("ascii", "backslashreplace").decode().splitlines()
    assert told[0] == "prepare: 3 failed, the rest is done"
    assert [line.split(":")[0].strip() for line in told[1:]] == [
        "caf\\udce9", "lonecaf\\udce9", "ucaf\\udce9",
    ]  # fmt: skip
    rows = {row["case"]: row["status"] for row in read_csv(next((tmp_path / "out").rglob("integrity.csv")))}
    bad = dict.fromkeys(("caf\\udce9", "lonecaf\\udce9", "ucaf\\udce9"), "refused")
    assert rows == {"a": "ok", "b": "ok", **bad}


def test_a_text_that_names_such_a_file_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "told.txt", f"{LATIN1} is refused")
    assert (tmp_path / "told.txt").read_text() == "caf\\udce9 is refused"


@pytest.mark.long
@pytest.mark.slow
def test_infer_goes_on_past_names_and_stand_ins(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "good.nii.gz", image())
    put_as(folder / f"{LATIN1}.nii.gz", image())
    put_as(folder / f"{LATIN1}.nrrd", image())
    (folder / "pointer.nii.gz").write_bytes(POINTER)
    write_series(folder / "series", PLACES)
    slices = sorted((folder / "series").iterdir())
    slices[0].write_bytes(slices[0].read_bytes()[132:])
    slices[0].rename(folder / "series" / LATIN1)
    given = [f"checkpoint={CHECKPOINT}", f"input={folder}", f"output={tmp_path / 'out'}", "tta=none"]
    done = script("infer", *given, "executor.workers=0", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["good.nii.gz"]
    told = done.stderr.splitlines()[-4:]
    assert told[0] == "infer: 3 failed, the rest is done"
    assert "caf\\udce9: 2 files of this id" in told[1]
    assert "pointer: " in told[2]
    assert "is a Git LFS pointer" in told[2]
    assert "series: " in told[3]
    assert "not UTF-8" in told[3]


# --- access


def deny(monkeypatch: pytest.MonkeyPatch, path: Path, number: int = errno.EACCES) -> None:
    """Let a file, or what lies in a folder, be there and not be read: root may read everything."""
    opened, access = Path.open, os.access

    def is_meant(other: object) -> bool:
        return Path(str(other)) == path or path in Path(str(other)).parents

    def no_open(self: Path, *given: object, **more: object) -> object:
        if is_meant(self):
            raise OSError(number, os.strerror(number), str(self))
        return opened(self, *given, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", no_open)
    monkeypatch.setattr(os, "access", lambda p, *given: not is_meant(p) and access(p, *given))


def cohort(root: Path, *cases: str) -> None:
    for seed, case in enumerate(cases):
        put(root / "images" / f"{case}_0000.nii.gz", image(seed))
        put(root / "labels" / f"{case}.nii.gz", label())
    (root / "unlabeled").mkdir(exist_ok=True)


@pytest.mark.parametrize("where", ["images/b_0000.nii.gz", "labels/b.nii.gz", "images"])
def test_access_that_expired_stops_and_deletes_nothing(
    tmp_path: Path, config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """One file is enough: it was readable at the last start."""
    cohort(tmp_path, "a", "b", "c")
    cfg = config("prepare", *bad_cohort.overrides(tmp_path, tmp_path / "out"))
    prepare(cfg)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    for path in (tmp_path / "images").iterdir():
        os.utime(path)  # each is to be read again
    with monkeypatch.context() as patch:
        deny(patch, tmp_path / where)
        with pytest.raises(FlareError, match=r"^data: \d files .* may not be read: .*access expired\?"):
            prepare(cfg)
    assert before == {p: p.read_bytes() for p in before}
    assert len(prepare(cfg).cases) == 3


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(CHECKPOINT.read_bytes())

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(FlareError, match=rf"^checkpoint={path}: cannot be read: {os.strerror(number)}$"):
        load_checkpoint(path)


def test_a_fault_of_access_is_told_in_one_line() -> None:
    assert is_refusal(PermissionError(errno.EACCES, "Permission denied", "/data"))
    assert is_refusal(OSError(errno.ESTALE, "Stale file handle", "/data"))
    assert not is_refusal(FileNotFoundError(errno.ENOENT, "No such file", "/data"))  # ours, perhaps
    assert not is_refusal(ValueError("x"))


# --- what follows from a failure is told after it


def spoil(root: Path, *cases: str) -> None:
    for case in cases:
        (root / "images" / f"{case}_0000.nii.gz").write_bytes(PAGE)


def test_a_refused_case_is_named_where_none_is_left_to_train_on(
    tmp_path: Path, config: Callable[..., DictConfig]
) -> None:
    cohort(tmp_path, "a", "b")
    spoil(tmp_path, "a", "b")
    with pytest.raises(FlareError) as report:
        train(config("train", *bad_cohort.overrides(tmp_path, tmp_path / "out"), "model=tiny"))
    first, *rest = str(report.value).splitlines()
    assert first == "data.labels: no labelled training case is left, so nothing can be trained"
    assert rest[0] == "failed before:"
    assert [line.split(":")[0].strip() for line in rest[1:]] == ["a", "b"]
    assert "is a web page" in rest[1]


def test_a_refused_case_is_named_where_a_round_has_none(
    tmp_path: Path, config: Callable[..., DictConfig]
) -> None:
    """The case with all organs is refused; the one with a tumor is left, which is none of round mo."""
    cohort(tmp_path, "a", "b")
    put(
        tmp_path / "labels" / "b.nii.gz",
        np.where(label() == bad_cohort.TUMOR, bad_cohort.TUMOR, 0).astype("u1"),
    )
    spoil(tmp_path, "a")
    own = ["round=mo", "model=tiny", "labels.cases=organs_complete"]
    with pytest.raises(FlareError) as report:
        train(config("train", *bad_cohort.overrides(tmp_path, tmp_path / "out"), *own))
    first, second, third = str(report.value).splitlines()
    assert first.startswith("round=mo: no training case is 'organs_complete'")
    assert second == "failed before:"
    assert "  a: " in third


def test_a_refused_case_is_named_where_the_split_leaves_none(
    tmp_path: Path, config: Callable[..., DictConfig]
) -> None:
    cohort(tmp_path, "a", "b")
    (tmp_path / "images" / "more").mkdir()
    put(tmp_path / "images" / "more" / "a.nii.gz", image())  # a second image of this id
    line = [*bad_cohort.overrides(tmp_path, tmp_path / "out"), "+data.split={validation: [b]}"]
    with pytest.raises(FlareError) as report:
        prepare(config("prepare", *line))
    assert "no labelled case is left to train on" in str(report.value)
    assert "\n  a: 2 cases of the same id" in str(report.value)


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_an_input_file_that_stands_in_for_a_scan(
    tmp_path: Path, config: Callable[..., DictConfig], content: bytes
) -> None:
    (tmp_path / "scan.dcm").write_bytes(content)
    given = [f"input={tmp_path / 'scan.dcm'}", f"output={tmp_path / 'out'}", f"checkpoint={CHECKPOINT}"]
    with pytest.raises(FlareError, match=r"^input=.*scan\.dcm: is a (web page|Git LFS pointer)"):
        infer(config("infer", *given))
