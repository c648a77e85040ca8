"""Values that mean nothing are refused in one line before any work; every configuration shipped is sound."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from flare.core.cases import SPLITS
from flare.core.classes import RULES as OF_CLASSES
from flare.core.errors import FlareError, choice, limits, number, several, whole
from flare.core.preprocessing import ORDERS
from flare.phantom.plan import RULES as OF_THE_PHANTOM
from flare.prepare.settings import RULES as OF_PREPARE
from flare.prepare.settings import PrepareSettings
from flare.rounds.settings import RoundSettings

Config = Callable[..., DictConfig]
RULES = OF_CLASSES | OF_PREPARE | OF_THE_PHANTOM
MEANINGLESS = [
    "data.interpolation=liner",
    "data.interpolation=nearest",
    "data.accept_removed=perhaps",
    "executor.max_failed=2",
    "classes.liver.role=bone",
    "data.percentiles=[99,1]",
    "data.percentiles=[0.5]",
    "data.percentiles=[1,1]",
    "data.spacing_mm=[4,1.2]",
    "data.spacing_mm=[4,1.2,.inf]",
    "data.sources=[a]",
    "data.sources=[{match: x, annotates: liver}]",
    "data.label_map={a: 1}",
    "data.label_map=5",
    "data.phantom.size=foo",
    "data.phantom.counts.tumor=x",
    "data.scoring.split=tset",
    "classes.liver.tolerance_mm=-1",
    "classes.liver.id=x",
    "classes.liver=5",
]


@pytest.fixture(scope="module")
def composed(config: Config) -> DictConfig:
    """The configuration of train.py."""
    return config("train", "executor.workers=0")


def test_as_it_is_the_configuration_is_sound(composed: DictConfig, tmp_path: Path) -> None:
    PrepareSettings.from_config(composed)


@pytest.mark.parametrize("override", MEANINGLESS)
def test_a_value_that_means_nothing_is_refused_in_one_line(override: str, composed: DictConfig) -> None:
    key, value = override.split("=")
    cfg = composed.copy()
    OmegaConf.update(cfg, key, yaml.safe_load(value), merge=False, force_add=True)
    with pytest.raises(FlareError) as refused:
        PrepareSettings.from_config(cfg)
    assert str(refused.value).startswith(key)
    assert "expected" in str(refused.value)
    assert "\n" not in str(refused.value)


SHIPPED = {
    "experiment": ["demo", "flare23", "authors", "real_ct"],
    "debug": ["smoke", "overfit"],
    "inference": ["flare22", "dense", "fast"],
    "trainer": ["ddp"],
}


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in SHIPPED.items() for n in names])
def test_what_is_shipped_is_sound(group: str, name: str, config: Config) -> None:
    RoundSettings.from_config(config("train", f"+{group}={name}" if group == "debug" else f"{group}={name}"))


def test_every_key_of_the_tables_is_one_of_a_configuration(composed: DictConfig, config: Config) -> None:
    scripts = [composed, *(config(name, "data=flare23") for name in ("iterate", "evaluate"))]
    for pattern in RULES:
        key = pattern.replace("classes.*", "classes.liver").replace("grids.*", "grids.demo")
        key = key.replace("counts.*", "counts.tumor").replace("hosts.*", "hosts.liver")
        missing = object()
        assert any(OmegaConf.select(cfg, key, default=missing) is not missing for cfg in scripts), pattern


def test_the_table_knows_the_words_that_the_code_knows() -> None:
    for key, words in {
        "data.interpolation": [word for word in ORDERS if word != "nearest"],
        "data.scoring.split": SPLITS,
    }.items():
        assert all(RULES[key].holds(word) for word in words), key


def test_rules_say_what_they_take() -> None:
    rules = [number(0, 1), number(0, above=True), whole(1), whole(0, 9), choice("a", "b"), limits(0, 100)]
    assert [rule.expected for rule in [*rules, several(3, whole(1))]] == [
        "a number from 0 to 1",
        "a number above 0",
        "a whole number, 1 or more",
        "a whole number from 0 to 9",
        "one of a, b",
        "[lower, upper] from 0 to 100",
        "a list of 3, each a whole number, 1 or more",
    ]
    values = [0, 0.5, True, "1", None, float("nan"), [0, 1]]
    taken = [[v for v in values if rule.holds(v)] for rule in rules[:3]]
    assert taken == [[0, 0.5], [0.5], []]
