"""What spacing, patch, network and batch size a cohort asks for, by the rules of nnU-Net's planner.

Reference: nnU-Net v2 (2.8.1), `ExperimentPlanner` for `3d_fullres` with its `PlainConvUNet`, and
`get_pool_and_conv_props`. Numbers are theirs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.core.errors import FlareError
from flare.core.geometry import Shape, Spacing
from flare.core.preprocessing import resampled_shape

ANISOTROPY = 3  # times coarser, and times fewer voxels, than the other axes
LOW_PERCENTILE = 10  # of the spacings of such an axis
COARSER = 2  # axes whose voxels are that much larger than the finest are not halved yet
MIN_EDGE = 4  # voxels that an axis keeps at the lowest resolution
FIRST_PATCH = 256**3  # voxels to begin with
BASE_FEATURES, MOST_FEATURES = 32, 320
CONVOLUTIONS = 2  # of a stage
REFERENCE_VOXELS, REFERENCE_GB = 560_000_000, 8  # of feature maps, with the batch size that is the least
MIN_BATCH = 2
MOST_COVERED = 0.05  # of the cohort's voxels, in a batch
Axes = tuple[int, int, int]


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net for a patch, highest resolution first; axes as those of the patch."""

    patch_size: Axes  # the patch, made larger until the network divides it
    strides: tuple[Axes, ...]  # step into each stage
    kernels: tuple[Axes, ...]  # of each stage of the encoder

    @property
    def divisors(self) -> Axes:
        """What each axis of the patch is a multiple of."""
        z, y, x = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return z, y, x

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(min(MOST_FEATURES, BASE_FEATURES * 2**level) for level in range(len(self.strides)))

    def map_voxels(self, outputs: int) -> int:
        """Count the numbers in all feature maps for one patch, deep supervision apart."""
        total, voxels = 0, math.prod(self.patch_size)
        for level, (channels, stride) in enumerate(zip(self.features, self.strides, strict=True)):
            voxels //= math.prod(stride)
            is_lowest = level == len(self.strides) - 1
            # the encoder's convolutions; above the lowest stage the decoder's, and the transposed one
            total += voxels * channels * (CONVOLUTIONS if is_lowest else 2 * CONVOLUTIONS + 1)
        return total + outputs * math.prod(self.patch_size)


@dataclass(frozen=True)
class Plan:
    """A proposal; everything runs along Z, Y, X."""

    cases: int  # cases that it was made from
    spacing_mm: Spacing
    coarse_axis: int | None  # whose spacing is the low percentile, not the median; None where all are medians
    median_shape: tuple[float, float, float]  # voxels of the median case at this spacing
    topology: Topology  # the network, and the patch
    batch_size: int
    by_memory: int  # batch size that memory leaves room for; the share of the cohort may allow less
    in_plane: bool  # whether a patch is so flat that spatial augmentation is better done slice by slice


def plan_cohort(headers: Iterable[Mapping[str, Any]], *, outputs: int, memory_gb: float) -> Plan:
    """Propose what to train a cohort with.

    Headers are `shape` and `spacing_mm` along Z, Y, X of each case, `outputs` counts the classes with the
    background, and the GPU has `memory_gb`. Volumes, or memory, too small for a U-Net are refused.
    """
    found = list(headers)
    spacings, shapes = [h["spacing_mm"] for h in found], [h["shape"] for h in found]
    spacing, coarse = target_spacing(spacings, shapes)
    resampled = [resampled_shape(n, s, spacing) for n, s in zip(shapes, spacings, strict=True)]
    median = np.median(resampled, axis=0)
    # nnU-Net puts the coarsest axis first: where two axes could shrink alike, their order decides
    worst = int(np.argmax(spacing))
    order = [worst, *(axis for axis in range(3) if axis != worst)]
    budget = REFERENCE_VOXELS * memory_gb / REFERENCE_GB
    first = fit_patch([spacing[a] for a in order], [median[a] for a in order], outputs, budget)
    topology = _reordered(first, np.argsort(order).tolist())
    by_memory = round(budget / first.map_voxels(outputs) * MIN_BATCH)
    voxels = float(np.prod(median)) * len(found)
    by_share = round(voxels * MOST_COVERED / math.prod(topology.patch_size))
    z, y, x = (float(size) for size in median)
    return Plan(
        cases=len(found),
        spacing_mm=spacing,
        coarse_axis=coarse,
        median_shape=(z, y, x),
        topology=topology,
        batch_size=max(min(by_memory, by_share), MIN_BATCH),
        by_memory=by_memory,
        in_plane=worst == 0 and max(topology.patch_size) > ANISOTROPY * topology.patch_size[0],
    )


