"""Networks of nnU-Net in and out, from state dicts made by hand, and what the readers refuse."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flare.checkpoints import load_checkpoint, load_network
from flare.convert.command import convert, main
from flare.convert.layout import architecture, from_nnunet2, to_nnunet2, without_zeros
from flare.convert.reading import read_pickle, read_torch
from flare.errors import FlareError

GIVEN = {
    "spacing_mm": [4.0, 1.2, 1.2],
    "patch_size": [8, 16, 16],
    "intensity": {"lower": -900.0, "upper": 300.0, "mean": 40.0, "std": 90.0},
    "mirror_axes": [0, 1, 2],
    "interpolation": "nnunet",
}
FEATURES, OUTPUTS = (2, 4, 6), 15
STRIDES = ((1, 2, 2), (2, 2, 2))
ENCODER_KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3))


def block(state: dict[str, Tensor], place: str, inputs: int, outputs: int, kernel: Any, norm: str) -> None:
    """Convolution and norm, drawn."""
    state[f"{place}.conv.weight"] = torch.randn(outputs, inputs, *kernel) / 5
    state[f"{place}.conv.bias"] = torch.randn(outputs)
    state[f"{place}.{norm}.weight"] = torch.rand(outputs) + 0.5
    state[f"{place}.{norm}.bias"] = torch.randn(outputs)


def nnunet1_state(convolutions: int = 2) -> OrderedDict[str, Tensor]:
    """What `Generic_UNet` of three stages stores; names typed from its code."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    torch.manual_seed(1)
    inputs = 1
    for stage, outputs in enumerate(FEATURES):
        for i in range(convolutions):
            last = stage == 2  # the bottleneck has two parts, its last convolution stands alone
            where = f"{stage}.{int(i == convolutions - 1)}" if last else f"{stage}"
            number = 0 if last and i == convolutions - 1 else i
            place = f"conv_blocks_context.{where}.blocks.{number}"
            block(state, place, inputs if i == 0 else outputs, outputs, ENCODER_KERNELS[stage], "instnorm")
        inputs = outputs
    for up, level in enumerate((1, 0)):
        size = FEATURES[level]
        for i in range(convolutions):
            part = int(i == convolutions - 1)
            place = f"conv_blocks_localization.{up}.{part}.blocks.{0 if part else i}"
            block(state, place, 2 * size if i == 0 else size, size, (3, 3, 3), "instnorm")
        state[f"tu.{up}.weight"] = torch.randn(FEATURES[level + 1], size, *STRIDES[level])
        state[f"seg_outputs.{up}.weight"] = torch.randn(OUTPUTS, size, 1, 1, 1)
    return state


def nnunet2_state() -> dict[str, Tensor]:
    """What `PlainConvUNet` of three stages stores, with its duplicates; names typed from its code."""
    state: dict[str, Tensor] = {}
    torch.manual_seed(2)
    inputs = 1
    for stage, outputs in enumerate(FEATURES):
        for i in range(2):
            place = f"encoder.stages.{stage}.0.convs.{i}"
            block(state, place, inputs if i == 0 else outputs, outputs, ENCODER_KERNELS[stage], "norm")
        inputs = outputs
    for up, level in enumerate((1, 0)):
        size = FEATURES[level]
        for i in range(2):
            place = f"decoder.stages.{up}.convs.{i}"
            block(state, place, 2 * size if i == 0 else size, size, ENCODER_KERNELS[level], "norm")
        state[f"decoder.transpconvs.{up}.weight"] = torch.randn(FEATURES[level + 1], size, *STRIDES[level])
        state[f"decoder.transpconvs.{up}.bias"] = torch.randn(size)
        state[f"decoder.seg_layers.{up}.weight"] = torch.randn(OUTPUTS, size, 1, 1, 1)
        state[f"decoder.seg_layers.{up}.bias"] = torch.randn(OUTPUTS)
    for name in list(state):
        parts = name.split(".")
        if "convs" in parts:
            layer = str(("conv", "norm").index(parts[-2]))
            state[".".join([*parts[:-2], "all_modules", layer, parts[-1]])] = state[name]
    return state | {f"decoder.{name}": w for name, w in state.items() if name.startswith("encoder")}


