"""The module of a round, tested without a training."""

from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.preprocessing import Intensity
from flare.runs.checkpoints import KEY
from flare.training.build import build_loss, build_module
from flare.training.module import SegmentationModule
from flare.training.settings import TrainingSettings

SMALL = (
    "model=tiny",
    "model.net.features=[2,3,4]",
    "model.net.strides=[[1,1,1],[1,2,2],[2,2,2]]",
    "model.net.encoder_kernels=[[1,3,3],[3,3,3],[3,3,3]]",
    "model.net.decoder_kernels=[[3,3,3],[3,3,3]]",
)
Build = Callable[..., SegmentationModule]


@pytest.fixture
def build(config: Callable[..., DictConfig]) -> Build:
    """Build the module of a configuration of `train`."""

    def module(*overrides: str) -> SegmentationModule:
        torch.manual_seed(0)
        return build_module(
            TrainingSettings.from_config(config("train", *SMALL, *overrides)), Intensity(-100, 300, 80, 60)
        )

    return module


def test_only_the_head_without_weight_is_frozen(build: Build) -> None:
    frozen = {name for name, p in build().named_parameters() if not p.requires_grad}
    assert frozen == {"net.heads.0.weight"}
    assert all(p.requires_grad for p in build("loss.supervise_lowest=true").parameters())


def test_a_step_reaches_every_other_parameter(build: Build) -> None:
    module = build()
    target = torch.randint(0, 15, (2, 4, 8, 8), dtype=torch.uint8)
    module.loss(module.net(torch.randn(2, 1, 4, 8, 8)), target).loss.backward()
    assert {name for name, p in module.named_parameters() if p.grad is None} == {"net.heads.0.weight"}


def test_optimizer_and_schedule_are_the_papers(build: Build) -> None:
    configured = build().configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, 0.99, True)
    assert group["weight_decay"] == 3e-5
    assert configured["lr_scheduler"]["interval"] == "epoch"
    factor = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert factor(750) == pytest.approx(0.5**0.9)  # E = 1500 epochs


def test_a_checkpoint_carries_plain_values(build: Build) -> None:
    checkpoint: dict = {}
    build("round=mo", "data.root=/home/patient").on_save_checkpoint(checkpoint)
    carried = checkpoint[KEY]
    assert carried["round"] == "mo"
    assert carried["targets"] == "organs"
    assert carried["intensity"] == {"lower": -100, "upper": 300, "mean": 80, "std": 60}
    assert carried["mirror_axes"] == [0, 1, 2]
    assert "patient" not in str(carried)


def test_a_refusal_of_the_network_or_loss_stays_one_line(
    config: Callable[..., DictConfig], build: Build
) -> None:
    with pytest.raises(FlareError, match=r"^model.net.strides: 2 entries, expected 3 for 3 features$"):
        build("model.net.strides=[[1,1,1],[1,2,2]]")
    with pytest.raises(FlareError, match=r"^loss.class_weights.liver: -1"):
        build_loss(TrainingSettings.from_config(config("train", "+loss.class_weights.liver=-1")))
