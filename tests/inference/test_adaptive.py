"""Windows that are looked at, or flipped, only where a decision is open; larger windows; sparser grids."""

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.core.errors import FlareError
from flare.core.geometry import Geometry, Volume
from flare.inference import exported
from flare.inference.adaptive import Decisions, sparsest_first, walk_open, window_size
from flare.inference.blend import gaussian_weights
from flare.inference.settings import InferenceSettings
from flare.inference.windows import plan_windows, window_slices
from small_predictor import DENSE, PATCH, SPACING, predictor

OPEN = replace(DENSE, adaptive=True, open_share=0.0)  # one voxel is enough
SIZES = st.tuples(*[st.integers(1, 10)] * 3)  # every choice of starts is tried


@pytest.mark.parametrize(
    ("patch", "factors", "divisors", "expected"),
    [
        ((32, 128, 192), None, (8, 32, 32), (32, 128, 192)),
        ((32, 128, 192), (1.5, 1, 1), (8, 32, 32), (48, 128, 192)),
        ((32, 128, 192), (1.1, 1.1, 1.1), (8, 32, 32), (40, 160, 224)),  # 35.2, 140.8 and 211.2
        ((40, 40, 40), (1.1, 1.1, 1.1), (4, 4, 4), (44, 44, 44)),  # although 40 * 1.1 > 44
        ((24, 40, 96), (1.25, 1.25, 1.25), None, (32, 56, 128)),  # 30, 50, 120 in eights, eights, 32s
    ],
)
def test_a_window_is_a_multiple_of_what_the_network_divides_by(patch, factors, divisors, expected):
    assert window_size(patch, factors, divisors) == expected


def covered(starts, shape, patch):
    seen = np.zeros(shape, dtype=bool)
    for start in starts:
        assert all(0 <= s <= n - p for s, n, p in zip(start, shape, patch, strict=True))
        seen[window_slices(start, patch)] = True
    return seen


@st.composite
def cases(draw):
    """A volume, a patch that fits in it, and a body somewhere within."""
    patch = draw(st.tuples(*[st.integers(1, 6)] * 3))
    shape = tuple(map(max, draw(SIZES), patch))
    body = np.zeros(shape, dtype=bool)
    low = [draw(st.integers(0, size - 1)) for size in shape]
    high = [draw(st.integers(first + 1, size)) for first, size in zip(low, shape, strict=True)]
    body[tuple(map(slice, low, high))] = True
    return shape, patch, body


@settings(max_examples=60)
@given(
    case=cases(), name=st.sampled_from(["fast", "dense"]), overlap=st.sampled_from([0, 0.1, 0.25, 0.5, 0.7])
)
def test_sparser_grids_see_all_of_the_body(case, name, overlap):
    shape, patch, body = case
    how = InferenceSettings(name=name, centre="body", extend=True, overlap=overlap, plane_overlap=overlap)
    rows = plan_windows(how, shape, patch=patch, body=body)
    full = [start for row in rows for start in row]
    first, others = sparsest_first(rows, patch, body)
    assert sorted([*first, *others]) == sorted(full)
    assert covered(full, shape, patch)[body].all()
    assert covered(first, shape, patch)[body].all()
    box = [(where.min(), where.max() + 1) for where in np.nonzero(body)]
    fewest = [least([s[axis] for s in full], patch[axis], *box[axis]) for axis in range(3)]
    assert [len({s[axis] for s in first}) for axis in range(3)] == fewest


def least(starts, width, lower, upper):
    """How many of some starts cover an interval, by trying every choice of them."""
    known, wanted = sorted(set(starts)), set(range(lower, upper))
    for count in range(1, len(known) + 1):
        for some in combinations(known, count):
            if wanted <= {voxel for start in some for voxel in range(start, start + width)}:
                return count
    raise AssertionError


def test_windows_spread_over_the_body_are_those_worked_out_by_hand():
    body = np.zeros((32, 300, 400), dtype=bool)
    body[:, 20:220, 10:390] = True
    how = InferenceSettings(name="fast", centre="body", extend=True, overlap=0.2, plane_overlap=0.2)
    (row,) = plan_windows(how, body.shape, patch=(32, 128, 192), body=body)
    # 200 - 128 = 72 <= 0.8 x 128: two starts; 380 - 192 = 188 > 0.8 x 192 = 153.6: three, 94 apart
    assert row[0] == (0, 92, 104)
    assert sorted(row) == [(0, y, x) for y in (20, 92) for x in (10, 104, 198)]


