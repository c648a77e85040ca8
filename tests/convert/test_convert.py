"""Networks of nnU-Net in and out, from state dicts made by hand, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

import warm
from flare.convert.foreign import main
from flare.convert.layout import architecture, common_kernels, from_nnunet, to_nnunet2, without_zeros
from flare.core.errors import FlareError
from flare.models.zoo import load_network
from flare.runs.checkpoints import load_checkpoint
from nnunet_files import (
    FEATURES,
    GIVEN,
    nnunet1_state,
    nnunet2_state,
    plans1,
    plans2,
    reference,
    write_folder,
    write_model,
)


@pytest.fixture
def convert(config: Callable[..., DictConfig]) -> Callable[..., None]:
    """The command with its configuration: `convert("round=mot3", source=...)`."""

    def run(*overrides: str, **values: Any) -> None:
        given = [f"{key}={value}".replace("'", "") for key, value in values.items()]
        main(config("convert", *given, *overrides))

    return run


Convert = Callable[..., None]


@pytest.fixture
def names(labels: Any) -> list[str]:
    return ["background", *labels.names]


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))


# --- in


def test_nnunet1_with_its_plans(convert: Convert, tmp_path: Path, image: Tensor) -> None:
    state = nnunet1_state()
    convert(source=write_model(tmp_path, state, plans1()), output=tmp_path / "in.ckpt")
    network, found = load_network(tmp_path / "in.ckpt")
    torch.testing.assert_close(network(image), reference(state, image, version=1), atol=1e-5, rtol=0)
    assert (found.spacing_mm, found.patch_size) == ((4.0, 1.2, 1.2), (8, 16, 16))
    assert found.intensity == GIVEN["intensity"]
    assert (found.interpolation, found.mirror_axes) == ("nnunet", (0, 1, 2))
    assert (found.targets, found.round) == ("organs_tumor", None)
    assert found.config["converted_from"]["trainer"] == "nnUNetTrainerV2"


def test_nnunet1_of_three_convolutions_a_stage() -> None:
    found = architecture(from_nnunet(nnunet1_state(3)))
    assert found["convolutions_per_stage"] == 3
    assert found["features"] == list(FEATURES)
    assert found["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert found["encoder_kernels"] == [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert found["decoder_kernels"] == [[3, 3, 3], [3, 3, 3]]
    assert (found["transposed_bias"], found["head_bias"]) == (False, False)


def test_nnunet1_takes_the_stage_of_plans_that_fits(convert: Convert, tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    write_model(tmp_path / "fold_0")
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(plans1(), protocol=2))
    convert(source=tmp_path, output=tmp_path / "in.ckpt", round="mot3")
    found = load_checkpoint(tmp_path / "in.ckpt")
    assert (found.spacing_mm, found.round) == ((4.0, 1.2, 1.2), "mot3")


def test_nnunet1_without_plans_names_what_is_missing(convert: Convert, tmp_path: Path) -> None:
    paths = {"source": write_model(tmp_path), "output": tmp_path / "in.ckpt"}
    some = ["spacing_mm=[4,1.2,1.2]", "intensity={lower:-900,upper:300}"]
    with pytest.raises(FlareError, match=r"^patch_size, mirror_axes, interpolation, intensity.mean, inten"):
        convert(*some, **paths)
    more = ["patch_size=[8,16,16]", "mirror_axes=[0,1,2]", "interpolation=linear", "intensity.mean=40"]
    convert(*some, *more, "intensity.std=90", **paths)
    assert load_checkpoint(tmp_path / "in.ckpt").intensity == GIVEN["intensity"]


def test_nnunet2(convert: Convert, tmp_path: Path, image: Tensor, names: list[str]) -> None:
    state = nnunet2_state()
    convert(source=write_folder(tmp_path / "model", names, state=state), output=tmp_path / "in.ckpt")
    network, found = load_network(tmp_path / "in.ckpt")
    torch.testing.assert_close(network(image), reference(state, image, version=2), atol=1e-5, rtol=0)
    net = found.config["model"]["net"]
    assert net["decoder_kernels"] == [[1, 3, 3], [3, 3, 3]]
    assert (net["transposed_bias"], net["head_bias"]) == (True, True)
    assert (found.spacing_mm, found.patch_size) == ((4.0, 1.2, 1.2), (8, 16, 16))
    assert (found.interpolation, found.intensity) == ("nnunet", GIVEN["intensity"])


# --- out and back


def test_a_network_of_the_users_classes(convert: Convert, tmp_path: Path) -> None:
    """They are those of the cohort that `data.root` names."""
    classes = {"background": 0, "spleen": 1, "Left Kidney": 2, "liver tumor": 3}
    state = {k: w[:4] if ".seg_layers." in k else w for k, w in nnunet2_state().items()}
    source = write_folder(tmp_path / "model", list(classes), state=state)
    root = tmp_path / "Dataset123_Mine"
    root.mkdir()
    content = {"channel_names": {"0": "CT"}, "labels": classes, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    given = {"source": source, "output": tmp_path / "in.ckpt"}
    with pytest.raises(FlareError, match="the network has 4 outputs; the class list gives 14"):
        convert(**given)
    convert("data=nnunet", f"data.root={root}", **given)
    found = load_checkpoint(tmp_path / "in.ckpt")
    assert found.class_list.told == "1 spleen, 2 left_kidney, 3 liver_tumor"
    assert (found.class_list.tumor, found.targets) == (3, "organs_tumor")


def test_there_and_back_is_the_same_network(convert: Convert, tmp_path: Path, image: Tensor) -> None:
    convert(source=write_model(tmp_path, plans=plans1()), output=tmp_path / "in.ckpt")
    convert(source=tmp_path / "in.ckpt", output=tmp_path / "model")
    convert(source=tmp_path / "model", output=tmp_path / "back.ckpt")
    ours, back = load_checkpoint(tmp_path / "in.ckpt"), load_checkpoint(tmp_path / "back.ckpt")
    assert back.config["model"] == ours.config["model"]
    assert back.state_dict.keys() == ours.state_dict.keys()
    assert all(torch.equal(w, back.state_dict[k]) for k, w in ours.state_dict.items())
    for key in (
        "classes",
        "targets",
        "spacing_mm",
        "intensity",
        "patch_size",
        "mirror_axes",
        "interpolation",
    ):
        assert getattr(back, key) == getattr(ours, key)


def test_the_folder_is_the_same_function(convert: Convert, tmp_path: Path, image: Tensor) -> None:
    convert(source=write_model(tmp_path, plans=plans1()), output=tmp_path / "in.ckpt")
    convert(source=tmp_path / "in.ckpt", output=tmp_path / "Dataset023_X" / "model")
    folder = tmp_path / "Dataset023_X" / "model"
    plans = json.loads((folder / "plans.json").read_text())
    kernels = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["kernel_sizes"]
    assert kernels == [[3, 3, 3]] * 3  # the decoder's at full resolution, not the encoder's
    assert plans["dataset_name"] == "Dataset023_X"
    assert json.loads((folder / "dataset.json").read_text())["labels"]["tumor"] == 14
    state = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert state["encoder.stages.0.0.convs.1.conv.weight"].shape == (2, 2, 3, 3, 3)
    assert state.keys() == nnunet2_state().keys()
    with torch.inference_mode():
        expected = reference(nnunet1_state(), image, version=1)
        torch.testing.assert_close(reference(state, image, version=2), expected, atol=1e-5, rtol=0)


def test_names_there_and_back() -> None:
    ours = from_nnunet(nnunet2_state())
    again = to_nnunet2(ours, common_kernels(architecture(ours)))
    assert again.keys() == nnunet2_state().keys()
    assert all(torch.equal(w, again[name]) for name, w in nnunet2_state().items())
    assert without_zeros(ours).keys() == ours.keys()  # nothing in it is zero


# --- refusals


def test_a_resampling_that_nnunet_has_not_leaves_no_folder(convert: Convert, tmp_path: Path) -> None:
    model = write_model(tmp_path, plans=plans1())
    convert(source=model, output=tmp_path / "in.ckpt", interpolation="nearest")
    with pytest.raises(FlareError, match="resamples by 'nearest', which nnU-Net has not"):
        convert(source=tmp_path / "in.ckpt", output=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_network_of_sigmoids_is_none_of_nnunets(convert: Convert, tmp_path: Path) -> None:
    convert(source=write_model(tmp_path, plans=plans1()), output=tmp_path / "in.ckpt")
    content = torch.load(tmp_path / "in.ckpt", weights_only=True)
    content["flare"]["config"]["loss"] = {"partial": "masked"}
    torch.save(content, tmp_path / "masked.ckpt")
    with pytest.raises(FlareError, match=r"masked\.ckpt: was trained with loss\.partial=masked"):
        convert(source=tmp_path / "masked.ckpt", output=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_truncated_files(convert: Convert, tmp_path: Path) -> None:
    path = write_model(tmp_path, plans=plans1())
    for damaged in (path, path.with_name(path.name + ".pkl")):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FlareError, match=r"is truncated; copy it again$"):
            convert(source=path, output=tmp_path / "in.ckpt")
        damaged.write_bytes(whole)
    assert not (tmp_path / "in.ckpt").exists()


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, key: value}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("encoder.stem.weight", torch.ones(1)), "another network"),
        (changed("conv_blocks_context.0.blocks.0.conv.weight", torch.ones(2, 2, 1, 3, 3)), "several input"),
        (
            changed("conv_blocks_context.0.blocks.1.conv.weight", torch.ones(2, 2, 3, 3, 3)),
            "one kernel a stage",
        ),
        (changed("conv_blocks_context.0.blocks.1.instnorm.weight", torch.ones(3)), "do not fit together"),
        (lambda s: {k: w for k, w in s.items() if not k.startswith("tu.")}, "learned upsampling"),
        (lambda s: {k: w for k, w in s.items() if "context.0.blocks.1" not in k}, "same number everywhere"),
    ],
)
def test_other_networks(convert: Convert, tmp_path: Path, change: Callable[..., Any], words: str) -> None:
    path = write_model(tmp_path, change(nnunet1_state()))
    with pytest.raises(FlareError, match=words) as refusal:
        convert(source=path, output=tmp_path / "in.ckpt", **GIVEN)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nonlin": "torch.nn.ReLU"}, "nonlin is ReLU"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, "norm_op is BatchNorm3d"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, "strides"),
    ],
)
def test_other_architectures(
    convert: Convert, tmp_path: Path, names: list[str], settings: dict, words: str
) -> None:
    folder = write_folder(tmp_path / "model", names, plans2(**settings))
    with pytest.raises(FlareError, match=words):
        convert(source=folder, output=tmp_path / "in.ckpt")


def test_names_in_another_order_need_the_users_word(
    convert: Convert, tmp_path: Path, names: list[str]
) -> None:
    names[2], names[13] = names[13], names[2]  # right and left kidney
    folder = write_folder(tmp_path / "model", names)
    with pytest.raises(FlareError, match="'left_kidney' where the class list has 'right_kidney'"):
        convert(source=folder, output=tmp_path / "in.ckpt")
    convert(source=folder, output=tmp_path / "in.ckpt", targets="organs_tumor")


def test_names_as_others_write_them(convert: Convert, tmp_path: Path, labels: Any) -> None:
    shorts = ["Background", *(c.short for c in labels.entries[:-1]), "Tumor"]
    shorts[2] = "right kidney"
    convert(source=write_folder(tmp_path / "model", shorts), output=tmp_path / "in.ckpt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["source=x"], "output: not given"),
        (["source=nowhere.model", "output=y"], "source=nowhere.model: no such file"),
        (["source={model}", "output=y", "targets=organs"], "14 outputs, the network has 15"),
        (["source={model}", "output=y", "patch_size=[8,16]"], r"patch_size=\[8, 16\]: expected a list of 3"),
        (["source={model}", "output=y", "patch_size=[7,16,16]"], "patch_size: size 7 along z"),
        (["source={model}", "output=y", "mirror_axes=[3]"], "mirror_axes"),
        (["source={model}", "output=y", "interpolation=sinc"], "interpolation"),
    ],
)
def test_refusals_are_one_line(convert: Convert, tmp_path: Path, arguments: list[str], words: str) -> None:
    model = str(write_model(tmp_path, plans=plans1()))
    with pytest.raises(FlareError, match=words) as refusal:
        convert(*(a.replace("{model}", model) for a in arguments))
    assert "\n" not in str(refusal.value)
    assert not Path("y").exists()


@pytest.mark.slow
def test_the_command_leaves_its_output_alone(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "flare.convert", *arguments]
        return warm.run(line, tmp_path / "here")

    (tmp_path / "here").mkdir()
    source = f"source={write_model(tmp_path, plans=plans1())}"
    done = run(source, "output=in.ckpt", "round=mot3")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "wrote in.ckpt"), done.stderr
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["in.ckpt"]
    for arguments, words in (
        ([source], "output: not given; expected output=<path>"),
        ([source, "output=y", "colour=red"], "Could not override 'colour'"),
        ([source, "output=y", "classes=mars"], "classes/mars"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["in.ckpt"]
