"""Pseudo-label quality, against Dice counted by hand."""

from pathlib import Path

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.core.geometry import Geometry
from flare.core.volumes import write_labels
from flare.report.agreement import Quality, compare_case, dice

GEOMETRY = Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def write(path: Path, values: list[int]) -> Path:
    write_labels(path, np.array(values, np.uint8).reshape(GEOMETRY.shape), GEOMETRY)
    return path


def test_dice_is_of_classes_that_the_reference_has() -> None:
    ours = np.array([1, 1, 2, 0, 3], np.uint8)
    reference = np.array([1, 2, 2, 2, 0], np.uint8)
    # class 1: 1 shared of 2 + 1; class 2: 1 shared of 1 + 3; class 3 is not in the reference
    assert dice(ours, reference, [1, 2, 3]) == {1: pytest.approx(2 / 3), 2: pytest.approx(0.5)}


def test_each_comparison_is_asked_about_what_was_learned(tmp_path: Path, labels: ClassList) -> None:
    found = compare_case(
        "case",
        prediction=write(tmp_path / "p.nii.gz", [1, 1, 1, 0, 0, 0, 0, 0]),
        previous=write(tmp_path / "l.nii.gz", [1, 1, 0, 0, 0, 0, 0, 0]),
        merged=write(tmp_path / "m.nii.gz", [1, 1, 14, 14, 0, 0, 0, 0]),
        truth=write(tmp_path / "t.nii.gz", [1, 1, 14, 0, 0, 0, 0, 1]),
        label_map=None,
        classes=labels,
        targets="organs_tumor",
        taught="organs",
    )
    assert found["previous"] == {1: pytest.approx(4 / 5)}
    # the teacher knows no tumor: its voxel is left out, 2 shared of 2 + 3
    assert found["pseudo"] == {1: pytest.approx(4 / 5)}
    assert found["merged"] == {1: pytest.approx(4 / 5), 14: pytest.approx(2 / 3)}


def test_without_references_nothing_is_compared(tmp_path: Path, labels: ClassList) -> None:
    prediction = write(tmp_path / "p.nii.gz", [1] * 8)
    nothing = dict.fromkeys(("previous", "merged", "truth", "label_map"))
    assert not compare_case("case", prediction, classes=labels, targets="organs", taught="organs", **nothing)


def test_means_are_over_the_classes_that_were_compared() -> None:
    quality = Quality("mo1", "mo", 2, {"pseudo": [{1: 0.4, 2: 0.7}, {1: 0.6, 14: 0.1}]})
    assert quality.percent("pseudo", (1, 2, 3)) == pytest.approx(60)
    assert quality.percent("pseudo", (3,)) is None
