"""Number of slices that a network's convolutions work on, found by a forward pass of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def depths_under_kernel(network: nn.Module, patch_size: Sequence[int], *, kernel: int) -> frozenset[int]:
    """Find the depths of all feature maps that a convolution of a given size along Z reads.

    The forward pass in `train()` mode computes shapes only. It meets every convolution: encoder, decoder,
    heads, transposed ones, and those that are called as functions.

    Args:
        network: On the meta device; maps `(B, 1, Z, Y, X)`.
        patch_size: Voxels along Z, Y, X.
        kernel: Size along Z of the convolutions that count.

    Returns:
        Slices of the maps that such a convolution reads.
    """
    was_training = network.training
    with torch.no_grad(), _Convolutions(kernel) as seen:
        network.train()(torch.empty(2, 1, *patch_size, device="meta"))
    network.train(was_training)
    return frozenset(seen.depths)


class _Convolutions(TorchDispatchMode):
    """Notes the depth of the input of each 3D convolution of a given size along Z."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.depths: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            image, weight = args[:2]
            if image.ndim == 5 and weight.shape[2] == self.kernel:
                self.depths.add(int(image.shape[2]))
        return func(*args, **(kwargs or {}))
