"""The drawn graph of rounds: places, boxes and arrows."""

from xml.etree import ElementTree

from flare.report.charts import draw_graph, place
from flare.report.facts import RoundFacts

PAPER = {"mo": None, "mo1": "mo", "mo2": "mo1", "mt": None, "mot": "mo2", "mot1": "mot"}


def facts(teachers: dict[str, str | None]) -> list[RoundFacts]:
    plan = {"cases": "4", "of": "all", "targets": "organs", "model": "tiny", "epochs": "1"}
    return [RoundFacts(name, [teacher] if teacher else [], plan) for name, teacher in teachers.items()]


def test_pupils_stand_right_of_their_teachers() -> None:
    places = place(facts(PAPER))
    assert places == {"mo": (0, 0), "mo1": (1, 0), "mo2": (2, 0), "mt": (0, 1), "mot": (3, 0), "mot1": (4, 0)}


def test_two_pupils_of_one_teacher_do_not_cover_each_other() -> None:
    assert place(facts({"mo": None, "mo1": "mo", "other": "mo"}))["other"] == (1, 1)


def test_a_second_teacher_is_a_dashed_arrow_below_the_boxes_between() -> None:
    plan = facts({"mot": None})[0].plan
    rounds = [
        *facts({"mot": None, "mot1": "mot"}),
        RoundFacts("mot2", ["mot1", "mot"], plan, unlabeled_teacher="mot"),
    ]
    assert place(rounds) == {"mot": (0, 0), "mot1": (1, 0), "mot2": (2, 0)}
    drawn = draw_graph(rounds)
    ElementTree.fromstring(drawn)
    assert ">by MOT1, MOT<" in drawn
    assert drawn.count("marker-end") == 3
    # from under MOT to under MOT2: boxes of 122 x 129, 24 apart, 4 from the edge
    assert 'd="M65 133V144H357V135" fill="none" stroke="#55606e" stroke-width="1.6" stroke-dasharray' in drawn
    assert drawn.count("stroke-dasharray") == 1


def test_a_teacher_outside_of_the_run_has_no_arrow_and_is_named() -> None:
    drawn = draw_graph(facts({"mot": "mo2"}))
    assert "teacher MO2" in drawn
    assert "marker-end" not in drawn


def test_the_drawing_is_well_formed_with_one_arrow_a_pupil() -> None:
    drawn = draw_graph(facts(PAPER))
    ElementTree.fromstring(drawn)
    assert drawn.count("marker-end") == 4
    assert drawn.count("<rect") == 6


def test_a_round_whose_loss_leaves_the_unknown_open_says_so() -> None:
    own, other = facts({"partial": None, "mo": None})
    drawn = draw_graph([RoundFacts("partial", [], {**own.plan, "partial": "marginal"}), other])
    assert drawn.count(">partial ground truth<") == drawn.count(">ground truth<") == 1
