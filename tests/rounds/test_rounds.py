"""The graph of rounds: order, cycles, missing teachers, forwarded overrides."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

import pytest
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flare.cli import CONF
from flare.core.errors import FlareError
from flare.rounds.graph import check_rounds, compose_rounds, plan_rounds, print_plan
from flare.rounds.settings import RoundSettings

pytestmark = pytest.mark.slow

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
def rounds() -> list[RoundSettings]:
    """All rounds, asked for backwards."""
    return compose_rounds(
        ALL[::-1],
        ["experiment=flare23", "data.root=/x", "dry_run=true", "rounds=[mo]", "baselines=[atlas]", "seed=7"],
    )


def test_teachers_come_before_their_pupils(rounds: list[RoundSettings]) -> None:
    names = [r.name for r in rounds]
    assert sorted(names) == sorted(ALL)
    for name, teacher in TEACHERS.items():
        assert teacher is None or names.index(teacher) < names.index(name)


def test_teachers_are_the_papers(rounds: list[RoundSettings]) -> None:
    assert {r.name: r.teacher for r in rounds} == TEACHERS
    assert {r.name for r in rounds if not r.is_hybrid} == {"mo", "mt"}


def test_the_command_line_reaches_every_round_without_iterates_own_keys(rounds: list[RoundSettings]) -> None:
    for r in rounds:
        assert r.config.seed == 7
        assert r.config.data.root == "/x"
        assert r.config.name == "flare23"
        assert r.config.round.name == r.name
        assert "dry_run" not in r.config
        assert "baselines" not in r.config
        assert "rounds" not in r.config


def test_the_order_asked_for_is_kept_where_the_graph_allows() -> None:
    assert [r.name for r in compose_rounds(["mt", "mo"], [])] == ["mt", "mo"]


def test_a_round_is_what_train_would_compose(config: Callable[..., DictConfig]) -> None:
    overrides = ["experiment=demo", "model=small", "round.init=fresh", "+trainer.x=1"]
    (found,) = compose_rounds(["mot3"], overrides)
    expected = config("train", *overrides, "round=mot3")
    assert OmegaConf.to_container(found.config) == OmegaConf.to_container(expected)
    assert found.config.model.net.features[0] == 16


def test_rounds_compose_within_a_running_application() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert [r.name for r in compose_rounds(["mo1", "mo"], [])] == ["mo", "mo1"]


def test_a_single_round_needs_no_brackets(config: Callable[..., DictConfig]) -> None:
    assert [r.name for r in compose_rounds(config("iterate", "rounds=mo").rounds, [])] == ["mo"]


def test_a_name_that_is_no_round() -> None:
    with pytest.raises(FlareError, match=r"mo9.*known: mo, mo1, mo2, mot, .*mt"):
        compose_rounds(["mo", "mo9"], [])


def test_a_circle_is_named() -> None:
    with pytest.raises(FlareError, match="mo1 <- mo1 is a circle"):
        compose_rounds(["mo1"], ["round.teacher=mo1"])


def test_both_teachers_come_first_and_may_close_a_circle() -> None:
    own = "round.unlabeled_teacher=mt"
    assert [r.name for r in compose_rounds(["mot2", "mt", "mot1"], [own])] == ["mot1", "mt", "mot2"]
    with pytest.raises(FlareError, match="mot3 <- mot2 <- mot3 is a circle"):
        compose_rounds(["mot3", "mot2"], ["round.unlabeled_teacher=mot3"])


def test_a_part_of_the_graph_needs_what_it_leaves_out(rounds: list[RoundSettings]) -> None:
    check_rounds(rounds)
    with pytest.raises(FlareError, match=r"round=mot needs .*round=mo2"):
        check_rounds([r for r in rounds if r.name in ("mot", "mot1")])


@pytest.mark.parametrize(("experiment", "second"), [("authors", "mot"), ("flare23", None)])
def test_the_plan_shows_both_teachers(
    experiment: str, second: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = StringIO()
    monkeypatch.setattr("flare.rounds.graph.console", Console(file=shown, width=200))
    plan = plan_rounds(compose_rounds(["mot2"], [f"experiment={experiment}", "data.root=/x"]), [])
    assert (plan[0]["teacher"], plan[0]["unlabeled_teacher"]) == ("mot1", second)
    print_plan(plan)
    assert ("unlabeled teacher" in shown.getvalue()) == (second is not None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("round.init=warm", "fresh, teacher"),
        ("round.teacher_kind=null", "the name of a checkpoint, such as last"),
        ("labels.source=guess", "ground_truth, hybrid"),
        ("labels.cases=some", "organs_complete, tumor, labeled, all"),
        ("labels.rule=vote", "paper, gt_first"),
        ("labels.dilation_mm=a", "a number, 0 or more"),
        ("labels.tumor_inside_fraction=1.5", "a number from 0 to 1"),
        ("labels.constrain_unlabeled=perhaps", "true or false"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_in_one_line(
    override: str, expected: str, config: Callable[..., DictConfig]
) -> None:
    given = override.replace("null", "None")
    with pytest.raises(FlareError, match=rf"^{re.escape(given)}: expected (one of )?{expected}$"):
        RoundSettings.from_config(config("train", "round=mo1", override))