def reference(state: dict[str, Tensor], image: Tensor, *, version: int) -> Tensor:
    """The U-Net written out, straight from a state dict of nnU-Net."""

    def layers(place: str, norm: str, features: Tensor, stride: tuple[int, ...]) -> Tensor:
        kernel = state[f"{place}.conv.weight"]
        padding = tuple(size // 2 for size in kernel.shape[2:])
        features = nn.functional.conv3d(features, kernel, state[f"{place}.conv.bias"], stride, padding)
        weight, bias = state[f"{place}.{norm}.weight"], state[f"{place}.{norm}.bias"]
        return nn.functional.leaky_relu(nn.functional.instance_norm(features, None, None, weight, bias), 0.01)

    ones = (1, 1, 1)
    steps = (ones, *STRIDES)
    if version == 1:
        down = [(f"conv_blocks_context.{s}.blocks.0", f"conv_blocks_context.{s}.blocks.1") for s in (0, 1)]
        down.append(tuple(f"conv_blocks_context.2.{p}.blocks.0" for p in (0, 1)))
        up = [[f"conv_blocks_localization.{u}.{p}.blocks.0" for p in (0, 1)] for u in (0, 1)]
        norm, transposed, heads = "instnorm", "tu", "seg_outputs"
    else:
        down = [tuple(f"encoder.stages.{s}.0.convs.{i}" for i in (0, 1)) for s in (0, 1, 2)]
        up = [[f"decoder.stages.{u}.convs.{i}" for i in (0, 1)] for u in (0, 1)]
        norm, transposed, heads = "norm", "decoder.transpconvs", "decoder.seg_layers"
    skips = []
    for places, step in zip(down, steps, strict=True):
        image = layers(places[1], norm, layers(places[0], norm, image, step), ones)
        skips.append(image)
    for u, places in enumerate(up):
        weight, bias = state[f"{transposed}.{u}.weight"], state.get(f"{transposed}.{u}.bias")
        image = nn.functional.conv_transpose3d(image, weight, bias, STRIDES[1 - u])
        image = torch.cat((image, skips[1 - u]), 1)
        image = layers(places[1], norm, layers(places[0], norm, image, ones), ones)
    return nn.functional.conv3d(image, state[f"{heads}.1.weight"], state.get(f"{heads}.1.bias"))


def plans1() -> dict[str, Any]:
    """As a planner of nnU-Net 1.x pickles them: numpy values in plain and ordered containers."""
    statistics = {"mean": np.float32(40), "sd": np.float64(90), "percentile_00_5": np.float32(-900)}
    statistics |= {"percentile_99_5": np.int16(300), "local_props": OrderedDict(case={"n": np.int64(3)})}
    stage = {
        "current_spacing": np.array([4.0, 1.2, 1.2]),
        "patch_size": np.array([8, 16, 16]),
        "pool_op_kernel_sizes": [list(s) for s in STRIDES],
        "conv_kernel_sizes": [list(k) for k in ENCODER_KERNELS],
        "do_dummy_2D_data_aug": np.bool_(True),
    }
    low = {**stage, "pool_op_kernel_sizes": [[2, 2, 2], [2, 2, 2]], "current_spacing": np.array([8.0, 3, 3])}
    return {
        "normalization_schemes": OrderedDict({0: "CT"}),
        "transpose_forward": [0, 1, 2],
        "dataset_properties": {"intensityproperties": OrderedDict({0: statistics})},
        "plans_per_stage": {0: low, 1: stage},
    }


def plans2(**arch: Any) -> dict[str, Any]:
    """As nnU-Net v2 writes them, what matters alone."""
    settings = {
        "strides": [[1, 1, 1], *map(list, STRIDES)],
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **arch,
    }
    parent = {
        "spacing": [4.0, 1.2, 1.2],
        "normalization_schemes": ["CTNormalization"],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"force_separate_z": None},
        "architecture": {"network_class_name": "x.unet.PlainConvUNet", "arch_kwargs": settings},
    }
    return {
        "transpose_forward": [0, 1, 2],
        "configurations": {
            "base": parent,
            "3d_fullres": {"inherits_from": "base", "patch_size": [8, 16, 16]},
        },
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 40.0, "std": 90.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
        },
    }


def write_model(folder: Path, state: Any = None, plans: Any = None) -> Path:
    """A `.model` file with all that nnU-Net 1.7 puts into it."""
    path = folder / "model_final_checkpoint.model"
    content = {
        "epoch": 1000,
        "state_dict": nnunet1_state() if state is None else state,
        "optimizer_state_dict": {
            "state": {0: {"momentum_buffer": torch.ones(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(0.5)], [np.float32(0.25)], [], [[np.int64(3)]]),
        "best_stuff": (np.float64(0.1), None, np.float64(0.2)),
        "amp_grad_scaler": {"scale": 65536.0},
    }
    torch.save(content, path)
    if plans is not None:
        init = ("plans.pkl", 0, "out", "data", True, 1, True, False, True)
        info = OrderedDict(init=init, name="nnUNetTrainerV2", plans=plans)
        path.with_name(path.name + ".pkl").write_bytes(pickle.dumps(info, protocol=4))
    return path


def write_folder(folder: Path, names: list[str], plans: Any = None, state: Any = None) -> Path:
    """A model folder of nnU-Net v2."""
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans2() if plans is None else plans))
    labels = {name: i for i, name in enumerate(names)}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    content = {
        "network_weights": nnunet2_state() if state is None else state,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def names(labels: Any) -> list[str]:
    return ["background", *labels.names]


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))


