"""Names of weights, nnU-Net's and ours, and the network's arguments, found from their shapes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flare.core.errors import FlareError

Weights = dict[str, Tensor]
KIND = r"(?P<kind>weight|bias)"
NNUNET1 = (
    rf"conv_blocks_(?P<side>context|localization)\.(?P<stage>\d+)\.(?:(?P<part>[01])\.)?blocks\.(?P<block>\d+)"
    rf"\.(?P<layer>conv|instnorm)\.{KIND}",
    rf"(?P<side>tu|seg_outputs)\.(?P<stage>\d+)\.{KIND}",
)
NNUNET2 = (
    rf"(?P<side>encoder)\.stages\.(?P<stage>\d+)\.0\.convs\.(?P<block>\d+)\.(?P<layer>conv|norm)\.{KIND}",
    rf"(?P<side>decoder)\.stages\.(?P<stage>\d+)\.convs\.(?P<block>\d+)\.(?P<layer>conv|norm)\.{KIND}",
    rf"decoder\.(?P<side>transpconvs|seg_layers)\.(?P<stage>\d+)\.{KIND}",
)
# v2 stores the encoder a second time within the decoder, and each convolution again within a sequence
NNUNET2_AGAIN = r"decoder\.encoder\..*|.*\.all_modules\..*"
OURS = {
    "context": "encoder",
    "localization": "decoder",
    "tu": "upsampling",
    "transpconvs": "upsampling",
    "seg_outputs": "heads",
    "seg_layers": "heads",
    "instnorm": "norm",
}


@dataclass(frozen=True)
class Foreign:
    """A network read from another project's files.

    Args:
        weights: By our names, float32.
        origin: Its source, as plain values: program, trainer, hash of the file.
        values: Those of `foreign.VALUES` that its files say.
        channel_names: Names of its outputs, background first; None where its files have none.
    """

    weights: Weights
    origin: dict[str, Any]
    values: dict[str, Any]
    channel_names: tuple[str, ...] | None = None

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weights["heads.0.weight"].shape[0])


def from_nnunet(state: Mapping[str, Tensor]) -> Weights:
    """Rename the weights of nnU-Net 1.x's `Generic_UNet` or v2's `PlainConvUNet`; float32 copies.

    Raises:
        FlareError: If a key is none of these networks'.
    """
    found: dict[str, dict[str, str]] = {}
    first_parts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key in state:
        plain = key.removeprefix("module.").removeprefix("_orig_mod.")  # several GPUs; torch.compile
        if re.fullmatch(NNUNET2_AGAIN, plain):
            continue
        match = next((m for p in (*NNUNET1, *NNUNET2) if (m := re.fullmatch(p, plain))), None)
        if match is None:
            raise FlareError(f"source: weights {key!r} belong to another network than nnU-Net's plain U-Net")
        found[key] = {k: v for k, v in match.groupdict().items() if v is not None}
        if found[key].get("part") == "0":
            first_parts[match["side"], match["stage"]].add(match["block"])
    weights = {}
    for key, parts in found.items():
        side, stage = parts["side"], parts["stage"]
        name = f"{OURS.get(side, side)}.{stage}."
        if "block" in parts:
            # a stage of two parts: the last convolution stands in a part of its own
            before = len(first_parts[side, stage]) if parts.get("part") == "1" else 0
            name += f"blocks.{int(parts['block']) + before}.{OURS.get(parts['layer'], parts['layer'])}."
        weights[name + parts["kind"]] = state[key].detach().float().clone()
    return weights


def to_nnunet2(weights: Mapping[str, Tensor]) -> Weights:
    """Rename our weights to those of `PlainConvUNet`, with the duplicates that its file holds."""
    state: Weights = {}
    for name, tensor in weights.items():
        side, stage, *rest = name.split(".")
        if side in ("upsampling", "heads"):
            side = {"upsampling": "transpconvs", "heads": "seg_layers"}[side]
            state[f"decoder.{side}.{stage}.{rest[0]}"] = tensor
            continue
        _, block, layer, kind = rest
        inner = ".0" if side == "encoder" else ""
        place = f"{side}.stages.{stage}{inner}.convs.{block}"
        names = [f"{place}.{layer}.{kind}", f"{place}.all_modules.{('conv', 'norm').index(layer)}.{kind}"]
        if side == "encoder":
            names += [f"decoder.{name}" for name in names]
        state.update(dict.fromkeys(names, tensor))
    return state


def without_zeros(weights: Weights) -> Weights:
    """Remove outer planes of kernels, and biases, that are exactly zero.

    The network's output stays the same. Kernels that `export` has padded get their size back. No such weight
    of a trained network is exactly zero by chance.

    Args:
        weights: By our names; a layer of convolutions is trimmed as a whole.
    """
    kernels: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        if name.endswith(".conv.weight"):
            kernels[".".join(name.split(".")[:2])].append(name)
    trimmed = dict(weights)
    for names in kernels.values():
        for axis in (2, 3, 4):
            while all(_has_zero_rim(trimmed[name], axis) for name in names):
                for name in names:
                    size = trimmed[name].shape[axis]
                    trimmed[name] = trimmed[name].narrow(axis, 1, size - 2).clone()
    for side in ("upsampling", "heads"):
        biases = [name for name in weights if name.startswith(side) and name.endswith(".bias")]
        if biases and not any(bool(weights[name].any()) for name in biases):
            trimmed = {name: tensor for name, tensor in trimmed.items() if name not in biases}
    return trimmed


def _has_zero_rim(kernel: Tensor, axis: int) -> bool:
    size = kernel.shape[axis]
    return size > 1 and not kernel.index_select(axis, torch.tensor([0, size - 1])).any()


def architecture(weights: Weights) -> dict[str, Any]:
    """Find the arguments of `UNet` from the shapes of its weights; all but classes and targets.

    Args:
        weights: By our names.

    Raises:
        FlareError: If no `UNet` has such weights.
    """
    stages = len({name.split(".")[1] for name in weights if name.startswith("encoder.")})
    blocks: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in weights.items():
        if name.endswith(".conv.weight"):
            blocks[".".join(name.split(".")[:2])].append(tensor)
    upward = range(stages - 2, -1, -1)  # decoder.0 is at the lowest resolution
    needed = [f"upsampling.{i}.weight" for i in upward] + [f"heads.{i}.weight" for i in upward]
    missing = [name for name in needed if name not in weights]
    missing += [f"decoder.{i}" for i in upward if f"decoder.{i}" not in blocks]
    if stages < 2 or missing:
        raise FlareError(
            f"source: no U-Net with learned upsampling: its weights lack {missing[:1] or 'stages'}"
        )
    if any(tensor.ndim != 5 for found in blocks.values() for tensor in found):
        raise FlareError("source: a network of two dimensions; expected three")
    counts = {len(found) for found in blocks.values()}
    kernels = {place: {tuple(t.shape[2:]) for t in found} for place, found in blocks.items()}
    uneven = [place for place, found in kernels.items() if len(found) > 1]
    if len(counts) > 1 or uneven:
        raise FlareError(
            f"source: its stages have {sorted(counts)} convolutions"
            + (f" and {uneven[0]} has kernels {sorted(kernels[uneven[0]])}" if uneven else "")
            + "; expected the same number everywhere and one kernel a stage"
        )
    size = {place: list(found.pop()) for place, found in kernels.items()}
    strides = [list(weights[f"upsampling.{i}.weight"].shape[2:]) for i in upward]
    return {
        "features": [int(blocks[f"encoder.{i}"][0].shape[0]) for i in range(stages)],
        "convolutions_per_stage": counts.pop(),
        "strides": [[1, 1, 1], *strides],
        "encoder_kernels": [size[f"encoder.{i}"] for i in range(stages)],
        "decoder_kernels": [size[f"decoder.{i}"] for i in upward],
        "transposed_bias": "upsampling.0.bias" in weights,
        "head_bias": "heads.0.bias" in weights,
        "input_channels": int(weights["encoder.0.blocks.0.conv.weight"].shape[1]),
    }
