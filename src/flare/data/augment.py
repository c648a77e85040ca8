"""Augmentation of one patch, nnU-Net's "moreDA": all of it is drawn at once, and then applied as drawn."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torchio as tio
from numpy.random import Generator
from pytorch_lightning.utilities.seed import isolate_rng
from scipy import ndimage
from torch import Tensor
from torchio.transforms import Transform

from flare.core.errors import FlareError, build_part
from flare.core.geometry import AXES, Shape, Spacing
from flare.data import spatial

# Reads image and labels between two corners (z, y, x), counted from the first voxel of the patch.
BoxReader = Callable[[Shape, Shape], tuple[np.ndarray, np.ndarray]]
SEEDS = 2**31  # seeds drawn for noise fields lie below


@dataclass(frozen=True)
class Noise:
    """Additive Gaussian noise of deviation `std`, in units of the normalised image."""

    std: float
    seed: int


@dataclass(frozen=True)
class Augmentation(spatial.Move):
    """What happens to one patch; `None` or empty where nothing does."""

    noise: Noise | None = None
    blur: float | None = None  # sigma of a Gaussian, voxels
    brightness: float | None = None
    contrast: float | None = None  # factor on the distance from the mean
    # share of the voxels per axis that the patch is reduced to and enlarged from again
    zoom: float | None = None
    gamma_inverted: float | None = None  # exponent applied to the negated image
    gamma: float | None = None
    mirror: tuple[int, ...] = ()  # axes to flip, 0 is z
    extra: int | None = None  # seed of the transforms of `data.augmentation.extra`


class Boxes(NamedTuple):
    """What a patch is made from: all that its augmentation needs, on any device."""

    image: Tensor  # `(Z, Y, X)` float32 of the box that was read, normalised
    label: Tensor  # the same of uint8
    grid: Tensor | None  # where in the box the patch's voxels come from, see `sampling_grid`
    drawn: Augmentation


def draw_augmentation(rng: Generator, settings: Mapping[str, Any]) -> Augmentation:
    """Draw what happens to one patch; equal generators give equal augmentations.

    `settings` is `cfg.data.augmentation`: a section per transform, with its `probability` (and
    `channel_probability`: with one channel, a second chance to be left alone) and ranges.

    Reference: method section 7, nnU-Net's "moreDA".
    """

    def section(name: str) -> Mapping[str, Any] | None:
        """The settings of a transform if it happens."""
        values = settings[name]
        chance = values["probability"] * values.get("channel_probability", 1)
        return values if rng.random() < chance else None

    two_d, mirror = bool(settings["dummy_2d"]), settings["mirror"]
    return Augmentation(
        rotation=_rotation(rng, rotation, two_d) if (rotation := section("rotation")) else None,
        scale=_around_one(rng, scaling["range"]) if (scaling := section("scaling")) else None,
        elastic=_elastic(rng, elastic, two_d) if (elastic := section("elastic")) else None,
        noise=Noise(rng.uniform(*noisy["std"]), int(rng.integers(SEEDS)))
        if (noisy := section("noise"))
        else None,
        blur=rng.uniform(*blur["sigma"]) if (blur := section("blur")) else None,
        brightness=rng.uniform(*bright["range"]) if (bright := section("brightness")) else None,
        contrast=_around_one(rng, contrast["range"]) if (contrast := section("contrast")) else None,
        zoom=rng.uniform(*low["zoom"]) if (low := section("low_resolution")) else None,
        gamma_inverted=_around_one(rng, gamma["range"]) if (gamma := section("gamma_inverted")) else None,
        gamma=_around_one(rng, gamma["range"]) if (gamma := section("gamma")) else None,
        mirror=tuple(AXES.index(axis) for axis in mirror["axes"] if rng.random() < mirror["probability"]),
        extra=int(rng.integers(SEEDS)) if settings.get("extra") else None,
    )


def _rotation(rng: Generator, rotation: Mapping[str, Any], two_d: bool) -> tuple[float, float, float]:
    """Draw degrees about z, y, x; in two dimensions about z alone."""
    most = rotation["degrees_2d" if two_d else "degrees"]
    z, y, x = (rng.uniform(-most, most), 0.0, 0.0) if two_d else rng.uniform(-most, most, size=3).tolist()
    return (z, y, x)


def _elastic(rng: Generator, elastic: Mapping[str, Any], two_d: bool) -> spatial.Elastic:
    """Draw the strength and smoothness of a displacement, and the seed of its noise."""
    alpha = rng.uniform(*elastic["alpha_2d" if two_d else "alpha"])
    return spatial.Elastic(alpha, rng.uniform(*elastic["sigma"]), int(rng.integers(SEEDS)))


def _around_one(rng: Generator, limits: Sequence[float]) -> float:
    """Draw below or above 1 with equal chance, uniformly within that half, as nnU-Net does."""
    low, high = limits
    if low < 1 < high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return rng.uniform(low, high)


@dataclass(frozen=True)
class Augmenter:
    """Applies the augmentation of training patches, by `PatchSettings.augmentation`.

    Patch size and spacing (mm) are along Z, Y, X. What `extra` names and is no transform is refused.
    """

    patch_size: Shape
    settings: Mapping[str, Any]
    spacing_mm: Spacing = (1.0, 1.0, 1.0)
    extra: tuple[Transform, ...] = field(init=False)

    def __post_init__(self) -> None:
        built = []
        for index, given in enumerate(self.settings.get("extra") or ()):
            key = f"data.augmentation.extra[{index}]"
            built.append(build_part(given, key, _convert_="all"))
            if not isinstance(built[-1], Transform):
                raise FlareError(f"{key}: {given['_target_']} is no transform of TorchIO")
        if built and self.settings.get("device") == "gpu":
            raise FlareError("data.augmentation.device=gpu: TorchIO's transforms need cpu; expected extra=[]")
        object.__setattr__(self, "extra", tuple(built))

    def apply(self, read: BoxReader, drawn: Augmentation) -> tuple[Tensor, Tensor]:
        """Read what a patch needs and augment it; without a spatial transform nothing is resampled.

        `read` gives the normalised image and the labels of a box, which may leave the volume. The result is a
        float32 image and uint8 labels, `(Z, Y, X)` of the patch's size.
        """
        return self.augment(self.read(read, drawn))

    def read(self, read: BoxReader, drawn: Augmentation) -> Boxes:
        """Read what a patch is made from, and say where in it the patch's voxels come from."""
        grid = spatial.sampling_grid(drawn, self.patch_size, dummy_2d=self.settings["dummy_2d"])
        lower, upper = (0, 0, 0), self.patch_size
        if grid is not None:
            is_cubic = self.settings["image_interpolation"] == "cubic"
            lower, upper = spatial.source_box(grid, self.patch_size, cubic=is_cubic)
            grid -= torch.tensor(lower[-len(grid) :]).view(-1, *[1] * (grid.ndim - 1))
        image, label = map(torch.from_numpy, read(lower, upper))
        return Boxes(image, label, grid, drawn)

    def augment(self, boxes: Boxes) -> tuple[Tensor, Tensor]:
        """Augment a patch on the device where its boxes are."""
        image, label, grid, drawn = boxes
        if grid is not None:
            image = spatial.resample_image(image, grid, self.settings["image_interpolation"])
            label = spatial.resample_label(label, grid, self.settings["label_interpolation"])
        image = change_intensity(image, drawn, dummy_2d=self.settings["dummy_2d"]).flip(drawn.mirror)
        label = label.flip(drawn.mirror)
        return (image, label) if drawn.extra is None else self._apply_extra(image, label, drawn.extra)

    def _apply_extra(self, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Apply the transforms of `extra`, in TorchIO's order of axes (x, y, z) and in millimetres."""
        affine = np.diag([*self.spacing_mm[::-1], 1.0])
        subject = tio.Subject(
            image=tio.ScalarImage(tensor=image.permute(2, 1, 0)[None].contiguous(), affine=affine),
            label=tio.LabelMap(tensor=label.permute(2, 1, 0)[None].contiguous(), affine=affine),
        )
        # they draw from the global generators, which others use, too
        with isolate_rng(include_cuda=False):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            for transform in self.extra:
                subject = transform(subject)
        changed, ids = (subject[name].data[0].permute(2, 1, 0) for name in ("image", "label"))
        if changed.shape != image.shape or ids.shape != image.shape:
            raise FlareError(
                f"data.augmentation.extra: gives {tuple(changed.shape)} voxels, expected {tuple(image.shape)}"
            )
        return changed.float(), ids.to(label.dtype)


def change_intensity(image: Tensor, drawn: Augmentation, *, dummy_2d: bool) -> Tensor:
    """Apply the transforms of `(Z, Y, X)` that leave the anatomy where it is; in `dummy_2d` z stays sharp."""
    if drawn.noise is not None:
        generator = torch.Generator(image.device).manual_seed(drawn.noise.seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = torch.add(image, noise, alpha=drawn.noise.std)
    if drawn.blur is not None:
        image = spatial.smooth(image, drawn.blur, dimensions=3, border="reflect")
    if drawn.brightness is not None:
        image = image * drawn.brightness
    if drawn.contrast is not None:
        image = scale_contrast(image, drawn.contrast)
    if drawn.zoom is not None:
        image = lower_resolution(image, drawn.zoom, keep_z=dummy_2d)
    if drawn.gamma_inverted is not None:
        image = -apply_gamma(-image, drawn.gamma_inverted)
    if drawn.gamma is not None:
        image = apply_gamma(image, drawn.gamma)
    return image


def scale_contrast(image: Tensor, factor: float) -> Tensor:
    """Scale the distance from the mean; what leaves the former range is clipped to it."""
    limits = map(float, image.aminmax())  # with tensors `clamp` takes ten times as long
    return (image * factor).add_(image.mean() * (1 - factor)).clamp_(*limits)


def apply_gamma(image: Tensor, gamma: float) -> Tensor:
    """Raise the image, scaled to [0, 1], to a power, and give it back its mean and deviation."""
    lowest, highest = map(float, image.aminmax())
    mean = image.mean()
    changed = (image - lowest).mul_(1 / (highest - lowest + 1e-7))
    changed.log_().mul_(gamma).exp_()  # `pow` takes three times as long
    changed.sub_(changed.mean())
    # of sums of squares: torch's `std` takes ten times as long
    before, after = (
        torch.linalg.vector_norm(part) / image.numel() ** 0.5 for part in (image - mean, changed)
    )
    return changed.mul_(before / (after + 1e-8)).add_(mean)


def lower_resolution(image: Tensor, zoom: float, *, keep_z: bool) -> Tensor:
    """Reduce by nearest neighbour and enlarge again by a cubic spline, within the range of what is left.

    `zoom` is the share of the voxels of an axis that remain in between; with `keep_z` all slices remain.
    """
    axes = range(int(keep_z), 3)
    reduced = image
    for axis in axes:
        size = image.shape[axis]
        small = max(1, round(size * zoom))
        nearest = np.floor((np.arange(small) + 0.5) * size / small)
        reduced = reduced.index_select(axis, torch.from_numpy(nearest.astype(int)).to(image.device))
    enlarged = reduced
    for axis in axes:
        # splines are linear in their data: what one makes of the unit vectors is all that it does
        units = np.eye(reduced.shape[axis], dtype=np.float32)
        factors = (image.shape[axis] / reduced.shape[axis], 1)
        matrix = ndimage.zoom(units, factors, order=3, mode="nearest", grid_mode=True)
        enlarged = spatial.apply_along(enlarged, axis, matrix)
    return enlarged.clamp(*map(float, reduced.aminmax()))