# --- in


def test_nnunet1_with_its_plans(tmp_path: Path, image: Tensor) -> None:
    state = nnunet1_state()
    convert(source=str(write_model(tmp_path, state, plans1())), output=str(tmp_path / "in.ckpt"))
    network, found = load_network(tmp_path / "in.ckpt")
    torch.testing.assert_close(network(image), reference(state, image, version=1), atol=1e-5, rtol=0)
    assert (found.spacing_mm, found.patch_size) == ((4.0, 1.2, 1.2), (8, 16, 16))
    assert found.intensity == GIVEN["intensity"]
    assert (found.interpolation, found.mirror_axes) == ("nnunet", (0, 1, 2))
    assert (found.targets, found.round) == ("organs_tumor", None)
    assert found.config["converted_from"]["trainer"] == "nnUNetTrainerV2"


def test_nnunet1_of_three_convolutions_a_stage() -> None:
    from flare.convert.layout import from_nnunet1

    found = architecture(from_nnunet1(nnunet1_state(3)))
    assert found["convolutions_per_stage"] == 3
    assert found["features"] == list(FEATURES)
    assert found["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert found["encoder_kernels"] == [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert found["decoder_kernels"] == [[3, 3, 3], [3, 3, 3]]
    assert (found["transposed_bias"], found["head_bias"]) == (False, False)


def test_nnunet1_takes_the_stage_of_plans_that_fits(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    write_model(tmp_path / "fold_0")
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(plans1(), protocol=2))
    convert(source=str(tmp_path), output=str(tmp_path / "in.ckpt"), round="mot3")
    found = load_checkpoint(tmp_path / "in.ckpt")
    assert (found.spacing_mm, found.round) == ((4.0, 1.2, 1.2), "mot3")


def test_nnunet1_without_plans_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"source={write_model(tmp_path)}", f"output={tmp_path / 'in.ckpt'}"]
    arguments += ["spacing_mm=[4,1.2,1.2]", "intensity={lower:-900,upper:300}"]
    assert main(arguments) == 1
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1
    assert "patch_size, mirror_axes, interpolation, intensity.mean, intensity.std" in refusal
    more = ["patch_size=[8,16,16]", "mirror_axes=[0,1,2]", "interpolation=linear", "intensity.mean=40"]
    assert main([*arguments, *more, "intensity.std=90"]) == 0
    assert load_checkpoint(tmp_path / "in.ckpt").intensity == GIVEN["intensity"]


def test_nnunet2(tmp_path: Path, image: Tensor, names: list[str]) -> None:
    state = nnunet2_state()
    convert(
        source=str(write_folder(tmp_path / "model", names, state=state)), output=str(tmp_path / "in.ckpt")
    )
    network, found = load_network(tmp_path / "in.ckpt")
    torch.testing.assert_close(network(image), reference(state, image, version=2), atol=1e-5, rtol=0)
    net = found.config["model"]["net"]
    assert net["decoder_kernels"] == [[1, 3, 3], [3, 3, 3]]
    assert (net["transposed_bias"], net["head_bias"]) == (True, True)
    assert (found.spacing_mm, found.patch_size) == ((4.0, 1.2, 1.2), (8, 16, 16))
    assert (found.interpolation, found.intensity) == ("nnunet", GIVEN["intensity"])


# --- out and back


def test_there_and_back_is_the_same_network(tmp_path: Path, image: Tensor) -> None:
    convert(source=str(write_model(tmp_path, plans=plans1())), output=str(tmp_path / "in.ckpt"))
    convert(source=str(tmp_path / "in.ckpt"), output=str(tmp_path / "model"))
    convert(source=str(tmp_path / "model"), output=str(tmp_path / "back.ckpt"))
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


def test_the_folder_is_the_same_function(tmp_path: Path, image: Tensor) -> None:
    convert(source=str(write_model(tmp_path, plans=plans1())), output=str(tmp_path / "in.ckpt"))
    convert(source=str(tmp_path / "in.ckpt"), output=str(tmp_path / "Dataset023_X" / "model"))
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
    ours = from_nnunet2(nnunet2_state())
    again = to_nnunet2(ours)
    assert again.keys() == nnunet2_state().keys()
    assert all(torch.equal(w, again[name]) for name, w in nnunet2_state().items())
    assert without_zeros(ours).keys() == ours.keys()  # nothing in it is zero


