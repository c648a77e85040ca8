"""9. The plan of a cohort, from headers to network and batch size, on random cohorts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as planner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from omegaconf import OmegaConf
from rows import NNUNET2, ROOT, Row, counted

from flare.core.errors import FlareError
from flare.models.unet import UNet
from flare.prepare.planning import CONVOLUTIONS, Plan, plan_cohort

COHORTS = 300
OUTPUTS = 15
CLASSES = OmegaConf.load(ROOT / "conf" / "classes" / "flare23.yaml")
Headers = list[dict[str, Any]]


def check() -> Iterator[Row]:
    """Compare every number of a plan, and the network that comes of it."""
    rng = np.random.default_rng(0)
    pairs, weights = [], 0
    while len(pairs) < COHORTS:
        headers, memory_gb = draw(rng), float(rng.choice([4, 8, 11, 24]))
        try:
            ours = plan_cohort(headers, outputs=OUTPUTS, memory_gb=memory_gb)
        except FlareError:  # too small for a U-Net: their planner gives one stage, or does not end
            continue
        theirs = plan_theirs(headers, memory_gb)
        pairs.append((ours, theirs))
        if len(pairs) <= 20:
            weights += _weights(ours) != _weights_of(theirs)
    for what, own in {
        "spacing": lambda plan: plan.spacing_mm,
        "patch": lambda plan: plan.topology.patch_size,
        "strides": lambda plan: plan.topology.strides,
        "kernels": lambda plan: plan.topology.kernels,
        "features": lambda plan: plan.topology.features,
        "batch size": lambda plan: plan.batch_size,
    }.items():
        wrong = sum(own(ours) != theirs[what] for ours, theirs in pairs)
        yield counted(f"plan of random cohorts: {what}", NNUNET2, wrong, COHORTS)
    yield counted("plan of random cohorts: weights of the network", NNUNET2, weights, 20)


def draw(rng: np.random.Generator) -> Headers:
    """A cohort of 1 to 40 scans: fine, thick or mixed slices, square planes or any, coarse along any axis."""
    coarse = rng.choice([0, 0, 0, 1, 2])
    is_square, thick = rng.random() < 0.7, rng.choice([1.0, 3.0, 8.0])
    headers: Headers = []
    for _ in range(rng.integers(1, 40)):
        plane = rng.uniform(0.5, 1.6, 2).round(4)
        size = rng.integers(60, 640, 2)
        if is_square:
            plane[1], size[1] = plane[0], size[0]
        step = round(float(thick * rng.uniform(0.5, 1.5)), 4)
        spacing, shape = [step, *plane.tolist()], [int(rng.integers(12, 700) / thick) + 2, *size.tolist()]
        order = [0, 1, 2] if coarse == 0 else [1, 0, 2] if coarse == 1 else [1, 2, 0]
        headers.append(
            {"shape": tuple(shape[a] for a in order), "spacing_mm": tuple(spacing[a] for a in order)}
        )
    return headers


def plan_theirs(headers: Headers, memory_gb: float) -> dict[str, Any]:
    """What nnU-Net's planner gives for its fingerprint of such a cohort, axes in their own order again."""
    spacings, shapes = [h["spacing_mm"] for h in headers], [h["shape"] for h in headers]
    labels = {f"class {number}": number for number in range(OUTPUTS)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(headers)}
    fingerprint = {
        "spacings": spacings,
        "shapes_after_crop": shapes,
        "median_relative_size_after_cropping": 1.0,
    }
    # its constructor reads both from files
    instead = {
        "maybe_convert_to_dataset_name": str,
        "nnUNet_raw": "raw",
        "nnUNet_preprocessed": "preprocessed",
        "get_filenames_of_train_images_and_targets": lambda *_: {},
        "isfile": lambda path: path.endswith("dataset_fingerprint.json"),
        "load_json": lambda path: fingerprint if "fingerprint" in path else dataset,
    }
    with patch.multiple(planner, **instead):
        made = planner.ExperimentPlanner("x", gpu_memory_target_in_gb=memory_gb)
    forward, backward = made.determine_transpose()
    spacing = made.determine_fullres_target_spacing()
    resampled = [planner.compute_new_shape(n, s, spacing) for n, s in zip(shapes, spacings, strict=True)]
    median = np.median(resampled, 0)[forward]
    voxels = float(np.prod(median, dtype=np.float64) * len(headers))
    with torch.device("meta"):
        plan = made.get_plans_for_configuration(spacing[forward], median, "x", voxels, {})
    stages = plan["architecture"]["arch_kwargs"]

    def own(values: Any) -> tuple[int, ...]:
        return tuple(int(values[axis]) for axis in backward)

    return {
        "spacing": tuple(spacing.tolist()),
        "patch": own(plan["patch_size"]),
        "strides": tuple(map(own, stages["strides"])),
        "kernels": tuple(map(own, stages["kernel_sizes"])),
        "features": tuple(stages["features_per_stage"]),
        "batch size": plan["batch_size"],
        "architecture": plan["architecture"],
    }


def _weights(plan: Plan) -> int:
    """Number of weights of the network that a plan's preset describes."""
    topology = plan.topology
    with torch.device("meta"):
        network = UNet(
            CLASSES,
            "organs_tumor",
            features=topology.features,
            convolutions_per_stage=CONVOLUTIONS,
            strides=topology.strides,
            encoder_kernels=topology.kernels,
            decoder_kernels=topology.kernels[:-1],
            transposed_bias=True,
            head_bias=True,
        )
    return sum(p.numel() for p in network.parameters())


def _weights_of(theirs: dict[str, Any]) -> int:
    """The same of nnU-Net's network."""
    made = theirs["architecture"]
    with torch.device("meta"):
        network = get_network_from_plans(
            made["network_class_name"],
            made["arch_kwargs"],
            made["_kw_requires_import"],
            1,
            OUTPUTS,
            deep_supervision=True,
            allow_init=False,
        )
    return sum(p.numel() for p in network.parameters())
