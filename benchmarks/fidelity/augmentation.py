"""5. Augmentation: how often, and each transform with what was drawn against batchgenerators' own.

nnU-Net 1.7 augments with batchgenerators. Its draws are replaced, so that it applies what ours has drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from batchgenerators.augmentations import (
    color_augmentations,
    noise_augmentations,
    resample_augmentations,
    spatial_transformations,
    utils,
)
from omegaconf import OmegaConf
from rows import BATCHGENERATORS, ROOT, Row, counted, limited

from flare.data.draws import Augmentation, Elastic, Noise, draw_augmentation
from flare.data.spatial import displacement, smooth
from flare.data.transforms import Augmenter, apply_gamma, change_intensity, lower_resolution, scale_contrast

DRAWS = 2000
METHOD = "method, section 7"
# by hand: probability per sample, and for blur and low resolution half of the one channel
RATES = {
    "rotation": 0.2,
    "scale": 0.2,
    "elastic": 0.2,
    "noise": 0.1,
    "blur": 0.1,
    "brightness": 0.15,
    "contrast": 0.15,
    "zoom": 0.125,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
}
RANGES = {
    "scale": (0.7, 1.4),
    "blur": (0.5, 1),
    "brightness": (0.75, 1.25),
    "contrast": (0.75, 1.25),
    "zoom": (0.5, 1),
    "gamma_inverted": (0.7, 1.5),
    "gamma": (0.7, 1.5),
}
SHAPE = (32, 48, 64)


def check() -> Iterator[Row]:
    """Rates and ranges, then intensities, then places."""
    yield from _draws()
    yield from _intensities()
    yield from _places()


def settings(**more: Any) -> dict[str, Any]:
    """The paper's, with the authors' low resolution."""
    found = OmegaConf.load(ROOT / "conf" / "data" / "default.yaml")["augmentation"]
    found.low_resolution.probability = 0.25
    return {**OmegaConf.to_container(found, resolve=True), **more}  # type: ignore[dict-item]


def _draws() -> Iterator[Row]:
    drawn = [draw_augmentation(np.random.default_rng((7, i)), settings()) for i in range(DRAWS)]
    worst = 0.0
    for name, rate in RATES.items():
        measured = np.mean([getattr(d, name) is not None for d in drawn])
        worst = max(worst, abs(measured - rate) / np.sqrt(rate * (1 - rate) / DRAWS))
    for axis in range(3):
        worst = max(worst, abs(np.mean([axis in d.mirror for d in drawn]) - 0.5) / np.sqrt(0.25 / DRAWS))
    yield limited(f"13 rates over {DRAWS} draws, in standard errors", METHOD, worst, 4)
    wrong = 0
    for name, (low, high) in RANGES.items():
        values = [v for d in drawn if (v := getattr(d, name)) is not None]
        margin = 0.1 * (high - low)
        wrong += not (low <= min(values) < low + margin and high - margin < max(values) <= high)
    yield counted("ranges of the draws", METHOD, wrong, len(RANGES))
    for two_d, limit in ((True, 180), (False, 30)):
        found = [
            draw_augmentation(np.random.default_rng((8, i)), settings(dummy_2d=two_d)) for i in range(DRAWS)
        ]
        angles = np.array([d.rotation for d in found if d.rotation is not None])
        used = angles[:, :1] if two_d else angles
        wrong = int((abs(used) > limit).any()) + int((abs(used).max(0) < 0.9 * limit).any())
        wrong += int(two_d and (angles[:, 1:] != 0).any())
        yield counted(f"angles, dummy_2d={str(two_d).lower()}: up to {limit} degrees", METHOD, wrong, 3)


@contextmanager
def told(value: float) -> Iterator[None]:
    """Let the peer draw the lower end of a range, and the half around 1 in which a value lies."""
    with (
        mock.patch.object(np.random, "uniform", lambda low=0.0, high=1.0: low),
        mock.patch.object(np.random, "random", return_value=0.0 if value < 1 else 0.9),
    ):
        yield


def image() -> np.ndarray:
    """Smooth noise, as a normalised CT."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return smooth(noise, 1.5, dimensions=3, border="reflect").numpy() * 5


