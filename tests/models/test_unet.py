"""The network against the paper's counts, nnU-Net's layout, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from flare.core.errors import FlareError
from flare.models.unet import UNet, check_patch_size

MEDIUM: dict[str, Any] = {
    "features": [32, 64, 128, 256, 512],
    "convolutions_per_stage": 2,
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
}
LARGE: dict[str, Any] = {
    "features": [32, 64, 128, 256, 512, 512],
    "convolutions_per_stage": 3,
    "strides": [*MEDIUM["strides"], [1, 2, 2]],
}
TINY: dict[str, Any] = {
    "features": [4, 6, 8],
    "convolutions_per_stage": 2,
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}


def class_list(organs: int) -> dict[str, dict[str, Any]]:
    """As many organs as asked for and a tumor."""
    return {
        f"class{i}": {
            "id": i,
            "short": f"C{i}",
            "role": "organ" if i <= organs else "tumor",
            "tolerance_mm": 2.0,
            "slice_range": False,
        }
        for i in range(1, organs + 2)
    }


def build(size: dict[str, Any], *, targets: str = "organs_tumor", organs: int = 13, **changes: Any) -> UNet:
    """A network of the given size with the kernels of the paper's."""
    stages = len(size["features"])
    settings = {
        **size,
        "encoder_kernels": [[1, 3, 3]] + [[3, 3, 3]] * (stages - 1),
        "decoder_kernels": [[3, 3, 3]] * (stages - 1),
        "transposed_bias": False,
        "head_bias": False,
        **changes,
    }
    return UNet(class_list(organs), targets, **settings)


def multiply_adds(network: UNet, patch: tuple[int, int, int]) -> int:
    """Count by the shapes that really pass: every convolution, transposed convolution and head."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        positions = inputs[0] if isinstance(module, nn.ConvTranspose3d) else output
        voxels = math.prod(positions.shape[2:])
        total += voxels * module.weight.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(count)
    network.train()(torch.empty(1, 1, *patch, device="meta"))
    return total


@pytest.mark.parametrize(
    ("size", "parameters", "giga"), [(MEDIUM, 22_560_704, 253.06), (LARGE, 84_935_424, 373.89)]
)
def test_paper_sizes_have_the_paper_counts(size: dict[str, Any], parameters: int, giga: float) -> None:
    with torch.device("meta"):
        network = build(size)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert multiply_adds(network, (32, 128, 192)) / 1e9 == pytest.approx(giga, abs=0.005)


def test_a_tiny_network_counted_by_hand() -> None:
    network = build(TINY, organs=1)  # 3 outputs
    encoder = (1 * 4 * 9 + 4 * 4 * 9) + (4 * 6 * 27 + 6 * 6 * 27) + (6 * 8 * 27 + 8 * 8 * 27)
    decoder = (12 * 6 * 27 + 6 * 6 * 27) + (8 * 4 * 27 + 4 * 4 * 27)
    transposed = 8 * 6 * 8 + 6 * 4 * 4
    heads = 6 * 3 + 4 * 3
    bias_and_norm = 3 * 2 * (4 + 6 + 8 + 6 + 4)
    assert sum(p.numel() for p in network.parameters()) == (
        encoder + decoder + transposed + heads + bias_and_norm
    )


@pytest.mark.parametrize(("targets", "outputs"), [("organs", 14), ("tumor", 2), ("organs_tumor", 15)])
def test_outputs_follow_from_the_targets(targets: str, outputs: int) -> None:
    network = build(TINY, targets=targets).eval()
    assert network(torch.zeros(2, 1, 4, 8, 12)).shape == (2, outputs, 4, 8, 12)


def test_training_gives_every_resolution_and_eval_the_first() -> None:
    network = build(TINY)
    image = torch.randn(1, 1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    supervised = network.train()(image)
    assert [tuple(logits.shape[2:]) for logits in supervised] == [(4, 8, 12), (4, 4, 6)]
    with torch.no_grad():
        assert torch.equal(network.eval()(image), supervised[0])


def test_names_follow_the_resolution_order_of_nnunet() -> None:
    with torch.device("meta"):
        state = build(MEDIUM).state_dict()
    assert state["encoder.0.blocks.0.conv.weight"].shape == (32, 1, 1, 3, 3)
    assert state["encoder.4.blocks.1.norm.bias"].shape == (512,)
    assert state["upsampling.0.weight"].shape == (512, 256, 2, 2, 2)
    assert state["upsampling.3.weight"].shape == (64, 32, 1, 2, 2)
    assert state["decoder.0.blocks.0.conv.weight"].shape == (256, 512, 3, 3, 3)
    assert state["decoder.3.blocks.1.conv.weight"].shape == (32, 32, 3, 3, 3)
    assert state["heads.3.weight"].shape == (15, 32, 1, 1, 1)
    assert not any(key.startswith(("upsampling", "heads")) and key.endswith("bias") for key in state)


def test_biases_and_decoder_kernel_of_nnunet_v2_are_options() -> None:
    network = build(
        TINY, transposed_bias=True, head_bias=True, decoder_kernels=[[1, 3, 3], [3, 3, 3]]
    ).state_dict()
    assert network["upsampling.0.bias"].shape == (6,)
    assert network["heads.1.bias"].shape == (15,)
    assert network["decoder.1.blocks.0.conv.weight"].shape[2:] == (1, 3, 3)
    assert network["decoder.0.blocks.0.conv.weight"].shape[2:] == (3, 3, 3)


def test_starts_he_normal_with_zero_biases() -> None:
    torch.manual_seed(0)
    network = build(TINY, features=[32, 64, 128])
    weight = network.encoder[2].blocks[1].conv.weight
    expected = math.sqrt(2 / (1 + 1e-4) / (128 * 27))
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("conv.bias"))


def test_every_parameter_gets_a_gradient() -> None:
    network = build(TINY)
    sum(logits.square().mean() for logits in network(torch.randn(2, 1, 4, 8, 8))).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_an_input_that_cannot_be_divided_is_refused_by_axis_size_and_divisor() -> None:
    network = build(TINY)
    with pytest.raises(FlareError, match="input: size 10 along x is no multiple of the network's 4"):
        network(torch.zeros(1, 1, 4, 8, 10))
    with pytest.raises(FlareError, match="size 1 along z"):
        network(torch.zeros(1, 1, 1, 8, 8))


def test_a_patch_that_cannot_be_divided_is_refused_by_its_config_key() -> None:
    with torch.device("meta"):
        medium, large = build(MEDIUM), build(LARGE)
    check_patch_size((32, 128, 192), medium.divisors)
    check_patch_size((32, 128, 192), large.divisors)
    check_patch_size((32, 128, 176), medium.divisors)
    with pytest.raises(FlareError, match=r"data.patch_size: size 176 along x .* 32"):
        check_patch_size((32, 128, 176), large.divisors)
    with pytest.raises(FlareError, match="one voxel"):
        check_patch_size((8, 16, 16), medium.divisors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "model.net.strides: 2 entries, expected 3"),
        ({"strides": [[2, 2, 2]] * 3}, "the first is"),
        ({"decoder_kernels": [[3, 3, 3]] * 3}, "model.net.decoder_kernels: 3 entries, expected 2"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FlareError, match=message):
        build(TINY, **changes)
