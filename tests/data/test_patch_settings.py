"""Settings of patches: what means nothing is refused by its key, in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.data.settings import RULES, PatchSettings

MEANINGLESS = [
    "data.augmentation.label_interpolation=foo",
    "data.augmentation.image_interpolation=nearest",
    "data.augmentation.mirror.axes=[w]",
    "data.augmentation.mirror.axes=z",
    "data.augmentation.noise=5",
    "data.augmentation.noise.probability=2",
    "data.augmentation.scaling.range=[1.4,0.7]",
    "data.oversample_foreground=33",
    "data.tumor_fraction=-1",
    "data.workers=-2",
    "data.patch_size=[16,48]",
    "data.patch_size=16",
    "data.patch_size=[16,48,1.5]",
    "data.batch_size=0",
    "data.batch_size=true",
    "data.augmentation.extra=[{p: 1}]",
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """As much of a configuration as patches need."""
    data = OmegaConf.load(ROOT / "conf" / "data" / "default.yaml")
    data.cache = "cache"
    return OmegaConf.create({"data": data, "labels": {"targets": "organs"}, "seed": 7})


def changed(composed: DictConfig, key: str, value: object) -> DictConfig:
    cfg = composed.copy()
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def test_settings_are_plain_values(composed: DictConfig, labels: ClassList) -> None:
    settings = PatchSettings.from_config(composed, labels)
    assert (settings.patch_size, settings.spacing_mm) == ((32, 128, 192), (4.0, 1.2, 1.2))
    assert (settings.outputs, settings.tumor, settings.seed) == (tuple(range(14)), 14, 7)
    assert type(settings.augmentation["mirror"]["axes"]) is list


@pytest.mark.parametrize("override", MEANINGLESS)
def test_a_value_that_means_nothing_is_refused_in_one_line(
    override: str, composed: DictConfig, labels: ClassList
) -> None:
    key, value = override.split("=")
    with pytest.raises(FlareError, match="expected") as refused:
        PatchSettings.from_config(changed(composed, key, yaml.safe_load(value)), labels)
    assert str(refused.value).startswith(key)
    assert "\n" not in str(refused.value)


def test_every_rule_is_of_a_key_that_the_shipped_configuration_has(composed: DictConfig) -> None:
    assert [key for key in RULES if OmegaConf.select(composed, key, default=None) is None] == []


@pytest.mark.parametrize(
    ("mirror", "axes"),
    [
        ({"probability": 0.5, "axes": ["z", "y", "x"]}, (0, 1, 2)),
        ({"probability": 0.5, "axes": ["x"]}, (2,)),
        ({"probability": 0.0, "axes": ["x"]}, ()),
    ],
)
def test_mirror_axes_are_those_that_are_flipped(
    mirror: dict[str, object], axes: tuple[int, ...], composed: DictConfig, labels: ClassList
) -> None:
    cfg = changed(composed, "data.augmentation.mirror", mirror)
    assert PatchSettings.from_config(cfg, labels).mirror_axes == axes


def test_the_configuration_of_overfitting_is_sound(
    config: Callable[..., DictConfig], labels: ClassList
) -> None:
    PatchSettings.from_config(config("train", "+debug=overfit"), labels)
