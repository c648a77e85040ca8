"""Steps over all cases do work that grows with their number, not with its square; calls are counted."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from composed import composed
from flare.core import files, series
from flare.core.cases import Case, Entry, write_index
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import config_hash
from flare.core.series import Head, Series, series_in, without_scouts
from flare.evaluation import scores
from flare.evaluation.lesions import Lesion, froc
from flare.evaluation.metrics import ScoreSettings
from flare.evaluation.scores import failed_cases, score_folder
from flare.prepare import cohort
from flare.prepare.analysis import analyse_labels
from flare.prepare.index import build_index
from flare.prepare.settings import CohortFiles
from flare.rounds import label
from flare.runs import journal
from flare.runs.folders import PreparedFolder
from flare.runs.journal import Journal, Resumed
from flare.runs.work import Outcome, naming, stop_on_faults

Step = Callable[[], Any]
SIDES = (("reference", True), ("prediction", False))


class Id(str):
    """An id that is compared and hashed by a call, so that a walk through a list of such is counted."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


def calls(step: Step) -> int:
    """Count the calls of functions, Python's and C's, that a step makes."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


def assert_linear(make: Callable[[int], Step], few: int = 30) -> None:
    """Twice as many cases more take twice as many calls more; four times as many would be square."""
    make(2)()  # what is done once a process
    one, two, four = (calls(make(n)) for n in (few, 2 * few, 4 * few))
    assert four - two < 3 * (two - one), (one, two, four)


def ids(count: int) -> list[Id]:
    return [Id(f"case_{n:05}") for n in range(count)]


def case(name: str, *, split: str = "train") -> Case:
    return Case(name, Path(f"{name}.nii.gz"), Path("label.nii.gz"), split, "partial", (1,), (1,))


def test_the_count_tells_a_list_from_a_set() -> None:
    def searched(kind: Callable[[Any], Any]) -> Callable[[int], Step]:
        return lambda count: lambda: [name in found for found in [kind(ids(count))] for name in ids(count)]

    assert_linear(searched(set))
    with pytest.raises(AssertionError):
        assert_linear(searched(list))


def test_scouts() -> None:
    def make(count: int) -> Step:
        found = [Series(Path(f"/d/{n}"), str(n), "study", (), 1 + 9 * (n % 2)) for n in range(count)]
        return lambda: without_scouts(found)

    assert_linear(make)


def test_localizers(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(count: int) -> Step:
        found = {Path(f"/d/{name}"): Head(name, "study", "1", 1, True) for name in ids(count)}
        found[Path("/d/x")] = Head("x", "study", "1")
        monkeypatch.setattr(series, "heads", lambda folder: found)
        return lambda: series_in(Path("/d"))

    assert_linear(make)


def cohort_files(root: Path, count: int, name: str, **given: Any) -> CohortFiles:
    """A cohort of empty files, in folders of images, of labels, and none: an index opens no file."""
    (root / "none").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        for folder in ("images", "labels"):
            path = root / folder / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return CohortFiles.from_config(
        {"root": str(root), **given}, ClassList.from_config(composed("train").classes)
    )


ALL_LABELED = {"labeled_images": "images", "labels": "labels", "split": {"validation": 0.2}}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("case_{:05}.nii.gz", ALL_LABELED),
        ("case_{:05}.nii.gz", {"labeled_images": "images", "labels": "none"}),
        ("patient_{:05}/ct.nii.gz", ALL_LABELED),  # all of one id
        ("patient_{:05}/ct.nii.gz", {"unlabeled_images": "images"}),
    ],
)
def test_index(tmp_path: Path, name: str, data: dict[str, Any]) -> None:
    def make(count: int) -> Step:
        given = cohort_files(tmp_path / str(count), count, name, **data)
        return lambda: build_index(given)

    assert_linear(make)


def test_what_a_start_finds_of_a_cohort(tmp_path: Path) -> None:
    def make(count: int) -> Step:
        folder = PreparedFolder(tmp_path / str(count), (4.0, 1.2, 1.2))
        found = [case(name) for name in ids(count)]
        write_index(folder.index, found)
        pending = dict.fromkeys(ids(count), "image changed")
        return lambda: cohort._foresee(folder, found, pending)

    assert_linear(make)


def test_a_dry_run_of_a_cohort_without_labels(tmp_path: Path) -> None:
    def make(count: int) -> Step:
        root = tmp_path / str(count)
        cohort_files(root, count, "case_{:05}.nii.gz")
        own = [f"data.root={root}", f"paths.outputs={root}", "data.labeled_images=null", "data.labels=null"]
        own += ["data.unlabeled_images=images", "data.validation_images=null", "executor.workers=0"]
        cfg = composed("iterate", "data=flare23", "data.validation_labels=null", *own)
        return lambda: cohort.analyse(cfg)

    assert_linear(make, 40)


def test_label_analysis() -> None:
    classes = ClassList.from_config(composed("train").classes)

    def make(count: int) -> Step:
        entries = [
            Entry(n, "train", Path(n), Path(n), None, f"source {i % 3}") for i, n in enumerate(ids(count))
        ]
        values = {n: {"voxels": {"1": 5}, "voxel_ml": 0.1, "warnings": []} for n in ids(count)}
        return lambda: analyse_labels(entries, values, classes)

    assert_linear(make)


def test_faults_and_refusals() -> None:
    def make(count: int) -> Step:
        failures = [Outcome(n, error="bad", is_fault=i % 2 == 0, kind="k") for i, n in enumerate(ids(count))]
        names, groups = ids(4 * count), {"data.labels": set(ids(4 * count))}
        return lambda: stop_on_faults(failures, "step", names, 1.0, groups)

    assert_linear(make)


def test_failed_cases_of_a_summary() -> None:
    def make(count: int) -> Step:
        summary = {"failed": dict.fromkeys(ids(count), "bad"), "faults": ids(count)}
        return lambda: failed_cases(summary)

    assert_linear(make)


def test_what_a_merge_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "provenance.md").write_text("told")
    for name in ("ground_truth", "pseudo"):
        (tmp_path / name).mkdir()
    own = [f"{name}={tmp_path / name}" for name in ("ground_truth", "pseudo")] + [f"output={tmp_path}/new"]
    cfg = composed("merge_labels", *own)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "provenance.md").write_text("told")

    def make(count: int) -> Step:
        done = Resumed({name: {} for name in ids(count)}, list(ids(count)), [])
        monkeypatch.setattr(label, "merge_folders", lambda *_: done)
        return lambda: label.merge(cfg)

    assert_linear(make, 60)


def test_naming_tells_failures_that_a_text_does_not_have() -> None:
    """By whole lines: one that another begins with is no part of it."""
    failures = [Outcome("a", error="bad"), Outcome("b", error="bad\nindeed")]
    for told, left in {"no": ["a", "b"], "no\n  a: badly": ["a", "b"], "no\n  b: bad\nindeed": ["a"]}.items():
        with pytest.raises(FlareError) as refused, naming(failures):
            raise FlareError(told)
        added = str(refused.value).removeprefix(told).splitlines()
        assert [line[2] for line in added if line.startswith("  ")] == left


def test_the_curve_of_lesions_asks_numpy_no_more_often_for_more_of_them() -> None:
    def make(count: int) -> Step:
        rng = np.random.default_rng(count)
        scored = [(side, hit, float(s)) for s in rng.random(count) for side, hit in SIDES]
        lesions = [Lesion(side, 1.0, 12.0, "Liver", hit, None, score) for side, hit, score in scored]
        return lambda: froc(lesions, count)

    make(5)()
    assert calls(make(400)) == calls(make(50))


def test_the_curve_of_lesions_counts_what_scores_as_much_or_more() -> None:
    rng = np.random.default_rng(0)
    lesions = [
        Lesion(side, 1.0, 12.0, "Liver", hit, None, float(score))
        for score in rng.integers(0, 6, 40) / 5  # with ties, and some that were not found
        for side, hit in SIDES
    ]
    real, false = ([x.score for x in lesions if x.side == side] for side in ("reference", "prediction"))
    scored = sorted({*(s for s in real if s), *false, np.inf}, reverse=True)
    expected = [[sum(s >= t for s in false) / 7, sum(s >= t for s in real) / len(real)] for t in scored]
    np.testing.assert_array_equal(froc(lesions, 7), expected)


def test_a_job_of_scoring_is_told_of_its_own_case_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = ClassList.from_config(composed("train").classes)
    sent: dict[str, Any] = {}
    monkeypatch.setattr(scores, "run_cases", lambda function, jobs, **_: sent.update(jobs) or [])
    (tmp_path / "predictions").mkdir()
    names = [f"case_{n}" for n in range(50)]
    answered = tuple(names[::2])
    references = {name: tmp_path / f"{name}.nii.gz" for name in names}
    settings = ScoreSettings(classes, answered=answered)
    score_folder(tmp_path / "predictions", references, output=tmp_path, settings=settings, executor=None)  # type: ignore[arg-type]
    assert {n: n in job["settings"].answered for n, job in sent.items()} == {n: n in answered for n in names}
    assert len({len(pickle.dumps(sent[name])) for name in answered[5:]}) == 1


def test_a_long_journal_is_parsed_once_while_it_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    real = json.loads
    monkeypatch.setattr(journal.json, "loads", lambda text: parsed.append(text) or real(text))
    long, config = Journal(tmp_path / "long.jsonl"), {"a": 1}
    for number in range(500):
        long.record(f"case_{number}", {"image": "x" * 100}, config, {}, {"n": number})
    assert long.path.stat().st_size > files.BLOCK
    parsed.clear()
    first, second = Journal(long.path), Journal(long.path)
    assert len(parsed) == 500
    first.record("new", {}, {"a": 2}, {})
    assert "new" not in second
    third = Journal(long.path)
    assert third.cases() == {*second.cases(), "new"}
    assert (third.values("case_7"), third.config("new")) == ({"n": 7}, {"a": 2})


def test_a_config_is_hashed_once_for_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []
    real = files.hashlib.sha256
    monkeypatch.setattr(files.hashlib, "sha256", lambda data=b"": hashed.append(data) or real(data))
    config = {"b": [1, 2], 5: "x", "path": Path("/a"), "own": "of this test"}
    found = {config_hash(dict(config)) for _ in range(20)}
    assert (len(hashed), len(found)) == (1, 1)
    assert found == {config_hash({"own": "of this test", "path": "/a", "5": "x", "b": [1, 2]})}
    assert found != {config_hash({**config, "b": [2, 1]})}
    assert config_hash(OmegaConf.to_container(OmegaConf.create({"a": 1}))) == config_hash({"a": 1})
