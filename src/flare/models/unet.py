"""The paper's U-Net, made of stages of convolution blocks.

Reference: nnU-Net 1.7 `Generic_UNet`, `ConvDropoutNormNonlin`, `StackedConvLayers` and `InitWeights_He`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.geometry import AXES

Triple = Sequence[int]  # along Z, Y, X
NEGATIVE_SLOPE = 1e-2  # of every LeakyReLU and of its He initialisation


class ConvolutionBlock(nn.Module):
    """Convolution (odd kernel), instance normalisation, leaky ReLU; only the stride changes the size."""

    def __init__(self, inputs: int, outputs: int, *, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        padding = triple([size // 2 for size in kernel])
        self.conv = nn.Conv3d(inputs, outputs, triple(kernel), triple(stride), padding)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, inputs, Z, Y, X)` to `(B, outputs, Z / stride, ...)`."""
        return self.activation(self.norm(self.conv(features)))


class Stage(nn.Module):
    """The convolutions at one resolution, of one kernel; only the first changes channels or resolution."""

    def __init__(
        self, inputs: int, outputs: int, *, convolutions: int, kernel: Triple, stride: Triple = (1, 1, 1)
    ) -> None:
        super().__init__()
        blocks = [ConvolutionBlock(inputs, outputs, kernel=kernel, stride=stride)]
        for _ in range(convolutions - 1):
            blocks.append(ConvolutionBlock(outputs, outputs, kernel=kernel, stride=(1, 1, 1)))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, inputs, Z, Y, X)` to `(B, outputs, Z / stride, ...)`."""
        return self.blocks(features)


def triple(values: Triple) -> tuple[int, int, int]:
    """Turn a list from a config into the tuple that torch expects."""
    z, y, x = values
    return z, y, x


def initialise(module: nn.Module) -> None:
    """Give convolutions He-normal weights and zero biases, as every round starts."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UNet(nn.Module):
    """U-Net with a head at every decoder stage; its outputs are background and the trained classes.

    `eval()` gives the logits alone, `train()` the deep-supervision logits of all heads, highest resolution
    first. `encoder` runs from the highest resolution to the lowest; `upsampling`, `decoder` and `heads` run
    back from the lowest: an index is the same stage in all three, and `heads[-1]` is at full resolution.
    Lists of other lengths than the stages are refused, and a first stride other than 1 1 1.

    `classes` is the class list of the configuration, name to properties; `targets` is what the round trains:
    `organs`, `tumor` or `organs_tumor`. Each encoder stage has its channels in `features`, the step into it
    in `strides` and a kernel, along Z, Y, X; kernels of decoder stages, too, have the highest resolution
    first. In nnU-Net v2 transposed convolutions and heads have a bias, in 1.7 none. CT has one input channel.

    Reference: nnU-Net 1.7 `Generic_UNet`.
    """

    def __init__(
        self,
        classes: Mapping[str, Mapping[str, Any]],
        targets: str,
        *,
        features: Sequence[int],
        convolutions_per_stage: int,
        strides: Sequence[Triple],
        encoder_kernels: Sequence[Triple],
        decoder_kernels: Sequence[Triple],
        transposed_bias: bool,
        head_bias: bool,
        input_channels: int = 1,
    ) -> None:
        super().__init__()
        kernels = {"encoder_kernels": encoder_kernels, "decoder_kernels": decoder_kernels}
        _check_stages(len(features), strides=strides, **kernels)
        outputs = len(ClassList.from_config(classes).outputs(targets))
        stages = len(features)
        channels = [input_channels, *features]
        self.divisors = tuple(math.prod(stride[axis] for stride in strides) for axis in range(3))
        stage = partial(Stage, convolutions=convolutions_per_stage)

        def upsample(level: int) -> nn.Module:
            step = triple(strides[level + 1])
            return nn.ConvTranspose3d(features[level + 1], features[level], step, step, bias=transposed_bias)

        self.encoder = nn.ModuleList(
            stage(channels[level], channels[level + 1], kernel=encoder_kernels[level], stride=strides[level])
            for level in range(stages)
        )
        upward = range(stages - 2, -1, -1)
        self.upsampling = nn.ModuleList(map(upsample, upward))
        self.decoder = nn.ModuleList(  # the skip connection is concatenated
            stage(2 * features[level], features[level], kernel=decoder_kernels[level]) for level in upward
        )
        self.heads = nn.ModuleList(nn.Conv3d(features[level], outputs, 1, bias=head_bias) for level in upward)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment patches `(B, input_channels, Z, Y, X)`, see the class.

        In `eval()` mode the logits are `(B, classes, Z, Y, X)`; in `train()` mode there is one such tensor
        per decoder stage, highest resolution first. An axis that cannot be halved often enough is refused.
        """
        check_patch_size(image.shape[2:], self.divisors, key="input")
        skips = []
        features = image
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        skips.pop()  # the lowest stage is the bottleneck itself
        logits = []
        for upsample, stage, head in zip(self.upsampling, self.decoder, self.heads, strict=True):
            features = stage(torch.cat((upsample(features), skips.pop()), dim=1))
            if self.training:
                logits.append(head(features))
        return logits[::-1] if self.training else self.heads[-1](features)


def check_patch_size(patch_size: Triple, divisors: Triple, *, key: str = "data.patch_size") -> None:
    """Refuse a patch that a network with such `divisors` cannot divide down to its lowest resolution.

    That is one with an axis that is no multiple of its divisor, or of which one voxel alone would be left at
    the lowest resolution, which instance normalisation cannot train on.
    """
    for axis, size, divisor in zip(AXES, patch_size, divisors, strict=True):
        if size < divisor or size % divisor:
            raise FlareError(f"{key}: size {size} along {axis} is no multiple of the network's {divisor}")
    if tuple(patch_size) == tuple(divisors):
        raise FlareError(f"{key}: {tuple(patch_size)} leaves one voxel at the network's lowest resolution")


def _check_stages(stages: int, **lists: Sequence[Triple]) -> None:
    """Refuse lists that have another length than the stages, of which the lowest has no decoder."""
    for key, given in lists.items():
        count = stages - 1 if key == "decoder_kernels" else stages
        if len(given) != count:
            raise FlareError(f"model.net.{key}: {len(given)} entries, expected {count} for {stages} features")
    first = tuple(lists["strides"][0])
    if first != (1, 1, 1):
        raise FlareError(f"model.net.strides: the first is {first}, expected (1, 1, 1)")
