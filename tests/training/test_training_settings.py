"""Settings of a training: what means nothing is refused by its key, in one line; what is shipped is sound."""

from collections.abc import Callable

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from composed import composed as composed_of
from flare.core.errors import FlareError
from flare.training.build import PRECISIONS
from flare.training.settings import RULES, TrainingSettings

MEANINGLESS = [
    "trainer.limit_train_batches=1.0",
    "trainer.accumulate_grad_batches=2",
    "trainer.accelerator=foo",
    "trainer.precision=foo",
    "trainer.max_epochs=0",
    "trainer.check_val_every_n_epoch=0",
    "model.optimizer={lr: 0.1}",  # where it once was
    "model.scheduler={power: 1}",
    "optimizer.lr=-1",
    "optimizer.lr=.nan",
    "callbacks.checkpoint.every_n_epochs=0",
    "seed=-1",
    "round.init=warm",
    "loss.smooth=a",
    "trainer.overfit_batches=0.5",
    "objective=val/dice",
    "data.batch_size=0",  # a rule of the patches
    "inference.overlap=1",  # and of inference
]


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """The configuration of train.py, composed once: it takes longer than all the checks."""
    return composed_of("train")


def test_settings_are_plain_values(composed: DictConfig) -> None:
    settings = TrainingSettings.from_config(composed)
    assert type(settings.optimizer) is dict
    assert settings.net["classes"]["liver"]["id"] == 1  # resolved
    assert settings.patches.outputs == settings.classes.outputs(settings.targets)
    assert "paths" not in settings.public
    assert "paths" not in str(settings.loggers)


@pytest.mark.parametrize("override", MEANINGLESS)
def test_a_value_that_means_nothing_is_refused_in_one_line(override: str, composed: DictConfig) -> None:
    key, value = override.split("=")
    cfg = composed.copy()
    OmegaConf.update(cfg, key, yaml.safe_load(value), merge=False, force_add=True)
    with pytest.raises(FlareError, match="expected") as refused:
        TrainingSettings.from_config(cfg)
    assert str(refused.value).startswith(key)
    assert "\n" not in str(refused.value)


def test_an_epoch_has_to_have_a_number_of_steps(composed: DictConfig) -> None:
    cfg = composed.copy()
    OmegaConf.set_struct(cfg, False)
    del cfg.trainer.limit_train_batches  # Lightning's own default is a share of the data, which has no end
    with pytest.raises(FlareError, match=r"^trainer.limit_train_batches=None: expected a whole number"):
        TrainingSettings.from_config(cfg)


SHIPPED = ["experiment=demo", "experiment=flare23", "experiment=authors", "experiment=real_ct"]
SHIPPED += ["+debug=smoke", "+debug=overfit", "trainer=ddp", "optimizer=adamw", "scheduler=cosine"]


@pytest.mark.parametrize("override", SHIPPED)
def test_what_is_shipped_is_sound(override: str, config: Callable[..., DictConfig]) -> None:
    TrainingSettings.from_config(config("train", override))


def test_every_rule_is_of_a_key_of_a_configuration(
    composed: DictConfig, config: Callable[..., DictConfig]
) -> None:
    others = [composed, config("train", "scheduler=cosine")]
    # Lightning's, not ours to list; and keys that are refused wherever they stand
    absent = {
        "trainer.accumulate_grad_batches",
        "trainer.overfit_batches",
        "model.optimizer",
        "model.scheduler",
    }
    missing = object()
    for key in RULES.keys() - absent:
        assert any(OmegaConf.select(cfg, key, default=missing) is not missing for cfg in others), key


def test_every_precision_that_is_chosen_can_be_asked_for() -> None:
    assert all(RULES["trainer.precision"].holds(word) for word in PRECISIONS.values())
