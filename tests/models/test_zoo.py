"""Networks of others by configuration: MONAI's four, the user's own, and what a checkpoint may build."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from composed import composed
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.preprocessing import Intensity
from flare.inference.settings import InferenceSettings
from flare.models.names import describe_network
from flare.models.zoo import Adapted, check_network, count_network, load_network
from flare.runs.checkpoints import KEY
from flare.training import build
from flare.training.build import check_architecture, start_from_teacher
from flare.training.settings import TrainingSettings
from tiny_round import SMALL_DYNUNET

pytestmark = pytest.mark.slow

INNER = "model.net.network"
SMALL = {  # overrides of few weights, the patch that suits them, and the number of resolutions in training
    "dynunet": (SMALL_DYNUNET, (8, 16, 16), 2),
    "segresnet": (
        [f"{INNER}.init_filters=4", f"{INNER}.blocks_down=[1,1,1]", f"{INNER}.dsdepth=2"],
        (8, 16, 16),
        2,
    ),
    "swinunetr": ([f"{INNER}.feature_size=12", f"{INNER}.num_heads=[1,1,1,1]"], (32, 32, 64), 1),
    "mednext": (
        [
            f"{INNER}.init_filters=4",
            f"{INNER}.blocks_down=[1,1]",
            f"{INNER}.blocks_up=[1,1]",
            f"{INNER}.blocks_bottleneck=1",
        ],
        (8, 16, 16),
        3,
    ),
}
INTENSITY = Intensity(-900, 300, 40, 90)


class Plain(nn.Module):
    """A network as others write them: it takes a number of channels and knows nothing of classes."""

    def __init__(self, channels: int, form: str = "tensor") -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 3, 3, padding=1)
        self.last = nn.Conv3d(3, channels, 1)
        self.form = form

    def forward(self, image: torch.Tensor) -> Any:
        logits = self.last(self.first(image).relu())
        if not self.training or self.form == "tensor":
            return logits
        lower = logits[..., ::2, ::2, ::2]
        return {"list": [logits, lower], "tuple": (logits, lower), "stack": torch.stack((logits, logits), 1),
                "dict": {"out": logits}}[self.form]  # fmt: skip


class Counting(Plain):
    """A network that takes classes and targets and counts its outputs itself, as ours do."""

    def __init__(self, classes: dict[str, Any], targets: str, **others: Any) -> None:
        super().__init__(len(ClassList.from_config(classes).outputs(targets)))


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own module."""
    module = ModuleType("mine")
    module.Plain, module.Counting = Plain, Counting  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)


def configuration(*overrides: str) -> DictConfig:
    return composed("train", *overrides)


def small(name: str, *overrides: str) -> DictConfig:
    changes, patch, _ = SMALL[name]
    return configuration(
        f"model={name}", *changes, f"data.patch_size={list(patch)}".replace(" ", ""), *overrides
    )


def plain(*overrides: str) -> DictConfig:
    return configuration(
        "model=adapted", "model.name=mine", f"{INNER}._target_=mine.Plain", "model.net.outputs_as=channels",
        "data.patch_size=[4,8,8]", *overrides,
    )  # fmt: skip


def build_network(cfg: DictConfig) -> nn.Module:
    return build.build_network(TrainingSettings.from_config(cfg))


