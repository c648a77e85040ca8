"""Rotation, scaling and elastic deformation as one grid of coordinates and one resampling."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg, ndimage
from torch import Tensor
from torch.nn import functional as F

from flare.core.geometry import Shape
from flare.core.preprocessing import settle_classes

SPLINE_REACH = 6  # voxels beyond the grid after which a cubic spline no longer feels where the box ends


@dataclass(frozen=True)
class Elastic:
    """A displacement: uniform noise in [-1, 1], smoothed by a Gaussian of `sigma`, times `alpha`, voxels."""

    alpha: float
    sigma: float
    seed: int


@dataclass(frozen=True)
class Move:
    """How the coordinates of a patch are moved; `None` where they are not."""

    rotation: tuple[float, float, float] | None = None  # degrees about z, y and x
    scale: float | None = None  # factor on the coordinates; above 1 the anatomy shrinks
    elastic: Elastic | None = None  # displacement of the coordinates


def sampling_grid(drawn: Move, patch_size: Shape, *, dummy_2d: bool) -> Tensor | None:
    """Say where each voxel of the augmented patch comes from.

    The displacement comes first, then rotation about the centre of the patch, then the factor of the scaling,
    as in nnU-Net. With `dummy_2d` the same in-plane grid serves all slices. Voxel coordinates count from the
    first voxel of the patch before augmentation: `(2, Y, X)` or `(3, Z, Y, X)`; None if nothing moves.
    """
    if drawn.rotation is None and drawn.scale is None and drawn.elastic is None:
        return None
    shape = patch_size[1:] if dummy_2d else patch_size
    centre = torch.tensor([(n - 1) / 2 for n in shape]).view(-1, *[1] * len(shape))
    grid = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in shape], indexing="ij")) - centre
    if drawn.elastic is not None:
        grid += displacement(drawn.elastic, shape)
    matrix = torch.from_numpy(_linear_part(drawn)[-len(shape) :, -len(shape) :].copy())
    return torch.tensordot(matrix, grid, dims=1) + centre


def displacement(elastic: Elastic, shape: tuple[int, ...]) -> Tensor:
    """Smooth noise (0 outside the patch) and multiply it; two or three axes, `(axes, *shape)` voxels.

    Reference: nnU-Net 1.7 (batchgenerators `elastic_deform_coordinates`).
    """
    generator = torch.Generator().manual_seed(elastic.seed)
    noise = torch.rand(len(shape), *shape, generator=generator) * 2 - 1
    return smooth(noise, elastic.sigma, dimensions=len(shape), border="constant") * elastic.alpha


def smooth(array: Tensor, sigma: float, *, dimensions: int, border: str) -> Tensor:
    """Apply a Gaussian along the last `dimensions` axes, exactly as `scipy.ndimage.gaussian_filter` does.

    The filter of each axis is a small matrix, so that the cost does not grow with sigma (voxels). Beyond its
    ends the array goes on by `border`: `constant` (0) or `reflect`.
    """
    for axis in range(array.ndim - dimensions, array.ndim):
        units = np.eye(array.shape[axis])
        if border == "constant":  # the same weights around each voxel
            matrix = linalg.toeplitz(ndimage.gaussian_filter1d(units[0], sigma, mode=border))
        else:
            matrix = ndimage.gaussian_filter1d(units, sigma, axis=0, mode=border)
        array = apply_along(array, axis, matrix)
    return array


def apply_along(array: Tensor, axis: int, matrix: np.ndarray) -> Tensor:
    """Multiply every line of a float32 array along one axis by a matrix `(n, array.shape[axis])`."""
    # a filter's tails reach numbers so small that a processor takes thirty times as long for the product
    weights = np.where(np.abs(matrix) < 1e-12, 0, matrix).astype(np.float32)
    factor = torch.from_numpy(weights).to(array.device)
    if axis == array.ndim - 1:
        return array @ factor.T
    product: Tensor = factor @ array.flatten(axis + 1)
    return product.unflatten(-1, array.shape[axis + 1 :])


def source_box(grid: Tensor, patch_size: Shape, *, cubic: bool) -> tuple[Shape, Shape]:
    """Find the voxels that a grid touches, so that no others need be read; a `cubic` spline reaches further.

    Gives the first voxel and the one after the last, along Z, Y, X, counted from the patch's first voxel.
    """
    reach = SPLINE_REACH if cubic else 0
    lowest, highest = grid.flatten(1).aminmax(dim=1)
    *above, y, x = (int(v) - reach for v in lowest.floor())
    *below, y_end, x_end = (int(v) + 1 + reach for v in highest.ceil())
    return (above[0] if above else 0, y, x), (below[0] if below else patch_size[0], y_end, x_end)


def resample_image(image: Tensor, grid: Tensor, interpolation: str) -> Tensor:
    """Interpolate an image `(Z, Y, X)` float32, `linear` or `cubic` (spline), on a grid that lies within it.

    The grid holds voxel coordinates in the image, `(2, Y, X)` for all slices alike or `(3, Z, Y, X)`.
    """
    return _sample_spline(image, grid) if interpolation == "cubic" else _sample_linear(image, grid)


def resample_label(label: Tensor, grid: Tensor, interpolation: str) -> Tensor:
    """Resample a label map `(Z, Y, X)` uint8 as `resample_image`; no class appears that was not there.

    The interpolation is `nearest`, or `linear`: each class on its own, see `settle_classes`.
    """
    if interpolation == "linear":
        found = settle_classes(
            label.unique().tolist(),
            lambda value: resample_image((label == value).float(), grid, "linear").cpu().numpy(),
            half=0.5,
        )
        return torch.from_numpy(found).to(label.device)
    flat = torch.zeros(grid.shape[1:], dtype=torch.int32, device=label.device)
    for places, size in zip(grid, label.shape[-len(grid) :], strict=True):
        flat.mul_(size).add_(places.round().int())
    lines = label.reshape(label.shape[0] if len(grid) == 2 else 1, -1)
    resampled = label.new_empty(len(lines), flat.numel())
    for line, row in zip(lines, resampled, strict=True):  # torch is slow at several at once
        torch.index_select(line, 0, flat.view(-1), out=row)
    return resampled.view(-1, *grid.shape[-2:])


def _sample_linear(image: Tensor, grid: Tensor) -> Tensor:
    """Interpolate linearly; the slices are the channels of one image where they share the grid.

    In space the slices on both sides are the channels of one tall image of all slices, which torch samples
    ten times as fast as a volume. Its rows are numbered through: of 8000, float32 tells 5e-4.
    """
    if len(grid) == 3:
        depth, height, width = image.shape
        first = grid[0].floor().clamp(0, max(depth - 2, 0))
        step = height * width if depth > 1 else 0
        pairs = image.contiguous().as_strided((2, max(depth - 1, 1) * height, width), (step, width, 1))
        places = torch.stack((first * height + grid[1], grid[2])).flatten(1, 2)
        above, below = _sample_linear(pairs, places).view(2, *grid.shape[1:])
        return torch.lerp(above, below, grid[0] - first)
    size = torch.tensor(image.shape[1:], device=image.device).view(2, 1, 1)
    # grid_sample wants x first, in [-1, 1] from the outer edge of the first voxel to that of the last
    places = (2 * grid).add_(1).div_(size).sub_(1).flip(0).movedim(0, -1)[None]
    return F.grid_sample(image[None], places, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _sample_spline(image: Tensor, grid: Tensor) -> Tensor:
    """Interpolate by a cubic B-spline, from two linear interpolations per axis.

    The four weights of an axis are positive, so each pair of neighbours is one linear interpolation at a
    shifted place: 4 in plane instead of 16 neighbours, 8 instead of 64 in space.

    Reference: Sigg and Hadwiger, Fast Third-Order Texture Filtering, GPU Gems 2, chapter 20.
    """
    for axis in range(3 - len(grid), 3):
        image = apply_along(image, axis, ndimage.spline_filter1d(np.eye(image.shape[axis]), 3, axis=0))
    first = grid.floor()
    after = grid - first
    left, right = (1 - after) ** 3 / 6, after**3 / 6
    lower = left + (4 - 6 * after**2 + 3 * after**3) / 6  # all four weights together are 1
    weights = (lower, 1 - lower)
    places = (first - left / lower, first + 1 + right / weights[1])
    result = torch.zeros((), device=image.device)
    for sides in itertools.product((0, 1), repeat=len(grid)):
        weight = torch.stack([weights[side][axis] for axis, side in enumerate(sides)]).prod(0)
        place = torch.stack([places[side][axis] for axis, side in enumerate(sides)])
        result = result + weight * _sample_linear(image, place)
    return result


def _linear_part(drawn: Move) -> np.ndarray:
    """Rotation and scale as a `(3, 3)` float32 matrix on (z, y, x) coordinates."""
    matrix = np.eye(3)
    for axis, degrees in enumerate(drawn.rotation or (0.0, 0.0, 0.0)):
        first, second = [other for other in range(3) if other != axis]
        plane = np.eye(3)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        plane[first, first] = plane[second, second] = cosine
        plane[first, second], plane[second, first] = -sine, sine
        matrix = plane @ matrix
    return (matrix * (drawn.scale or 1.0)).astype(np.float32)
