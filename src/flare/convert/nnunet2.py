"""Networks that nnU-Net v2 has trained: `PlainConvUNet` of three dimensions.

Reference: nnU-Net 2.8, `PlansManager`, `ConfigurationManager` and `nnUNetTrainer.save_checkpoint`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flare.convert.foreign import Foreign
from flare.convert.layout import Weights, architecture, from_nnunet2, without_zeros
from flare.convert.reading import read_torch
from flare.errors import FlareError
from flare.files import read_json, sha256

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint_final.pth"
REORIENTS = "NibabelIOWithReorient"  # the reader that brings files to RAS, as we do
DEFAULT_RESAMPLING = "resample_data_or_seg_to_shape"
TORCH_RESAMPLING = "resample_torch_fornnunet"


def read_nnunet2(folder: Path, fold: str | int | None) -> Foreign:
    """Read a model folder: `plans.json`, `dataset.json` and one `fold_*/checkpoint_final.pth`.

    Args:
        folder: As nnU-Net v2 names it, `<trainer>__<plans>__<configuration>`.
        fold: Which fold; None where there is only one.

    Returns:
        The network.

    Raises:
        FlareError: If a file is missing, holds anything but plain values, or another network.
    """
    path = _checkpoint(folder, fold)
    content = read_torch(path)
    missing = [key for key in ("network_weights", "init_args") if key not in content]
    if missing:
        raise FlareError(f"source={path}: no checkpoint of nnU-Net v2 (no entry {missing[0]!r})")
    try:
        plans = read_json(folder / "plans.json")
        configuration = _configuration(plans, content["init_args"]["configuration"])
        settings = _architecture_settings(configuration)
        weights = without_zeros(_with_biases(from_nnunet2(content["network_weights"])))
        found = architecture(weights)
        if [list(s) for s in settings["strides"]] != found["strides"]:
            raise FlareError(f"source: strides {found['strides']}, but the plans say {settings['strides']}")
        values = _values(plans, configuration)
    except (KeyError, TypeError) as error:
        raise FlareError(f"source={folder}: its plans lack {error}") from None
    mirror_axes = content.get("inference_allowed_mirroring_axes")
    values["mirror_axes"] = [] if mirror_axes is None else [int(axis) for axis in mirror_axes]
    if plans.get("image_reader_writer") != REORIENTS:
        log.warning("trained on files in their own voxel order; here it is given RAS order")
    origin = {"program": "nnU-Net v2", "trainer": content.get("trainer_name"), "sha256": sha256(path)}
    return Foreign(weights, origin, values, _channel_names(folder))


def _checkpoint(folder: Path, fold: str | int | None) -> Path:
    """Find the checkpoint of a fold."""
    found = sorted(folder.glob(f"fold_{'*' if fold is None else fold}/{CHECKPOINT}"))
    if len(found) != 1:
        names = ", ".join(path.parent.name for path in found) or "none"
        raise FlareError(f"fold={fold}: expected one fold with {CHECKPOINT} in {folder}, found {names}")
    return found[0]


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    own = plans["configurations"][name]
    if "inherits_from" not in own:
        return dict(own)
    return {**_configuration(plans, own["inherits_from"]), **own}


def _architecture_settings(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the network, refused where they do what ours does not.

    Raises:
        FlareError: Naming the setting.
    """
    if "architecture" not in configuration:  # before nnU-Net 2.3
        name = str(configuration["UNet_class_name"])
        settings = {"strides": configuration["pool_op_kernel_sizes"]}
    else:
        name = str(configuration["architecture"]["network_class_name"])
        settings = dict(configuration["architecture"]["arch_kwargs"])
    expected = {
        "network_class_name": (name.rpartition(".")[2], "PlainConvUNet"),
        "norm_op": (_last(settings.get("norm_op"), "InstanceNorm3d"), "InstanceNorm3d"),
        "norm_op_kwargs.eps": ((settings.get("norm_op_kwargs") or {}).get("eps", 1e-5), 1e-5),
        "dropout_op": (settings.get("dropout_op"), None),
        "nonlin": (_last(settings.get("nonlin"), "LeakyReLU"), "LeakyReLU"),
        "nonlin_kwargs.negative_slope": (
            (settings.get("nonlin_kwargs") or {}).get("negative_slope", 0.01),
            0.01,
        ),
        "nonlin_first": (settings.get("nonlin_first", False), False),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise FlareError(f"source: {key} is {found}; expected {wanted}")
    return settings


def _last(name: str | None, default: str) -> str:
    return (name or default).rpartition(".")[2]


def _with_biases(weights: Weights) -> Weights:
    """Give convolutions without a bias one of zeros, which changes nothing."""
    missing = {
        name.removesuffix("weight") + "bias": torch.zeros(len(tensor))
        for name, tensor in weights.items()
        if name.endswith(".conv.weight") and name.removesuffix("weight") + "bias" not in weights
    }
    return weights | missing


def _values(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Take from the plans what a checkpoint carries."""
    if list(plans["transpose_forward"]) != [0, 1, 2]:
        raise FlareError(f"source: its axes are in the order {plans['transpose_forward']}; expected z, y, x")
    if configuration["normalization_schemes"][0] != "CTNormalization":
        raise FlareError(f"source: {configuration['normalization_schemes'][0]}; expected CTNormalization")
    statistics = plans["foreground_intensity_properties_per_channel"]["0"]
    return {
        "spacing_mm": configuration["spacing"],
        "patch_size": configuration["patch_size"],
        "intensity": {
            "lower": statistics["percentile_00_5"],
            "upper": statistics["percentile_99_5"],
            "mean": statistics["mean"],
            "std": statistics["std"],
        },
        "interpolation": _interpolation(configuration),
    }


def _interpolation(configuration: Mapping[str, Any]) -> str | None:
    """Our name for how the plans resample images; None for ways that we do not have."""
    apart = (configuration.get("resampling_fn_data_kwargs") or {}).get("force_separate_z")
    function = configuration.get("resampling_fn_data")
    known: dict[Any, str] = {
        (DEFAULT_RESAMPLING, None): "nnunet",
        (DEFAULT_RESAMPLING, False): "cubic",
        (TORCH_RESAMPLING, False): "linear",
    }
    return known.get((function, apart))


def _channel_names(folder: Path) -> tuple[str, ...] | None:
    """Names of the outputs in their order, from `dataset.json`."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    labels = read_json(path).get("labels", {})
    if not all(isinstance(value, int) for value in labels.values()):
        raise FlareError(f"source={path}: trained on regions; expected one output per class")
    return tuple(sorted(labels, key=lambda name: labels[name]))