def target_spacing(spacings: Sequence[Spacing], shapes: Sequence[Shape]) -> tuple[Spacing, int | None]:
    """Choose the voxel size: the median, or of one much coarser and shorter axis a low percentile.

    Returns the size along the axes as given, and that axis; None where there is none.
    """
    target, size = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    finer, is_coarse = max(target[others]), False
    if target[worst] > ANISOTROPY * finer and size[worst] * ANISOTROPY < min(size[others]):
        is_coarse = True
        low = np.percentile(np.asarray(spacings)[:, worst], LOW_PERCENTILE)
        target[worst] = low if low >= finer else finer + 1e-5  # it stays the coarsest
    z, y, x = (float(step) for step in target)
    return (z, y, x), worst if is_coarse else None


def fit_patch(spacing_mm: Sequence[float], median: Sequence[float], outputs: int, budget: float) -> Topology:
    """Shrink a patch, the axis that is longest beside the median case first, until its maps fit a budget.

    It begins with even extents (mm), no axis longer than the median case's. Too small a budget is refused.
    """
    edge = (FIRST_PATCH * math.prod(spacing_mm)) ** (1 / 3)
    topology = stages(spacing_mm, [min(round(edge / s), n) for s, n in zip(spacing_mm, median, strict=True)])
    while True:
        if len(topology.strides) < 2 or min(topology.patch_size) < 1:
            patch, whole = (" x ".join(f"{n:g}" for n in of) for of in (topology.patch_size, median))
            raise FlareError(
                f"gpu_memory_gb: a U-Net halves axes of {2 * MIN_EDGE} voxels or more, and the patch is down "
                f"to {patch} of the median case's {whole}; expected more memory, or larger volumes"
            )
        if topology.map_voxels(outputs) <= budget:
            return topology
        sizes = list(topology.patch_size)
        longest = max(range(3), key=lambda axis: (topology.patch_size[axis] / median[axis], axis))
        # a shorter patch may be halved less often, and then smaller steps reach further sizes
        sizes[longest] -= topology.divisors[longest]
        step = stages(spacing_mm, sizes).divisors[longest]
        sizes[longest] = topology.patch_size[longest] - step
        topology = stages(spacing_mm, sizes)


def stages(spacing_mm: Sequence[float], patch_size: Sequence[float]) -> Topology:
    """Decide how often each axis of a patch is halved, and where kernels span it.

    Every stage halves the axes that keep `MIN_EDGE` voxels and whose voxels are less than twice as large as
    the finest of them, but no axis alone that would keep less than 1.5 times that. A kernel is 1 along an
    axis until its voxels are less than twice as large as the finest of all, and 3 at the lowest resolution.
    """
    spacing, size = list(spacing_mm), list(patch_size)
    kernel, halved = [1, 1, 1], [0, 0, 0]
    strides: list[Axes] = [(1, 1, 1)]
    kernels: list[Axes] = []
    while True:
        axes = [axis for axis in range(3) if size[axis] >= 2 * MIN_EDGE]
        finest = min((spacing[axis] for axis in axes), default=0.0)
        axes = [axis for axis in axes if spacing[axis] / finest < COARSER]
        if not axes or (len(axes) == 1 and size[axes[0]] < 3 * MIN_EDGE):
            break
        least = min(spacing)
        kernel = [3 if k == 3 or s / least < COARSER else 1 for k, s in zip(kernel, spacing, strict=True)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        z, y, x = (2 if axis in axes else 1 for axis in range(3))
        strides.append((z, y, x))
        for axis in axes:
            halved[axis] += 1
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    patch = [math.ceil(n / 2**times) * 2**times for n, times in zip(patch_size, halved, strict=True)]
    return Topology((patch[0], patch[1], patch[2]), tuple(strides), (*kernels, (3, 3, 3)))


def _reordered(topology: Topology, axes: Sequence[int]) -> Topology:
    """The same network with its axes in another order."""

    def moved(values: Axes) -> Axes:
        z, y, x = (values[axis] for axis in axes)
        return z, y, x

    strides, kernels = (tuple(map(moved, rows)) for rows in (topology.strides, topology.kernels))
    return Topology(moved(topology.patch_size), strides, kernels)
