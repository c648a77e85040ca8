"""5. Augmentation: how often, within which ranges, and intensities against batchgenerators' own.

nnU-Net 1.7 augments with batchgenerators. Its draws are replaced, so that it applies what ours has drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any
from unittest import mock

import numpy as np
import torch
from batchgenerators.augmentations import color_augmentations, noise_augmentations, resample_augmentations
from omegaconf import OmegaConf
from rows import BATCHGENERATORS, ROOT, Row, counted, limited

from flare.data.augment import (
    Augmentation,
    Noise,
    apply_gamma,
    change_intensity,
    draw_augmentation,
    lower_resolution,
    scale_contrast,
)
from flare.data.spatial import smooth

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
    "elastic.alpha": (0, 200),  # in dummy_2d, the default
    "elastic.sigma": (9, 13),
    "noise.std": (0, 0.1),
    "blur": (0.5, 1),
    "brightness": (0.75, 1.25),
    "contrast": (0.75, 1.25),
    "zoom": (0.5, 1),
    "gamma_inverted": (0.7, 1.5),
    "gamma": (0.7, 1.5),
}
RANGES_3D = {"elastic.alpha": (0, 900), "elastic.sigma": (9, 13)}
SHAPE = (32, 48, 64)


def check() -> Iterator[Row]:
    """Rates and ranges, then intensities."""
    yield from _draws()
    yield from _intensities()


def settings(**more: Any) -> dict[str, Any]:
    """The paper's, with the authors' low resolution."""
    found = OmegaConf.load(ROOT / "conf" / "data" / "default.yaml")["augmentation"]
    found.low_resolution.probability = 0.25
    return {**OmegaConf.to_container(found, resolve=True), **more}  # type: ignore[dict-item]


def _draws() -> Iterator[Row]:
    drawn = _draw(7, settings())
    worst = 0.0
    for name, rate in RATES.items():
        measured = np.mean([getattr(d, name) is not None for d in drawn])
        worst = max(worst, abs(measured - rate) / np.sqrt(rate * (1 - rate) / DRAWS))
    for axis in range(3):
        worst = max(worst, abs(np.mean([axis in d.mirror for d in drawn]) - 0.5) / np.sqrt(0.25 / DRAWS))
    yield limited(f"13 rates over {DRAWS} draws, in standard errors", METHOD, worst, 4)
    wrong = sum(not _fills(drawn, name, *limits) for name, limits in RANGES.items())
    yield counted("ranges of the draws", METHOD, wrong, len(RANGES))
    for two_d, limit in ((True, 180), (False, 30)):
        found = _draw(8, settings(dummy_2d=two_d))
        angles = np.array([d.rotation for d in found if d.rotation is not None])
        used = angles[:, :1] if two_d else angles
        wrong = int((abs(used) > limit).any()) + int((abs(used).max(0) < 0.9 * limit).any())
        wrong += int(two_d and (angles[:, 1:] != 0).any())
        yield counted(f"angles, dummy_2d={str(two_d).lower()}: up to {limit} degrees", METHOD, wrong, 3)
    wrong = sum(not _fills(found, name, *limits) for name, limits in RANGES_3D.items())
    yield counted("ranges of elastic deformation, dummy_2d=false", METHOD, wrong, len(RANGES_3D))


def _draw(seed: int, values: dict[str, Any]) -> list[Augmentation]:
    return [draw_augmentation(np.random.default_rng((seed, i)), values) for i in range(DRAWS)]


def _fills(drawn: Sequence[Augmentation], name: str, low: float, high: float) -> bool:
    """Whether what was drawn stays within a range, and comes within a tenth of it to both ends."""
    happened = [d for d in drawn if getattr(d, name.split(".")[0]) is not None]
    values = list(map(attrgetter(name), happened))
    margin = 0.1 * (high - low)
    return low <= min(values) < low + margin and high - margin < max(values) <= high


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
