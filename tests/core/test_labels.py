"""The class list against the challenge's table, and what is refused about another."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from flare.core.classes import ClassList
from flare.core.errors import FlareError

# id, name, short, tolerance in mm, slice range: FLARE23_DSC_NSD_Eval.py of the challenge
FLARE23 = [
    (1, "liver", "Liver", 5, False),
    (2, "right_kidney", "RK", 3, False),
    (3, "spleen", "Spleen", 3, False),
    (4, "pancreas", "Pancreas", 5, False),
    (5, "aorta", "Aorta", 2, True),
    (6, "inferior_vena_cava", "IVC", 2, True),
    (7, "right_adrenal_gland", "RAG", 2, False),
    (8, "left_adrenal_gland", "LAG", 2, False),
    (9, "gallbladder", "Gallbladder", 2, False),
    (10, "esophagus", "Esophagus", 3, True),
    (11, "stomach", "Stomach", 5, False),
    (12, "duodenum", "Duodenum", 7, False),
    (13, "left_kidney", "LK", 3, False),
    (14, "tumor", "Lesion", 2, False),
]


def one(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "short": "X", "role": "organ", "tolerance_mm": 1, "slice_range": False, **changes}


def test_the_challenges_classes(labels: ClassList) -> None:
    found = [(c.id, c.name, c.short, c.tolerance_mm, c.slice_range) for c in labels.entries]
    assert found == FLARE23
    assert labels.organs == tuple(range(1, 14))
    assert labels.tumor == 14
    assert [labels.name_of(i) for i in labels.tubes] == ["aorta", "inferior_vena_cava", "esophagus"]
    assert labels.names == tuple(row[1] for row in FLARE23)


@pytest.mark.parametrize(
    ("targets", "outputs"),
    [("organs", tuple(range(14))), ("tumor", (0, 14)), ("organs_tumor", tuple(range(15)))],
)
def test_outputs_of_each_target(labels: ClassList, targets: str, outputs: tuple) -> None:
    assert labels.outputs(targets) == outputs


def test_look_ups(labels: ClassList) -> None:
    for number, name, *_ in FLARE23:
        assert labels.id_of(name) == number
        assert labels.name_of(number) == name
        assert labels.by_id(number).name == name
    with pytest.raises(FlareError, match=r"'kidney'.*right_kidney"):
        labels.id_of("kidney")
    with pytest.raises(FlareError, match="id 15"):
        labels.by_id(15)
    with pytest.raises(FlareError, match=r"labels\.targets.*'all'"):
        labels.outputs("all")


def test_plain_values_there_and_back(labels: ClassList) -> None:
    again = ClassList.from_config(labels.to_config())
    assert again == labels
    assert pickle.loads(pickle.dumps(labels)) == labels
    assert hash(again) == hash(labels)


def test_a_list_of_ones_own() -> None:
    """Ids with gaps, in any order, without a tumor."""
    own = ClassList.from_config({"bladder": one(id=20), "uterus": one(id=7, short="U")})
    assert own.ids == own.organs == (7, 20)
    assert own.tumor is None
    assert own.outputs("organs_tumor") == (0, 7, 20)
    with pytest.raises(FlareError, match="no such class"):
        own.outputs("tumor")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": one(id=1), "b": one(id=1, short="Y")}, "ids must be distinct"),
        ({"a": one(id=0)}, r"classes\.a\.id=0: expected .* from 1 to 254"),
        ({"a": one(id=255)}, r"id=255: .* 1 to 254"),
        ({"a": one(role="bone")}, r"classes\.a\.role=bone"),
        ({"a": one(id=1, role="tumor"), "b": one(id=2, role="tumor", short="Y")}, "at most one"),
        ({"a": {"id": 1, "short": "A"}}, r"classes\.a.*role"),
        ({"a": one(), "b": one(id=2, short="X")}, "short"),
    ],
)
def test_refused_lists(classes: dict, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        ClassList.from_config(classes)