def saved(cfg: DictConfig, path: Path) -> tuple[Path, Any]:
    """Write what a training would leave, with random weights."""
    module = build.build_module(TrainingSettings.from_config(cfg), INTENSITY)
    torch.save({"state_dict": module.state_dict(), KEY: module.carried}, path)
    return path, module


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "swinunetr" else ()) for name in SMALL]
)
def test_monais_networks_give_what_ours_give(name: str) -> None:
    cfg = small(name, "labels.targets=organs")
    network = instantiate(cfg.model.net)
    patch, count = SMALL[name][1:]
    check_network(network, batch_size=2, patch_size=patch, outputs=14)
    image = torch.randn(2, 1, *patch)
    with torch.no_grad():
        resolutions = network.train()(image)
        logits = network.eval()(image)
    assert logits.shape == (2, 14, *patch)
    assert isinstance(resolutions, list)
    assert len(resolutions) == count
    assert resolutions[0].shape == logits.shape
    assert all(r.shape[:2] == (2, 14) for r in resolutions)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "dynunet" else pytest.mark.slow) for name in SMALL]
)
def test_a_training_step_a_checkpoint_and_a_pupil(name: str, tmp_path: Path, labels: ClassList) -> None:
    torch.manual_seed(0)
    path, module = saved(small(name, "labels.targets=organs"), tmp_path / "last.ckpt")
    image = torch.randn(2, 1, *SMALL[name][1])
    module.loss(module.net(image), torch.randint(0, 14, (2, *SMALL[name][1]))).loss.backward()
    assert all(
        (p.grad is not None) == p.requires_grad for p in module.parameters()
    )  # for training on several GPUs
    network, checkpoint = load_network(path)
    with torch.no_grad():
        assert torch.equal(network(image), module.net.eval()(image))
    pupil = build_network(small(name, "labels.targets=organs_tumor"))
    fresh = {key: weights.clone() for key, weights in pupil.state_dict().items()}
    start_from_teacher(pupil, checkpoint, classes=labels, targets="organs_tumor")
    heads = 0
    for key, weights in pupil.state_dict().items():
        taught = checkpoint.state_dict[key]
        axis = next((a for a in range(weights.ndim) if weights.shape[a] != taught.shape[a]), None)
        if axis is None:
            assert torch.equal(weights, taught), key
        else:
            heads += 1
            assert torch.equal(weights.narrow(axis, 0, 14), taught), key
            assert torch.equal(weights.narrow(axis, 14, 1), fresh[key].narrow(axis, 14, 1)), key
    assert heads >= 2  # weights and bias of one head at the least
    tumor = build_network(small(name, "labels.targets=tumor"))
    start_from_teacher(tumor, checkpoint, classes=labels, targets="tumor")  # the background's row alone
    wider = build_network(small(name, "labels.targets=organs", f"{INNER}.in_channels=2"))
    with pytest.raises(FlareError, match="another architecture"):
        check_architecture(wider, checkpoint.state_dict, "the teacher")


@pytest.mark.parametrize("name", ["liver", "heart"])
def test_rows_go_by_class_also_where_teacher_and_pupil_have_as_many(tmp_path: Path, name: str) -> None:
    path, module = saved(plain("labels.targets=organs"), tmp_path / "last.ckpt")
    cfg = plain("labels.targets=organs")
    classes = OmegaConf.to_container(cfg.classes)
    classes[name] = {**classes.pop("liver"), "id": 20}  # the first class becomes the last one, or another
    pupil = Adapted(classes, "organs", network=cfg.model.net.network, outputs_as="channels")
    fresh = pupil.network.last.weight.clone()
    checkpoint = load_network(path, ["mine.Plain"])[1]
    start_from_teacher(pupil, checkpoint, classes=ClassList.from_config(classes), targets="organs")
    taught = module.net.network.last.weight
    assert torch.equal(pupil.network.last.weight[:13], taught[[0, *range(2, 14)]])
    assert torch.equal(pupil.network.last.weight[13], taught[1] if name == "liver" else fresh[13])


@pytest.mark.parametrize("form", ["tensor", "list", "tuple", "stack"])
def test_every_form_of_deep_supervision_becomes_a_list(form: str) -> None:
    network = build_network(plain(f"+{INNER}.form={form}"))
    image = torch.randn(1, 1, 4, 8, 8)
    outputs = network.train()(image)
    assert [tuple(o.shape[:2]) for o in outputs] == [(1, 15)] * (1 if form == "tensor" else 2)
    assert torch.equal(outputs[0], network.eval()(image))


def test_a_network_that_counts_its_outputs_needs_no_adapter(tmp_path: Path) -> None:
    cfg = configuration("model=tiny", "model.net._target_=mine.Counting", "labels.targets=tumor")
    network = build_network(cfg)
    assert network.eval()(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)
    assert network.head_axes() == {"network.last.weight": 0, "network.last.bias": 0}
    path, module = saved(cfg, tmp_path / "last.ckpt")
    again, _ = load_network(
        path, InferenceSettings.from_config(cfg).networks
    )  # the user's own model.net names it
    image = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(again(image), module.net.eval()(image))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"+{INNER}.form=dict"], "^model.net: gives a dict, expected logits"),
        (["model.net.outputs_as=null", f"+{INNER}.channels=9"], r"model.net: gives .*9.* expected .*15"),
        (["model.net.outputs_as=classes"], "^model.net: mine.Plain refuses it: .*classes"),
        ([f"{INNER}._target_=mine.Absent"], "^model.net: mine.Absent refuses it"),
        ([f"{INNER}._target_=builtins.dict"], "gives a dict, expected a network"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    cfg = plain(*overrides, "data=flare23", f"data.root={tmp_path}", "data.patch_size=[4,8,8]")
    with pytest.raises(FlareError, match=message) as refusal:
        check_network(build_network(cfg), batch_size=2, patch_size=(4, 8, 8), outputs=15)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "patch"), [("swinunetr", (32, 32, 48)), ("segresnet", (8, 18, 16))])
