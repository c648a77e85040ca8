"""Resampling of arrays with the voxel extents aligned: the same function for training and inference."""

from __future__ import annotations

import numpy as np

from flare.errors import FlareError
from flare.geometry import Shape, Spacing

ORDERS = ("linear", "cubic", "nnunet", "nearest")


def resampled_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Voxels after resampling: `round(size x spacing / target)`, half to even, at least one."""
    sizes = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
    return tuple(sizes)  # type: ignore[return-value]


def resample(array: np.ndarray, shape: Shape, order: str, *, separate_axis: int | None = 0) -> np.ndarray:
    """Resample to a shape with the voxel *extents* aligned (half-voxel centres).

    Args:
        array: `(Z, Y, X)`.
        shape: Wanted size.
        order: `linear` (trilinear), `cubic` (spline of order 3 on every axis), `nnunet` (nearest along
            the axis of anisotropic data, cubic in its planes) or `nearest`.
        separate_axis: For `nnunet` only: that axis; None where nnU-Net's rule for anisotropy does not
            hold, which makes it cubic on every axis.

    Returns:
        `(Z, Y, X)`, float32; for `nearest` of the input's type.

    Raises:
        FlareError: If there is no such order.

    Reference: method section 5; torch's `align_corners=False`.
    """
    if order not in ORDERS:
        raise FlareError(f"data.interpolation: expected one of {list(ORDERS)}, given {order!r}")
    if order == "nearest":
        return array[np.ix_(*(_nearest(n, m) for n, m in zip(array.shape, shape, strict=True)))]
    if tuple(array.shape) == tuple(shape):
        return array.astype(np.float32)
    if order == "linear":
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
        out = torch.nn.functional.interpolate(
            tensor, size=tuple(shape), mode="trilinear", align_corners=False
        )
        return out[0, 0].numpy()
    if order == "nnunet" and separate_axis is not None:
        in_plane = tuple(size for axis, size in enumerate(shape) if axis != separate_axis)
        planes = np.moveaxis(array.astype(np.float32), separate_axis, 0)
        smooth = np.stack([_cubic(plane, in_plane) for plane in planes])
        chosen = smooth[_nearest(array.shape[separate_axis], shape[separate_axis])]
        return np.ascontiguousarray(np.moveaxis(chosen, 0, separate_axis))
    return _cubic(array.astype(np.float32), shape)


def _nearest(size: int, wanted: int) -> np.ndarray:
    """Source index of each of `wanted` voxels whose extents divide those of `size` voxels."""
    return np.minimum(((np.arange(wanted) + 0.5) * size / wanted).astype(int), size - 1)


def _cubic(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Spline of order 3, edges repeated, not beyond the range of the input (as nnU-Net's resize)."""
    from scipy import ndimage

    grid = np.meshgrid(
        *((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(array.shape, shape, strict=True)), indexing="ij"
    )
    out = ndimage.map_coordinates(array, grid, order=3, mode="nearest", output=np.float32)
    return np.clip(out, array.min(), array.max())
