"""The loss of two processes that train together against that of one at the joint batch."""

from __future__ import annotations

import multiprocessing
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from flare.core.classes import IGNORE
from flare.models.losses import DiceCELoss

ENTRY = {"role": "organ", "tolerance_mm": 5, "slice_range": False}
CLASSES: dict[str, dict[str, Any]] = {n: {"id": i, "short": n, **ENTRY} for i, n in enumerate("abc", start=1)}
PARTIAL = ("none", "marginal", "exclusion", "masked")
HOW = tuple(product(PARTIAL, (True, False)))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four patches; the second rank's have more ignored voxels, and know classes that the first's do not."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 4, 6, 6, generator=generator)
    target = torch.randint(0, 4, (4, 4, 6, 6), generator=generator).to(torch.uint8)
    target[2:, :, :4] = IGNORE
    target[0, 0, 0, 0] = IGNORE
    known = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)
    return images, target, known


def step(how: tuple[str, bool], rank: int | None) -> dict[str, Tensor]:
    """Gradients, and weights after a step, of a small network of two resolutions; of a rank, or of one."""
    partial, batch_dice = how
    loss = DiceCELoss(
        CLASSES,
        "organs",
        dice_weight=1.0,
        ce_weight=1.0,
        smooth=1e-5,
        batch_dice=batch_dice,
        class_weights={"a": 2},
        supervise_lowest=True,
        partial=partial,
    )
    torch.manual_seed(1)
    net: nn.Module = nn.Conv3d(1, 4, 3, padding=1)
    net = net if rank is None else DistributedDataParallel(net)
    own = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    images, target, known = (of[own] for of in batch())
    logits = net(images)
    parts = loss([logits, nn.functional.avg_pool3d(logits, 2)], target, known)
    parts.loss.backward()
    weights = [p for p in net.parameters() if p.grad is not None]
    found = {f"gradient {n}": p.grad.clone() for n, p in enumerate(weights) if p.grad is not None}
    torch.optim.SGD(weights, lr=1.0).step()
    return found | {f"weight {n}": p.detach().clone() for n, p in enumerate(weights)}


def train(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)  # a forked pool of threads would not wake up
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([step(how, rank) for how in HOW], folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=train, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("number", range(len(HOW)), ids=str)
def test_two_ranks_step_as_one_process_at_the_joint_batch(
    ranks: list[list[dict[str, Tensor]]], number: int
) -> None:
    one = step(HOW[number], None)
    assert max(value.abs().max() for name, value in one.items() if "gradient" in name) > 1e-3
    for of in ranks:
        for name, value in one.items():
            torch.testing.assert_close(of[number][name], value, atol=1e-5, rtol=1e-5)
