import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.inference.blend import Accumulator, covered_box, gaussian_weights

CPU = torch.device("cpu")


def test_weights_are_a_gaussian_of_an_eighth_of_the_patch():
    weights = gaussian_weights((16, 32, 64)).numpy()
    assert weights[8, 16, 32] == weights.max() == 1
    along_x = weights[8, 16] / weights[8, 16].max()
    expected = np.exp(-0.5 * ((np.arange(64) - 32) / 8) ** 2)
    # the kernel is cut off four deviations out
    np.testing.assert_allclose(along_x[1:], expected[1:], atol=1e-6)


def test_no_weight_is_zero():
    weights = gaussian_weights((9, 33, 17))
    assert (weights > 0).all()


def test_the_box_bounds_all_windows():
    rows = (((0, 4, 2), (0, 0, 6)), ((3, 4, 2),))
    assert covered_box(rows, (4, 8, 8)) == ((0, 7), (0, 12), (2, 14))


def accumulate(windows, patch, offsets, shape):
    """Averages of windows, start to maps."""
    how = {"channels": len(next(iter(windows.values()))), "offsets": offsets, "shape": shape}
    return Accumulator(iter(windows.items()), (tuple(windows),), patch, **how, device=CPU)


def test_overlapping_windows_give_the_weighted_mean():
    patch = (2, 2, 4)
    windows = {(0, 0, 0): torch.full((1, *patch), 10.0), (0, 0, 2): torch.full((1, *patch), 20.0)}
    blended = accumulate(windows, patch, (0, 0, 0), (2, 2, 6)).whole()
    values = blended.values[0, 0, 0]
    weights = gaussian_weights(patch)[0, 0]
    # columns 2 and 3 are the first window's last and the second window's first two
    expected = [(10 * weights[i + 2] + 20 * weights[i]) / (weights[i + 2] + weights[i]) for i in range(2)]
    torch.testing.assert_close(values, torch.tensor([10, 10, *expected, 20, 20]))
    assert blended.covered.all()


def test_padding_is_cut_off_and_gaps_are_not_covered():
    patch = (2, 4, 4)
    windows = {(0, 0, 4): torch.ones(2, *patch), (0, 0, 12): torch.ones(2, *patch)}
    # x 6..15 and y 1..3 of the padded volume are the case
    blended = accumulate(windows, patch, (0, 1, 6), (2, 2, 9)).whole()
    assert blended.box == ((0, 2), (0, 2), (0, 9))
    assert blended.values.shape == (2, 2, 2, 9)
    expected = np.zeros((2, 2, 9), dtype=bool)
    expected[:, :, :2] = expected[:, :, 6:] = True
    np.testing.assert_array_equal(blended.of_volume(blended.covered), expected)
    np.testing.assert_array_equal(blended.of_volume(blended.values)[0], expected.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(
    depth=st.integers(1, 30),
    offset=st.integers(-3, 3),
    starts=st.lists(st.integers(0, 26), min_size=1, max_size=8, unique=True),
    cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6),
    seed=st.integers(0, 99),
)
def test_planes_one_after_the_other_are_those_of_the_whole(depth, offset, starts, cuts, seed):
    """Whatever planes are passed over or asked for twice, windows leave gaps, and padding lies around."""
    patch, shape = (4, 2, 2), (depth, 2, 3)
    rng = np.random.default_rng(seed)
    windows = {
        (z, 0, int(rng.integers(0, 2))): torch.from_numpy(rng.random((2, *patch), np.float32))
        for z in sorted(starts)
    }
    offsets = (offset, 0, 0)
    expected, found = (accumulate(windows, patch, offsets, shape) for _ in range(2))
    whole = expected.whole()
    sums, weights = torch.zeros(2, 40, 2, 3), torch.zeros(40, 2, 3)
    for (z, _, x), maps in windows.items():
        of_window = gaussian_weights(patch) if len(windows) > 1 else torch.ones(patch)
        sums[:, z : z + 4, :, x : x + 2] += maps * of_window
        weights[z : z + 4, :, x : x + 2] += of_window
    (low, high), size = whole.box[0], whole.values.shape[1]
    seen = slice(low + offset, high + offset), slice(None), slice(*whole.box[2])
    torch.testing.assert_close(whole.values, (sums / weights).nan_to_num()[(slice(None), *seen)])
    assert torch.equal(whole.covered, weights[seen] > 0)
    first = 0
    for start, length in sorted(cuts):
        first = max(first, min(start, size))
        part = slice(first, min(first + length, size))
        assert torch.equal(found.planes(part), whole.values[:, part])
    found.finish()
    assert torch.equal(found.covered, whole.covered)


def test_no_more_than_a_patchs_depth_is_held():
    patch, shape = (4, 2, 2), (400, 2, 2)
    windows = {(z, 0, 0): torch.ones(3, *patch) for z in range(0, 397, 2)}
    averages = accumulate(windows, patch, (0, 0, 0), shape)
    held = []
    for first in range(0, 400, 3):
        planes = averages.planes(slice(first, min(first + 3, 400)))
        held.append(planes.untyped_storage().nbytes() / (3 * 2 * 2 * 4))
    assert max(held) <= 4 + 3
