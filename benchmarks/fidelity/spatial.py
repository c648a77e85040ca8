"""5. Augmentation, places: images and labels resampled by ours and batchgenerators, with the same draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from augmentation import SHAPE, image, settings
from batchgenerators.augmentations import spatial_transformations, utils
from rows import BATCHGENERATORS, Row, counted, limited

from flare.data.augment import Augmentation, Augmenter
from flare.data.spatial import Elastic, displacement

CLASSES = np.array([0, 1, 4, 14], dtype=np.uint8)
ORDERS = {"nearest": 0, "linear": 1}
PADDING = 40  # voxels of zeros around the volume of ours, which reads beyond the patch
TWO_D = {
    "rotation 20 degrees": Augmentation((20.0, 0.0, 0.0)),
    "scale 0.83": Augmentation(scale=0.83),  # 0.8 would put every fifth voxel between two: a tie of labels
    "rotation -10 and scale 0.9": Augmentation((-10.0, 0.0, 0.0), 0.9),
    "elastic, rotation 15 and scale 0.9": Augmentation((15.0, 0.0, 0.0), 0.9, Elastic(150.0, 10.0, 4)),
}
THREE_D = {
    **TWO_D,
    "three angles and scale": Augmentation((5.0, -8.0, 12.0), 0.9),
    "elastic, three angles and scale": Augmentation((5.0, -8.0, 12.0), 0.9, Elastic(600.0, 9.0, 4)),
}


def check() -> Iterator[Row]:
    """One resampling of all that was drawn; only what is inside the volume of both is compared."""
    for two_d, cases in ((True, TWO_D), (False, THREE_D)):
        for name, drawn in cases.items():
            yield from _place(f"{name}, dummy_2d={str(two_d).lower()}", drawn, two_d)
    for shape in (SHAPE[1:], SHAPE):
        yield _field(shape)
    yield _mirrored()


@contextmanager
def told(drawn: Augmentation, shape: tuple[int, ...]) -> Iterator[None]:
    """Let the peer draw our noise, the lower end of a range, and the half around 1 in which a scale lies."""
    noise = iter(_noise(drawn.elastic, shape)) if drawn.elastic is not None else iter(())
    half = 0.0 if (drawn.scale or 1.0) < 1 else 0.9
    with (
        mock.patch.object(np.random, "uniform", lambda low=0.0, high=1.0: low),
        mock.patch.object(np.random, "random", lambda size=None: half if size is None else next(noise)),
    ):
        yield


def _noise(elastic: Elastic, shape: tuple[int, ...]) -> np.ndarray:
    """The uniform noise that ours draws, one field an axis."""
    generator = torch.Generator().manual_seed(elastic.seed)
    return torch.rand(len(shape), *shape, generator=generator).numpy()


def _labels(volume: np.ndarray) -> np.ndarray:
    """Four classes of one size, in patches as large as the image's structures."""
    ids: np.ndarray = CLASSES[np.digitize(volume, np.quantile(volume, (0.25, 0.5, 0.75)))]
    return ids


def _place(name: str, drawn: Augmentation, two_d: bool) -> Iterator[Row]:
    """Image by cubic splines, labels by both interpolations."""
    volume = image()
    labels = _labels(volume)
    inner = tuple(n - 2 * m for n, m in zip(SHAPE, (0 if two_d else 12, 12, 16), strict=True))
    for how, order in ORDERS.items():
        mine, ours = _ours(volume, labels, inner, drawn, settings(dummy_2d=two_d, label_interpolation=how))
        peer, theirs = _theirs(volume, labels, inner[1:] if two_d else inner, drawn, order)
        if how == "nearest":
            difference = float(np.abs(mine - peer).max())
            yield limited(f"{name}, largest", BATCHGENERATORS, difference, 1e-3)
        wrong = int((ours != theirs).sum())
        yield counted(f"{name}, labels {how}", BATCHGENERATORS, wrong, ours.size)


def _ours(
    volume: np.ndarray, labels: np.ndarray, inner: Any, drawn: Augmentation, values: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    start = [(n - i) // 2 + PADDING for n, i in zip(SHAPE, inner, strict=True)]
    wide = [np.pad(array, PADDING) for array in (volume, labels)]

    def read(lower: Any, upper: Any) -> tuple[np.ndarray, np.ndarray]:
        box = tuple(slice(s + a, s + b) for s, a, b in zip(start, lower, upper, strict=True))
        return wide[0][box].copy(), wide[1][box].copy()

    mine, ours = Augmenter(inner, values).apply(read, drawn)
    return mine.numpy(), ours.numpy()


def _theirs(
    volume: np.ndarray, labels: np.ndarray, inner: Any, drawn: Augmentation, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slices are channels in two dimensions; angles about its first and third axis count the other way."""
    z, y, x = np.radians(drawn.rotation or (0.0, 0.0, 0.0))
    angles = {f"angle_{axis}": (angle, angle) for axis, angle in zip("xyz", (-z, y, -x), strict=True)}
    scale, elastic = drawn.scale or 1.0, drawn.elastic or Elastic(0.0, 0.0, 0)
    stack = [array[None] if len(inner) == 2 else array[None, None] for array in (volume, labels)]
    with told(drawn, tuple(inner)):
        peer, theirs = spatial_transformations.augment_spatial(
            *stack,
            inner,
            do_elastic_deform=drawn.elastic is not None,
            alpha=(elastic.alpha, elastic.alpha),
            sigma=(elastic.sigma, elastic.sigma),
            do_rotation=drawn.rotation is not None,
            do_scale=drawn.scale is not None,
            scale=(scale, scale),
            border_mode_data="constant",
            order_data=3,
            order_seg=order,
            random_crop=False,
            **angles,
        )
    return (peer[0], theirs[0]) if len(inner) == 2 else (peer[0, 0], theirs[0, 0])


def _field(shape: tuple[int, ...]) -> Row:
    """The displacement alone, over the whole volume."""
    drawn = Augmentation(elastic=Elastic(alpha=150.0, sigma=10.0, seed=4))
    assert drawn.elastic is not None
    with told(drawn, shape):
        peer = utils.elastic_deform_coordinates(np.zeros((len(shape), *shape)), 150.0, 10.0)
    difference = float(np.abs(displacement(drawn.elastic, shape).numpy() - peer).max())
    name = f"elastic displacement from equal noise, {len(shape)} axes, voxels"
    return limited(name, BATCHGENERATORS, difference, 1e-3)


def _mirrored() -> Row:
    """All combinations of axes; labels are flipped with the image and gain no class."""
    volume = image()
    label = _labels(volume)
    wrong = 0
    for number in range(8):
        axes = tuple(a for a in range(3) if number >> a & 1)
        mine = Augmenter(SHAPE, settings()).apply(
            lambda *_: (volume.copy(), label.copy()), Augmentation(mirror=axes)
        )
        with mock.patch.object(np.random, "uniform", return_value=0.0):
            peer = spatial_transformations.augment_mirroring(volume[None].copy(), label[None].copy(), axes)
        wrong += not (np.array_equal(mine[0], peer[0][0]) and np.array_equal(mine[1], peer[1][0]))
    return counted("mirrored image and labels, all 8 combinations", BATCHGENERATORS, wrong, 8)
