"""A baseline that is fitted case by case equals one that is fitted on all cases at once."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from omegaconf import DictConfig

from flare.baselines import methods, predictors
from flare.baselines.methods import (
    HIGHEST_HU,
    LOWEST_HU,
    STEPS,
    WINDOW,
    body_box,
    count_values,
    fit_priors,
    read_priors,
    read_window,
    segment_by_thresholds,
    vote,
)
from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.geometry import Geometry
from flare.core.preprocessing import Intensity
from flare.core.volumes import read_image, write_image
from flare.data import cache
from flare.prepare.cohort import Cohort
from flare.rounds.score import Trained
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RunFolder, prepared_folder
from flare.runs.journal import Journal
from flare.runs.work import Job, LocalExecutor, Outcome

SPACING = (6.0, 4.0, 4.0)
SHAPE = (12, 40, 44)
GEOMETRY = Geometry(SHAPE, SPACING, (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))  # RAS
INTENSITY = Intensity(-100.0, 200.0, 50.0, 70.0)


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body of water with three blocks that shine, in noise; and their labels."""
    draw = np.random.default_rng(seed)
    image = np.full(SHAPE, -1000.0)
    image[:, 4:36, 4:40] = 0
    labels = np.zeros(SHAPE, np.uint8)
    for class_id, (y, x), hu in ((1, (8, 8), 110.5), (3, (20, 24), 60.0), (14, (12, 28), -30.0)):
        if class_id != 14 or seed % 2:  # a class that not every case has
            y, x = y + draw.integers(0, 3), x + draw.integers(0, 3)
            place = np.s_[2 + seed % 3 : 9, y : y + 9, x : x + 8]
            image[place], labels[place] = hu, class_id
    return (image + draw.normal(0, 12, SHAPE)).round().astype(np.int16), labels


def remember(folder: Path, seeds: range) -> dict[str, tuple[Path, Path]]:
    """Cached image and labels of some cases."""
    pairs = {}
    for seed in seeds:
        paths = folder / f"{seed}-image.b2nd", folder / f"{seed}-labels.b2nd"
        for path, array in zip(paths, scan(seed), strict=True):
            cache.store_array(path, array)
        pairs[f"case{seed}"] = paths
    return pairs


def whole_fit(seeds: range, classes: tuple[int, ...]) -> dict[int, tuple[Any, ...]]:
    """Window, box and size of each class from all cases in memory at once."""
    seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for image, labels in map(scan, seeds):
        box = np.array(body_box(image, SPACING), float)
        smooth = methods._smooth(image, SPACING)
        for class_id in classes:
            where = np.argwhere(labels == class_id)
            if len(where):
                extent = np.stack([where.min(0), where.max(0) + 1], axis=1)
                place = (extent - box[:, :1]) / np.ptp(box, axis=1)[:, None]
                seen.setdefault(class_id, []).append((place, smooth[labels == class_id]))
    fits = {}
    for class_id, found in seen.items():
        places, values = np.stack([p for p, _ in found]), np.concatenate([v for _, v in found])
        window = tuple(np.percentile(values, (10, 90), method="inverted_cdf").tolist())
        box3 = tuple((places[:, a, 0].min(), places[:, a, 1].max()) for a in range(3))
        fits[class_id] = (window, box3, len(values) / len(found))
    return fits


