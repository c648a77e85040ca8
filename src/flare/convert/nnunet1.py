"""Networks that nnU-Net 1.x has trained, as the FLARE challenge's teams published them.

Reference: nnU-Net 1.7, `nnUNetTrainer.save_checkpoint` and `ExperimentPlanner3D_v21`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flare.convert.foreign import Foreign
from flare.convert.layout import architecture, from_nnunet1
from flare.convert.reading import read_pickle, read_torch
from flare.errors import FlareError
from flare.files import sha256

MODELS = ("model_final_checkpoint.model", "model_best.model", "model_latest.model")
STAGE = 5  # of the trainer's arguments: plans, fold, output, data, batch Dice, stage, ...


def find_model(path: Path) -> Path:
    """Take a file, or find the final checkpoint of a folder.

    Raises:
        FlareError: If there is none, or several.
    """
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
    """Read a `.model` file and, where they are, the plans beside it.

    Plans are taken from `<name>.model.pkl`, or else from `plans.pkl` in its folder or the one above.

    Args:
        path: The file with the weights.

    Returns:
        The network; without plans its values are not known.

    Raises:
        FlareError: If a file holds anything but plain values, or another network, or no CT network.
    """
    content = read_torch(path)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise FlareError(f"source={path}: no checkpoint of nnU-Net 1 (no entry 'state_dict')")
    weights = from_nnunet1(state)
    trainer, stage, plans = _plans(path)
    origin = {"program": "nnU-Net 1", "trainer": trainer, "sha256": sha256(path)}
    values: dict[str, Any] = {}
    if plans is not None:
        values = _of_plans(plans, stage, architecture(weights))
        # every trainer of three dimensions mirrors along all axes, unless its name says not
        values["mirror_axes"] = [] if "nomirror" in (trainer or "").lower() else [0, 1, 2]
    return Foreign(weights, origin, values)


def _plans(path: Path) -> tuple[str | None, int | None, Mapping[str, Any] | None]:
    """Find the trainer's name, the stage and the plans; None where no file tells."""
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
    """Take from the plans what a checkpoint carries.

    Args:
        plans: As nnU-Net 1.x stores them.
        stage: Which of the plans' stages, or None to take the one that fits the weights.
        network: See `layout.architecture`.
    """
    try:
        if plans["normalization_schemes"][0] != "CT":
            raise FlareError(f"source: normalised as {plans['normalization_schemes'][0]!r}; expected 'CT'")
        if list(plans.get("transpose_forward", (0, 1, 2))) != [0, 1, 2]:
            raise FlareError(
                f"source: its axes are in the order {list(plans['transpose_forward'])}; expected z, y, x"
            )
        statistics = plans["dataset_properties"]["intensityproperties"][0]
        values: dict[str, Any] = {
            "intensity": {
                "lower": float(statistics["percentile_00_5"]),
                "upper": float(statistics["percentile_99_5"]),
                "mean": float(statistics["mean"]),
                "std": float(statistics["sd"]),
            },
            "interpolation": "nnunet",
        }
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

    def plain(values: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[int(size) for size in row] for row in values]

    return (
        plain(stage["pool_op_kernel_sizes"]) == network["strides"][1:]
        and plain(stage["conv_kernel_sizes"]) == network["encoder_kernels"]
    )
