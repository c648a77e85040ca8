"""Which checkpoints teach a round, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.rounds.graph import Teacher, present_teachers, read_teacher, require_teacher, teachers_of
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RunFolder


@pytest.fixture
def settings_of(tmp_path: Path, config: Callable[..., DictConfig]) -> Callable[..., RoundSettings]:
    """Settings of a round in the run `tmp_path`."""

    def build(*, run: Path = tmp_path, named: Path = Path("absent"), **changes: Any) -> RoundSettings:
        keys = {"teacher": "mo", "unlabeled_teacher": None, "checkpoint": None, **changes}
        where = {"source": "labels", "cases": "labels"}
        given = [f"{where.get(k, 'round')}.{k}={'null' if v is None else v}" for k, v in keys.items()]
        given = ["round=mo1", "labels.cases=all", "name=trial", f"paths.run={named}", *given]
        return replace(RoundSettings.from_config(config("train", *given)), run=RunFolder(run))

    return build


def last(run: RunFolder, name: str, kind: str = "last") -> Path:
    """Leave a checkpoint as a round would."""
    path = run.round(name).checkpoints / f"{kind}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


Settings = Callable[..., RoundSettings]


def test_a_missing_teacher_is_refused_with_the_command_that_makes_it(
    tmp_path: Path, settings_of: Settings
) -> None:
    with pytest.raises(FlareError, match=r"`python train\.py round=mo name=trial`"):
        require_teacher(settings_of())
    last(RunFolder(tmp_path), "mo")
    require_teacher(settings_of())
    assert teachers_of(settings_of()) == [
        Teacher("teacher", "mo", tmp_path / "rounds/mo/checkpoints/last.ckpt")
    ]


@pytest.mark.parametrize("kind", ["best", "ema"])
def test_any_checkpoint_that_a_round_left_can_teach(tmp_path: Path, settings_of: Settings, kind: str) -> None:
    last(RunFolder(tmp_path), "mo")
    settings = settings_of(teacher_kind=kind)
    made = {"best": "a labelled validation case makes it", "ema": r"callbacks\.ema\.decay=0\.999 makes it"}
    said = (
        rf"mo/checkpoints/{kind}\.ckpt, which does not exist \(round\.teacher, round\.teacher_kind={kind}: "
        rf"last there, {made[kind]}\)"
    )
    with pytest.raises(FlareError, match=said):
        require_teacher(settings)
    path = last(RunFolder(tmp_path), "mo", kind)
    require_teacher(settings)
    assert teachers_of(settings) == [Teacher("teacher", "mo", path)]


def test_a_kind_is_the_name_of_a_file_in_the_rounds_folder(settings_of: Settings) -> None:
    with pytest.raises(FlareError, match=r"round\.teacher_kind=\.\./x: expected the name of a checkpoint"):
        settings_of(teacher_kind="../x")


def test_a_planned_teacher_need_not_be_there_yet(settings_of: Settings) -> None:
    require_teacher(settings_of(), planned=["mo"])


def test_a_checkpoint_named_by_hand_counts_even_if_a_teacher_is_planned(
    tmp_path: Path, settings_of: Settings
) -> None:
    absent = str(tmp_path / "absent.ckpt")
    for planned in ([], ["mo"]):
        with pytest.raises(FlareError, match=r"round\.checkpoint=.*absent\.ckpt: no such file"):
            require_teacher(settings_of(checkpoint=absent), planned)
    (tmp_path / "absent.ckpt").write_bytes(b"weights")
    require_teacher(settings_of(checkpoint=absent, teacher=None))
    assert teachers_of(settings_of(checkpoint=absent)) == [Teacher("checkpoint", None, Path(absent))]


def test_hybrid_labels_without_any_teacher(settings_of: Settings) -> None:
    with pytest.raises(FlareError, match=r"round\.teacher or round\.checkpoint"):
        require_teacher(settings_of(teacher=None))


def test_ground_truth_needs_no_teacher(settings_of: Settings) -> None:
    settings = settings_of(teacher=None, source="ground_truth")
    require_teacher(settings)
    assert teachers_of(settings) == []


def test_cases_without_ground_truth_may_have_a_teacher_of_their_own(
    tmp_path: Path, settings_of: Settings
) -> None:
    run, settings = RunFolder(tmp_path), settings_of(unlabeled_teacher="mot")
    main = last(run, "mo")
    with pytest.raises(FlareError, match=r"mot/checkpoints.*round\.unlabeled_teacher.*round=mot name=trial"):
        require_teacher(settings)
    require_teacher(settings, planned=["mot"])
    assert [t.round for t in present_teachers(settings, planned=["mot"])] == ["mo"]
    own = Teacher("unlabeled_teacher", "mot", last(run, "mot"))
    require_teacher(settings)
    assert teachers_of(settings) == [Teacher("teacher", "mo", main), own]
    settings = settings_of(unlabeled_teacher="mot", checkpoint="by_hand.ckpt")  # of the main teacher alone
    assert teachers_of(settings) == [Teacher("checkpoint", None, Path("by_hand.ckpt")), own]


@pytest.mark.parametrize("change", [{"source": "ground_truth"}, {"cases": "labeled"}])
def test_a_round_without_such_cases_has_no_second_teacher(
    settings_of: Settings, change: dict[str, str]
) -> None:
    assert [t.round for t in teachers_of(settings_of(unlabeled_teacher="mot", **change))] == ["mo"]
    # nor one whose second teacher is the first
    assert [t.key for t in teachers_of(settings_of(unlabeled_teacher="mo"))] == ["teacher"]


@pytest.fixture
def loaded(tmp_path: Path, labels: ClassList, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A checkpoint says that it is of the round in whose folder it lies; what else it says can be changed."""
    said: dict[str, Any] = {"spacing_mm": (4.0, 1.2, 1.2), "class_list": labels}

    def load(path: Path) -> SimpleNamespace:
        return SimpleNamespace(**{"round": path.parent.parent.name, **said})

    monkeypatch.setattr("flare.runs.checkpoints.load_checkpoint", load)
    for name in ("mo", "mot"):
        last(RunFolder(tmp_path), name)
    return said


