"""The windows that the network is given at five sizes, against lists worked out by hand from the rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import flare.inference.predictor as module
from flare.inference.windows import Start, window_slices
from small_predictor import DENSE, predictor

PATCH = (32, 128, 192)
PAPER = replace(DENSE, name="paper", restore="nearest")
# z starts, y starts, x starts; of three in-plane starts the middle one is the centre's
SIZES = {
    (16, 100, 100): ([0], [0], [0]),  # padded to one patch
    (32, 128, 192): ([0], [0], [0]),
    (55, 300, 300): ([0, 12, 23], [22, 86, 150], [0, 54, 108]),
    (100, 341, 341): ([0, 14, 27, 41, 54, 68], [42, 106, 170], [0, 74, 149]),
    (160, 270, 420): ([0, 16, 32, 48, 64, 80, 96, 112, 128], [7, 71, 135], [18, 114, 210]),
}
EVERYWHERE, NOWHERE, TUBE_INSIDE, TUBE_IN_FRONT, TUBE_BEHIND = range(5)


def answering(answer: int) -> torch.Tensor:
    """Logits of background, liver and aorta that say one class, in part of the patch."""
    logits = torch.zeros(1, 3, *PATCH)
    logits[:, 0] = 1
    if answer == EVERYWHERE:
        logits[:, 1, :, 60:70] = 2
    elif answer != NOWHERE:
        rows = {TUBE_INSIDE: slice(60, 70), TUBE_IN_FRONT: slice(0, 10), TUBE_BEHIND: slice(-10, None)}
        logits[:, 2, :, rows[answer], :20] = 2
    return logits


def visited(labels: Any, shape: Start, settings: Any, answer: int, monkeypatch: Any) -> list[Start]:
    seen: list[Start] = []

    def recorded(start: Start, patch: Start) -> Any:
        seen.append(start)
        return window_slices(start, patch)

    logits = answering(answer)
    ours = predictor(lambda patch: logits, labels, settings, (0, 1, 5), patch_size=PATCH)
    # of the sums only where they would be written is of interest here
    monkeypatch.setattr(module, "window_slices", recorded)
    monkeypatch.setattr(module.Accumulator, "add", lambda *_: None)
    ours.average(ours.plan(np.zeros(shape, np.float32), None), shape).finish()
    return seen


def middle(starts: list[int]) -> int:
    return starts[len(starts) // 2]


def centre_then_around(z: int, y_starts: list[int], x_starts: list[int]) -> list[Start]:
    centre = (z, middle(y_starts), middle(x_starts))
    return [centre, *((z, y, x) for y in y_starts for x in x_starts if (z, y, x) != centre)]


@pytest.mark.parametrize("shape", SIZES)
def test_paper_visits_the_centre_and_all_around_it(labels: Any, shape: Start, monkeypatch: Any) -> None:
    z_starts, *plane = SIZES[shape]
    expected = [start for z in z_starts for start in centre_then_around(z, *plane)]
    assert visited(labels, shape, PAPER, NOWHERE, monkeypatch) == expected


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("answer", [EVERYWHERE, NOWHERE, TUBE_INSIDE, TUBE_IN_FRONT, TUBE_BEHIND])
def test_flare22_visits_what_its_centre_asks_for(
    labels: Any, shape: Start, answer: int, monkeypatch: Any
) -> None:
    z_starts, y_starts, x_starts = SIZES[shape]
    x = middle(x_starts)
    several = len(y_starts) == 3
    expected: list[Start] = []
    for z in z_starts[:: 2 if answer == NOWHERE else 1]:  # nothing in the centre: the next z is skipped
        if answer == EVERYWHERE:
            expected += centre_then_around(z, y_starts, x_starts)
            continue
        expected.append((z, middle(y_starts), x))
        if answer == TUBE_IN_FRONT and several:
            expected.append((z, y_starts[0], x))
        if answer == TUBE_BEHIND and several:
            expected.append((z, y_starts[2], x))
    assert visited(labels, shape, replace(PAPER, name="flare22"), answer, monkeypatch) == expected
