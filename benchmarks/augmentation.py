"""Patches per second of the augmentation, against batchgeneratorsv2 (nnU-Net v2) on the same arrays.

    make .venv-peers/.ready
    OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/augmentation.py --rates paper --patches 200
    OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/augmentation.py --rates all --patches 20

Without batchgeneratorsv2 only our rows are printed. One process, one thread, arrays in memory; both resample
labels by nearest neighbour and images linearly. Each side gets the box it asks for: nnU-Net a larger patch
always, ours what the drawn transform touches.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from flare.core.heap import keep_heap
from flare.data.augment import Augmenter, draw_augmentation
from flare.data.cache import read_box

CONFIG = Path(__file__).parents[1] / "conf" / "data" / "default.yaml"
PATCH = (32, 128, 192)  # paper, Tables 2 and 3
VOLUME = (110, 420, 420)
BOX_2D = (32, 274, 274)  # what nnU-Net reads: 192 on either side of a right angle, over 0.7
BOX_3D = (73, 213, 274)

Make = Callable[[int], Any]


def settings(*, dummy_2d: bool, always: bool, elastic: bool) -> dict[str, Any]:
    """The paper's augmentation, at its own rates or with everything on every patch."""
    values = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)["augmentation"]
    values.update(dummy_2d=dummy_2d, image_interpolation="linear")
    for section in (part for part in values.values() if isinstance(part, dict)):
        section["probability"] = 1.0 if always else section["probability"]
        section.update({"channel_probability": 1.0} if always and "channel_probability" in section else {})
    if not elastic:
        values["elastic"]["probability"] = 0.0
    return values


def ours(volume: np.ndarray, label: np.ndarray, values: dict[str, Any]) -> Make:
    """Our pipeline on boxes around the middle of the volume."""
    augmenter = Augmenter(PATCH, values)
    start = [(n - p) // 2 for n, p in zip(VOLUME, PATCH, strict=True)]

    def read(lower: tuple[int, ...], upper: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        first, last = (tuple(s + c for s, c in zip(start, corner, strict=True)) for corner in (lower, upper))
        return tuple(read_box(array, first, last, convert=np.copy) for array in (volume, label))

    return lambda i: augmenter.apply(read, draw_augmentation(np.random.default_rng((0, i)), values))


def peer(volume: np.ndarray, label: np.ndarray, values: dict[str, Any]) -> Make:
    """The pipeline of nnU-Net v2, with the same rates and ranges."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    two_d = values["dummy_2d"]
    degrees = np.radians(values["rotation"]["degrees_2d" if two_d else "degrees"])
    spatial = SpatialTransform(
        PATCH[1:] if two_d else PATCH,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=values["elastic"]["probability"],
        p_rotation=values["rotation"]["probability"],
        rotation=(-degrees, degrees),
        p_scaling=values["scaling"]["probability"],
        scaling=tuple(values["scaling"]["range"]),
        p_synchronize_scaling_across_axes=1,
        mode_seg="nearest",
    )
    around = BGContrast((0.75, 1.25))
    gamma = {"gamma": BGContrast((0.7, 1.5)), "synchronize_channels": False, "p_per_channel": 1}
    per_channel = {"synchronize_channels": False, "p_per_channel": 1}
    steps = {
        "noise": GaussianNoiseTransform((0, 0.1), 1, True),
        "blur": GaussianBlurTransform((0.5, 1.0), synchronize_axes=True, **per_channel),
        "brightness": MultiplicativeBrightnessTransform(around, **per_channel),
        "contrast": ContrastTransform(around, preserve_range=True, **per_channel),
        "low_resolution": SimulateLowResolutionTransform(
            (0.5, 1), synchronize_axes=True, ignore_axes=(0,) if two_d else None, **per_channel
        ),
        "gamma_inverted": GammaTransform(p_invert_image=1, p_retain_stats=1, **gamma),
        "gamma": GammaTransform(p_invert_image=0, p_retain_stats=1, **gamma),
    }
    chances = {
        name: values[name]["probability"] * values[name].get("channel_probability", 1) for name in steps
    }
    flat = [Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if two_d else [spatial]
    intensity = [RandomTransform(step, apply_probability=chances[name]) for name, step in steps.items()]
    pipeline = ComposeTransforms([*flat, *intensity, MirrorTransform(allowed_axes=(0, 1, 2))])
    box = tuple(
        slice((n - b) // 2, (n - b) // 2 + b)
        for n, b in zip(VOLUME, BOX_2D if two_d else BOX_3D, strict=True)
    )

    def make(_: int) -> Any:
        image, segmentation = volume[box].copy()[None], label[box].copy()[None]
        return pipeline(
            image=torch.from_numpy(image), segmentation=torch.from_numpy(segmentation.astype(np.int16))
        )

    return make


def rates(sides: dict[str, Make], patches: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median and best patches per second of processor time, which other processes do not eat; in turns."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for make in sides.values():
        make(0)
    for _ in range(repeats):
        for name, make in sides.items():
            started = time.process_time()
            for index in range(patches):
                make(index)
            found[name].append(patches / (time.process_time() - started))
    return {name: (statistics.median(of), max(of)) for name, of in found.items()}


def main() -> None:
    keep_heap()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rates", choices=("paper", "all"), help="only these: the paper's, or all on")
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    volume = rng.standard_normal(VOLUME, dtype=np.float32)
    label = np.zeros(VOLUME, dtype=np.uint8)
    for class_id in range(1, 15):
        label[:, 25 * class_id : 25 * class_id + 20, 60:360] = class_id
    sides: dict[str, Callable[[np.ndarray, np.ndarray, dict[str, Any]], Make]] = {"flare": ours}
    if importlib.util.find_spec("batchgeneratorsv2"):
        sides[f"batchgeneratorsv2 {version('batchgeneratorsv2')}"] = peer
    print(f"{'rates':8} {'space':5} {'elastic':7}  patches/s: median (best)")
    for always in {"paper": (False,), "all": (True,), None: (False, True)}[arguments.rates]:
        for dummy_2d in (True, False):
            for elastic in (False, True):
                values = settings(dummy_2d=dummy_2d, always=always, elastic=elastic)
                makes = {name: side(volume, label, values) for name, side in sides.items()}
                found = rates(makes, arguments.patches, arguments.repeats)
                row = "   ".join(
                    f"{name} {median:.1f} ({best:.1f})" for name, (median, best) in found.items()
                )
                kind, space = "all on" if always else "paper", "2D" if dummy_2d else "3D"
                print(f"{kind:8} {space:5} {elastic!s:7}  {row}", flush=True)


if __name__ == "__main__":
    main()
