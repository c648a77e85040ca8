"""Files of nnU-Net 1.x and v2, made by hand: state dicts of three stages, plans, folders."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
