"""The random half of augmentation: what happens to one patch, drawn at once and then fixed.

Nothing here touches an image; `transforms` applies what is drawn, without randomness of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.data.settings import AXES

SEEDS = 2**31  # seeds drawn for noise fields lie below


@dataclass(frozen=True)
class Elastic:
    """A displacement: uniform noise in [-1, 1], smoothed by a Gaussian of `sigma`, times `alpha`, voxels."""

    alpha: float
    sigma: float
    seed: int


@dataclass(frozen=True)
class Noise:
    """Additive Gaussian noise of deviation `std`, in units of the normalised image."""

    std: float
    seed: int


@dataclass(frozen=True)
class Augmentation:
    """What happens to one patch; `None` or empty where nothing does.

    Args:
        rotation: Degrees about z, y and x.
        scale: Factor on the coordinates; above 1 the anatomy shrinks.
        elastic: Displacement of the coordinates.
        noise: Noise to add.
        blur: Sigma of a Gaussian, voxels.
        brightness: Factor on the intensities.
        contrast: Factor on the distance from the mean.
        zoom: Share of the voxels per axis that the patch is reduced to and enlarged from again.
        gamma_inverted: Exponent applied to the negated image.
        gamma: Exponent.
        mirror: Axes to flip, 0 is z.
        extra: Seed of the transforms of `data.augmentation.extra`.
    """

    rotation: tuple[float, float, float] | None = None
    scale: float | None = None
    elastic: Elastic | None = None
    noise: Noise | None = None
    blur: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    zoom: float | None = None
    gamma_inverted: float | None = None
    gamma: float | None = None
    mirror: tuple[int, ...] = ()
    extra: int | None = None

    @property
    def is_spatial(self) -> bool:
        """Whether the patch has to be resampled."""
        return not (self.rotation is None and self.scale is None and self.elastic is None)


def draw_augmentation(rng: np.random.Generator, settings: Mapping[str, Any]) -> Augmentation:
    """Draw what happens to one patch.

    Args:
        rng: Decides everything; equal generators give equal augmentations.
        settings: `cfg.data.augmentation`: a section per transform, with its `probability` (and
            `channel_probability`: with one channel, a second chance to be left alone) and ranges.

    Returns:
        The augmentation of one patch.

    Reference: method section 7, nnU-Net's "moreDA".
    """

    def section(name: str) -> Mapping[str, Any] | None:
        """The settings of a transform if it happens."""
        values = settings[name]
        chance = values["probability"] * values.get("channel_probability", 1)
        return values if rng.random() < chance else None

    two_d = bool(settings["dummy_2d"])
    return Augmentation(
        rotation=_rotation(rng, rotation, two_d) if (rotation := section("rotation")) else None,
        scale=_around_one(rng, scaling["range"]) if (scaling := section("scaling")) else None,
        elastic=_elastic(rng, elastic, two_d) if (elastic := section("elastic")) else None,
        noise=Noise(_uniform(rng, noise["std"]), _seed(rng)) if (noise := section("noise")) else None,
        blur=_uniform(rng, blur["sigma"]) if (blur := section("blur")) else None,
        brightness=_uniform(rng, bright["range"]) if (bright := section("brightness")) else None,
        contrast=_around_one(rng, contrast["range"]) if (contrast := section("contrast")) else None,
        zoom=_uniform(rng, low["zoom"]) if (low := section("low_resolution")) else None,
        gamma_inverted=_around_one(rng, gamma["range"]) if (gamma := section("gamma_inverted")) else None,
        gamma=_around_one(rng, gamma["range"]) if (gamma := section("gamma")) else None,
        mirror=_mirror(rng, settings["mirror"]),
        extra=_seed(rng) if settings.get("extra") else None,
    )


def _mirror(rng: np.random.Generator, mirror: Mapping[str, Any]) -> tuple[int, ...]:
    """Draw for each axis on its own whether it is flipped."""
    return tuple(AXES.index(axis) for axis in mirror["axes"] if rng.random() < mirror["probability"])


def _rotation(
    rng: np.random.Generator, rotation: Mapping[str, Any], two_d: bool
) -> tuple[float, float, float]:
    """Draw degrees about z, y, x; in two dimensions about z alone."""
    if two_d:
        return (float(rng.uniform(-rotation["degrees_2d"], rotation["degrees_2d"])), 0.0, 0.0)
    z, y, x = rng.uniform(-rotation["degrees"], rotation["degrees"], size=3)
    return (float(z), float(y), float(x))


def _elastic(rng: np.random.Generator, elastic: Mapping[str, Any], two_d: bool) -> Elastic:
    """Draw the strength and smoothness of a displacement, and the seed of its noise."""
    alpha = _uniform(rng, elastic["alpha_2d" if two_d else "alpha"])
    return Elastic(alpha, _uniform(rng, elastic["sigma"]), _seed(rng))


def _uniform(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """Draw uniformly between two limits."""
    return float(rng.uniform(limits[0], limits[1]))


def _around_one(rng: np.random.Generator, limits: Sequence[float]) -> float:
    """Draw below or above 1 with equal chance, uniformly within that half, as nnU-Net does."""
    low, high = limits
    if low >= 1 or high <= 1:
        return _uniform(rng, limits)
    return _uniform(rng, (low, 1.0) if rng.random() < 0.5 else (1.0, high))


def _seed(rng: np.random.Generator) -> int:
    """Draw the seed of a noise field."""
    return int(rng.integers(SEEDS))
