"""Networks of the peers at the sizes of the paper, with weights that a training could have left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunet.network_architecture.generic_UNet import Generic_UNet
from nnunet.network_architecture.initialization import InitWeights_He
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

PATCH = (16, 64, 96)  # of the comparisons; each network can divide it
SIZES = {
    "medium": {
        "features": [32, 64, 128, 256, 512],
        "convolutions": 2,
        "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    },
    "large": {
        "features": [32, 64, 128, 256, 512, 512],
        "convolutions": 3,
        "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
    },
}
INTENSITY = {"mean": 80.0, "std": 120.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}


def kernels(size: str) -> list[list[int]]:
    """Kernels of the encoder."""
    return [[1, 3, 3], *([[3, 3, 3]] * len(SIZES[size]["strides"]))]


def generic_unet(size: str, outputs: int = 15) -> nn.Module:
    """nnU-Net 1.7's network."""
    made = SIZES[size]
    return Generic_UNet(
        1,
        32,
        outputs,
        len(made["strides"]),
        made["convolutions"],
        2,
        nn.Conv3d,
        nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nn.Dropout3d,
        {"p": 0, "inplace": True},
        nn.LeakyReLU,
        {"negative_slope": 1e-2, "inplace": True},
        True,
        False,
        lambda x: x,
        InitWeights_He(1e-2),
        made["strides"],
        kernels(size),
        False,
        True,
        True,
        max_num_features=512,
    )


def architecture(size: str) -> dict[str, Any]:
    """The entry of nnU-Net v2's plans."""
    made = SIZES[size]
    stages = len(made["features"])
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": made["features"],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": kernels(size),
            "strides": [[1, 1, 1], *made["strides"]],
            "n_conv_per_stage": [made["convolutions"]] * stages,
            "n_conv_per_stage_decoder": [made["convolutions"]] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plain_conv_unet(size: str, outputs: int = 15) -> nn.Module:
    """nnU-Net v2's network, with deep supervision."""
    made = architecture(size)
    return get_network_from_plans(
        made["network_class_name"],
        made["arch_kwargs"],
        made["_kw_requires_import"],
        1,
        outputs,
        deep_supervision=True,
    )


def trained(network: nn.Module, seed: int) -> nn.Module:
    """Give biases and norms, which start as 0 and 1, values as after a training."""
    torch.manual_seed(seed)
    for name, values in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(values, std=0.1)
        elif values.ndim == 1:
            nn.init.uniform_(values, 0.5, 1.5)
    return network


def write_nnunet1(network: nn.Module, size: str, folder: Path) -> Path:
    """Store a network as nnU-Net 1.7's trainer does."""
    path = folder / "model_final_checkpoint.model"
    folder.mkdir(parents=True)
    content = {
        "epoch": 1000,
        "state_dict": network.state_dict(),
        "optimizer_state_dict": torch.optim.SGD(network.parameters(), 0.01).state_dict(),
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([], [], [], []),
        "best_stuff": (None, None, None),
        "amp_grad_scaler": {"scale": 65536.0},
    }
    torch.save(content, path)
    stage = {
        "current_spacing": (4.0, 1.2, 1.2),
        "patch_size": PATCH,
        "pool_op_kernel_sizes": SIZES[size]["strides"],
        "conv_kernel_sizes": kernels(size),
    }
    statistics = {"mean": INTENSITY["mean"], "sd": INTENSITY["std"], **INTENSITY}
    plans = {
        "normalization_schemes": {0: "CT"},
        "transpose_forward": [0, 1, 2],
        "dataset_properties": {"intensityproperties": {0: statistics}},
        "plans_per_stage": {0: stage},
    }
    init = ("plans.pkl", 0, "", "", True, 0, True, False, True)
    write_pickle({"init": init, "name": "nnUNetTrainerV2", "plans": plans}, f"{path}.pkl")
    return path


def configuration(
    size_or_architecture: str | dict[str, Any], patch: Any = PATCH, **more: Any
) -> dict[str, Any]:
    """One configuration of nnU-Net v2's plans, with its planner's defaults."""
    made = size_or_architecture
    default = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": [4.0, 1.2, 1.2],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": default,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**default, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**default, "order": 1},
        "batch_dice": True,
        "architecture": architecture(made) if isinstance(made, str) else made,
        **more,
    }


def plans(made: dict[str, Any], intensity: dict[str, float] = INTENSITY) -> dict[str, Any]:
    """nnU-Net v2's plans of one configuration."""
    return {
        "dataset_name": "Dataset001_x",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [4.0, 1.2, 1.2],
        "original_median_shape_after_transp": made["patch_size"],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": made},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }
