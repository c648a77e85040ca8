"""Files of nnU-Net: networks of 1.x, as the FLARE challenge's teams published them, and v2's (3D), both ways.

Reference: nnU-Net 1.7, `nnUNetTrainer.save_checkpoint` and `ExperimentPlanner3D_v21`; nnU-Net 2.8,
`PlansManager`, `ConfigurationManager` and `nnUNetTrainer.save_checkpoint`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flare.convert.layout import Foreign, architecture, common_kernels, from_nnunet, to_nnunet2, without_zeros
from flare.convert.reading import read_pickle, read_torch
from flare.core.class_files import read_mapping
from flare.core.errors import FlareError
from flare.core.files import read_json, sha256, write_json
from flare.models.names import activation_of
from flare.models.zoo import build_network
from flare.runs.checkpoints import Checkpoint, load_checkpoint, write_weights_file

Plain = Mapping[str, Any]
log = logging.getLogger(__name__)
MODELS = ("model_final_checkpoint.model", "model_best.model", "model_latest.model")
STAGE = 5  # of the trainer's arguments: plans, fold, output, data, batch Dice, stage, ...
CHECKPOINT = "checkpoint_final.pth"
CONFIGURATION = "3d_fullres"
# what a v2 network must have where its plans say it, our resampling in its words, and what we write
WORDS = Path(__file__).parent / "nnunet.json"


def read_network(path: Path, fold: str | int | None) -> Foreign:
    """Read a network of nnU-Net of either generation: a `.model` file or its folder, or a model folder of v2.

    The latter is `<trainer>__<plans>__<configuration>`, and `fold` one of it; None where there is only one. A
    file that is missing, holds anything but plain values, or another network is refused.
    """
    if (path / "plans.json").is_file():
        return _read_nnunet2(path, fold)
    if path.is_file():
        return _read_nnunet1(path)
    for name in MODELS:
        found = sorted([*path.glob(name), *path.glob(f"*/{name}")])
        if len(found) == 1:
            return _read_nnunet1(found[0])
        if found:
            raise FlareError(f"source={path}: has {len(found)} of {name}; name one of them")
    raise FlareError(f"source={path}: neither a plans.json (nnU-Net v2) nor {MODELS[0]} (nnU-Net 1) in it")


def _read_nnunet1(path: Path) -> Foreign:
    """Read a `.model` file and the plans beside it; without plans its values are not known."""
    state = read_torch(path).get("state_dict")
    if not isinstance(state, Mapping):
        raise FlareError(f"source={path}: no checkpoint of nnU-Net 1 (no entry 'state_dict')")
    weights = from_nnunet(state)
    trainer, stage, plans = _plans1(path)
    values: dict[str, Any] = {}
    if plans is not None:
        try:
            values = _values1(plans, stage, architecture(weights))
        except (KeyError, IndexError, TypeError) as error:
            raise FlareError(f"source: its plans lack {error}") from None
        # every trainer of three dimensions mirrors along all axes, unless its name says not
        values["mirror_axes"] = [] if "nomirror" in (trainer or "").lower() else [0, 1, 2]
    return Foreign(weights, {"program": "nnU-Net 1", "trainer": trainer, "sha256": sha256(path)}, values)


def _plans1(path: Path) -> tuple[str | None, int | None, Plain | None]:
    """Trainer's name, stage and plans, from `<name>.model.pkl` or a `plans.pkl` near by; else None."""
    own = path.with_name(path.name + ".pkl")
    info = read_pickle(own) if own.is_file() else None
    if isinstance(info, Mapping) and isinstance(info.get("plans"), Mapping):
        arguments = info.get("init") or ()
        return info.get("name"), arguments[STAGE] if len(arguments) > STAGE else None, info["plans"]
    for folder in (path.parent, path.parent.parent):
        if (folder / "plans.pkl").is_file():
            plans = read_pickle(folder / "plans.pkl")
            return None, None, plans if isinstance(plans, Mapping) else None
    return None, None, None


def _values1(plans: Plain, stage: int | None, network: Plain) -> dict[str, Any]:
    """Take what a checkpoint carries from the plans; without a stage, from the one that fits the weights."""
    _check(plans["normalization_schemes"][0], "CT", plans.get("transpose_forward", (0, 1, 2)))
    statistics = plans["dataset_properties"]["intensityproperties"][0]
    values: dict[str, Any] = {"intensity": _intensity(statistics, "sd"), "interpolation": "nnunet"}
    stages = plans["plans_per_stage"]
    if stage is None:
        strides, kernels = network["strides"][1:], network["encoder_kernels"]
        wanted = {"pool_op_kernel_sizes": strides, "conv_kernel_sizes": kernels}
        fitting = [n for n in stages if all(np.array_equal(stages[n][k], wanted[k]) for k in wanted)]
        stage = fitting[0] if len(fitting) == 1 else None
    if stage is not None:
        values["spacing_mm"] = [float(size) for size in stages[stage]["current_spacing"]]
        values["patch_size"] = [int(size) for size in stages[stage]["patch_size"]]
    return values


def _check(scheme: str, expected: str, axes: Sequence[int]) -> None:
    """Refuse plans with another normalisation or another order of axes than ours."""
    if scheme != expected:
        raise FlareError(f"source: normalised as {scheme!r}; expected {expected!r}")
    if list(axes) != [0, 1, 2]:
        raise FlareError(f"source: its axes are in the order {list(axes)}; expected z, y, x")


def _intensity(statistics: Plain, std: str) -> dict[str, float]:
    """Foreground intensities in our terms."""
    names = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": std}
    return {ours: float(statistics[theirs]) for ours, theirs in names.items()}


def _read_nnunet2(folder: Path, fold: str | int | None) -> Foreign:
    """Read `plans.json`, `dataset.json` and one `fold_*/checkpoint_final.pth` of a model folder."""
    paths = sorted(folder.glob(f"fold_{'*' if fold is None else fold}/{CHECKPOINT}"))
    if len(paths) != 1:
        names = ", ".join(path.parent.name for path in paths) or "none"
        raise FlareError(f"fold={fold}: expected one fold with {CHECKPOINT} in {folder}, found {names}")
    content = read_torch(paths[0])
    missing = [key for key in ("network_weights", "init_args") if key not in content]
    if missing:
        raise FlareError(f"source={paths[0]}: no checkpoint of nnU-Net v2 (no entry {missing[0]!r})")
    words = read_json(WORDS)
    try:
        plans = read_mapping(folder / "plans.json")
        configuration = _configuration(plans, content["init_args"]["configuration"])
        strides = [list(stride) for stride in _checked_settings(configuration, words["network"])["strides"]]
        weights = from_nnunet(content["network_weights"])
        for name, tensor in list(weights.items()):
            if name.endswith(".conv.weight"):  # with a bias of zeros the output stays the same
                weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(tensor)))
        weights = without_zeros(weights)
        found = architecture(weights)["strides"]
        if strides != found:
            raise FlareError(f"source: strides {found}, but the plans say {strides}")
        _check(configuration["normalization_schemes"][0], "CTNormalization", plans["transpose_forward"])
        own = _resampling(configuration)
        known = [name for name, keys in words["resampling"].items() if _resampling(keys) == own]
        values = {
            "spacing_mm": configuration["spacing"],
            "patch_size": configuration["patch_size"],
            "intensity": _intensity(plans["foreground_intensity_properties_per_channel"]["0"], "std"),
            "interpolation": known[0] if known else None,
            "mirror_axes": list(content.get("inference_allowed_mirroring_axes") or ()),
        }
    except (KeyError, TypeError) as error:
        raise FlareError(f"source={folder}: its plans lack {error}") from None
    if plans.get("image_reader_writer") != "NibabelIOWithReorient":  # brings files to RAS, as we do
        log.warning("trained on files in their own voxel order; here it is given RAS order")
    origin = {"program": "nnU-Net v2", "trainer": content.get("trainer_name"), "sha256": sha256(paths[0])}
    return Foreign(weights, origin, values, _channel_names(folder / "dataset.json"))


def _configuration(plans: Plain, name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    own = plans["configurations"][name]
    return (_configuration(plans, own["inherits_from"]) if "inherits_from" in own else {}) | own


def _resampling(configuration: Plain) -> tuple[Any, Any]:
    """How images are resampled: nnU-Net's function, and whether slices are treated apart."""
    settings = configuration.get("resampling_fn_data_kwargs") or {}
    return configuration.get("resampling_fn_data"), settings.get("force_separate_z")


def _checked_settings(configuration: Plain, expected: Plain) -> dict[str, Any]:
    """Settings of the network; what ours does not have is refused by name."""
    if "architecture" not in configuration:  # before nnU-Net 2.3
        name, settings = configuration["UNet_class_name"], {"strides": configuration["pool_op_kernel_sizes"]}
    else:
        name = configuration["architecture"]["network_class_name"]
        settings = configuration["architecture"]["arch_kwargs"]
    for key, wanted in expected.items():
        found: Any = {**settings, "network_class_name": name}
        for part in key.split("."):
            found = (found or {}).get(part)
        if isinstance(found, str):
            found = found.rpartition(".")[2]
        if found not in (None, wanted):
            raise FlareError(f"source: {key} is {found}; expected {wanted}")
    return settings


def _channel_names(path: Path) -> tuple[str, ...]:
    """Names of the outputs in their order, from `dataset.json`."""
    labels = read_mapping(path).get("labels", {}) if path.is_file() else {}
    if not all(isinstance(value, int) for value in labels.values()):
        raise FlareError(f"source={path}: trained on regions; expected one output per class")
    return tuple(sorted(labels.keys() - {"ignore"}, key=lambda name: labels[name]))  # which has no output


def export_folder(source: Path, folder: Path, *, fold: str | int) -> None:
    """Write `plans.json`, `dataset.json` and `fold_<fold>/checkpoint_final.pth`, for `nnUNetv2_predict`.

    For its `-d <id>` the folder is, below `nnUNet_results`,
    `Dataset<id>_<name>/nnUNetTrainer__nnUNetPlans__3d_fullres`. Class ids of its segmentations are the
    numbers of the output channels: the tumor is 1 if it was trained alone. A fold is a number, or `all`. A
    source that is no checkpoint of one of our U-Nets is refused.
    """
    checkpoint = load_checkpoint(source)
    build_network(checkpoint)  # refuses weights that do not belong together
    if activation_of(checkpoint.config) != "softmax":
        trained = "was trained with loss.partial=masked, a sigmoid a class"
        raise FlareError(f"source={source}: {trained}; expected softmax")
    if folder.is_file():
        raise FlareError(f"output={folder}: is a file; expected a folder")
    network = architecture(checkpoint.state_dict)
    words = read_json(WORDS)
    names = ["background", *(checkpoint.class_list.name_of(c) for c in checkpoint.outputs[1:])]
    if checkpoint.class_list.ignore is not None:
        names.append("ignore")  # nnU-Net asks for the highest value
    labels = {name: channel for channel, name in enumerate(names)}
    plans = _plans2(words, checkpoint, network, folder.parent.name)
    write_json(folder / "dataset.json", words["dataset"] | {"labels": labels})
    write_json(folder / "plans.json", plans)
    content = {
        "network_weights": to_nnunet2(checkpoint.state_dict, common_kernels(network)),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION, "fold": fold},
        "inference_allowed_mirroring_axes": tuple(checkpoint.mirror_axes) or None,
    }
    write_weights_file(folder / f"fold_{fold}" / CHECKPOINT, content)


def _plans2(words: Plain, checkpoint: Checkpoint, network: Plain, dataset: str) -> dict[str, Any]:
    """What nnU-Net's preprocessing and prediction ask for; it restores as with `restore=trilinear`."""
    if checkpoint.interpolation not in words["resampling"]:
        raise FlareError(f"source: resamples by {checkpoint.interpolation!r}, which nnU-Net has not")
    statistics = dict(checkpoint.intensity)
    intensity = {"percentile_00_5": statistics.pop("lower"), "percentile_99_5": statistics.pop("upper")}
    patch_size, spacing = list(checkpoint.patch_size), list(checkpoint.spacing_mm)
    stages, convolutions = len(network["features"]), network["convolutions_per_stage"]
    configuration = words["plans"]["configurations"][CONFIGURATION]
    configuration |= {
        "patch_size": patch_size,
        "median_image_size_in_voxels": patch_size,
        "spacing": spacing,
        **words["resampling"][checkpoint.interpolation],
    }
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": network["features"],
        "kernel_sizes": common_kernels(network),
        "strides": network["strides"],
        "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
    }
    return words["plans"] | {
        "dataset_name": dataset if re.fullmatch(r"Dataset\d{3}_\w+", dataset) else "Dataset999_flare",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": patch_size,
        "foreground_intensity_properties_per_channel": {"0": statistics | intensity},
    }
