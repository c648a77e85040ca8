"""Slices are restored and dropped while windows go on: the labels are those of all maps at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.core.geometry import Geometry, Orientation, Volume
from flare.core.preprocessing import Preprocessed, preprocess, resample
from flare.inference.engines import cpu_flags
from flare.inference.measure import PASS_BYTES, expected_bytes
from flare.inference.restore import Way, interpolated_axes, restore_labels
from small_predictor import DENSE, predictor

RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
SCHEDULES: dict[str, dict[str, Any]] = {
    "dense": {},
    "paper": {},
    "flare22": {},
    "fast": {"centre": "body", "extend": True},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("shape", "spacing_mm", "restore"),
    [
        ((40, 40, 60), (4.0, 1.2, 1.2), "trilinear"),
        ((70, 30, 30), (1.5, 1.1, 0.9), "trilinear"),
        ((9, 22, 40), (13.0, 2.0, 2.0), "nnunet"),
        ((31, 33, 18), (5.5, 1.2, 1.7), "nearest"),
        ((5, 9, 7), (4.0, 1.2, 1.2), "trilinear"),  # smaller than the patch
    ],
)
def test_labels_are_those_of_the_whole_volumes_maps(labels, name, shape, spacing_mm, restore) -> None:
    """With further maps or without, in any voxel order; windows and coverage are counted alike."""
    rng = np.random.default_rng(7)
    weights = torch.tensor(rng.normal(size=(4, 1, 3, 3, 3)), dtype=torch.float32)
    array = np.full(shape, -1000, np.int16)  # below the first slices nothing, so that flare22 skips windows
    array[shape[0] // 3 :, 2:, 2:-1] = rng.integers(-300, 300, shape)[shape[0] // 3 :, 2:, 2:-1]
    scan = Volume(array, Geometry(shape, spacing_mm, (0.0, 0.0, 0.0), RAS))
    turned = Orientation((1, 2, 0), (True, False, True))
    other = Volume(np.ascontiguousarray(turned.apply(array)), turned.apply_geometry(scan.geometry))

    def network(patch: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.conv3d(patch / 100, weights, padding=1)
        return torch.cat([logits[:, :1] + 10 * (patch < -900), logits[:, 1:]], 1)

    chosen = replace(DENSE, name=name, restore=restore, **SCHEDULES[name])
    ours = predictor(network, labels, chosen, (0, 1, 5, 14))
    found = ours.predict(scan)
    further = [ours.predict(scan, probabilities=True), ours.predict(scan, low_resolution=True)]
    further.append(predictor(network, labels, replace(chosen, confidence=True), (0, 1, 5, 14)).predict(scan))
    is_small = shape == (5, 9, 7)
    assert found.windows > 1 or is_small
    assert len(np.unique(found.segmentation)) > 1 or (
        is_small and name == "flare22"
    )  # too little for its rule
    for same in further:
        np.testing.assert_array_equal(same.segmentation, found.segmentation)
        assert (same.windows, same.uncovered_body_vox) == (found.windows, found.uncovered_body_vox)
    np.testing.assert_array_equal(ours.predict(other).segmentation, turned.apply(found.segmentation))
    if name == "dense":
        case = preprocess(scan, ours.spacing_mm, "linear")
        maps = ours.average(ours.plan(np.float32(case.array), None), case.array.shape).whole()
        linear = interpolated_axes(restore, ours.spacing_mm, spacing_mm)
        whole = restore_labels(maps, shape, Way(linear, ours.outputs, memory_mb=1e6))
        np.testing.assert_array_equal(found.segmentation, whole)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    wanted=st.tuples(*[st.integers(1, 12)] * 3),
    order=st.permutations(range(3)),
    seed=st.integers(0, 99),
)
def test_slices_are_interpolated_as_torch_interpolates_the_volume(shape, wanted, order, seed) -> None:
    """To the last bit where the CPU multiplies and adds in one step; of views as of arrays."""
    array = np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)
    whole = torch.from_numpy(array.astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(whole, size=wanted, mode="trilinear", align_corners=False)
    turned = Orientation(tuple(order), (True, False, True))
    view = turned.invert(np.ascontiguousarray(turned.apply(array)))
    for given_array in (array, view):
        found = resample(given_array, wanted, "linear")
        if "fma" in cpu_flags():
            np.testing.assert_array_equal(found, expected[0, 0].numpy())
        else:
            np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-2)


def test_what_a_case_takes_is_added_up_part_by_part() -> None:
    scan, grid, patch = (600, 512, 512), (150, 341, 341), (32, 128, 192)
    case = Preprocessed(np.zeros(grid, np.int16), Geometry(scan, (1.0, 0.8, 0.8), (0.0, 0.0, 0.0), RAS))
    voxels, read = 150 * 341 * 341, 600 * 512 * 512
    one_pass, plane = PASS_BYTES * 32 * 128 * 192, 341 * 341
    fixed = (2 + 4 + 1 + 1) * voxels + one_pass
    assert expected_bytes(case, patch, 16, 1) == fixed + read + 16 * 4 * plane * 64
    assert expected_bytes(case, patch, 16, 31, is_whole=True) == fixed + 31 * read + 16 * 4 * voxels
    # on a GPU the grid alone: then a scan may take most as it is read
    assert expected_bytes(case, patch, 0, 1) == max(2 * read + 4 * voxels, 8 * voxels + read)


def test_a_bound_that_cannot_be_kept_is_told_once_and_nothing_is_skipped(labels, caplog) -> None:
    array = np.random.default_rng(0).integers(0, 3, (20, 30, 30)).astype(np.int16)
    scan = Volume(array, Geometry(array.shape, (2.0, 1.2, 1.2), (0.0, 0.0, 0.0), RAS))

    def network(patch: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 - patch, patch - 1], 1)

    plenty, little = (
        predictor(network, labels, replace(DENSE, memory_mb=bound), (0, 1)).predict(scan).segmentation
        for bound in (1e6, 1.5)
    )
    np.testing.assert_array_equal(plenty, little)
    assert plenty.any()
    assert [record.message[:24] for record in caplog.records] == ["inference.memory_mb=1.5:"]


PEAK = """
import resource
import torch
from flare.inference.blend import Accumulator
from flare.inference.restore import Way, restore_labels
patch = (8, 128, 128)
def restore(depth):
    rows = tuple(((z, 0, 0),) for z in range(0, depth - 7, 4))
    windows = ((start, torch.rand(15, *patch)) for (start,) in rows)
    how = {"channels": 15, "offsets": (0, 0, 0), "shape": (depth, 128, 128), "device": torch.device("cpu")}
    maps = Accumulator(windows, rows, patch, **how)
    restore_labels(maps, (2 * depth, 128, 128), Way((True,) * 3, tuple(range(15)), memory_mb=8))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = restore(16)  # libraries loaded
print(restore(400) - start)
"""


@pytest.mark.slow
def test_a_long_scan_takes_no_more_than_a_short_one_but_for_its_labels() -> None:
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    # its labels and coverage, and what the allocator keeps; the sums of all maps would be 375 MiB
    assert float(run.stdout) < 800 / 64 + 400 / 64 + 40
