"""Names of weights, nnU-Net's and ours, and the network's arguments, found from their shapes."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flare.core.errors import FlareError

Weights = dict[str, Tensor]
STAGE, KIND = r"(?P<stage>\d+)", r"(?P<kind>weight|bias)"
CONV = rf"convs\.(?P<block>\d+)\.(?P<layer>conv|norm)\.{KIND}"
# nnU-Net 1.x's `Generic_UNet` and v2's `PlainConvUNet`
NNUNET = (
    rf"conv_blocks_(?P<side>context|localization)\.{STAGE}\.(?:(?P<part>[01])\.)?blocks\.(?P<block>\d+)"
    rf"\.(?P<layer>conv|instnorm)\.{KIND}",
    rf"(?P<side>encoder)\.stages\.{STAGE}\.0\.{CONV}",
    rf"(?P<side>decoder)\.stages\.{STAGE}\.{CONV}",
    rf"(?P<side>tu|seg_outputs|decoder\.transpconvs|decoder\.seg_layers)\.{STAGE}\.{KIND}",
)
# v2 stores the encoder a second time within the decoder, and each convolution again within a sequence
NNUNET2_AGAIN = r"decoder\.encoder\..*|.*\.all_modules\..*"
NNUNET2_SIDES = {"upsampling": "decoder.transpconvs", "heads": "decoder.seg_layers"}
OURS = {theirs: ours for ours, theirs in NNUNET2_SIDES.items()} | {"instnorm": "norm"}
OURS |= {"context": "encoder", "localization": "decoder", "tu": "upsampling", "seg_outputs": "heads"}


@dataclass(frozen=True)
class Foreign:
    """A network read from another project's files."""

    weights: Weights  # by our names, float32
    origin: dict[str, Any]  # its source, as plain values: program, trainer, hash of the file
    values: dict[str, Any]  # those of `foreign.VALUES` that its files say
    channel_names: tuple[str, ...] = ()  # names of its outputs, background first, where its files have them


def from_nnunet(state: Mapping[str, Tensor]) -> Weights:
    """Rename weights of nnU-Net 1.x's `Generic_UNet` or v2's `PlainConvUNet`, in float32, or refuse them."""
    found: dict[str, dict[str, str]] = {}
    blocks: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    for key in state:
        plain = key.removeprefix("module.").removeprefix("_orig_mod.")  # several GPUs; torch.compile
        if re.fullmatch(NNUNET2_AGAIN, plain):
            continue
        match = next((m for pattern in NNUNET if (m := re.fullmatch(pattern, plain))), None)
        if match is None:
            raise FlareError(f"source: weights {key!r} belong to another network than nnU-Net's plain U-Net")
        found[key] = parts = match.groupdict(default="")
        if "block" in parts:
            blocks[parts["side"], parts["stage"]].add((parts.get("part", ""), int(parts["block"])))
    weights = {}
    for key, parts in found.items():
        side, stage = parts["side"], parts["stage"]
        name = f"{OURS.get(side, side)}.{stage}."
        if "block" in parts:
            # in a stage of two parts the last convolution stands in a part of its own
            block = sorted(blocks[side, stage]).index((parts.get("part", ""), int(parts["block"])))
            name += f"blocks.{block}.{OURS.get(parts['layer'], parts['layer'])}."
        weights[name + parts["kind"]] = state[key].detach().float().clone()
    return weights


def common_kernels(network: Mapping[str, Any]) -> list[list[int]]:
    """One kernel a resolution that holds the encoder's and the decoder's, see `architecture`."""
    encoder = network["encoder_kernels"]
    decoder = [*network["decoder_kernels"], encoder[-1]]  # the lowest resolution has no decoder stage
    return [[max(pair) for pair in zip(*both, strict=True)] for both in zip(encoder, decoder, strict=True)]