def test_a_patch_that_a_network_cannot_divide_is_refused(name: str, patch: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build_network(small(name))
    with pytest.raises(FlareError, match=r"^data.patch_size: .* does not fit model.net: .*divisible"):
        check_network(network, batch_size=2, patch_size=patch, outputs=15)


def test_a_strangers_checkpoint_builds_no_class_that_is_not_allowed(tmp_path: Path) -> None:
    path, _ = saved(plain(), tmp_path / "last.ckpt")
    with pytest.raises(FlareError, match=r"refuses to build 'mine.Plain'.*allow=\[mine.Plain\]"):
        load_network(path, InferenceSettings.from_config(configuration()).networks)
    load_network(path, InferenceSettings.from_config(configuration("allow=[mine.Plain]")).networks)


@pytest.mark.parametrize("place", ["network", "argument", "list"])
def test_what_is_named_within_a_networks_arguments_is_checked_as_well(tmp_path: Path, place: str) -> None:
    path, module = saved(small("dynunet"), tmp_path / "last.ckpt")
    mark = tmp_path / "was_here"
    evil = {"_target_": "pathlib.Path.touch", "self": str(mark)}
    net = module.carried["config"]["model"]["net"]
    if place == "network":
        net["network"] = evil
    else:
        net["network"]["act_name"] = evil if place == "argument" else ["relu", [evil]]
    torch.save({"state_dict": module.state_dict(), KEY: module.carried}, path)
    with pytest.raises(FlareError, match=r"refuses to build 'pathlib.Path.touch'"):
        load_network(path)
    assert not mark.exists()


def test_a_checkpoint_reads_nothing_of_the_machine(tmp_path: Path) -> None:
    path, module = saved(small("dynunet"), tmp_path / "last.ckpt")
    module.carried["config"]["model"]["net"]["network"]["act_name"] = "${oc.env:HOME}"
    torch.save({"state_dict": module.state_dict(), KEY: module.carried}, path)
    with pytest.raises(FlareError, match="has interpolations"):
        load_network(path)


def test_a_network_in_few_words() -> None:
    assert describe_network(configuration("model=tiny").model.net) == "UNet 16 32 64 128"
    assert describe_network(configuration("model=swinunetr").model.net) == "SwinUNETR"


def counted(*overrides: str) -> dict[str, float]:
    settings = TrainingSettings.from_config(composed("train", *overrides))
    return count_network(lambda: build.build_network(settings), settings.patches.patch_size)


@pytest.mark.parametrize(
    ("model", "parameters", "adds", "paper"),
    [("medium", 22.56, 253.06, 253.90), ("large", 84.94, 373.89, 375.14)],
)
def test_operations_are_the_papers_as_the_paper_counts(
    model: str, parameters: float, adds: float, paper: float
) -> None:
    """Tables 2 and 3; without what normalisation costs, convolutions and heads alone (method, section 6)."""
    found = counted(f"model={model}")
    assert found == {
        "parameters_m": parameters,
        "multiply_adds_g": adds,
        "with_norms_g": pytest.approx(paper, abs=0.011),
    }


def test_networks_of_others_are_counted_and_one_that_needs_values_is_not() -> None:
    class Picky(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image if image.sum().item() else -image

    found = counted("model=dynunet", *SMALL_DYNUNET, "data.patch_size=[8,16,16]")
    assert 0 < found["multiply_adds_g"] <= found["with_norms_g"]
    # 3000 kernels of 27 weights and a bias, at 5 of 7 places along each axis
    plain = count_network(lambda: nn.Conv3d(1, 3000, 3), (7, 7, 7))
    assert plain["multiply_adds_g"] == pytest.approx(3000 * 27 * 125 / 1e9, abs=0.005)
    assert plain["parameters_m"] == pytest.approx(3000 * 28 / 1e6, abs=0.005)
    assert count_network(Picky, (2, 2, 2)) == {}
