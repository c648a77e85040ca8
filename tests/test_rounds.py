"""The graph of rounds: order, circles, missing teachers, forwarded overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from flare.cli import CONF
from flare.errors import FlareError
from flare.rounds import Round, check_rounds, compose_rounds, require_teacher, teacher_checkpoint
from flare.runs import RunFolder

ALL = ["mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3"]
# who teaches whom: paper, section 2.2 and Table 5
TEACHERS = {
    "mo": None,
    "mo1": "mo",
    "mo2": "mo1",
    "mt": None,
    "mot": "mo2",
    "mot1": "mot",
    "mot2": "mot1",
    "mot3": "mot2",
}


@pytest.fixture(scope="module")
def rounds() -> list[Round]:
    """All rounds, asked for backwards."""
    return compose_rounds(
        ALL[::-1], ["experiment=flare23", "data.root=/x", "dry_run=true", "rounds=[mo]", "seed=7"]
    )


def test_teachers_come_before_their_pupils(rounds: list[Round]) -> None:
    names = [r.name for r in rounds]
    assert sorted(names) == sorted(ALL)
    for name, teacher in TEACHERS.items():
        assert teacher is None or names.index(teacher) < names.index(name)


def test_teachers_are_the_papers(rounds: list[Round]) -> None:
    assert {r.name: r.teacher for r in rounds} == TEACHERS
    assert {r.name for r in rounds if not r.needs_teacher} == {"mo", "mt"}


def test_the_command_line_reaches_every_round_without_iterates_own_keys(rounds: list[Round]) -> None:
    for r in rounds:
        assert r.cfg.seed == 7
        assert r.cfg.data.root == "/x"
        assert r.cfg.name == "flare23"
        assert r.cfg.round.name == r.name
        assert "dry_run" not in r.cfg
        assert "rounds" not in r.cfg


def test_the_order_asked_for_is_kept_where_the_graph_allows() -> None:
    assert [r.name for r in compose_rounds(["mt", "mo"], [])] == ["mt", "mo"]


def test_a_round_is_what_train_would_compose(config: Callable[..., DictConfig]) -> None:
    overrides = ["experiment=demo", "model=small", "round.init=fresh", "+trainer.x=1"]
    (found,) = compose_rounds(["mot3"], overrides)
    expected = config("train", *overrides, "round=mot3", f"ckpt_path={found.cfg.ckpt_path}")
    assert OmegaConf.to_container(found.cfg) == OmegaConf.to_container(expected)
    assert found.cfg.model.net.features[0] == 16


def test_rounds_compose_within_a_running_application() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert [r.name for r in compose_rounds(["mo1", "mo"], [])] == ["mo", "mo1"]


def test_a_name_that_is_no_round() -> None:
    with pytest.raises(FlareError, match=r"mo9.*known: mo, mo1, mo2, mot, .*mt"):
        compose_rounds(["mo", "mo9"], [])


def test_a_circle_is_named() -> None:
    with pytest.raises(FlareError, match="mo1 <- mo1 is a circle"):
        compose_rounds(["mo1"], ["round.teacher=mo1"])


def cfg_of(**round_keys: str | None) -> DictConfig:
    teacher = {"name": "mo1", "teacher": "mo", "checkpoint": None, **round_keys}
    return OmegaConf.create({"name": "trial", "round": teacher, "labels": {"source": "hybrid"}})


def test_a_missing_teacher_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(FlareError, match=r"`python train\.py round=mo name=trial`"):
        require_teacher(cfg_of(), run)
    run.round("mo").checkpoints.mkdir(parents=True)
    run.round("mo").last.write_bytes(b"weights")
    require_teacher(cfg_of(), run)
    assert teacher_checkpoint(cfg_of(), run) == str(tmp_path / "rounds/mo/checkpoints/last.ckpt")


def test_a_planned_teacher_need_not_be_there_yet(tmp_path: Path) -> None:
    require_teacher(cfg_of(), RunFolder(tmp_path), planned=["mo"])


def test_a_checkpoint_named_by_hand_counts_even_if_a_teacher_is_planned(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.ckpt")
    for planned in ([], ["mo"]):
        with pytest.raises(FlareError, match=r"round\.checkpoint=.*absent\.ckpt: no such file"):
            require_teacher(cfg_of(checkpoint=absent), RunFolder(tmp_path), planned)
    (tmp_path / "absent.ckpt").write_bytes(b"weights")
    require_teacher(cfg_of(checkpoint=absent, teacher=None), RunFolder(tmp_path))
    assert teacher_checkpoint(cfg_of(checkpoint=absent), RunFolder(tmp_path)) == absent


def test_hybrid_labels_without_any_teacher(tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"round\.teacher or round\.checkpoint"):
        require_teacher(cfg_of(teacher=None), RunFolder(tmp_path))


def test_ground_truth_needs_no_teacher(tmp_path: Path) -> None:
    cfg = cfg_of(teacher=None)
    cfg.labels.source = "ground_truth"
    require_teacher(cfg, RunFolder(tmp_path))
    assert teacher_checkpoint(cfg, RunFolder(tmp_path)) is None


def test_a_part_of_the_graph_needs_what_it_leaves_out(rounds: list[Round], tmp_path: Path) -> None:
    check_rounds(rounds, RunFolder(tmp_path))
    with pytest.raises(FlareError, match=r"round=mot needs .*round=mo2"):
        check_rounds([r for r in rounds if r.name in ("mot", "mot1")], RunFolder(tmp_path))
