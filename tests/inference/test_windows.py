import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.inference.settings import InferenceSettings
from flare.inference.windows import (
    Axis,
    even_starts,
    extended,
    plan_windows,
    plane_starts,
    window_slices,
)

PATCH = (32, 128, 192)

# size after padding to the patch -> starts along z, along y (central one), along x (central one), by hand:
# 55 = 32 + 23 needs three starts at 0, 11.5, 23; 300 > 256 puts y around 150; 300 <= 384 spreads x over 108
EXPECTED = {
    (32, 128, 192): ([0], ([0], 0), ([0], 0)),
    (55, 300, 300): ([0, 12, 23], ([22, 86, 150], 86), ([0, 54, 108], 54)),
    (100, 341, 341): ([0, 14, 27, 41, 54, 68], ([42, 106, 170], 106), ([0, 74, 149], 74)),
    (160, 270, 420): ([0, 16, 32, 48, 64, 80, 96, 112, 128], ([7, 71, 135], 71), ([18, 114, 210], 114)),
}


def plan(shape, schedule="paper", body=None, centre="image", extend=False, patch=PATCH, overlap=0.5):
    settings = InferenceSettings(name=schedule, overlap=overlap, centre=centre, extend=extend)
    return plan_windows(settings, shape, patch=patch, body=body)


@pytest.mark.parametrize("shape", EXPECTED)
@pytest.mark.parametrize("schedule", ["paper", "flare22"])
def test_the_papers_windows_are_those_worked_out_by_hand(shape, schedule):
    z_starts, (y_starts, y_centre), (x_starts, x_centre) = EXPECTED[shape]
    rows = plan(shape, schedule)
    assert [row[0] for row in rows] == [(z, y_centre, x_centre) for z in z_starts]
    for z, row in zip(z_starts, rows, strict=True):
        around = [(z, y, x) for y in y_starts for x in x_starts if (y, x) != (y_centre, x_centre)]
        assert list(row[1:]) == around


def test_all_nine_windows_of_a_slab_in_full():
    assert plan((32, 300, 300)) == (
        (
            (0, 86, 54),
            (0, 22, 0),
            (0, 22, 54),
            (0, 22, 108),
            (0, 86, 0),
            (0, 86, 108),
            (0, 150, 0),
            (0, 150, 54),
            (0, 150, 108),
        ),
    )


@pytest.mark.parametrize(
    ("shape", "z_starts", "y_starts", "x_starts"),
    [
        ((32, 128, 192), [0], [0], [0]),
        # 172 / 64 -> 4 starts 57.33 apart; 108 / 96 -> 3 starts 54 apart
        ((55, 300, 300), [0, 12, 23], [0, 57, 115, 172], [0, 54, 108]),
        # 213 / 64 -> 5 starts 53.25 apart; 149 / 96 -> 3 starts 74.5 apart
        ((100, 341, 341), [0, 14, 27, 41, 54, 68], [0, 53, 106, 160, 213], [0, 74, 149]),
        # 142 / 64 -> 4 starts 47.33 apart; 228 / 96 -> 4 starts 76 apart
        (
            (160, 270, 420),
            [0, 16, 32, 48, 64, 80, 96, 112, 128],
            [0, 47, 95, 142],
            [0, 76, 152, 228],
        ),
    ],
)
def test_dense_windows_are_nnunets(shape, z_starts, y_starts, x_starts):
    starts = [start for row in plan(shape, "dense") for start in row]
    assert starts == [(z, y, x) for z in z_starts for y in y_starts for x in x_starts]


def test_equal_starts_are_visited_once():
    assert plane_starts(129, 128) == Axis(0, (0, 1))  # 0, 0.5 -> 0, 1
    assert plane_starts(128, 128) == Axis(0, (0,))
    assert plane_starts(256, 128) == Axis(64, (0, 64, 128))
    assert len(plan((32, 129, 193))[0]) == 4


def test_odd_middles_round_half_to_even():
    assert plane_starts(257, 128).starts == (0, 64, 128)  # 128.5 -> 128
    assert plane_starts(259, 128).starts == (2, 66, 130)  # 129.5 -> 130


@given(size=st.integers(1, 300), patch=st.integers(1, 64), overlap=st.sampled_from([0, 0.25, 0.5, 0.75]))
def test_even_starts_leave_no_voxel_out(size, patch, overlap):
    size = max(size, patch)
    starts = even_starts(size, patch, overlap)
    seen = np.zeros(size, dtype=bool)
    for start in starts:
        assert 0 <= start <= size - patch
        seen[start : start + patch] = True
    assert seen.all()


@settings(max_examples=50)
@given(shape=st.tuples(*[st.integers(1, 40)] * 3), patch=st.tuples(*[st.integers(1, 16)] * 3), data=st.data())
def test_dense_covers_every_voxel_of_any_size(shape, patch, data):
    shape = tuple(max(size, width) for size, width in zip(shape, patch, strict=True))
    seen = np.zeros(shape, dtype=bool)
    for row in plan(shape, "dense", patch=patch, overlap=data.draw(st.sampled_from([0, 0.5]))):
        for start in row:
            seen[window_slices(start, patch)] = True
    assert seen.all()


@given(size=st.integers(1, 600), patch=st.integers(1, 128), data=st.data())
def test_windows_extended_on_an_interval_lie_inside_and_cover_it(size, patch, data):
    size = max(size, patch)
    lower = data.draw(st.integers(0, size - 1))
    upper = data.draw(st.integers(lower + 1, size))
    for placed in (plane_starts(size, patch), plane_starts(size, patch, (lower, upper))):
        axis = extended(placed, patch, (lower, upper))
        assert axis.centre == placed.centre
        assert axis.centre in axis.starts
        assert list(axis.starts) == sorted(set(axis.starts))
        seen = np.zeros(size, dtype=bool)
        for start in axis.starts:
            assert 0 <= start <= size - patch
            seen[start : start + patch] = True
        assert seen[lower:upper].all()


def test_a_small_body_is_seen_by_one_centred_window():
    body = np.zeros((32, 341, 341), dtype=bool)
    body[:, 60:160, 150:250] = True  # middles 110 and 200, smaller than the patch
    assert plan(body.shape, "fast", body, "body", True) == (((0, 46, 104),),)


def test_extension_reaches_body_that_two_patches_do_not_cover():
    body = np.zeros((32, 400, 192), dtype=bool)
    body[:, 10:390] = (
        True  # middle 200: starts 72, 136, 200 see 72..328; then 64 more each way, to the body's edge
    )
    rows = plan(body.shape, "fast", body, "body", True)
    assert sorted(y for _, y, _ in rows[0]) == [10, 72, 136, 200, 262]
    assert sorted(y for _, y, _ in plan(body.shape, "paper", body)[0]) == [72, 136, 200]


def test_fast_leaves_out_only_windows_without_body():
    body = np.zeros((64, 128, 384), dtype=bool)
    body[:20, :, :90] = True  # in the first row nothing reaches the windows at x 96 and 192
    body[40:, :, 100:384] = True
    everything = [start for row in plan(body.shape, "paper", body, "body", True) for start in row]
    kept = [start for row in plan(body.shape, "fast", body, "body", True) for start in row]
    assert set(everything) - set(kept) == {(0, 0, 96), (0, 0, 192)}


def test_fast_without_a_body_covers_the_whole_volume():
    shape = (40, 400, 500)
    seen = np.zeros(shape, dtype=bool)
    for row in plan(shape, "fast", None, "body", True):
        for start in row:
            seen[window_slices(start, PATCH)] = True
    assert seen.all()