def to_nnunet2(weights: Mapping[str, Tensor], kernels: Sequence[Sequence[int]]) -> Weights:
    """Rename our weights to those of `PlainConvUNet`, with the duplicates that its file holds.

    It has one kernel size a resolution (`common_kernels`), for encoder and decoder, and a bias in every
    layer. The output stays the same: smaller kernels are padded with zeros, missing biases become zeros.
    """
    state: Weights = {}
    for name, tensor in weights.items():
        side, stage, *rest = name.split(".")
        if side in NNUNET2_SIDES:
            place = f"{NNUNET2_SIDES[side]}.{stage}"
            state[f"{place}.{rest[0]}"] = tensor
            if rest == ["weight"]:
                outputs = tensor.shape[1 if side == "upsampling" else 0]
                state[f"{place}.bias"] = weights.get(f"{side}.{stage}.bias", torch.zeros(outputs))
            continue
        _, block, layer, kind = rest
        if tensor.ndim == 5:
            kernel = kernels[int(stage) if side == "encoder" else len(kernels) - 2 - int(stage)]
            missing = [(a - b) // 2 for a, b in zip(kernel, tensor.shape[2:], strict=True)]
            tensor = F.pad(tensor, [m for m in reversed(missing) for _ in range(2)])
        inner = ".0" if side == "encoder" else ""
        place = f"{side}.stages.{stage}{inner}.convs.{block}"
        names = [f"{place}.{layer}.{kind}", f"{place}.all_modules.{('conv', 'norm').index(layer)}.{kind}"]
        if side == "encoder":
            names += [f"decoder.{name}" for name in names]
        state.update(dict.fromkeys(names, tensor))
    return state


def _by_stage(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of the convolutions' kernels, by `encoder.<stage>` or `decoder.<stage>`."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name.endswith(".conv.weight"):
            found[".".join(name.split(".")[:2])].append(name)
    return found


def without_zeros(weights: Weights) -> Weights:
    """Remove outer planes of kernels, a stage's all at once, and biases that are exactly zero.

    The output stays the same: no trained weight is exactly zero by chance. `to_nnunet2`'s padding comes off.
    """
    trimmed = dict(weights)
    for names in _by_stage(weights).values():
        for axis in (2, 3, 4):
            kernels = [trimmed[name] for name in names]
            while all(k.shape[axis] > 1 and not k.movedim(axis, 0)[[0, -1]].any() for k in kernels):
                kernels = [k.narrow(axis, 1, k.shape[axis] - 2).clone() for k in kernels]
            trimmed.update(zip(names, kernels, strict=True))
    for side in NNUNET2_SIDES:
        biases = [name for name in weights if name.startswith(side) and name.endswith(".bias")]
        if not any(bool(weights[name].any()) for name in biases):
            trimmed = {name: tensor for name, tensor in trimmed.items() if name not in biases}
    return trimmed


def architecture(weights: Weights) -> dict[str, Any]:
    """Find the arguments of `UNet`, less classes and targets, from shapes of weights; others are refused."""
    stages = len({name.split(".")[1] for name in weights if name.startswith("encoder.")})
    blocks = {place: [weights[name] for name in names] for place, names in _by_stage(weights).items()}
    upward = range(stages - 2, -1, -1)  # decoder.0 is at the lowest resolution
    needed = [f"{side}.{i}.weight" for side in NNUNET2_SIDES for i in upward]
    needed += [f"decoder.{i}" for i in upward]
    missing = [name for name in needed if name not in weights and name not in blocks][:1]
    if stages < 2 or missing:
        raise FlareError(f"source: no U-Net with learned upsampling: its weights lack {missing or 'stages'}")
    if any(tensor.ndim != 5 for found in blocks.values() for tensor in found):
        raise FlareError("source: a network of two dimensions; expected three")
    counts = {len(found) for found in blocks.values()}
    kernels = {place: {tuple(t.shape[2:]) for t in found} for place, found in blocks.items()}
    uneven = [place for place, found in kernels.items() if len(found) > 1]
    if len(counts) > 1 or uneven:
        also = f" and {uneven[0]} has kernels {sorted(kernels[uneven[0]])}" if uneven else ""
        expected = "the same number everywhere and one kernel a stage"
        raise FlareError(f"source: its stages have {sorted(counts)} convolutions{also}; expected {expected}")
    size = {place: list(found.pop()) for place, found in kernels.items()}
    return {
        "features": [int(blocks[f"encoder.{i}"][0].shape[0]) for i in range(stages)],
        "convolutions_per_stage": counts.pop(),
        "strides": [[1, 1, 1], *(list(weights[f"upsampling.{i}.weight"].shape[2:]) for i in upward)],
        "encoder_kernels": [size[f"encoder.{i}"] for i in range(stages)],
        "decoder_kernels": [size[f"decoder.{i}"] for i in upward],
        "transposed_bias": "upsampling.0.bias" in weights,
        "head_bias": "heads.0.bias" in weights,
        "input_channels": int(weights["encoder.0.blocks.0.conv.weight"].shape[1]),
    }
