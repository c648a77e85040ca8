"""Checkpoints: what they carry, and that reading one runs no code of whoever wrote it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from flare.cli import CONF
from flare.core.errors import FlareError
from flare.core.files import sha256
from flare.models.unet import UNet
from flare.models.zoo import build_network, load_network
from flare.runs.checkpoints import KEY, load_checkpoint, read_weights_file
from flare.runs.folders import public_config

INTENSITY = {"lower": -900.0, "upper": 300.0, "mean": 40.0, "std": 90.0}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """What Lightning would have written after a round, with a network of two small stages."""
    small = [
        "model.net.features=[2,4]",
        "model.net.strides=[[1,1,1],[2,2,2]]",
        "model.net.encoder_kernels=[[3,3,3],[3,3,3]]",
        "model.net.decoder_kernels=[[3,3,3]]",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["round=mo", "model=tiny", *small])
    plain = public_config(cfg)
    arguments = {k: v for k, v in plain["model"]["net"].items() if not k.startswith("_")}
    torch.manual_seed(0)
    network = UNet(**arguments)
    carried = {
        "classes": plain["classes"],
        "targets": "organs",
        "spacing_mm": [4.0, 1.2, 1.2],
        "interpolation": "linear",
        "intensity": INTENSITY,
        "patch_size": [32, 128, 192],
        "mirror_axes": [0, 1, 2],
        "round": "mo",
        "config": plain,
        "git_revision": "unknown",
    }
    return {
        "state_dict": {f"net.{k}": v for k, v in network.state_dict().items()} | {"loss.w": torch.ones(1)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
        KEY: carried,
    }


@pytest.fixture
def content(whole: dict[str, Any]) -> dict[str, Any]:
    """A copy to spoil."""
    return copy.deepcopy(whole)


def save(tmp_path: Path, content: Any) -> Path:
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_what_a_checkpoint_carries(tmp_path: Path, content: dict) -> None:
    path = save(tmp_path, content)
    found = load_checkpoint(path)
    assert found.spacing_mm == (4.0, 1.2, 1.2)
    assert found.patch_size == (32, 128, 192)
    assert found.mirror_axes == (0, 1, 2)
    assert found.intensity == INTENSITY
    assert (found.round, found.targets, found.interpolation) == ("mo", "organs", "linear")
    assert found.outputs == tuple(range(14))
    assert found.class_list.tumor == 14
    assert found.sha256 == sha256(path)
    assert found.path == path
    assert not any(k.startswith(("net.", "loss.")) for k in found.state_dict)


def test_the_network_comes_back_with_its_weights(tmp_path: Path, content: dict) -> None:
    network, checkpoint = load_network(save(tmp_path, content))
    assert not network.training
    for name, weights in network.state_dict().items():
        torch.testing.assert_close(weights, content["state_dict"][f"net.{name}"], rtol=0, atol=0)
    assert network(torch.zeros(1, 1, 4, 4, 4)).shape == (1, len(checkpoint.outputs), 4, 4, 4)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("place", ["top", "flare", "plain pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, content: dict, place: str) -> None:
    mark = tmp_path / "was_here"
    path = tmp_path / "last.ckpt"
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    else:
        (content if place == "top" else content[KEY])["callbacks"] = Malicious(mark)
        save(tmp_path, content)
    with pytest.raises(FlareError, match="not a checkpoint of plain tensors") as refusal:
        load_checkpoint(path)
    assert not mark.exists()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "absent", "folder"])
def test_what_is_no_checkpoint(tmp_path: Path, content: dict, damage: str) -> None:
    path = save(tmp_path, content)
    whole = path.read_bytes()
    if damage in ("absent", "folder"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
    if damage in ("empty", "half", "text"):
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}[damage])
    with pytest.raises(
        FlareError, match=r"checkpoint=.*last\.ckpt: (is empty|is truncated|is not a checkpoint|no such)"
    ):
        load_checkpoint(path)


def test_weights_of_others_are_read_but_are_no_checkpoint_of_ours(tmp_path: Path) -> None:
    path = save(tmp_path, {"state_dict": {"w": torch.ones(2)}})
    assert read_weights_file(path)["state_dict"]["w"].tolist() == [1, 1]
    with pytest.raises(FlareError, match=r"no entry 'flare'"):
        load_checkpoint(path)
    with pytest.raises(FlareError, match="expected a dictionary, found list"):
        read_weights_file(save(tmp_path, [1, 2]))


def test_an_entry_that_lacks_something(tmp_path: Path, content: dict) -> None:
    del content[KEY]["intensity"], content[KEY]["mirror_axes"]
    with pytest.raises(FlareError, match=r"lacks .*'intensity'.*'mirror_axes'"):
        load_checkpoint(save(tmp_path, content))


@pytest.mark.parametrize(
    "target",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "torch.nn.Linear",
        "flare.core.files.write_text",
        "flare.models_evil.Net",
        "flare.models.unet.check_patch_size",  # a function
        "flare.models.unet.ClassList",  # no network
        "flare.models.unet.nn.Linear",  # a network, but not of these packages
        "flare.models.absent.Net",
        "flare.models.unet.",
    ],
)
def test_a_config_that_names_anything_but_a_network(tmp_path: Path, content: dict, target: str) -> None:
    content[KEY]["config"]["model"]["net"]["_target_"] = target
    with pytest.raises(FlareError, match=r"refuses to build|cannot build"):
        load_network(save(tmp_path, content))


def test_a_config_with_an_argument_too_many(tmp_path: Path, content: dict) -> None:
    content[KEY]["config"]["model"]["net"]["shell"] = True
    with pytest.raises(FlareError, match=r"model.net: flare.models.unet.UNet does not take shell"):
        load_network(save(tmp_path, content))


def test_a_target_within_a_config_is_data(tmp_path: Path, content: dict) -> None:
    """Nothing below the network is instantiated."""
    mark = tmp_path / "was_here"
    nested = {"_target_": "pathlib.Path.touch", "self": str(mark)}
    content[KEY]["config"]["model"]["net"]["features"] = nested
    with pytest.raises((FlareError, TypeError, KeyError)):
        load_network(save(tmp_path, content))
    assert not mark.exists()


def test_weights_of_another_size(tmp_path: Path, content: dict) -> None:
    content[KEY]["config"]["model"]["net"]["features"] = [2, 8]
    with pytest.raises(FlareError, match="weights do not fit") as refusal:
        build_network(load_checkpoint(save(tmp_path, content)))
    assert "\n" not in str(refusal.value)
