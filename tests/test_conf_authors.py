"""The preset `authors`: every variant of the authors' code at once, on every script and round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flare.inference.settings import InferenceSettings
from flare.rounds.graph import compose_rounds

pytestmark = pytest.mark.slow  # whole programs


Config = Callable[..., DictConfig]

# typed from the method: what the authors' code does where the paper says or implies something else
AUTHORS = {
    "name": "authors",
    "labels.rule": "gt_first",
    "data.interpolation": "nnunet",
    "data.label_interpolation": "nnunet",
    "inference.interpolation": "linear",
    "data.augmentation.label_interpolation": "linear",
    "data.augmentation.low_resolution.probability": 0.25,
    "data.augmentation.low_resolution.channel_probability": 0.5,
    "data.augmentation.low_resolution.zoom": [0.5, 1.0],
    "inference.name": "paper",
    "inference.centre": "image",
    "inference.extend": False,
    "inference.average": "probabilities",
    "inference.components": "none",
    "restore": "nearest",
    "tta": "tta4",
    "trainer.max_epochs": 1500,
    "callbacks.rescue.epoch": 100,
    "loss.class_weights": None,
}
UNLABELED = {"mot2": "mot"}  # who labels the cases without ground truth; the paper: the round's teacher
TEACHERS = {
    "mo": None,
    "mo1": "mo",
    "mo2": "mo1",
    "mt": None,
    "mot": "mo2",
    "mot1": "mot",
    "mot2": "mot1",
    "mot3": "mot2",
}


def pick(cfg: DictConfig, key: str) -> Any:
    found = OmegaConf.select(cfg, key, throw_on_missing=True)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@pytest.mark.parametrize("name", TEACHERS)
def test_every_round(config: Config, name: str) -> None:
    cfg = config("train", "experiment=authors", f"round={name}")
    assert {key: pick(cfg, key) for key in AUTHORS} == AUTHORS
    paper = config("train", f"round={name}")
    assert cfg.round.teacher == paper.round.teacher == TEACHERS[name]
    assert (cfg.round.unlabeled_teacher, paper.round.unlabeled_teacher) == (UNLABELED.get(name), None)


def test_the_rounds_of_a_whole_run() -> None:
    rounds = compose_rounds(list(TEACHERS), ["experiment=authors"])
    assert {r.name: r.teacher for r in rounds} == TEACHERS
    assert {r.name: r.unlabeled_teacher for r in rounds if r.unlabeled_teacher} == UNLABELED


def test_all_labels_of_mot2_may_be_mots() -> None:
    rounds = compose_rounds(list(TEACHERS), ["experiment=authors_copied"])
    assert {r.name: r.teacher for r in rounds} == TEACHERS | {"mot2": "mot"}
    assert [r.unlabeled_teacher for r in rounds] == [None] * 8
    assert {r.labels.merge.rules.rule for r in rounds} == {"gt_first"}


@pytest.mark.parametrize(
    ("name", "weights"),
    [("mot2", [8 / 15, 4 / 15, 2 / 15, 1 / 15]), ("mot3", [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])],
)
def test_weights_of_the_resolutions(config: Config, name: str, weights: list[float]) -> None:
    cfg = config("train", "experiment=authors", f"round={name}")
    loss = instantiate(cfg.loss, classes=cfg.classes, targets="organs")
    assert loss.weights(len(cfg.model.net.features) - 1) == pytest.approx(weights)


@pytest.mark.parametrize("script", ["train", "infer", "merge_labels", "prepare", "evaluate", "iterate"])
def test_every_script(config: Config, script: str) -> None:
    cfg = config(script, "experiment=authors")
    OmegaConf.to_container(cfg, resolve=True)
    assert {key: pick(cfg, key) for key in AUTHORS} == AUTHORS
    assert InferenceSettings.from_config(cfg).components == "none"
    if script == "merge_labels":
        assert cfg.rule == "gt_first"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("inference=dense", "inference.name", "dense"),
        ("round.teacher=mo2", "round.teacher", "mo2"),
        ("round.unlabeled_teacher=null", "round.unlabeled_teacher", None),
        ("labels.rule=paper", "labels.rule", "paper"),
        ("restore=trilinear", "restore", "trilinear"),
    ],
)
def test_the_command_line_wins(config: Config, override: str, key: str, value: str) -> None:
    assert pick(config("train", "experiment=authors", "round=mot2", override), key) == value