def test_a_job_of_a_sweep_learns_from_its_own_round_or_that_of_the_run_it_names(
    tmp_path: Path, loaded: dict[str, Any], settings_of: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    job, taught = tmp_path / "multirun" / "0", {"unlabeled_teacher": "mot", "init": "teacher"}
    with pytest.raises(FlareError, match=r"multirun/0/rounds/mo/.*`python train\.py round=mo name=trial`"):
        require_teacher(settings_of(run=job, **taught))
    settings = settings_of(run=job, named=tmp_path, **taught)
    own = last(RunFolder(job), "mot")
    require_teacher(settings)
    assert [t.checkpoint for t in teachers_of(settings)] == [RunFolder(tmp_path).round("mo").last, own]
    caplog.set_level("INFO")
    read_teacher(settings)
    assert caplog.messages == ["round mo1: its teacher mo is that of the run trial"]


def test_weights_start_from_the_main_teacher(loaded: dict[str, Any], settings_of: Settings) -> None:
    settings = settings_of(unlabeled_teacher="mot", init="teacher")
    found = read_teacher(settings)
    assert found is not None
    assert found.round == "mo"
    assert read_teacher(settings, planned=["mo"]) is None


def test_a_second_teacher_of_another_round_is_refused(loaded: dict[str, Any], settings_of: Settings) -> None:
    loaded["round"] = "mo"
    with pytest.raises(FlareError, match=r"round\.unlabeled_teacher=mot: .* is a checkpoint of round mo$"):
        read_teacher(settings_of(unlabeled_teacher="mot"))


def test_a_teacher_of_labels_may_have_another_grid_and_one_of_weights_may_not(
    loaded: dict[str, Any], settings_of: Settings
) -> None:
    loaded["spacing_mm"] = (5.0, 2.0, 2.0)
    assert read_teacher(settings_of()) is not None
    with pytest.raises(FlareError, match=r"data\.spacing_mm=\[4\.0, 1\.2, 1\.2\]: the teacher .* has \[5\.0"):
        read_teacher(settings_of(init="teacher"))
