"""Each sentence of the merging rules on arrays worked by hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from flare.core.errors import FlareError
from flare.merging.rules import Merged, merge_labels
from flare.merging.settings import MergeRules
from merging_reference import label_set

LABELS = label_set(organs=4, tumor=9)
T = 9


def row(*values: int) -> np.ndarray:
    """A volume of one row: every voxel has at most two neighbours."""
    return np.array([[values]], dtype=np.uint8)


def merge(truth: np.ndarray | None, pseudo: np.ndarray, **changes: Any) -> Merged:
    options: dict[str, Any] = {
        "classes": LABELS,
        "spacing_mm": (1.0, 1.0, 1.0),
        "targets": "organs_tumor",
        "rule": "paper",
        "dilation_mm": 1.0,
        "tumor_inside_fraction": 0.5,
        "constrain_unlabeled": False,
        "tumor_inside": "component",
    }
    options |= changes
    rules = MergeRules(**{f.name: options.pop(f.name) for f in fields(MergeRules)})
    return merge_labels(truth, pseudo, rules, **options)


def values(merged: Merged) -> list[int]:
    return merged.labels.ravel().tolist()


# organ in the ground truth, tumor in the ground truth, organ in the pseudo labels -> result
TABLE = [
    ("a trusted organ replaces the pseudo label both ways", [0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]),
    ("an organ that is not annotated is the pseudo label's", [0, 1, 0, 0], [2, 1, 0, 2], [2, 1, 0, 2]),
    ("trusted ground truth wins over an organ not annotated", [0, 1, 1, 0], [2, 2, 1, 2], [2, 1, 1, 2]),
    ("a tumor-bearing organ is the pseudo label's", [0, 1, 1, T, 0], [1, 1, 1, 1, 1], [1, 1, 1, T, 1]),
    ("its own ground-truth voxels are not used", [1, 1, 1, T, 0], [0, 0, 1, 1, 1], [0, 0, 1, T, 1]),
    (
        "one that only the teacher draws by the tumor bears it",
        [2, 0, 0, 0, T],
        [0, 0, 0, 2, 0],
        [0, 0, 0, 2, T],
    ),
    (
        "one that only the ground truth has there bears it too",
        [0, 2, 2, T, 0],
        [2, 0, 0, 0, 0],
        [2, 0, 0, T, 0],
    ),
    ("others stay trusted", [3, 3, 0, 1, T], [3, 0, 3, 1, 1], [3, 3, 0, 1, T]),
    (
        "trusted ground truth wins over a tumor-bearing organ",
        [3, 3, 0, 1, T],
        [1, 1, 1, 1, 1],
        [3, 3, 1, 1, T],
    ),
    ("the ground-truth tumor is set last", [0, 0, T, T, 0], [2, 2, 2, 2, 2], [2, 2, T, T, 2]),
    (
        "the pseudo tumor is dropped where there is a true one",
        [0, T, 0, 0, 0],
        [0, 0, 0, T, 0],
        [0, T, 0, 0, 0],
    ),
    ("and becomes the organ around it", [T, 0, 0, 0, 0], [0, 0, 2, T, 2], [T, 0, 2, 2, 2]),
    (
        "a pseudo tumor around the true one becomes its organ",
        [0, 0, T, 0, 0],
        [2, T, T, T, 2],
        [2, 2, T, 2, 2],
    ),
    ("what it became yields to trusted ground truth", [T, 0, 0, 3, 0], [0, 0, 2, T, 2], [T, 0, 2, 3, 2]),
    ("and a trusted organ does not grow by it", [T, 0, 3, 0, 3], [0, 0, 3, T, 3], [T, 0, 3, 0, 3]),
    ("a pseudo tumor inside an organ is kept", [0, 1, 1, 1, 0], [0, 1, T, 1, 0], [0, 1, T, 1, 0]),
    ("half of the shell is enough", [0, 1, 1, 0, 0], [0, 1, T, 0, 0], [0, 1, T, 0, 0]),
    ("an organ that is not annotated holds tumors too", [3, 0, 0, 0, 0], [3, 0, 2, T, 0], [3, 0, 2, T, 0]),
    ("outside the organs it is dropped", [3, 0, 0, 0, 0], [3, 0, 0, T, 0], [3, 0, 0, 0, 0]),
    ("only where the organ is after steps 1 and 2", [3, 0, 0, 0, 0], [3, 0, 3, T, 0], [3, 0, 0, 0, 0]),
    ("a component is kept whole", [1, 1, 0, 0, 0], [1, T, T, T, 0], [1, T, T, T, 0]),
]


@pytest.mark.parametrize(("truth", "pseudo", "expected"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_table_of_the_paper_rule(truth: list[int], pseudo: list[int], expected: list[int]) -> None:
    assert values(merge(row(*truth), row(*pseudo))) == expected


ORGAN_ROUND = [
    ("a true tumor takes the teacher's organ", [0, 1, T, 0], [0, 1, 1, 1], [0, 1, 1, 1]),
    ("the rest takes the organ around it", [2, T, 2, 0], [2, 0, 2, 0], [2, 2, 2, 0]),
    ("half of the shell is enough", [2, T, T, 0], [2, 0, 0, 0], [2, 2, 2, 0]),
    ("teacher's organ for some, the shell's for the rest", [2, T, T, 2], [2, 3, 0, 2], [2, 3, 2, 2]),
    ("ties go to the lowest id", [0, T, 0, 0], [3, 0, 2, 0], [3, 2, 2, 0]),
    ("outside the organs it is background", [1, 0, 0, T], [1, 0, 0, 0], [1, 0, 0, 0]),
    ("a pseudo tumor is no target either", [1, 1, 1, 0], [1, T, 1, T], [1, 1, 1, 0]),
]


@pytest.mark.parametrize(
    ("truth", "pseudo", "expected"), [t[1:] for t in ORGAN_ROUND], ids=[t[0] for t in ORGAN_ROUND]
)
def test_table_of_an_organ_only_round(truth: list[int], pseudo: list[int], expected: list[int]) -> None:
    assert values(merge(row(*truth), row(*pseudo), targets="organs")) == expected


GT_FIRST = [
    ("present classes win everywhere", [1, 1, 0, 0], [2, 1, 1, 0], [1, 1, 0, 0]),
    ("absent classes are filled", [1, 1, 0, 0], [1, 2, 2, 2], [1, 1, 2, 2]),
    ("an organ beside a tumor stays the ground truth's", [1, T, 0, 0], [1, 1, 1, 1], [1, T, 0, 0]),
    ("pseudo tumor on what is not background", [1, 1, 0, 0], [T, 2, 2, T], [T, 1, 2, 0]),
    ("not split by components", [1, 1, 0, 0], [1, T, T, 0], [1, T, 0, 0]),
    ("no pseudo tumor where there is a true one", [1, 1, T, 0], [T, 1, 1, 2], [1, 1, T, 2]),
]


@pytest.mark.parametrize(
    ("truth", "pseudo", "expected"), [t[1:] for t in GT_FIRST], ids=[t[0] for t in GT_FIRST]
)
def test_table_of_the_authors_rule(truth: list[int], pseudo: list[int], expected: list[int]) -> None:
    assert values(merge(row(*truth), row(*pseudo), rule="gt_first")) == expected


def test_the_authors_rule_in_an_organ_round_leaves_no_tumor() -> None:
    merged = merge(row(1, T, T, 1), row(1, 1, 0, 1), rule="gt_first", targets="organs")
    assert values(merged) == [1, 1, 1, 1]


def test_a_declared_organ_that_is_absent_is_absent_in_the_patient() -> None:
    truth, pseudo = row(1, 1, 0, 0), row(1, 1, 2, 3)
    assert values(merge(truth, pseudo)) == [1, 1, 2, 3]
    assert values(merge(truth, pseudo, annotated=(1, 2))) == [1, 1, 0, 3]
    assert values(merge(truth, pseudo, annotated=(1, 2), rule="gt_first")) == [1, 1, 0, 3]


def test_a_declared_tumor_that_is_absent_is_absent_in_the_patient() -> None:
    assert values(merge(row(1, 1, 1), row(1, T, 1))) == [1, T, 1]
    assert values(merge(row(1, 1, 1), row(1, T, 1), annotated=(1, T))) == [1, 1, 1]


def test_a_declared_organ_that_bears_a_tumor_is_not_trusted() -> None:
    merged = merge(row(0, 0, T), row(2, 2, 2), annotated=(2, T))
    assert values(merged) == [2, 2, T]
    assert merged.origin["tumor_bearing"] == ["organ_2"]
    assert merged.origin["trusted"] == []


def test_an_empty_ground_truth_annotates_nothing() -> None:
    assert values(merge(row(0, 0, 0, 0), row(2, 3, 0, T))) == [2, 3, 0, 0]


@pytest.mark.parametrize(
    ("spacing_x", "dilation_mm", "bears"),
    [(1, 3, True), (1, 2.9, False), (0.6, 1.8, True), (2, 3, False), (5, 3, False)],
)
def test_the_dilation_is_in_millimetres_to_the_voxel_centre(
    spacing_x: float, dilation_mm: float, bears: bool
) -> None:
    truth, pseudo = row(T, 0, 0, 0), row(0, 0, 0, 2)
    merged = merge(truth, pseudo, spacing_mm=(1, 1, spacing_x), dilation_mm=dilation_mm)
    assert merged.origin["tumor_bearing"] == (["organ_2"] if bears else [])


def test_the_dilation_is_a_ball_not_a_box() -> None:
    truth, pseudo = np.zeros((2, 5, 5, 5), dtype=np.uint8)
    truth[2, 2, 2] = T
    pseudo[2, 4, 2], pseudo[2, 4, 4], pseudo[3, 3, 3], pseudo[0, 0, 2] = 1, 2, 3, 4
    # distances 2, sqrt(8), sqrt(3), sqrt(8)
    for found, bearing in (
        (merge(truth, pseudo, dilation_mm=2.0), (1, 3)),
        (merge(truth, pseudo, dilation_mm=2.83), (1, 2, 3, 4)),
        (merge(truth, pseudo, dilation_mm=2.0, spacing_mm=(1, 0.5, 0.5)), (1, 2, 3)),
    ):
        assert found.origin["tumor_bearing"] == [f"organ_{c}" for c in bearing]


def test_without_dilation_the_tumor_itself_still_finds_its_organ() -> None:
    assert merge(row(0, T, 0), row(0, 2, 0), dilation_mm=0.0).origin["tumor_bearing"] == ["organ_2"]


def test_components_and_shells_reach_over_corners() -> None:
    pseudo = np.full((3, 3, 3), 0, dtype=np.uint8)
    pseudo[0, 0, 0] = pseudo[1, 1, 1] = T
    pseudo[2] = 1
    # one component of two voxels; its shell is the other 25 voxels, 9 of them organ
    (tumor,) = merge(np.zeros_like(pseudo), pseudo).origin["tumors"]
    assert (tumor["voxels"], tumor["shell_voxels"], tumor["shell_organ_fraction"]) == (2, 25, 9 / 25)
    assert tumor["fate"] == "dropped"


def test_the_inside_fraction_is_a_setting() -> None:
    truth, pseudo = np.zeros((2, 3, 3, 3), dtype=np.uint8)
    pseudo[1, 1, 1] = T
    pseudo[0] = 2  # 9 of the 26 voxels around
    assert (merge(truth, pseudo, tumor_inside_fraction=9 / 26).labels == pseudo).all()
    assert merge(truth, pseudo, tumor_inside_fraction=10 / 26).labels[1, 1, 1] == 0
    pseudo[1, 0] = pseudo[1, 2] = 2  # 15 of 26: dropped by a stricter setting, but filled: half is organ
    assert merge(truth, pseudo, tumor_inside_fraction=0.6).labels[1, 1, 1] == 2


def test_a_kept_tumor_takes_trusted_voxels_and_they_are_counted() -> None:
    merged = merge(row(1, 1, 1, 3, 3), row(1, T, T, T, 3))
    assert values(merged) == [1, T, T, T, 3]
    told = merged.origin["classes"].values()
    assert {c["id"]: c["overwritten_by_pseudo_tumor"] for c in told} == {1: 2, 2: 0, 3: 1, 4: 0, T: 0}


def test_a_volume_that_is_all_tumor_lies_in_no_organ() -> None:
    assert values(merge(row(0, 0), row(T, T))) == [0, 0]
    assert values(merge(row(T, T), row(0, 0), targets="organs")) == [0, 0]


def test_without_ground_truth_the_pseudo_label_stands() -> None:
    pseudo = row(1, 0, 0, T)
    assert values(merge(None, pseudo)) == [1, 0, 0, T]
    assert values(merge(None, pseudo, constrain_unlabeled=True)) == [1, 0, 0, 0]
    assert values(merge(None, row(1, T, 0, 0), constrain_unlabeled=True)) == [1, T, 0, 0]
    assert {c["source"] for c in merge(None, pseudo).origin["classes"].values()} == {"pseudo"}


def test_a_tumor_round_takes_the_ground_truth_alone() -> None:
    assert values(merge(row(1, T, 0), row(2, 2, T), targets="tumor")) == [1, T, 0]


def test_a_class_list_without_tumor() -> None:
    labels = label_set(organs=3, tumor=None)
    for targets in ("organs", "organs_tumor"):
        merged = merge(row(0, 1, 1, 0), row(1, 1, 2, 2), classes=labels, targets=targets)
        assert values(merged) == [0, 1, 1, 2]
    with pytest.raises(FlareError, match=r"labels\.targets=tumor"):
        merge(row(1), row(1), classes=labels, targets="tumor")


def test_the_report_says_where_each_class_came_from() -> None:
    found = merge(row(3, 3, 0, 1, T), row(3, 0, 3, 1, 1)).origin
    assert {c["id"]: c["source"] for c in found["classes"].values()} == {
        1: "pseudo",
        2: "pseudo",
        3: "ground_truth",
        4: "pseudo",
        T: "ground_truth",
    }
    assert (found["trusted"], found["tumor_bearing"]) == (["organ_3"], ["organ_1"])
    organ, trusted = found["classes"]["organ_1"], found["classes"]["organ_3"]
    assert organ["before"] == {"ground_truth": 1, "pseudo": 2}
    assert trusted["before"] == {"ground_truth": 2, "pseudo": 2}
    assert [(c["merged"], c["filled"]) for c in (organ, trusted)] == [(1, 0), (2, 0)]


def test_what_was_filled_in_is_told_apart() -> None:
    found = merge(row(2, T, T, 2), row(2, 3, 0, 2), targets="organs").origin
    organ, tumors = found["classes"]["organ_2"], found["classes"]["tumor"]
    assert (organ["merged"], organ["filled"]) == (3, 1)
    assert tumors["source"] == "none"
    (tumor,) = found["tumors"]
    told = tumor["found_in"], tumor["fate"], tumor["filled_with"]
    assert told == ("ground_truth", "absorbed", "organ_2")


@pytest.mark.parametrize(
    ("truth", "pseudo", "message"),
    [
        (row(1, 2), row(1), r"\(1, 1, 2\) and pseudo labels \(1, 1, 1\) differ"),
        (row(7), row(1), r"ground truth: values \[7\] are outside the class list \[0, 1, 2, 3, 4, 9\]"),
        (row(1), row(200), r"pseudo labels: values \[200\]"),
        (row(1).astype(np.int16), row(1), "expected uint8"),
        (row(1)[0], row(1), "expected uint8"),
    ],
)
def test_maps_that_cannot_be_merged_are_refused(truth: np.ndarray, pseudo: np.ndarray, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        merge(truth, pseudo)


@pytest.mark.parametrize(("key", "value"), [("rule", "majority"), ("targets", "bones")])
def test_unknown_choices_are_refused_with_the_key(key: str, value: str) -> None:
    with pytest.raises(FlareError, match=rf"labels\.{key}={value}: expected one of"):
        merge(row(1), row(1), **{key: value})


def test_voxels_of_a_pseudo_tumor_stay_inside_an_earlier_map_and_the_rest_becomes_its_organ() -> None:
    pseudo = row(0, 1, T, T, T, 1, 0)
    earlier = row(0, 1, 2, 2, 0, 0, 0)
    merged = merge(None, pseudo, tumor_inside="voxel", organs=earlier, constrain_unlabeled=True)
    assert values(merged) == [0, 1, T, T, 1, 1, 0]
    told = [(t["fate"], t["voxels"], t["filled_with"]) for t in merged.origin["tumors"]]
    assert told == [("kept", 2, None), ("dropped", 1, "organ_1")]
    # without an earlier map nothing of the row is enclosed in a plane
    assert values(merge(None, pseudo, tumor_inside="voxel", constrain_unlabeled=True)) == [
        0,
        1,
        1,
        1,
        1,
        1,
        0,
    ]
    assert values(merge(None, pseudo, constrain_unlabeled=True)) == [0, 1, T, T, T, 1, 0]


def test_the_hull_of_an_organ_takes_in_what_it_encloses_in_a_plane() -> None:
    pseudo = np.zeros((3, 5, 5), np.uint8)
    pseudo[1, 1:4, 1:4] = 2
    pseudo[0:3, 2, 2] = T  # runs through a ring; two of its voxels lie above and below
    pseudo[1, 0, 4] = T
    merged = merge(None, pseudo, tumor_inside="voxel", constrain_unlabeled=True).labels
    assert np.argwhere(merged == T).tolist() == [[1, 2, 2]]


def test_a_rule_that_came_later_is_noted_where_it_is_chosen() -> None:
    rules = {"targets": "organs", "rule": "paper", "dilation_mm": 3, "tumor_inside_fraction": 0.5}
    plain = MergeRules(**rules, constrain_unlabeled=False)
    assert plain.to_config() == {**rules, "constrain_unlabeled": False}
    chosen = MergeRules(**rules, constrain_unlabeled=False, tumor_inside="voxel").to_config()
    assert chosen == {**plain.to_config(), "tumor_inside": "voxel"}
