"""Confidence intervals and the comparison of two runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import write_csv
from flare.evaluation.summary import (
    compare_runs,
    interval,
    intervals,
    metrics_columns,
    metrics_file,
    score_matrix,
)


def rows(labels: ClassList, scores: list[float], **cells: Any) -> list[dict[str, Any]]:
    columns = metrics_columns(labels)[1:]
    return [{"Name": f"c{i}", **dict.fromkeys(columns, s), **cells} for i, s in enumerate(scores)]


def test_interval_of_many_cases_is_the_normal_one() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, (400, 1))
    low, high = interval(scores) or (0, 0)
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.002)
    assert high == pytest.approx(scores.mean() + half, abs=0.002)


def test_equal_scores_have_an_interval_of_no_width() -> None:
    assert interval(np.full((5, 1), 0.25)) == [0.25, 0.25]


def test_cases_that_are_not_scored_take_no_part() -> None:
    scores = np.random.default_rng(2).random((20, 1))
    assert interval(np.concatenate([scores, np.full((30, 1), np.nan)])) == interval(scores)
    assert interval(np.array([[0.5], [np.nan]])) == [0.5, 0.5]  # one score has no spread
    assert interval(np.full((3, 1), np.nan)) is None
    assert interval(np.empty((0, 1))) is None


def test_cases_are_drawn_whole_whatever_classes_they_score() -> None:
    scores = np.random.default_rng(3).random((30, 2))
    scores[:10, 1] = np.nan
    low, high = interval(scores) or (0, 0)
    draws = np.random.default_rng(4).integers(0, 30, (4000, 30))
    means = np.nanmean(np.nanmean(scores[draws], axis=1), axis=1)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.01)


def test_the_same_scores_have_the_same_interval() -> None:
    scores = np.random.default_rng(5).random((12, 3))
    assert interval(scores) == interval(scores.copy())


def test_intervals_name_every_class_and_the_organ_mean(labels: ClassList) -> None:
    found = intervals(rows(labels, [0.2, 0.4, 0.9], Lesion_DSC=None), labels)
    assert list(found) == [*(c.short for c in labels.entries), "organ_mean"]
    assert found["Lesion"]["DSC"] is None
    assert found["organ_mean"]["DSC"] == found["Liver"]["DSC"]  # all organs alike, resampled together
    low, high = found["Liver"]["NSD"] or (0, 0)
    assert 0.2 <= low < 0.5 < high <= 0.9
    assert intervals([], labels) == {}


def test_empty_cells_are_not_numbers() -> None:
    matrix = score_matrix([{"a": "", "b": "0.5"}, {"a": None, "b": 1}], ["a", "b"])
    np.testing.assert_array_equal(matrix, [[np.nan, 0.5], [np.nan, 1]])


def test_comparison_of_two_runs(labels: ClassList, tmp_path: Path) -> None:
    ours = [0.5 + 0.01 * i for i in range(10)]
    other = [s - 0.02 - 0.001 * i for i, s in enumerate(ours)]
    write_csv(tmp_path / "a" / "metrics.csv", rows(labels, ours))
    write_csv(tmp_path / "b" / "metrics.csv", rows(labels, other))
    found = compare_runs(tmp_path / "a" / "metrics.csv", metrics_file(tmp_path / "b"), labels)
    assert len(found) == 2 * (14 + 1)
    first = found[0]
    assert (first["class"], first["measure"], first["cases"]) == ("Liver", "DSC", 10)
    assert first["difference"] == pytest.approx(0.0245)
    assert first["low"] < 0.0245 < first["high"]
    assert first["p"] == pytest.approx(2 / 2**10)  # all ten pairs in one direction
    assert found[14]["class"] == "organ_mean"


def test_equal_runs_do_not_differ(labels: ClassList, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_csv(path, rows(labels, [0.1, 0.2]))
    assert {(r["difference"], r["p"]) for r in compare_runs(path, path, labels)} == {(0, 1)}


def test_only_common_cases_are_compared(labels: ClassList, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", rows(labels, [0.1, 0.2, 0.3]))
    write_csv(tmp_path / "b.csv", rows(labels, [0.1, 0.2]))
    assert compare_runs(tmp_path / "a.csv", tmp_path / "b.csv", labels)[0]["cases"] == 2


def test_what_cannot_be_compared_is_refused(labels: ClassList, tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"compare: no metrics\.csv"):
        metrics_file(tmp_path)
    write_csv(tmp_path / "a.csv", rows(labels, [0.1]))
    write_csv(tmp_path / "b.csv", [{"Name": "c0", "Liver_DSC": 1}])
    with pytest.raises(FlareError, match="lacks the columns"):
        compare_runs(tmp_path / "a.csv", tmp_path / "b.csv", labels)
    write_csv(tmp_path / "c.csv", [{"Name": "z", "Liver_DSC": 1}])
    with pytest.raises(FlareError, match="no case"):
        compare_runs(tmp_path / "a.csv", tmp_path / "c.csv", labels)
