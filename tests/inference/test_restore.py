import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from flare.core.preprocessing import resample
from flare.inference.restore import (
    Blended,
    Way,
    interpolated_axes,
    restore_confidence,
    restore_labels,
    restore_probabilities,
)

ALL, NONE, PLANE = (True, True, True), (False, False, False), (False, True, True)


def blended(shape, classes=4, seed=0):
    values = torch.rand((classes, *shape), generator=torch.Generator().manual_seed(seed))
    return Blended(values, torch.ones(shape, dtype=torch.bool), tuple((0, size) for size in shape), shape)


def restore(maps, shape, linear=ALL, outputs=None, memory_mb=64.0):
    outputs = outputs or tuple(range(len(maps.values)))
    return restore_labels(maps, shape, Way(linear, outputs, memory_mb))


def assert_same_up_to_ties(labels, reference):
    """The class differs from the whole volume's argmax only where two classes are equal to rounding."""
    chosen = reference.gather(0, torch.from_numpy(labels.astype(np.int64))[None])[0]
    assert (reference.max(0).values - chosen).max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    wanted=st.tuples(*[st.integers(1, 14)] * 3),
    memory_mb=st.sampled_from([1e-6, 0.001, 1.0]),
)
def test_blocks_give_what_the_whole_volume_gives(shape, wanted, memory_mb):
    maps = blended(shape)
    whole = interpolate(maps.values[None].double(), size=wanted, mode="trilinear", align_corners=False)[0]
    assert_same_up_to_ties(restore(maps, wanted, memory_mb=memory_mb), whole)


def test_the_budget_does_not_change_a_single_voxel():
    maps = blended((9, 21, 17), classes=15)
    one_slice = restore(maps, (31, 47, 40), memory_mb=1e-6)
    np.testing.assert_array_equal(one_slice, restore(maps, (31, 47, 40), memory_mb=1e6))


@pytest.mark.parametrize("linear", [ALL, PLANE, NONE, (True, False, True), (False, True, False)])
@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    wanted=st.tuples(*[st.integers(1, 19)] * 3),
    seed=st.integers(0, 1000),
)
def test_classes_that_are_ahead_in_few_places_win_exactly_there(linear, shape, wanted, seed):
    maps = blended(shape, classes=5, seed=seed)
    background = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.9
    maps.values[0] += background * 0.9
    whole = maps.values.double()
    for axis in range(3):
        if not linear[axis]:
            centres = ((np.arange(wanted[axis]) + 0.5) * shape[axis] / wanted[axis]).astype(int)
            whole = whole.index_select(axis + 1, torch.from_numpy(centres))
    whole = interpolate(whole[None], size=wanted, mode="trilinear", align_corners=False)[0]
    assert_same_up_to_ties(restore(maps, wanted, linear), whole)


def test_a_class_that_is_second_on_both_sides_wins_between_them():
    maps = blended((1, 1, 2), classes=4)
    maps.values[:, 0, 0] = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.4, 0.4], [0.0, 0.6]])
    assert restore(maps, (1, 1, 10)).tolist() == [[[1, 1, 1, 1, 2, 2, 3, 3, 3, 3]]]  # at weights 0.4 and 0.6


def test_nnunet_takes_the_nearest_slice_and_interpolates_in_plane():
    maps, wanted = blended((5, 8, 9)), (13, 20, 17)
    planes = interpolate(
        maps.values.double().transpose(0, 1), size=wanted[1:], mode="bilinear", align_corners=False
    )
    nearest = [min(int((z + 0.5) * 5 / 13), 4) for z in range(13)]
    assert_same_up_to_ties(restore(maps, wanted, PLANE), planes[nearest].transpose(0, 1))