def _intensities() -> Iterator[Row]:
    ours, theirs = torch.from_numpy(image()), image()[None]

    def difference(name: str, mine: torch.Tensor, peer: np.ndarray, limit: float = 1e-5) -> Row:
        return limited(name, BATCHGENERATORS, float(np.abs(mine.numpy() - peer[0]).max()), limit)

    for value in (0.8, 1.4):
        for inverted in (False, True):
            with told(value):
                peer = color_augmentations.augment_gamma(
                    theirs.copy(), (value, value), invert_image=inverted, retain_stats=True, per_channel=True
                )
            mine = -apply_gamma(-ours, value) if inverted else apply_gamma(ours, value)
            yield difference(f"gamma {value}{' on the inverted image' if inverted else ''}", mine, peer)
    for value in (0.8, 1.2):
        with told(value):
            peer = color_augmentations.augment_contrast(theirs.copy(), (value, value), preserve_range=True)
        yield difference(f"contrast {value}", scale_contrast(ours, value), peer)
        peer = color_augmentations.augment_brightness_multiplicative(theirs.copy(), (value, value))
        mine = change_intensity(ours, Augmentation(brightness=value), dummy_2d=True)
        yield difference(f"brightness {value}", mine, peer)
    peer = noise_augmentations.augment_gaussian_blur(theirs.copy(), (0.8, 0.8))
    yield difference("blur 0.8", change_intensity(ours, Augmentation(blur=0.8), dummy_2d=True), peer)
    for keep_z in (True, False):
        peer = resample_augmentations.augment_linear_downsampling_scipy(
            theirs.copy(),
            (0.6, 0.6),
            order_downsample=0,
            order_upsample=3,
            ignore_axes=(0,) if keep_z else None,
        )
        mine = lower_resolution(ours, 0.6, keep_z=keep_z)
        yield difference(f"low resolution 0.6, {'in plane' if keep_z else 'all axes'}", mine, peer, 1e-4)
    noisy = change_intensity(torch.zeros(64, 64, 64), Augmentation(noise=Noise(0.07, 3)), dummy_2d=True)
    peer_noise = "standard deviation of noise 0.07, relative"
    yield limited(peer_noise, METHOD, abs(float(noisy.std()) / 0.07 - 1), 0.01)


def _places() -> Iterator[Row]:
    """One resampling of both, all of them cubic; only what is inside the volume of both is compared."""
    volume = image()
    for two_d in (True, False):
        for name, drawn in {
            "rotation 20 degrees": Augmentation((20.0, 0.0, 0.0)),
            "scale 0.8": Augmentation(scale=0.8),
            "rotation -10 and scale 0.9": Augmentation((-10.0, 0.0, 0.0), 0.9),
        }.items():
            yield _place(f"{name}, dummy_2d={str(two_d).lower()}", volume, drawn, two_d)
    drawn = Augmentation((5.0, -8.0, 12.0), 0.9)
    yield _place("three angles and scale", volume, drawn, False)
    elastic = Elastic(alpha=150.0, sigma=10.0, seed=4)
    generator = torch.Generator().manual_seed(elastic.seed)
    draws = iter(torch.rand(3, *SHAPE, generator=generator).numpy())
    with mock.patch.object(np.random, "random", side_effect=draws):
        peer = utils.elastic_deform_coordinates(np.zeros((3, *SHAPE)), elastic.alpha, elastic.sigma)
    difference = float(np.abs(displacement(elastic, SHAPE).numpy() - peer).max())
    yield limited("elastic displacement from equal noise, voxels", BATCHGENERATORS, difference, 1e-3)
    yield from _mirrored(volume)


def _place(name: str, volume: np.ndarray, drawn: Augmentation, two_d: bool) -> Row:
    inner = tuple(n - 2 * m for n, m in zip(SHAPE, (0 if two_d else 12, 12, 16), strict=True))
    start = [(n - i) // 2 for n, i in zip(SHAPE, inner, strict=True)]
    padding = 40  # of ours, which reads zeros outside; the peer is told to do the same
    wide = np.pad(volume, padding)

    def read(lower: Any, upper: Any) -> tuple[np.ndarray, np.ndarray]:
        box = tuple(
            slice(s + a + padding, s + b + padding) for s, a, b in zip(start, lower, upper, strict=True)
        )
        return wide[box].copy(), np.zeros_like(wide[box], dtype=np.uint8)

    mine, _ = Augmenter(inner, settings(dummy_2d=two_d)).apply(read, drawn)
    z, y, x = np.radians(drawn.rotation or (0.0, 0.0, 0.0))
    scale = drawn.scale or 1.0
    common = {
        "do_elastic_deform": False,
        "do_rotation": drawn.rotation is not None,
        "do_scale": drawn.scale is not None,
        "scale": (scale, scale),
        "border_mode_data": "constant",
        "order_data": 3,
        "random_crop": False,
    }
    # it counts angles about its first and third axis the other way round
    angles = {f"angle_{name}": (angle, angle) for name, angle in zip("xyz", (-z, y, -x), strict=True)}
    stack = volume[None] if two_d else volume[None, None]
    with told(scale):
        peer, _ = spatial_transformations.augment_spatial(
            stack, None, inner[1:] if two_d else inner, **angles, **common
        )
    difference = np.abs(mine.numpy() - (peer[0] if two_d else peer[0, 0]))
    return limited(f"{name}, largest", BATCHGENERATORS, float(difference.max()), 1e-3)


def _mirrored(volume: np.ndarray) -> Iterator[Row]:
    """All combinations of axes; labels are flipped with the image and gain no class."""
    label = (volume > 0).astype(np.uint8) * 3
    wrong = 0
    for number in range(8):
        axes = tuple(a for a in range(3) if number >> a & 1)
        mine = Augmenter(SHAPE, settings()).apply(
            lambda *_: (volume.copy(), label.copy()), Augmentation(mirror=axes)
        )
        with mock.patch.object(np.random, "uniform", return_value=0.0):
            peer = spatial_transformations.augment_mirroring(volume[None].copy(), label[None].copy(), axes)
        wrong += not (np.array_equal(mine[0], peer[0][0]) and np.array_equal(mine[1], peer[1][0]))
    yield counted("mirrored image and labels, all 8 combinations", BATCHGENERATORS, wrong, 8)
