"""A checkpoint of ours as a model folder of nnU-Net v2, for `nnUNetv2_predict` and its relatives.

nnU-Net's `PlainConvUNet` has one kernel size a resolution, for encoder and decoder, and a bias in every
layer. Where ours has two sizes, the smaller kernel is padded with zeros. Missing biases become zeros. The
output stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from flare.convert.layout import Weights, architecture, to_nnunet2
from flare.convert.nnunet import CHECKPOINT, RESAMPLING, TORCH_RESAMPLING
from flare.core.errors import FlareError
from flare.core.files import read_json, write_json
from flare.models.rebuild import build_network
from flare.runs.checkpoints import Checkpoint, load_checkpoint, write_weights_file

PLANS = Path(__file__).parent / "plans.json"
CONFIGURATION = "3d_fullres"
TRAINER = "nnUNetTrainer"
DATASET = "Dataset999_flare"  # where the folder does not say another


def export_folder(source: Path, folder: Path, *, fold: str | int) -> None:
    """Write `plans.json`, `dataset.json` and `fold_<fold>/checkpoint_final.pth`.

    For `nnUNetv2_predict -d <id>` the folder is, below `nnUNet_results`,
    `Dataset<id>_<name>/nnUNetTrainer__nnUNetPlans__3d_fullres`.
    Class ids of its segmentations are the numbers of the output channels: the tumor is 1 if it was trained
    alone.

    Args:
        source: Our checkpoint.
        folder: The model folder.
        fold: Number of the fold, or `all`.

    Raises:
        FlareError: If the source is none of our checkpoints, or its network none of our U-Nets.
    """
    checkpoint = load_checkpoint(source)
    build_network(checkpoint)  # refuses weights that do not belong together
    if folder.is_file():
        raise FlareError(f"output={folder}: is a file; expected a folder")
    network = architecture(checkpoint.state_dict)
    kernels = _common_kernels(network)
    weights = _padded(checkpoint.state_dict, kernels)
    names = ["background", *(checkpoint.class_list.name_of(c) for c in checkpoint.outputs[1:])]
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {name: channel for channel, name in enumerate(names)},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", dataset)
    write_json(folder / "plans.json", _plans(checkpoint, network, kernels, folder))
    content = {
        "network_weights": to_nnunet2(weights),
        "trainer_name": TRAINER,
        "init_args": {"configuration": CONFIGURATION, "fold": fold},
        "inference_allowed_mirroring_axes": tuple(checkpoint.mirror_axes) or None,
    }
    write_weights_file(folder / f"fold_{fold}" / CHECKPOINT, content)


def _common_kernels(network: Mapping[str, Any]) -> list[list[int]]:
    """One kernel a resolution that holds those of encoder and decoder."""
    encoder = network["encoder_kernels"]
    decoder = [*network["decoder_kernels"], encoder[-1]]  # the lowest resolution has no decoder stage
    return [[max(pair) for pair in zip(*both, strict=True)] for both in zip(encoder, decoder, strict=True)]


def _padded(state: Mapping[str, torch.Tensor], kernels: list[list[int]]) -> Weights:
    """Pad kernels to the common ones and add biases of zeros."""
    weights: Weights = {}
    for name, tensor in state.items():
        side, stage = name.split(".")[:2]
        weights[name] = tensor
        if name.endswith(".conv.weight"):
            level = int(stage) if side == "encoder" else len(kernels) - 2 - int(stage)
            missing = [(a - b) // 2 for a, b in zip(kernels[level], tensor.shape[2:], strict=True)]
            weights[name] = F.pad(tensor, [m for m in reversed(missing) for _ in range(2)])
        if side in ("upsampling", "heads") and name.endswith(".weight"):
            bias = name.removesuffix("weight") + "bias"
            outputs = tensor.shape[1] if side == "upsampling" else tensor.shape[0]
            weights[bias] = state.get(bias, torch.zeros(outputs))
    return weights


def _plans(
    checkpoint: Checkpoint, network: Mapping[str, Any], kernels: list[list[int]], folder: Path
) -> dict[str, Any]:
    """`plans.json`: what nnU-Net's preprocessing and prediction ask for; the constant part is in ours.

    There probabilities go back to the scan's grid as with `restore=trilinear`.
    """
    if checkpoint.interpolation not in RESAMPLING:
        raise FlareError(f"source: resamples by {checkpoint.interpolation!r}, which nnU-Net has not")
    function, apart = RESAMPLING[checkpoint.interpolation]
    cubic = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": apart}
    statistics = dict(checkpoint.intensity)
    intensity = {"percentile_00_5": statistics.pop("lower"), "percentile_99_5": statistics.pop("upper")}
    dataset = folder.parent.name if re.fullmatch(r"Dataset\d{3}_\w+", folder.parent.name) else DATASET
    stages, convolutions = len(network["features"]), network["convolutions_per_stage"]
    plans: dict[str, Any] = read_json(PLANS)
    configuration = plans["configurations"][CONFIGURATION]
    linear = configuration["resampling_fn_probabilities_kwargs"]
    configuration |= {
        "patch_size": list(checkpoint.patch_size),
        "median_image_size_in_voxels": list(checkpoint.patch_size),
        "spacing": list(checkpoint.spacing_mm),
        "resampling_fn_data": function,
        "resampling_fn_data_kwargs": linear if function == TORCH_RESAMPLING else cubic,
    }
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": network["features"],
        "kernel_sizes": kernels,
        "strides": network["strides"],
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
    }
    return plans | {
        "dataset_name": dataset,
        "original_median_spacing_after_transp": list(checkpoint.spacing_mm),
        "original_median_shape_after_transp": list(checkpoint.patch_size),
        "foreground_intensity_properties_per_channel": {"0": statistics | intensity},
    }