def test_the_coarse_axis_may_be_another_than_z():
    maps, wanted = blended((5, 4, 6)), (9, 13, 11)
    labels = restore(maps, wanted, (True, False, True))
    swapped = Blended(
        maps.values.transpose(1, 2).contiguous(),
        maps.covered.transpose(0, 1),
        ((0, 4), (0, 5), (0, 6)),
        (4, 5, 6),
    )
    np.testing.assert_array_equal(labels, restore(swapped, (13, 9, 11), PLANE).swapaxes(0, 1))


def test_nearest_is_the_argmax_then_nearest_labels():
    maps, wanted = blended((5, 8, 9)), (13, 20, 6)
    argmax = maps.values.argmax(0).numpy().astype(np.uint8)
    np.testing.assert_array_equal(restore(maps, wanted, NONE), resample(argmax, wanted, "nearest"))


def test_same_grid_is_the_plain_argmax_in_class_ids():
    maps = blended((4, 5, 6), classes=2)
    labels = restore(maps, (4, 5, 6), outputs=(0, 14))
    np.testing.assert_array_equal(labels, 14 * maps.values.argmax(0).numpy())
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("linear", [ALL, PLANE, NONE])
def test_outside_the_box_is_background_and_inside_is_as_if_its_edge_went_on(linear):
    inner = blended((3, 4, 5), classes=3)
    inner.values[0] = -1
    maps = Blended(inner.values, inner.covered, ((1, 4), (2, 6), (3, 8)), (6, 8, 12))
    labels = restore(maps, (12, 16, 24), linear)
    expected = np.zeros((12, 16, 24), dtype=np.uint8)
    expected[2:8, 4:12, 6:16] = restore(inner, (6, 8, 10), linear)
    np.testing.assert_array_equal(labels, expected)


def test_a_gap_inside_the_box_is_background_up_to_the_nearest_voxel():
    maps = blended((2, 4, 6), classes=2)
    maps.values[0], maps.values[1] = 0, 1
    maps.values[:, :, :, 2:4] = 0
    maps.covered[:, :, 2:4] = False
    labels = restore(maps, (4, 8, 18))
    assert (labels[:, :, 6:12] == 0).all()
    assert (labels[:, :, :6] == 1).all()
    assert (labels[:, :, 12:] == 1).all()


def test_no_window_at_all_is_all_background():
    nothing = Blended(
        torch.zeros(3, 0, 0, 0), torch.zeros(0, 0, 0, dtype=torch.bool), ((0, 0),) * 3, (4, 5, 6)
    )
    assert not restore(nothing, (8, 8, 8)).any()


@pytest.mark.parametrize(
    ("variant", "network_mm", "original_mm", "expected"),
    [
        ("trilinear", (4, 1.2, 1.2), (1, 0.8, 0.8), ALL),
        ("nearest", (4, 1.2, 1.2), (1, 0.8, 0.8), NONE),
        ("nnunet", (4, 1.2, 1.2), (1, 0.8, 0.8), PLANE),  # 4 / 1.2 > 3
        ("nnunet", (3, 1.2, 1.2), (1, 0.8, 0.8), ALL),
        ("nnunet", (3, 1.2, 1.2), (5, 0.8, 0.8), PLANE),  # the case's own grid is anisotropic
        ("nnunet", (2, 2, 2), (0.8, 5, 0.8), (True, False, True)),
        ("nnunet", (2, 2, 2), (0.5, 2, 2), ALL),  # no single coarsest axis
    ],
)
def test_nnunets_rule_for_the_coarse_axis(variant, network_mm, original_mm, expected):
    assert interpolated_axes(variant, network_mm, original_mm) == expected


MEMORY = """
import resource
import torch
from flare.inference.restore import Blended, Way
from flare.inference.restore import restore_labels
shape = (40, 128, 128)
box = ((0, 40), (0, 128), (0, 128))
maps = Blended(torch.rand(15, *shape), torch.ones(shape, dtype=torch.bool), box, shape)
def restore(depth, memory_mb):
    restore_labels(maps, (depth, 384, 384), Way((True,) * 3, tuple(range(15)), memory_mb))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = restore(1, 32)  # libraries loaded, one slice done
print(restore(160, 64) - start)  # all classes of the whole volume would be 1350 MiB
"""


