"""The index of a cohort, there and back, and the cases of each round."""

from __future__ import annotations

from pathlib import Path

import pytest

from flare.core.cases import Case, read_index, select_cases, write_index
from flare.core.errors import FlareError


def case(name: str, kind: str, *, split: str = "train", present: tuple = ()) -> Case:
    label = None if kind == "unlabeled" else Path(f"/data/labels, new/{name}.nii.gz")
    return Case(name, Path(f"/data/images/{name}_0000.nii.gz"), label, split, kind, present, present)


COHORT = [
    case("a", "organs_complete", present=tuple(range(1, 14))),
    case("b", "tumor", present=(1, 14)),
    case("c", "partial", present=(3,)),
    case("d", "partial"),
    case("e", "unlabeled"),
    case("f", "organs_complete", split="validation", present=tuple(range(1, 14))),
    case("g", "tumor", split="test", present=(14,)),
    case("h", "unlabeled", split="validation"),
]


def test_the_index_there_and_back(tmp_path: Path) -> None:
    declared = Case("x", Path("/x"), Path("/y"), "train", "partial", (1,), (1, 2, 9))
    write_index(tmp_path / "index.csv", [*COHORT, declared])
    assert read_index(tmp_path / "index.csv") == [*COHORT, declared]


def test_an_index_that_was_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"python prepare\.py"):
        read_index(tmp_path / "index.csv")


@pytest.mark.parametrize(
    ("which", "expected"),
    [("organs_complete", "a"), ("tumor", "b"), ("labeled", "abcd"), ("all", "abcde")],
)
def test_cases_of_a_round_are_of_the_training_split(which: str, expected: str) -> None:
    assert "".join(c.id for c in select_cases(COHORT, which)) == expected


def test_an_unknown_selection_names_its_key() -> None:
    with pytest.raises(FlareError, match=r"labels\.cases.*'labelled'"):
        select_cases(COHORT, "labelled")


def test_labeled_is_by_file() -> None:
    assert [c.is_labeled for c in COHORT] == [True, True, True, True, False, True, True, False]
