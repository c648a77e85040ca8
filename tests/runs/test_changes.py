"""Why a step is done again: which key, which file, which case; and what must not be told."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flare.runs.changes import NEW, cases_told, members_told, settings_told
from flare.runs.door import place
from flare.runs.journal import Journal, tell_again


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        # what journals note, by the key that one would change
        ({"rules": {"dilation_mm": 3}}, {"rules": {"dilation_mm": 60}}, ["labels.dilation_mm: 3 -> 60"]),
        ({"settings": {"tta": "none"}}, {"settings": {"tta": "tta4"}}, ["tta: none -> tta4"]),
        ({"settings": {"name": "paper"}}, {"settings": {"name": "fast"}}, ["inference: paper -> fast"]),
        (
            {"settings": {"body": {"opening_mm": 6.0}}},
            {"settings": {"body": {"opening_mm": 3.0}}},
            ["inference.body.opening_mm: 6.0 -> 3.0"],
        ),
        ({"checks": {"hu": "refuse"}}, {"checks": {"hu": "warn"}}, ["data.checks.hu: refuse -> warn"]),
        ({"interpolation": "linear"}, {"interpolation": "cubic"}, ["data.interpolation: linear -> cubic"]),
        ({"declared": [1]}, {"declared": [1, 3]}, ["data.sources: [1] -> [1, 3]"]),
        ({"label_map": None}, {"label_map": {"5": 1}}, ['data.label_map: null -> {"5": 1}']),
        ({"protocol": "present"}, {"protocol": "flare23"}, ["data.scoring.protocol: present -> flare23"]),
        # what has a digest for a value is told without it
        ({"teacher": {"sha256": "a"}}, {"teacher": {"sha256": "b"}}, ["the teacher's weights changed"]),
        ({"checkpoint": "a"}, {"checkpoint": "b"}, ["the network's weights changed"]),
        ({"format": 1, "label_format": 1}, {"format": 2, "label_format": 2}, ["flare's own format changed"]),
        # of keys of the configuration itself
        ({"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.02}}, ["optimizer.lr: 0.1 -> 0.02"]),
        ({"loss": {}}, {"loss": {"smooth": 1}}, ["loss.smooth: none -> 1"]),
        ({"rules": {"a": 3}}, {"rules": {"a": 3.0}}, ["labels.a: 3 -> 3.0"]),
        ({"spacing_mm": (4.0, 1.2)}, {"spacing_mm": [4.0, 1.2]}, []),
        (
            {"config": {"seed": 0}, "rounds": [{"seed": 0}, {"seed": 0}]},
            {"config": {"seed": 1}, "rounds": [{"seed": 1}, {"seed": 1}]},
            ["seed: 0 -> 1"],
        ),
    ],
)  # fmt: skip
def test_a_setting_is_told_by_its_key_with_both_values(
    before: Mapping[str, Any], now: Mapping[str, Any], told: list[str]
) -> None:
    assert settings_told(before, now) == told


def test_no_name_of_a_file_or_folder_is_told() -> None:
    private = [
        ({"data": {"root": "here"}}, {"data": {"root": "there"}}, "data.root changed"),
        ({"select": {"path": "a"}}, {"select": {"path": "b"}}, "labels.select.path changed"),
        ({"select": None}, {"select": {"by": "/home/x/list.csv"}}, "labels.select changed"),
        ({"extra": ["a"]}, {"extra": ["a", "~/mine"]}, "evaluation.extra changed"),
        ({"label_map": {"5": 1}}, {"label_map": {"5": 1, "rest": "Doe"}}, "data.label_map.rest changed"),
    ]
    for before, now, told in private:
        assert settings_told(before, now) == [told]


def test_files_and_cases_are_added_removed_or_changed() -> None:
    before = {"image": [1, 1], "label": "x", "a": 0, "b": 0, "c": 0, "d": 0, "gone": 0}
    now = {"image": [2, 1], "label": None, "cached": "y", "gone": 0}
    assert members_told(before, now) == [
        "its image changed",
        "its label, a, b and 2 more removed",
        "its cached image added",
    ]


def test_cases_are_told_by_reason_the_commonest_first() -> None:
    assert cases_told({"a": "x", "b": "x"}, 2) == "all 2 cases: x"
    assert cases_told({}, 2) == ""
    many = {"p": "image", **{str(n): "key" for n in range(5)}}
    assert cases_told(many, 4000) == "5 of 4000 cases (0, 1, 2 and 2 more): key; 1 of 4000 cases (p): image"


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """Journal of a case that is done."""
    for name in ("image", "out"):
        (tmp_path / name).write_text(name)
    path = tmp_path / "journal" / "step.jsonl"
    for case in "ab":
        Journal(path).record(
            case, {"image": tmp_path / "image"}, {"rules": {"x": 1}}, {"labels": tmp_path / "out"}
        )
    return path


def why(path: Path, case: str = "a", x: int = 1) -> str:
    return Journal(path).why(case, {"image": path.parents[1] / "image"}, {"rules": {"x": x}})


def test_a_journal_says_why_a_case_is_not_current(noted: Path) -> None:
    assert why(noted) == ""
    assert why(noted, "c") == NEW
    assert why(noted, x=2) == "labels.x: 1 -> 2"
    root = noted.parents[1]
    (root / "out").unlink()
    assert why(noted) == "what it left is gone or was changed: labels"
    (root / "image").write_text("another image")
    assert why(noted, x=2) == "labels.x: 1 -> 2; its image changed"
    (root / "image").unlink()
    assert why(noted) == "its image removed"


def test_a_configuration_is_kept_once_and_known_after_a_line_was_cut(noted: Path) -> None:
    lines = [json.loads(line) for line in noted.read_text().splitlines()]
    assert [line.get("whole_config") for line in lines] == [{"rules": {"x": 1}}, None]
    noted.write_text(noted.read_text().splitlines()[1] + "\n")
    assert Journal(noted).config("b") is None
    assert why(noted, "b", x=2) == "the settings changed"  # as an earlier version has left it
    Journal(noted).record("c", {}, {"rules": {"x": 1}}, {})
    assert why(noted, "b", x=2).startswith("labels.x: 1 -> 2")


def test_a_line_of_the_log_names_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with place(lambda: "round mo1"):
        tell_again("merge labels", "labels.x: 1 -> 2")
        tell_again("train", "")
    assert caplog.messages == ["round mo1: merge labels again: labels.x: 1 -> 2"]