@settings(max_examples=40)
@given(case=cases(), seed=st.integers(0, 99))
def test_windows_come_with_ascending_z_and_decide_by_all_that_touch_them(case, seed):
    """As if all of the sparsest grid were visited first, but in order."""
    shape, patch, _ = case
    rng = np.random.default_rng(seed)
    how = InferenceSettings(name="paper", overlap=0.6, open_margin=0.3, open_share=0.0)
    rows = sparsest_first(plan_windows(how, shape, patch=patch, body=None), patch, None)
    says = {start: torch.from_numpy(rng.random((2, *patch), np.float32)) for row in rows for start in row}

    def trial():
        return Decisions(shape, gaussian_weights(patch), how)

    decisions = trial()

    same = torch.empty(2, *patch)  # as of an engine that gives the same memory each time

    def look(start):
        decisions.note(start, says[start])
        return same.copy_(says[start])

    visits = [(start, maps.clone()) for start, maps in walk_open(rows, look, decisions)]
    assert [start[0] for start, _ in visits] == sorted(start[0] for start, _ in visits)
    assert all(torch.equal(maps, says[start]) for start, maps in visits)
    wanted, decisions = list(rows[0]), trial()
    for start in rows[0]:
        decisions.note(start, says[start])
    for start in rows[1]:  # rows ascend, and in each the central window stands first
        if decisions.is_open(start):
            decisions.note(start, says[start])
            wanted.append(start)
    assert sorted(start for start, _ in visits) == sorted(wanted)


def looks(network, labels, how, shape=(20, 40, 40)):
    """What a case gives, and where each pass of the network was, told by a ramp of intensities."""
    ramp = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    asked = []

    def noted(patch):
        asked.append(int(patch.min()))
        return network(patch)

    ours = predictor(noted, labels, how, outputs=(0, 1))
    plan = rows, *_ = ours.plan(ramp, None)
    blended = ours.average(plan, shape).whole()
    first, every = {int(ramp[s]) for s in rows[0]}, {int(ramp[s]) for row in rows for s in row}
    return blended, (blended.visited, blended.passes), asked, first, every


def sure(patch):
    return torch.cat([patch * 0 + 99, patch * 0], dim=1)


def torn(patch):
    return torch.cat([patch * 0, patch * 0], dim=1)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_nothing_open_takes_the_sparsest_grid_and_everything_open_the_full_one(labels, average):
    how = replace(OPEN, average=average)
    _, looked, asked, first, every = looks(sure, labels, how)
    assert set(asked) == first < every
    assert looked == (len(first), len(first))
    blended, looked, asked, _, every = looks(torn, labels, how)
    assert sorted(asked) == sorted(every)
    assert looked == (len(every), len(every))
    dense = looks(torn, labels, replace(how, adaptive=False))
    assert torch.equal(blended.values, dense[0].values)


def test_only_windows_with_open_decisions_are_flipped(labels):
    how = replace(DENSE, tta="tta4", flips_where="open", open_share=0.0)
    everywhere = replace(how, flips_where="all")
    *_, every = looks(sure, labels, how)
    assert looks(sure, labels, how)[1] == (len(every), len(every))
    assert looks(torn, labels, how)[1] == (len(every), 4 * len(every))

    def leaning(patch):  # another answer for each flip
        return torch.cat([patch.cumsum(2) / 1e6, patch.cumsum(4) / 1e6], dim=1)

    found, wanted = (
        looks(leaning, labels, one)[0].values for one in (replace(how, open_margin=1.0), everywhere)
    )
    torch.testing.assert_close(found, wanted)


def reference(windows, shape, patch, weights, margin):
    """Per voxel: centrality, margin, winner and dispute of some windows, and how much each has open."""
    near, margins = np.zeros(shape), np.ones(shape)
    winners, disputed = np.zeros(shape, int), np.zeros(shape, bool)
    counts = []
    for start, maps in windows:
        count = 0
        for inside in product(*map(range, patch)):
            at = tuple(s + i for s, i in zip(start, inside, strict=True))
            second, best = np.sort(maps[(slice(None), *inside)])[-2:]
            winner = maps[(slice(None), *inside)].argmax()
            disputed[at] |= near[at] > 0 and winner != winners[at]
            if weights[inside] > near[at]:
                near[at], margins[at], winners[at] = weights[inside], best - second, winner
                count += margins[at] <= margin or disputed[at]
        counts.append(count)
    return near, margins, winners, disputed, counts