# --- refusals


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_model_that_would_run_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "was_here"
    path = write_model(tmp_path, {"tu.0.weight": Shell(mark)})
    with pytest.raises(FlareError, match=r"refuses (posix|os)\.system"):
        read_torch(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plans_that_would_run_a_command(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "was_here"
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps({"plans": Shell(mark)}, protocol=protocol))
    with pytest.raises(FlareError, match=r"refuses (posix|os)\.system"):
        read_pickle(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n(tR.", "builtins.getattr"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"cflare.convert.reading\nread_torch\n.", "flare.convert.reading.read_torch"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"cpathlib\nPosixPath\n(S'/'\ntR.", "pathlib.PosixPath"),
    ],
)
def test_any_other_name_is_refused_by_name(tmp_path: Path, text: bytes, name: str) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(text)
    with pytest.raises(FlareError, match=f"refuses {name}$"):
        read_pickle(path)


@pytest.mark.parametrize(
    "value", [np.array([{}], dtype=object), np.array(["a"]), np.zeros(1, [("a", "i4")]), np.str_("a")]
)
def test_arrays_of_anything_but_numbers(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(FlareError, match="expected numbers"):
        read_pickle(path)


def test_what_is_allowed_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD may set attributes of what a name gives."""
    path = tmp_path / "plans.pkl"
    path.write_bytes(b"cnumpy\ndtype\n}S'__call__'\nNsb.")
    with pytest.raises(FlareError):
        read_pickle(path)
    path.write_bytes(pickle.dumps(np.arange(3)))
    assert read_pickle(path).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value", [np.float64(1.5), np.float32(1.5), np.int64(3), np.bool_(True), np.uint8(7)]
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_numpy_numbers_come_as_plain_ones(tmp_path: Path, value: Any, protocol: int) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps([value, {"a": value}], protocol=protocol))
    assert read_pickle(path) == [value.item(), {"a": value.item()}]
    assert type(read_pickle(path)[0]) is type(value.item())


def test_truncated_files(tmp_path: Path) -> None:
    path = write_model(tmp_path, plans=plans1())
    for damaged in (path, path.with_name(path.name + ".pkl")):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FlareError, match="not a "):
            convert(source=str(path), output=str(tmp_path / "in.ckpt"))
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
def test_other_networks(tmp_path: Path, change: Callable[..., Any], words: str) -> None:
    path = write_model(tmp_path, change(nnunet1_state()))
    with pytest.raises(FlareError, match=words) as refusal:
        convert(source=str(path), output=str(tmp_path / "in.ckpt"), **GIVEN)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nonlin": "torch.nn.ReLU"}, "nonlin is ReLU"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, "norm_op is BatchNorm3d"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, "strides"),
    ],
)
def test_other_architectures(tmp_path: Path, names: list[str], settings: dict, words: str) -> None:
    folder = write_folder(tmp_path / "model", names, plans2(**settings))
    with pytest.raises(FlareError, match=words):
        convert(source=str(folder), output=str(tmp_path / "in.ckpt"))


def test_names_in_another_order_need_the_users_word(tmp_path: Path, names: list[str]) -> None:
    names[2], names[13] = names[13], names[2]  # right and left kidney
    folder = write_folder(tmp_path / "model", names)
    with pytest.raises(FlareError, match="'left_kidney' where the class list has 'right_kidney'"):
        convert(source=str(folder), output=str(tmp_path / "in.ckpt"))
    convert(source=str(folder), output=str(tmp_path / "in.ckpt"), targets="organs_tumor")


def test_names_as_others_write_them(tmp_path: Path, labels: Any) -> None:
    shorts = ["Background", *(c.short for c in labels.classes[:-1]), "Tumor"]
    shorts[2] = "right kidney"
    convert(source=str(write_folder(tmp_path / "model", shorts)), output=str(tmp_path / "in.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["source=x", "output=y", "colour=red"], "colour: no such key"),
        (["source=x"], "output: not given"),
        (["x.model"], "expected key=value"),
        (["source=nowhere.model", "output=y"], "source=nowhere.model: no such file"),
        (["source={model}", "output=y", "classes=mars"], "classes=mars"),
        (["source={model}", "output=y", "targets=organs"], "14 outputs, the network has 15"),
        (["source={model}", "output=y", "patch_size=[8,16]"], "patch_size: expected three"),
        (["source={model}", "output=y", "patch_size=[7,16,16]"], "patch_size: size 7 along z"),
        (["source={model}", "output=y", "mirror_axes=[3]"], "mirror_axes"),
        (["source={model}", "output=y", "interpolation=sinc"], "interpolation"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    model = str(write_model(tmp_path, plans=plans1()))
    assert main([a.replace("{model}", model) for a in arguments]) == 1
    refusal = capsys.readouterr().err
    assert words in refusal
    assert refusal.count("\n") == 1
    assert not Path("y").exists()
