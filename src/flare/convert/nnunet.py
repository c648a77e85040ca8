"""Networks that nnU-Net has trained: 1.x, as the FLARE challenge's teams published them, and v2 (3D).

Reference: nnU-Net 1.7, `nnUNetTrainer.save_checkpoint` and `ExperimentPlanner3D_v21`; nnU-Net 2.8,
`PlansManager`, `ConfigurationManager` and `nnUNetTrainer.save_checkpoint`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flare.convert.layout import Foreign, Weights, architecture, from_nnunet, without_zeros
from flare.convert.reading import read_pickle, read_torch
from flare.core.errors import FlareError
from flare.core.files import read_json, sha256

log = logging.getLogger(__name__)
MODELS = ("model_final_checkpoint.model", "model_best.model", "model_latest.model")
STAGE = 5  # of the trainer's arguments: plans, fold, output, data, batch Dice, stage, ...
CHECKPOINT = "checkpoint_final.pth"
REORIENTS = "NibabelIOWithReorient"  # the reader that brings files to RAS, as we do
DEFAULT_RESAMPLING = "resample_data_or_seg_to_shape"
TORCH_RESAMPLING = "resample_torch_fornnunet"
# our names for how plans resample images: nnU-Net's function, and whether slices are treated apart
RESAMPLING = {
    "nnunet": (DEFAULT_RESAMPLING, None),
    "cubic": (DEFAULT_RESAMPLING, False),
    "linear": (TORCH_RESAMPLING, False),
}


def read_network(path: Path, fold: str | int | None) -> Foreign:
    """Read a network of nnU-Net of either generation.

    Args:
        path: A `.model` file or its folder, or a model folder of v2, `<trainer>__<plans>__<configuration>`.
        fold: Which fold of v2; None where there is only one.

    Raises:
        FlareError: If a file is missing, holds anything but plain values, or another network.
    """
    if path.is_dir() and (path / "plans.json").is_file():
        return read_nnunet2(path, fold)
    return read_nnunet1(find_model(path))


def find_model(path: Path) -> Path:
    """Take a file, or find the final checkpoint of a folder."""
    if path.is_file():
        return path
    for name in MODELS:
        found = sorted([*path.glob(name), *path.glob(f"*/{name}")])
        if len(found) == 1:
            return found[0]
        if found:
            raise FlareError(f"source={path}: has {len(found)} of {name}; name one of them")
    raise FlareError(f"source={path}: neither a plans.json (nnU-Net v2) nor {MODELS[0]} (nnU-Net 1) in it")


def read_nnunet1(path: Path) -> Foreign:
    """Read a `.model` file and the plans beside it; without plans its values are not known.

    Plans are read from `<name>.model.pkl`, otherwise from `plans.pkl` in its folder or the one above.
    """
    content = read_torch(path)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise FlareError(f"source={path}: no checkpoint of nnU-Net 1 (no entry 'state_dict')")
    weights = from_nnunet(state)
    trainer, stage, plans = _plans(path)
    origin = {"program": "nnU-Net 1", "trainer": trainer, "sha256": sha256(path)}
    values: dict[str, Any] = {}
    if plans is not None:
        values = _of_plans(plans, stage, architecture(weights))
        # every trainer of three dimensions mirrors along all axes, unless its name says not
        values["mirror_axes"] = [] if "nomirror" in (trainer or "").lower() else [0, 1, 2]
    return Foreign(weights, origin, values)


def _plans(path: Path) -> tuple[str | None, int | None, Mapping[str, Any] | None]:
    """Find the trainer's name, the stage and the plans; None for what no file says."""
    own = path.with_name(path.name + ".pkl")
    if own.is_file():
        info = read_pickle(own)
        if isinstance(info, Mapping) and isinstance(info.get("plans"), Mapping):
            arguments = info.get("init") or ()
            stage = arguments[STAGE] if len(arguments) > STAGE else None
            return info.get("name"), stage, info["plans"]
    for folder in (path.parent, path.parent.parent):
        if (folder / "plans.pkl").is_file():
            plans = read_pickle(folder / "plans.pkl")
            return None, None, plans if isinstance(plans, Mapping) else None
    return None, None, None


def _of_plans(plans: Mapping[str, Any], stage: int | None, network: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a checkpoint carries from the plans; without a stage, from the one that fits the weights."""
    try:
        _check(plans["normalization_schemes"][0], "CT", plans.get("transpose_forward", (0, 1, 2)))
        statistics = plans["dataset_properties"]["intensityproperties"][0]
        values: dict[str, Any] = {"intensity": _intensity(statistics, statistics["sd"])}
        values["interpolation"] = "nnunet"
        stages = plans["plans_per_stage"]
        if stage is None:
            fitting = [number for number in stages if _fits(stages[number], network)]
            stage = fitting[0] if len(fitting) == 1 else None
        if stage is not None:
            values["spacing_mm"] = [float(size) for size in stages[stage]["current_spacing"]]
            values["patch_size"] = [int(size) for size in stages[stage]["patch_size"]]
    except (KeyError, IndexError, TypeError) as error:
        raise FlareError(f"source: its plans lack {error}") from None
    return values


def _fits(stage: Mapping[str, Any], network: Mapping[str, Any]) -> bool:
    """Whether a stage of the plans is the one of the weights."""
    strides, kernels = (
        [[int(size) for size in row] for row in stage[key]]
        for key in ("pool_op_kernel_sizes", "conv_kernel_sizes")
    )
    return strides == network["strides"][1:] and kernels == network["encoder_kernels"]


def _check(scheme: str, expected: str, axes: Sequence[int]) -> None:
    """Refuse plans with another normalisation or another order of axes than ours."""
    if scheme != expected:
        raise FlareError(f"source: normalised as {scheme!r}; expected {expected!r}")
    if list(axes) != [0, 1, 2]:
        raise FlareError(f"source: its axes are in the order {list(axes)}; expected z, y, x")


def _intensity(statistics: Mapping[str, Any], std: float) -> dict[str, float]:
    """Foreground intensities in our terms."""
    names = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean"}
    return {ours: float(statistics[theirs]) for ours, theirs in names.items()} | {"std": float(std)}


def read_nnunet2(folder: Path, fold: str | int | None) -> Foreign:
    """Read `plans.json`, `dataset.json` and one `fold_*/checkpoint_final.pth` of a model folder."""
    path = _checkpoint(folder, fold)
    content = read_torch(path)
    missing = [key for key in ("network_weights", "init_args") if key not in content]
    if missing:
        raise FlareError(f"source={path}: no checkpoint of nnU-Net v2 (no entry {missing[0]!r})")
    try:
        plans = read_json(folder / "plans.json")
        configuration = _configuration(plans, content["init_args"]["configuration"])
        settings = _architecture_settings(configuration)
        weights = without_zeros(_with_biases(from_nnunet(content["network_weights"])))
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
    """Settings of the network; what ours does not have is refused by name."""
    if "architecture" not in configuration:  # before nnU-Net 2.3
        name = str(configuration["UNet_class_name"])
        settings = {"strides": configuration["pool_op_kernel_sizes"]}
    else:
        name = str(configuration["architecture"]["network_class_name"])
        settings = dict(configuration["architecture"]["arch_kwargs"])
    norm, nonlin = settings.get("norm_op_kwargs") or {}, settings.get("nonlin_kwargs") or {}
    expected = {
        "network_class_name": (_last(name, ""), "PlainConvUNet"),
        "norm_op": (_last(settings.get("norm_op"), "InstanceNorm3d"), "InstanceNorm3d"),
        "norm_op_kwargs.eps": (norm.get("eps", 1e-5), 1e-5),
        "dropout_op": (settings.get("dropout_op"), None),
        "nonlin": (_last(settings.get("nonlin"), "LeakyReLU"), "LeakyReLU"),
        "nonlin_kwargs.negative_slope": (nonlin.get("negative_slope", 0.01), 0.01),
        "nonlin_first": (settings.get("nonlin_first", False), False),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise FlareError(f"source: {key} is {found}; expected {wanted}")
    return settings


def _last(name: str | None, default: str) -> str:
    return (name or default).rpartition(".")[2]


def _with_biases(weights: Weights) -> Weights:
    """Give convolutions without a bias one of zeros; the output stays the same."""
    missing = {
        name.removesuffix("weight") + "bias": torch.zeros(len(tensor))
        for name, tensor in weights.items()
        if name.endswith(".conv.weight") and name.removesuffix("weight") + "bias" not in weights
    }
    return weights | missing


def _values(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Take from the plans what a checkpoint carries."""
    _check(configuration["normalization_schemes"][0], "CTNormalization", plans["transpose_forward"])
    statistics = plans["foreground_intensity_properties_per_channel"]["0"]
    apart = (configuration.get("resampling_fn_data_kwargs") or {}).get("force_separate_z")
    resampled = (configuration.get("resampling_fn_data"), apart)
    return {
        "spacing_mm": configuration["spacing"],
        "patch_size": configuration["patch_size"],
        "intensity": _intensity(statistics, statistics["std"]),
        "interpolation": next((name for name, known in RESAMPLING.items() if known == resampled), None),
    }


def _channel_names(folder: Path) -> tuple[str, ...] | None:
    """Names of the outputs in their order, from `dataset.json`."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    labels = read_json(path).get("labels", {})
    if not all(isinstance(value, int) for value in labels.values()):
        raise FlareError(f"source={path}: trained on regions; expected one output per class")
    return tuple(sorted(labels, key=lambda name: labels[name]))