@settings(max_examples=25)
@given(seed=st.integers(0, 999), number=st.integers(1, 5))
def test_decisions_are_those_of_a_loop_over_voxels(seed, number):
    rng, shape, patch = np.random.default_rng(seed), (5, 6, 7), (3, 4, 3)
    weights = rng.integers(1, 9, patch) / 8  # ties occur
    # quarters are exact in half precision
    windows = [
        (tuple(map(int, rng.integers(0, 4, 3))), rng.integers(0, 5, (3, *patch)) / 4) for _ in range(number)
    ]
    windows = [((s[0] % 3, s[1] % 3, s[2]), maps) for s, maps in windows]
    near, margins, winners, disputed, counts = reference(windows, shape, patch, weights, 0.25)
    for needed in {max(1, count) for count in counts}:
        how = InferenceSettings(open_margin=0.25, open_share=needed / weights.size)
        decisions = Decisions(shape, torch.from_numpy(weights), how)
        told = [decisions.note(start, torch.from_numpy(maps)) for start, maps in windows]
        assert told == [count >= needed for count in counts]
    assert np.array_equal(decisions.nearness, near)
    assert np.array_equal(decisions.margins, margins)
    assert np.array_equal(decisions.disputed, disputed)
    is_seen = near > 0
    assert np.array_equal(decisions.winners.numpy()[is_seen], winners[is_seen])
    for start in product(range(3), range(3), range(5)):
        box = window_slices(start, patch)
        count = np.count_nonzero((weights > near[box]) & ((margins[box] <= 0.25) | disputed[box]))
        assert decisions.is_open(start) == (count >= decisions.needed)


def test_two_windows_that_disagree_ask_for_the_one_between(labels):
    weights = torch.ones(1, 1, 8)
    weights[0, 0, 2:6] = 2.0
    for second, expected in ((0, False), (1, True)):
        decisions = Decisions((1, 1, 14), weights, InferenceSettings(open_share=0.0))
        for start, winner in ((0, 0), (6, second)):
            maps = torch.zeros(2, 1, 1, 8)
            maps[winner] = 1  # sure, so only the two voxels that both see can be open
            decisions.note((0, 0, start), maps)
        assert decisions.is_open((0, 0, 3)) is expected


def test_a_case_tells_the_voxels_that_the_network_was_given(labels):
    array = np.zeros((20, 40, 40), np.int16)
    geometry = Geometry(array.shape, SPACING, (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    how = replace(DENSE, tta="tta4", restore="nearest")
    found = predictor(sure, labels, how, outputs=(0, 1)).predict(Volume(array, geometry))
    # steps of half a patch: (20 - 8) / 4 = 3, (40 - 16) / 8 = 3
    assert (found.windows, found.network_vox) == (4**3, 4**3 * 4 * np.prod(PATCH))


def test_at_their_defaults_the_new_choices_redo_nothing():
    body = {"threshold_hu": -500, "opening_mm": 6, "minimum_ml": 100}
    before = {
        "name": "paper", "overlap": 0.5, "average": "probabilities", "centre": "image", "extend": False,
        "tta": "tta4", "restore": "trilinear", "engine": "torch", "precision": "auto", "body": body,
        "interpolation": None, "components": "fitted", "checks": InferenceSettings().identity()["checks"],
    }  # fmt: skip
    assert InferenceSettings().identity() == before
    assert InferenceSettings(open_margin=0.1, open_share=0.5, plan="x").identity() == before
    for change in (
        {"window": [1.5, 1, 1]},
        {"plane_overlap": 0.5},
        {"adaptive": True},
        {"flips_where": "open"},
    ):
        assert InferenceSettings(**change).identity() != before
    adaptive = InferenceSettings(adaptive=True)
    assert adaptive.identity() != replace(adaptive, open_margin=0.1).identity()


@pytest.mark.parametrize(
    "override",
    [
        "inference.window=[1,1]",
        "inference.window=[1,1,1.6]",
        "inference.window=[0.9,1,1]",
        "inference.window=1.5",
        "inference.plane_overlap=1",
        "inference.adaptive=1",
        "inference.flips_where=some",
        "inference.open_margin=2",
        "inference.open_share=-1",
    ],
)
def test_a_value_that_is_none_is_refused_by_its_key(config, override):
    with pytest.raises(FlareError) as refused:
        InferenceSettings.from_config(config("infer", override))
    assert str(refused.value).replace(" ", "").startswith(f"{override}:expected")


def test_flare22_has_a_rule_of_its_own(config):
    with pytest.raises(FlareError, match=r"^inference\.adaptive=true: "):
        InferenceSettings.from_config(config("infer", "inference=flare22", "inference.adaptive=true"))
    found = InferenceSettings.from_config(config("infer", "inference.window=[1.5,1,1]"))
    assert found.window == (1.5, 1, 1)
    assert hash(found)


def test_an_exported_file_takes_no_other_window():
    larger = InferenceSettings(window=(1.5, 1, 1))
    with pytest.raises(
        FlareError, match=r"^inference\.window=\[1\.5, 1, 1\]: net\.xml takes patches of one size"
    ):
        exported.engine_for(Path("net.xml"), exported.FORMATS["openvino"], larger, torch.device("cpu"))
