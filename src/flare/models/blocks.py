"""The repeated parts of the U-Net: convolution blocks, stages and their initialisation.

Reference: nnU-Net 1.7 `ConvDropoutNormNonlin`, `StackedConvLayers` and `InitWeights_He`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

NEGATIVE_SLOPE = 1e-2  # of every LeakyReLU, and of the He initialisation that belongs to it


class ConvolutionBlock(nn.Module):
    """Convolution, instance normalisation, leaky ReLU; the size is kept but for the stride.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Odd kernel size along Z, Y, X.
        stride: Step along Z, Y, X.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        padding = triple([size // 2 for size in kernel])
        self.conv = nn.Conv3d(inputs, outputs, triple(kernel), triple(stride), padding)
        self.norm = nn.InstanceNorm3d(outputs, affine=True)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, inputs, Z, Y, X)` to `(B, outputs, Z / stride, ...)`."""
        return self.activation(self.norm(self.conv(features)))


class Stage(nn.Module):
    """The convolutions at one resolution; only the first changes channels or resolution.

    Args:
        inputs: Channels that come in.
        outputs: Channels of every convolution of the stage.
        convolutions: How many.
        kernel: Kernel size along Z, Y, X, of all of them.
        stride: Step of the first along Z, Y, X.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        convolutions: int,
        kernel: Sequence[int],
        stride: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        first = ConvolutionBlock(inputs, outputs, kernel=kernel, stride=stride)
        others = (
            ConvolutionBlock(outputs, outputs, kernel=kernel, stride=(1, 1, 1))
            for _ in range(convolutions - 1)
        )
        self.blocks = nn.Sequential(first, *others)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, inputs, Z, Y, X)` to `(B, outputs, Z / stride, ...)`."""
        return self.blocks(features)


def triple(values: Sequence[int]) -> tuple[int, int, int]:
    """Turn a list from a config into the tuple that torch expects."""
    z, y, x = values
    return z, y, x


def initialise(module: nn.Module) -> None:
    """Give convolutions He-normal weights and zero biases, as every round starts."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
