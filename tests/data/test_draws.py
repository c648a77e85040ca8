"""What is drawn for a patch: how often each transform happens, within which range, and that it repeats."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from flare.data.augment import Augmentation, draw_augmentation

DRAWS = 2000
CONFIG = Path(__file__).parents[2] / "conf" / "data" / "default.yaml"


def paper_settings() -> dict[str, Any]:
    """The augmentation that the project ships."""
    return deepcopy(OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)["augmentation"])


def draw_many(settings: dict[str, Any]) -> list[Augmentation]:
    return [draw_augmentation(np.random.default_rng((0, step, 0)), settings) for step in range(DRAWS)]


@pytest.fixture(scope="module")
def drawn() -> list[Augmentation]:
    return draw_many(paper_settings())


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("rotation", 0.2),
        ("scale", 0.2),
        ("elastic", 0.2),
        ("noise", 0.1),
        ("blur", 0.1),  # 0.2, and half of the channels, of which there is one
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("zoom", 0.0),
        ("gamma_inverted", 0.1),
        ("gamma", 0.3),
    ],
)
def test_application_rates_are_the_papers(drawn: list[Augmentation], name: str, rate: float) -> None:
    measured = np.mean([getattr(d, name) is not None for d in drawn])
    assert abs(measured - rate) <= 4 * np.sqrt(rate * (1 - rate) / DRAWS)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_is_mirrored_half_of_the_time(drawn: list[Augmentation], axis: int) -> None:
    assert abs(np.mean([axis in d.mirror for d in drawn]) - 0.5) < 4 * 0.5 / np.sqrt(DRAWS)


def test_axes_are_mirrored_independently(drawn: list[Augmentation]) -> None:
    counts = {axes: sum(d.mirror == axes for d in drawn) for axes in {d.mirror for d in drawn}}
    assert len(counts) == 8
    assert all(abs(count / DRAWS - 1 / 8) < 0.04 for count in counts.values())


def test_low_resolution_of_the_authors_happens_to_one_in_eight() -> None:
    settings = paper_settings()
    settings["low_resolution"]["probability"] = 0.25
    zooms = [d.zoom for d in draw_many(settings) if d.zoom is not None]
    assert abs(len(zooms) / DRAWS - 0.125) < 0.03
    assert 0.5 <= min(zooms) < 0.55
    assert 0.95 < max(zooms) <= 1.0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("scale", 0.7, 1.4),
        ("blur", 0.5, 1.0),
        ("brightness", 0.75, 1.25),
        ("contrast", 0.75, 1.25),
        ("gamma_inverted", 0.7, 1.5),
        ("gamma", 0.7, 1.5),
    ],
)
def test_ranges_are_the_papers(drawn: list[Augmentation], name: str, low: float, high: float) -> None:
    values = [value for d in drawn if (value := getattr(d, name)) is not None]
    margin = 0.1 * (high - low)
    assert low <= min(values) < low + margin
    assert high - margin < max(values) <= high


@pytest.mark.parametrize("name", ["scale", "contrast", "gamma"])
def test_half_of_the_factors_lie_below_one(drawn: list[Augmentation], name: str) -> None:
    values = np.array([value for d in drawn if (value := getattr(d, name)) is not None])
    assert abs(np.mean(values < 1) - 0.5) < 4 * 0.5 / np.sqrt(len(values))


def test_noise_has_a_deviation_up_to_a_tenth(drawn: list[Augmentation]) -> None:
    stds = [d.noise.std for d in drawn if d.noise is not None]
    assert 0 <= min(stds) < 0.01
    assert 0.09 < max(stds) <= 0.1
    assert len({d.noise.seed for d in drawn if d.noise is not None}) == len(stds)


def test_in_dummy_2d_one_angle_of_up_to_180_degrees_about_z(drawn: list[Augmentation]) -> None:
    angles = np.array([d.rotation for d in drawn if d.rotation is not None])
    assert (angles[:, 1:] == 0).all()
    assert angles[:, 0].min() < -160
    assert angles[:, 0].max() > 160
    alphas = [d.elastic.alpha for d in drawn if d.elastic is not None]
    sigmas = [d.elastic.sigma for d in drawn if d.elastic is not None]
    assert 0 <= min(alphas) < 20
    assert 180 < max(alphas) <= 200
    assert 9 <= min(sigmas) < 9.5 < 12.5 < max(sigmas) <= 13


def test_in_three_dimensions_up_to_30_degrees_about_each_axis() -> None:
    drawn = draw_many({**paper_settings(), "dummy_2d": False})
    angles = np.array([d.rotation for d in drawn if d.rotation is not None])
    assert (abs(angles).max(axis=0) <= 30).all()
    assert (abs(angles).max(axis=0) > 27).all()
    alphas = [d.elastic.alpha for d in drawn if d.elastic is not None]
    sigmas = [d.elastic.sigma for d in drawn if d.elastic is not None]
    assert 0 <= min(alphas) < 90
    assert 810 < max(alphas) <= 900
    assert 9 <= min(sigmas) < 9.4
    assert 12.6 < max(sigmas) <= 13


def test_a_range_on_one_side_of_one_stays_there() -> None:
    settings = paper_settings()
    settings["scaling"]["range"] = [1.1, 1.3]
    settings["gamma"]["range"] = [0.5, 0.8]
    drawn = draw_many(settings)
    assert all(1.1 <= d.scale <= 1.3 for d in drawn if d.scale is not None)
    assert all(0.5 <= d.gamma <= 0.8 for d in drawn if d.gamma is not None)


def test_equal_keys_give_equal_draws_and_others_differ() -> None:
    settings = paper_settings()
    keys = [(0, 5, 1), (0, 5, 1), (0, 5, 0), (0, 4, 1), (1, 5, 1)]
    first, again, *others = (
        [draw_augmentation(rng, settings) for _ in range(20)] for rng in map(np.random.default_rng, keys)
    )
    assert first == again
    assert all(first != other for other in others)