class Counted(LocalExecutor):
    """Counts the cases of each function; some fail."""

    def __init__(self, *failing: str) -> None:
        super().__init__(workers=0, retries=0)
        self.failing = failing
        self.seen: list[str] = []

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        for outcome in super().run(function, jobs):
            self.seen.append(function.__name__)
            fails = outcome.case_id in self.failing
            yield Outcome(outcome.case_id, error="broken", is_fault=True) if fails else outcome


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many cached arrays were in memory each time that one more was read."""
    read: list[weakref.ref[np.ndarray]] = []
    counts: list[int] = []
    original = cache.Stored.__getitem__

    def watched(self: cache.Stored, piece: Any) -> np.ndarray:
        gc.collect()
        array = np.array(original(self, piece))
        read.append(weakref.ref(array))
        counts.append(sum(r() is not None for r in read))
        return array

    monkeypatch.setattr(cache.Stored, "__getitem__", watched)
    return counts


float32 = st.floats(width=32, allow_nan=False, min_value=-3000, max_value=3000)


@given(st.lists(arrays(np.float32, st.integers(1, 30), elements=float32), min_size=1, max_size=5))
def test_the_window_of_pieces_is_that_of_the_whole(pieces: list[np.ndarray]) -> None:
    histogram = np.zeros((HIGHEST_HU - LOWEST_HU) * STEPS + 1, np.int64)
    for piece in pieces:
        steps, counts = count_values(piece)
        histogram[steps] += counts
    assert histogram.sum() == sum(map(len, pieces))
    whole = np.clip(np.concatenate(pieces), LOWEST_HU, HIGHEST_HU)
    for percent, value in zip(WINDOW, read_window(histogram), strict=True):
        assert np.mean(whole < value - 1 / 32) < percent / 100 <= np.mean(whole <= value + 1 / 32)


@pytest.mark.long
@pytest.mark.slow
def test_the_fit_is_that_of_all_cases_at_once_with_one_in_memory(
    tmp_path: Path, labels: ClassList, alive: list[int]
) -> None:
    priors, failures = fit_priors(remember(tmp_path, range(6)), labels.ids, SPACING, Counted())
    assert failures == []
    for class_id, (window, place, voxels) in whole_fit(range(6), labels.ids).items():
        prior = priors[class_id]
        assert prior.window_hu == pytest.approx(window, abs=1 / 32)
        assert (prior.box, prior.voxels) == (place, voxels)
    assert sorted(priors) == [1, 3, 14]
    assert max(alive) == 2  # image and labels of one case


def test_a_fit_without_all_its_cases_is_none(tmp_path: Path, labels: ClassList) -> None:
    priors, failures = fit_priors(remember(tmp_path, range(3)), labels.ids, SPACING, Counted("case1"))
    assert (priors, [f.case_id for f in failures]) == ({}, ["case1"])


@pytest.fixture
def prepared(tmp_path: Path, config: Callable[..., DictConfig]) -> Callable[..., Any]:
    """Three annotated training cases in the cache, two scans to segment; predict them with a baseline."""
    cfg = config(
        "train", "data=phantom", f"data.cache={tmp_path / 'cache'}", f"data.spacing_mm={list(SPACING)}"
    )
    folder = prepared_folder(cfg)
    known = [Case(f"case{n}", tmp_path, tmp_path, "train", "organs_complete", (1,), (1,)) for n in range(3)]
    for case, (image, labels) in zip(known, remember(tmp_path / "made", range(3)).values(), strict=True):
        paths = {"image": folder.image(case.id), "labels": folder.labels(case.id)}
        for path, made in zip(paths.values(), (image, labels), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            made.rename(path)
        Journal(folder.journal("cache")).record(case.id, {}, {}, paths)
    asked = []
    for seed in (7, 8):
        path = tmp_path / f"scan{seed}.nii.gz"
        write_image(path, scan(seed)[0], GEOMETRY)
        asked.append(Case(f"scan{seed}", path, path, "test", "partial", (1,), (1,)))

    def predict(name: str, executor: LocalExecutor) -> tuple[list[np.ndarray], list[Outcome]]:
        made = Cohort(folder, known, [], INTENSITY, [])
        trained = Trained([RoundSettings.from_config(cfg)], made, RunFolder(tmp_path), executor)
        failures = predictors.predict_baseline(name, trained, asked, tmp_path / name)
        paths = [tmp_path / name / "predictions" / f"{c.id}.nii.gz" for c in asked]
        return [read_image(p).array for p in paths if p.exists()], failures

    return predict


def test_thresholds_are_fitted_once_for_all_cases_and_starts(
    prepared: Callable[..., Any], tmp_path: Path, labels: ClassList
) -> None:
    executor = Counted()
    found, _ = prepared("thresholds", executor)
    assert [executor.seen.count(n) for n in ("measure_case", "predict_by_thresholds")] == [3, 2]
    fits = read_priors(tmp_path / "thresholds" / "priors.json")
    assert set(fits) == set(whole_fit(range(3), labels.ids))
    for seed, array in zip((7, 8), found, strict=True):
        assert np.array_equal(array, segment_by_thresholds(scan(seed)[0], fits, SPACING))
        assert {1, 3} <= set(np.unique(array))
    again = Counted()
    prepared("thresholds", again)
    assert again.seen == []
    # a lost prediction is made again from the file alone
    (tmp_path / "thresholds" / "predictions" / "scan7.nii.gz").unlink()
    prepared("thresholds", again)
    assert again.seen == ["predict_by_thresholds"]


def test_a_prediction_of_others_is_not_overwritten(prepared: Callable[..., Any], tmp_path: Path) -> None:
    drawn = tmp_path / "atlas" / "predictions" / "scan7.nii.gz"
    drawn.parent.mkdir(parents=True)
    write_image(drawn, scan(7)[1], GEOMETRY)
    before = drawn.read_bytes()
    with pytest.raises(FlareError, match=r"predictions: holds 1 files .*scan7\.nii\.gz"):
        prepared("atlas", Counted())
    assert drawn.read_bytes() == before


def test_thresholds_of_other_cases_are_fitted_anew(
    prepared: Callable[..., Any], tmp_path: Path, config: Callable[..., DictConfig]
) -> None:
    prepared("thresholds", Counted())
    before = (tmp_path / "thresholds" / "priors.json").read_text()
    folder = prepared_folder(
        config("train", f"data.cache={tmp_path / 'cache'}", f"data.spacing_mm={list(SPACING)}")
    )
    paths = {"image": folder.image("case0"), "labels": folder.labels("case0")}
    cache.store_array(paths["image"], scan(0)[0] + 40)
    Journal(folder.journal("cache")).record("case0", {}, {}, paths)
    executor = Counted()
    prepared("thresholds", executor)
    assert [executor.seen.count(n) for n in ("measure_case", "predict_by_thresholds")] == [3, 2]
    assert (tmp_path / "thresholds" / "priors.json").read_text() != before


def test_a_fit_that_fails_predicts_nothing_and_is_tried_again(
    prepared: Callable[..., Any], tmp_path: Path
) -> None:
    found, failures = prepared("thresholds", Counted("case2"))
    assert found == []
    assert {f.case_id for f in failures} == {"case2", "scan7", "scan8"}
    assert all(f.is_fault for f in failures)
    assert "fit" not in Journal(tmp_path / "thresholds" / "journal" / "fit.jsonl")
    found, failures = prepared("thresholds", Counted())
    assert (len(found), failures) == (2, [])


@pytest.mark.long
@pytest.mark.slow
def test_atlases_vote_as_before_with_one_in_memory(prepared: Callable[..., Any], alive: list[int]) -> None:
    found, _ = prepared("atlas", Counted())
    most = max(alive)
    for seed, array in zip((7, 8), found, strict=True):
        assert np.array_equal(array, vote(scan(seed)[0], [scan(n) for n in range(3)], SPACING))
        assert {1, 3} <= set(np.unique(array))
    assert most <= 4  # the atlas that was carried and the next: image and labels each


def test_more_atlases_than_a_byte_counts_still_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flare.baselines.methods._register", lambda *_: None)
    monkeypatch.setattr("flare.baselines.methods._carry", lambda labels, *_: labels)
    image, organ, empty = np.zeros((1, 1, 1)), np.ones((1, 1, 1), np.uint8), np.zeros((1, 1, 1), np.uint8)
    atlases = [(image, organ)] * 257 + [(image, empty)] * 3
    assert vote(image, atlases, SPACING).tolist() == [[[1]]]