@pytest.mark.slow
def test_working_memory_stays_near_the_budget():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64 + 22.5 + 40  # the budget, the labels, and what the allocator keeps


def activation(softmax):
    return (lambda maps: maps.softmax(0)) if softmax else (lambda maps: maps)


def probabilities(maps, shape, *, linear=ALL, softmax=False, memory_mb=64.0):
    found = np.full((len(maps.values), *shape), 7, dtype=np.float16)
    way = Way(linear, tuple(range(len(found))), memory_mb, activation(softmax))
    restore_probabilities(maps, dict(enumerate(found)), way)
    return found.astype(np.float32)


@pytest.mark.parametrize("memory_mb", [1e-6, 64])
@pytest.mark.parametrize("softmax", [False, True])
def test_probabilities_are_what_interpolating_the_whole_volume_gives(memory_mb, softmax):
    maps = blended((5, 6, 7))
    reference = interpolate(maps.values[None], size=(9, 11, 8), mode="trilinear", align_corners=False)[0]
    reference = reference.softmax(0) if softmax else reference
    found = probabilities(maps, (9, 11, 8), softmax=softmax, memory_mb=memory_mb)
    np.testing.assert_allclose(found, reference.numpy(), atol=1e-3)  # float16


@pytest.mark.parametrize("softmax", [False, True])
def test_probabilities_know_only_what_windows_saw(softmax):
    """Constant maps stay constant up to the last covered voxel; beyond it all is background."""
    values = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1).repeat(1, 4, 6, 6)
    covered = torch.ones(4, 6, 6, dtype=torch.bool)
    covered[:, :2, :2] = False
    values[:, ~covered] = 0
    maps = Blended(values, covered, ((0, 4), (0, 6), (2, 8)), (4, 6, 10))
    found = probabilities(maps, (8, 12, 20), softmax=softmax)
    seen = np.zeros((8, 12, 20), dtype=bool)
    seen[:, :, 4:16] = True
    seen[:, :4, 4:8] = False
    expected = 1 / (1 + np.exp(-0.5)) if softmax else 0.75
    np.testing.assert_allclose(found[1], np.where(seen, expected, 0), atol=1e-3)
    np.testing.assert_allclose(found[0], np.where(seen, 1 - expected, 1), atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    wanted=st.tuples(*[st.integers(1, 9)] * 3),
    memory_mb=st.sampled_from([1e-6, 0.001, 1.0]),
    softmax=st.booleans(),
    seed=st.integers(0, 99),
)
def test_confidence_is_the_probability_of_each_voxels_own_label(shape, wanted, memory_mb, softmax, seed):
    maps = blended(shape, seed=seed)
    maps.values.div_(1 if softmax else maps.values.sum(0))
    outputs = (0, 3, 14, 7)
    labels = restore(maps, wanted, outputs=outputs)
    labels.ravel()[::5] = 0  # as a component that was removed
    found = restore_confidence(maps, labels, Way(ALL, outputs, memory_mb, activation(softmax)))
    whole = interpolate(maps.values[None], size=wanted, mode="trilinear", align_corners=False)[0]
    whole = (whole.softmax(0) if softmax else whole).numpy()
    assert found.dtype == np.uint8
    for place in np.ndindex(*wanted):
        assert abs(int(found[place]) - 255 * whole[(outputs.index(labels[place]), *place)]) < 0.5 + 1e-3


def test_where_no_window_was_the_background_is_certain():
    maps = blended((4, 4, 4))
    maps.covered[2:] = False
    maps.values[:, 2:] = 0
    labels = restore(maps, (4, 4, 4))
    confidence = restore_confidence(maps, labels, Way(ALL, (0, 1, 2, 3), memory_mb=1))
    assert (labels[2:] == 0).all()
    assert (confidence[2:] == 255).all()
    assert (confidence[:2] < 255).all()
