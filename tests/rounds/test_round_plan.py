"""What a plan says of the weights that rounds start from, and of the training behind each row."""

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from flare.rounds.graph import compose_rounds, iterations_behind, plan_rounds, tell_starts


def row(name: str, teacher: str | None, init: str, epochs: int | str = 3) -> dict[str, object]:
    return {"round": name, "teacher": teacher, "init": init, "epochs": epochs, "iterations": 10}


def test_training_adds_up_along_teachers_whose_weights_go_on() -> None:
    plan = [
        row("mo", None, "fresh"),
        row("mo1", "mo", "teacher", 4),
        row("mt", None, "fresh", "5"),  # as plan.csv reads back
        row("mot", "mo1", "fresh"),  # taught, but from fresh weights
        row("mot1", "mot", "teacher"),
    ]
    assert iterations_behind(plan) == {"mo": 30, "mo1": 70, "mt": 50, "mot": 30, "mot1": 60}
    told = tell_starts(plan)
    assert "teacher's weights in MO1, MOT1 " in told
    assert "MO 30, MO1 70, MT 50, MOT 30, MOT1 60" in told


def test_what_is_behind_a_teacher_of_another_start_is_not_known() -> None:
    plan = [row("mot", "mo2", "teacher"), row("mot1", "mot", "teacher")]
    assert iterations_behind(plan) == {"mot": None, "mot1": None}
    assert "MOT unknown, MOT1 unknown" in tell_starts(plan)


def test_nothing_is_said_of_rounds_that_start_fresh() -> None:
    assert tell_starts([row("mo", None, "fresh"), row("mo1", "mo", "fresh")]) == ""


@pytest.mark.slow
def test_the_demo_says_how_long_each_round_was_trained_and_the_paper_nothing(
    config: Callable[..., DictConfig],
) -> None:
    names = ["mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3"]
    demo = plan_rounds(compose_rounds(names, ["experiment=demo"]), [])
    cfg = config("train", "experiment=demo")
    one = cfg.trainer.max_epochs * cfg.trainer.limit_train_batches
    assert iterations_behind(demo) == {
        n: k * one for n, k in zip(names, (1, 2, 3, 1, 4, 5, 6, 7), strict=True)
    }
    paper = plan_rounds(compose_rounds(names, ["experiment=flare23", "data.root=/x"]), [])
    assert tell_starts(paper) == ""


def test_our_graph_is_three_trainings_from_the_labels_as_they_are() -> None:
    """All classes are outputs in each, so that organs and tumor are scored in all rows."""
    rounds = compose_rounds(
        ["partial2", "partial", "partial1"], ["experiment=[flare23,ours]", "data.root=/x"]
    )
    shown = ("round", "teacher", "labels", "of", "partial", "targets", "model", "init")
    assert [tuple(row[key] for key in shown) for row in plan_rounds(rounds, [])] == [
        ("partial", None, "ground_truth", "labeled", "marginal", "organs_tumor", "medium", "fresh"),
        ("partial1", "partial", "hybrid", "all", None, "organs_tumor", "medium", "fresh"),
        ("partial2", "partial1", "hybrid", "all", None, "organs_tumor", "large", "fresh"),
    ]
    assert {r.config.name for r in rounds} == {"ours"}
