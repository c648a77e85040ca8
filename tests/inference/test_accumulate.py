import numpy as np
import torch

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


def test_overlapping_windows_give_the_weighted_mean():
    patch = (2, 2, 4)
    accumulator = Accumulator(((0, 2), (0, 2), (0, 6)), patch, channels=1, weighted=True, device=CPU)
    accumulator.add((0, 0, 0), torch.full((1, *patch), 10.0))
    accumulator.add((0, 0, 2), torch.full((1, *patch), 20.0))
    blended = accumulator.blend((0, 0, 0), (2, 2, 6))
    values = blended.values[0, 0, 0]
    weights = gaussian_weights(patch)[0, 0]
    # columns 2 and 3 are the first window's last and the second window's first two
    expected = [(10 * weights[i + 2] + 20 * weights[i]) / (weights[i + 2] + weights[i]) for i in range(2)]
    torch.testing.assert_close(values, torch.tensor([10, 10, *expected, 20, 20]))
    assert blended.covered.all()


def test_padding_is_cut_off_and_gaps_are_not_covered():
    patch = (2, 4, 4)
    box = ((0, 2), (0, 4), (4, 16))
    accumulator = Accumulator(box, patch, channels=2, weighted=True, device=CPU)
    accumulator.add((0, 0, 4), torch.ones(2, *patch))
    accumulator.add((0, 0, 12), torch.ones(2, *patch))
    blended = accumulator.blend((0, 1, 6), (2, 2, 9))  # x 6..15 and y 1..3 of the padded volume are the case
    assert blended.box == ((0, 2), (0, 2), (0, 9))
    assert blended.values.shape == (2, 2, 2, 9)
    expected = np.zeros((2, 2, 9), dtype=bool)
    expected[:, :, :2] = expected[:, :, 6:] = True
    np.testing.assert_array_equal(blended.of_volume(blended.covered), expected)
    np.testing.assert_array_equal(blended.of_volume(blended.values)[0], expected.astype(np.float32))
