"""Which checkpoints teach a round, and which are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.rounds.teachers import Teacher, present_teachers, read_teacher, require_teacher, teachers_of
from flare.runs.folders import RunFolder


def cfg_of(**round_keys: str | None) -> DictConfig:
    keys = {"name": "mo1", "teacher": "mo", "unlabeled_teacher": None, "checkpoint": None, **round_keys}
    labels = {"source": "hybrid", "cases": "all"}
    return OmegaConf.create({"name": "trial", "paths": {"run": "absent"}, "round": keys, "labels": labels})


def last(run: RunFolder, name: str) -> Path:
    """Leave a checkpoint as a round would."""
    run.round(name).checkpoints.mkdir(parents=True)
    run.round(name).last.write_bytes(b"weights")
    return run.round(name).last


def test_a_missing_teacher_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(FlareError, match=r"`python train\.py round=mo name=trial`"):
        require_teacher(cfg_of(), run)
    last(run, "mo")
    require_teacher(cfg_of(), run)
    assert teachers_of(cfg_of(), run) == [
        Teacher("teacher", "mo", tmp_path / "rounds/mo/checkpoints/last.ckpt")
    ]


def test_a_planned_teacher_need_not_be_there_yet(tmp_path: Path) -> None:
    require_teacher(cfg_of(), RunFolder(tmp_path), planned=["mo"])


def test_a_checkpoint_named_by_hand_counts_even_if_a_teacher_is_planned(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.ckpt")
    for planned in ([], ["mo"]):
        with pytest.raises(FlareError, match=r"round\.checkpoint=.*absent\.ckpt: no such file"):
            require_teacher(cfg_of(checkpoint=absent), RunFolder(tmp_path), planned)
    (tmp_path / "absent.ckpt").write_bytes(b"weights")
    require_teacher(cfg_of(checkpoint=absent, teacher=None), RunFolder(tmp_path))
    found = teachers_of(cfg_of(checkpoint=absent), RunFolder(tmp_path))
    assert found == [Teacher("checkpoint", None, Path(absent))]


def test_hybrid_labels_without_any_teacher(tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"round\.teacher or round\.checkpoint"):
        require_teacher(cfg_of(teacher=None), RunFolder(tmp_path))


def test_ground_truth_needs_no_teacher(tmp_path: Path) -> None:
    cfg = cfg_of(teacher=None)
    cfg.labels.source = "ground_truth"
    require_teacher(cfg, RunFolder(tmp_path))
    assert teachers_of(cfg, RunFolder(tmp_path)) == []


def test_cases_without_ground_truth_may_have_a_teacher_of_their_own(tmp_path: Path) -> None:
    run, cfg = RunFolder(tmp_path), cfg_of(unlabeled_teacher="mot")
    main = last(run, "mo")
    with pytest.raises(FlareError, match=r"mot/checkpoints.*round\.unlabeled_teacher.*round=mot name=trial"):
        require_teacher(cfg, run)
    require_teacher(cfg, run, planned=["mot"])
    assert [t.round for t in present_teachers(cfg, run, planned=["mot"])] == ["mo"]
    own = Teacher("unlabeled_teacher", "mot", last(run, "mot"))
    require_teacher(cfg, run)
    assert teachers_of(cfg, run) == [Teacher("teacher", "mo", main), own]
    cfg.round.checkpoint = "by_hand.ckpt"  # instead of the main teacher's alone
    assert teachers_of(cfg, run) == [Teacher("checkpoint", None, Path("by_hand.ckpt")), own]


@pytest.mark.parametrize(("key", "value"), [("source", "ground_truth"), ("cases", "labeled")])
def test_a_round_without_such_cases_has_no_second_teacher(tmp_path: Path, key: str, value: str) -> None:
    cfg = cfg_of(unlabeled_teacher="mot")
    cfg.labels[key] = value
    assert [t.round for t in teachers_of(cfg, RunFolder(tmp_path))] == ["mo"]
    cfg = cfg_of(unlabeled_teacher="mo")  # nor one whose second teacher is the first
    assert [t.key for t in teachers_of(cfg, RunFolder(tmp_path))] == ["teacher"]


@pytest.fixture
def taught(tmp_path: Path, labels: ClassList, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """A round of two teachers; a checkpoint says that it is of the round in whose folder it lies."""

    def load(path: Path) -> SimpleNamespace:
        return SimpleNamespace(round=path.parent.parent.name, spacing_mm=(4.0, 1.2, 1.2), class_list=labels)

    monkeypatch.setattr("flare.runs.checkpoints.load_checkpoint", load)
    for name in ("mo", "mot"):
        last(RunFolder(tmp_path), name)
    cfg = cfg_of(unlabeled_teacher="mot", init="teacher")
    cfg.data = {"spacing_mm": [4.0, 1.2, 1.2]}
    cfg.classes = labels.to_config()
    return cfg


def test_a_job_of_a_sweep_learns_from_its_own_round_or_that_of_the_run_it_names(
    tmp_path: Path, taught: DictConfig, caplog: pytest.LogCaptureFixture
) -> None:
    job = RunFolder(tmp_path / "multirun" / "0")
    with pytest.raises(FlareError, match=r"multirun/0/rounds/mo/.*`python train\.py round=mo name=trial`"):
        require_teacher(taught, job)
    taught.paths.run = str(tmp_path)
    own = last(job, "mot")
    require_teacher(taught, job)
    assert [t.checkpoint for t in teachers_of(taught, job)] == [RunFolder(tmp_path).round("mo").last, own]
    caplog.set_level("INFO")
    read_teacher(taught, job)
    assert caplog.messages == ["round mo1: its teacher mo is that of the run trial"]


def test_weights_start_from_the_main_teacher(tmp_path: Path, taught: DictConfig) -> None:
    found = read_teacher(taught, RunFolder(tmp_path))
    assert found is not None
    assert found.round == "mo"
    assert read_teacher(taught, RunFolder(tmp_path), planned=["mo"]) is None


def test_a_second_teacher_of_another_round_is_refused(
    tmp_path: Path, taught: DictConfig, labels: ClassList, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(round="mo", spacing_mm=(4.0, 1.2, 1.2), class_list=labels)
    monkeypatch.setattr("flare.runs.checkpoints.load_checkpoint", lambda _: other)
    with pytest.raises(FlareError, match=r"round\.unlabeled_teacher=mot: .* is a checkpoint of round mo$"):
        read_teacher(taught, RunFolder(tmp_path))
