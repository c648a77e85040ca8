"""The learning-rate curve at epochs worked out by hand."""

from __future__ import annotations

import pytest
import torch

from flare.models.losses import PolyLR, poly_factor


@pytest.mark.parametrize(
    ("decay_epochs", "epoch", "expected"),
    [
        (1500, 0, 1.0),
        (1500, 500, (2 / 3) ** 0.9),
        (1500, 999, (501 / 1500) ** 0.9),
        (1500, 1000, (1 / 3) ** 0.9),
        (1500, 1001, (499 / 1500) ** 0.9),
        (1500, 1499, (1 / 1500) ** 0.9),
        (1000, 0, 1.0),
        (1000, 500, 0.5358867312681466),
        (1000, 999, 0.001995262314968879),
        (1000, 1000, 0.0),
        (1000, 1001, 0.0),
        (1000, 1499, 0.0),
    ],
)
def test_factor(decay_epochs: int, epoch: int, expected: float) -> None:
    factor = poly_factor(epoch, decay_epochs=decay_epochs, power=0.9)
    assert isinstance(factor, float)
    assert factor == pytest.approx(expected, rel=1e-9)


def test_the_rate_is_stepped_once_an_epoch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = PolyLR(optimizer, decay_epochs=4, power=0.9)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.01, 0.01 * 0.75**0.9, 0.01 * 0.5**0.9, 0.01 * 0.25**0.9, 0, 0])
