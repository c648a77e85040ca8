"""The plan of a cohort: against numbers of nnU-Net's own planner, and against counting."""

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from flare.core.errors import CONF, FlareError
from flare.models.unet import UNet
from flare.prepare.planning import Plan, Topology, fit_patch, plan_cohort, stages, target_spacing

CLASSES = OmegaConf.load(CONF / "classes" / "flare23.yaml")


def cohort(*cases: tuple[tuple[int, int, int], tuple[float, float, float]]) -> list[dict[str, Any]]:
    return [{"shape": shape, "spacing_mm": spacing} for shape, spacing in cases]


def told(plan: Plan) -> tuple[Any, ...]:
    topology = plan.topology
    return plan.spacing_mm, topology.patch_size, topology.strides, topology.kernels, plan.batch_size


UP, IN_PLANE = (2, 2, 2), (1, 2, 2)
# cohort, GB -> what `ExperimentPlanner` of nnunetv2 2.8.1 gave for its fingerprint: spacing, patch, strides,
# the kernel where the coarse axis is not spanned and in how many stages, last features, batch size
NNUNET = {
    "abdomens in thick slices": (
        [((90, 512, 512), (5.0, 0.78, 0.78)), ((110, 512, 512), (5.0, 0.8, 0.8)),
         ((160, 512, 512), (2.5, 0.7, 0.7)), ((120, 512, 512), (3.0, 0.85, 0.85))], 8,
        (2.65, 0.79, 0.79), (56, 192, 160), (IN_PLANE, UP, UP, UP, IN_PLANE), (1, 3, 3), 1, (320, 320), 2,
    ),
    "thin slices, a large GPU": (
        [((420, 512, 512), (1.0, 0.7, 0.7)), ((510, 512, 512), (1.0, 0.8, 0.8)),
         ((600, 512, 512), (0.8, 0.75, 0.75))], 24,
        (1.0, 0.75, 0.75), (192, 192, 192), (UP, UP, UP, UP, UP), (1, 3, 3), 0, (320, 320), 2,
    ),
    "few thick slices": (
        [((20, 320, 320), (3.6, 0.6, 0.6)), ((24, 320, 320), (3.0, 0.62, 0.62)),
         ((18, 384, 384), (4.0, 0.5, 0.5))], 8,
        (3.12, 0.6, 0.6), (20, 320, 256), (IN_PLANE, IN_PLANE, UP, UP, IN_PLANE, IN_PLANE), (1, 3, 3), 2,
        (320, 320), 2,
    ),
    "small parts, coarse along y": (
        [((60, 25, 50), (1.0, 3.0, 1.0)), ((70, 30, 64), (1.0, 2.5, 1.2))] * 150, 4,
        (1.0, 2.75, 1.1), (80, 28, 64), ((2, 1, 2), UP, UP, (2, 1, 2)), (3, 1, 3), 1, (256, 320), 11,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NNUNET)
def test_plans_are_those_of_nnunet(name: str) -> None:
    cases, gigabytes, spacing, patch, strides, flat, flat_stages, features, batch = NNUNET[name]
    plan = plan_cohort(cohort(*cases), outputs=15, memory_gb=gigabytes)
    assert plan.spacing_mm == pytest.approx(spacing)
    assert plan.topology.patch_size == patch
    assert plan.topology.strides == ((1, 1, 1), *strides)
    assert plan.topology.kernels == (flat,) * flat_stages + ((3, 3, 3),) * (len(strides) + 1 - flat_stages)
    assert plan.topology.features[-2:] == features
    assert plan.batch_size == batch


@pytest.mark.parametrize("size", [8, 11, 14, 15, 16, 28, 29, 56, 57, 100, 112, 113, 160, 192, 320])
def test_an_axis_is_halved_until_fewer_than_eight_voxels_are_left(size: int) -> None:
    times = math.floor(math.log2((size - 1) / 7)) + 1  # ceil(size / 2^k) >= 8 for all k below it
    found = stages((1.0, 1.0, 1.0), (size, size, size))
    assert found.strides == ((1, 1, 1), *(((2, 2, 2),) * times))
    assert found.kernels == ((3, 3, 3),) * (times + 1)
    assert found.divisors == (2**times,) * 3
    assert found.patch_size == (math.ceil(size / 2**times) * 2**times,) * 3


def test_coarse_slices_are_neither_halved_nor_convolved_until_the_others_come_near() -> None:
    """5 mm slices beside 0.8 mm: the plane has 1.6, then 3.2 mm, which is over half of 5."""
    found = stages((5.0, 0.8, 0.8), (40, 192, 192))
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.patch_size == (40, 192, 192)


def test_an_axis_alone_is_halved_only_where_it_keeps_six_voxels() -> None:
    assert stages((1.0, 1.0, 1.0), (11, 4, 4)).strides == ((1, 1, 1),)
    assert stages((1.0, 1.0, 1.0), (12, 4, 4)).strides == ((1, 1, 1), (2, 1, 1))


def test_map_voxels_are_those_of_the_network_itself() -> None:
    """Every number that a convolution of the network gives, the lower heads apart."""
    topology = stages((3.0, 0.9, 0.9), (24, 96, 80))
    with torch.device("meta"):
        network = UNet(
            CLASSES, "organs_tumor",
            features=topology.features, convolutions_per_stage=2, strides=topology.strides,
            encoder_kernels=topology.kernels, decoder_kernels=topology.kernels[:-1],
            transposed_bias=True, head_bias=True,
        ).eval()  # fmt: skip
        counts: list[int] = []
        for module in network.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                module.register_forward_hook(lambda *given: counts.append(given[2].numel()))
        network(torch.empty(1, 1, *topology.patch_size))
    assert topology.map_voxels(outputs=15) == sum(counts)
    assert len(topology.strides) == 5


def test_the_target_is_the_median_unless_slices_are_few_and_coarse() -> None:
    shapes = [(200, 512, 512)] * 3
    assert target_spacing([(5, 0.7, 0.7), (2, 0.8, 0.8), (3, 0.9, 0.9)], shapes) == ((3, 0.8, 0.8), None)
    # of 10 cases the 10th percentile lies 0.9 between the two smallest
    spacings = [(float(z), 1.0, 1.0) for z in (4, 5, 10, 10, 10, 10, 10, 10, 10, 10)]
    found, axis = target_spacing(spacings, [(20, 256, 256)] * 10)
    assert (found, axis) == ((pytest.approx(4.9), 1.0, 1.0), 0)
    # as many slices as a third of the rows: the median stays
    assert target_spacing(spacings, [(86, 256, 256)] * 10) == ((10.0, 1.0, 1.0), None)
    # no finer than the other axes
    spacings = [(0.5, 1.0, 1.0)] * 3 + [(10.0, 1.0, 1.0)] * 7
    assert target_spacing(spacings, [(20, 256, 256)] * 10) == ((1.0 + 1e-5, 1.0, 1.0), 0)


def test_the_order_of_the_axes_does_not_matter() -> None:
    cases = [((60, 420, 500), (3.1, 0.7, 0.8)), ((90, 512, 470), (2.5, 0.75, 0.9))]
    first = plan_cohort(cohort(*cases), outputs=15, memory_gb=8)
    for order in permutations(range(3)):
        moved = [tuple(tuple(values[a] for a in order) for values in case) for case in cases]
        plan = plan_cohort(cohort(*moved), outputs=15, memory_gb=8)  # type: ignore[arg-type]
        for ours, theirs in zip(told(plan)[:2], told(first)[:2], strict=True):
            assert ours == tuple(theirs[a] for a in order)
        assert plan.topology.strides == tuple(tuple(s[a] for a in order) for s in first.topology.strides)
        assert plan.topology.kernels == tuple(tuple(k[a] for a in order) for k in first.topology.kernels)
        assert plan.batch_size == first.batch_size


def test_a_patch_is_the_largest_whose_maps_fit() -> None:
    spacing, median = (1.0, 1.0, 1.0), (400, 400, 400)
    for gigabytes in (4, 8, 24):
        budget = 560e6 * gigabytes / 8
        found = fit_patch(spacing, median, 15, budget)
        assert found.map_voxels(15) <= budget
        larger = [
            n + (d if axis == 0 else 0)
            for axis, (n, d) in enumerate(zip(found.patch_size, found.divisors, strict=True))
        ]
        assert stages(spacing, larger).map_voxels(15) > budget


def test_a_batch_covers_a_twentieth_of_the_cohort_at_most() -> None:
    case = ((32, 64, 64), (2.0, 2.0, 2.0))
    few, some, many = (plan_cohort(cohort(*[case] * n), outputs=5, memory_gb=8) for n in (4, 200, 5000))
    assert few.topology == some.topology == many.topology == stages((2.0, 2.0, 2.0), (32, 64, 64))
    assert (few.batch_size, some.batch_size) == (2, 10)  # 5 % of 200 cases that are a patch each
    assert many.batch_size == many.by_memory == round(560e6 / many.topology.map_voxels(5) * 2) > 10


def test_flat_patches_are_augmented_in_plane() -> None:
    flat = plan_cohort(cohort(((40, 512, 512), (5.0, 0.8, 0.8))), outputs=15, memory_gb=8)
    assert max(flat.topology.patch_size) > 3 * flat.topology.patch_size[0]
    assert flat.in_plane
    assert not plan_cohort(cohort(((300, 400, 400), (1.0, 0.8, 0.8))), outputs=15, memory_gb=8).in_plane
    # coarse along y: what is augmented in plane is z by z, which would be wrong
    assert not plan_cohort(cohort(((512, 40, 512), (0.8, 5.0, 0.8))), outputs=15, memory_gb=8).in_plane


@pytest.mark.parametrize(
    ("shape", "gigabytes"), [((6, 7, 7), 8), ((300, 300, 300), 1e-4), ((3, 40, 40), 1e-6)]
)
def test_what_is_too_small_for_a_u_net_is_refused(shape: tuple[int, int, int], gigabytes: float) -> None:
    with pytest.raises(FlareError, match=r"^gpu_memory_gb: a U-Net halves axes of 8 voxels or more[^\n]*$"):
        plan_cohort(cohort((shape, (1.0, 1.0, 1.0))), outputs=15, memory_gb=gigabytes)


def test_every_plan_ends_and_is_a_network_that_divides_its_patch() -> None:
    rng = np.random.default_rng(0)
    planned = 0
    for _ in range(200):
        cases = [
            (tuple(rng.integers(2, 600, 3).tolist()), tuple(np.exp(rng.uniform(-0.7, 2.3, 3)).tolist()))
            for _ in range(rng.integers(1, 6))
        ]
        try:
            plan = plan_cohort(
                cohort(*cases), outputs=int(rng.integers(2, 20)), memory_gb=rng.choice([2, 8, 40])
            )
        except FlareError:
            continue
        planned += 1
        topology: Topology = plan.topology
        assert all(n % d == 0 and n >= 1 for n, d in zip(topology.patch_size, topology.divisors, strict=True))
        assert len(topology.features) == len(topology.strides) == len(topology.kernels) >= 2
    assert planned > 150
