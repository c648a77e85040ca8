"""Resampling of arrays with the voxel extents aligned: the same function for training and inference."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flare.core.classes import IGNORE
from flare.core.errors import FlareError
from flare.core.geometry import Geometry, Orientation, Shape, Spacing, Volume, orientation_to

ORDERS = ("linear", "cubic", "nnunet", "nearest")
ANISOTROPY = 3.0  # nnU-Net's rule: beyond this ratio of spacings the slices are resampled apart
ROUNDING = 1e-5  # a share of one half, in float32


def _nearest(size: int, wanted: int) -> np.ndarray:
    """The voxel, of `size`, that holds each of `wanted` voxel centres; both span the same extent."""
    return np.minimum(((np.arange(wanted) + 0.5) * size / wanted).astype(int), size - 1)


@dataclass(frozen=True)
class Axis:
    """How the wanted voxels along an axis lie among those of a box of maps."""

    span: slice  # the wanted voxels whose nearest voxel lies in the box
    lower: np.ndarray  # for each of them the voxel of the box before it
    upper: np.ndarray  # the one after it; the same one where nothing is interpolated
    weight: np.ndarray  # the upper voxel's weight, float32
    nearest: np.ndarray  # the nearest voxel of the box

    @classmethod
    def between(cls, size: int, wanted: int, interval: tuple[int, int], *, linear: bool) -> "Axis":
        """Match maps of a size to as many voxels as wanted, of the same extent.

        The box is an interval of the maps, whose edge goes on outside. Without `linear` the nearest counts.
        """
        lower = upper = nearest = _nearest(size, wanted)
        weight = np.zeros(wanted, np.float32)
        span = slice(*np.searchsorted(nearest, interval).tolist())
        if linear:
            position = np.maximum((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0)
            lower = np.minimum(position.astype(int), size - 1)
            upper, weight = np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32)
        low, high = interval[0], interval[1] - 1
        lower, upper, nearest = (np.clip(source[span], low, high) - low for source in (lower, upper, nearest))
        return cls(span, lower, upper, weight[span], nearest)

    def __len__(self) -> int:
        return len(self.lower)

    def reach(self, first: int, last: int) -> slice:
        """Give the part of the span that sees any of the voxels `first` to `last` of the box."""
        return slice(
            int(np.searchsorted(self.upper, first)), int(np.searchsorted(self.lower, last, side="right"))
        )


def resampled_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Voxels after resampling: `round(size x spacing / target)`, half to even, at least one."""
    sizes = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
    return tuple(sizes)  # type: ignore[return-value]


def resample(array: np.ndarray, shape: Shape, order: str, *, separate_axis: int | None = 0) -> np.ndarray:
    """Resample to a shape with the voxel *extents* aligned: half-voxel centres (method section 5).

    The order is `linear` (trilinear, torch's `align_corners=False`), `cubic` (spline of order 3 on every
    axis), `nearest`, or `nnunet`: nearest along the separate axis of anisotropic data and cubic in its
    planes, or cubic on every axis where nnU-Net's rule for anisotropy does not hold and it is None. The
    result is `(Z, Y, X)` float32; for `nearest` of the input's type.
    """
    if order not in ORDERS:
        raise FlareError(f"data.interpolation: expected one of {list(ORDERS)}, given {order!r}")
    if order == "nearest":
        return array[np.ix_(*map(_nearest, array.shape, shape))]
    if tuple(array.shape) == tuple(shape):
        return array.astype(np.float32)
    if order == "linear":
        return _linear(array, shape)
    if order == "nnunet" and separate_axis is not None:
        in_plane = tuple(size for axis, size in enumerate(shape) if axis != separate_axis)
        planes = np.moveaxis(array, separate_axis, 0)
        chosen, places = np.unique(_nearest(len(planes), shape[separate_axis]), return_inverse=True)
        smooth = np.stack([_cubic(planes[z].astype(np.float32), in_plane) for z in chosen])[places]
        return np.ascontiguousarray(np.moveaxis(smooth, 0, separate_axis))
    return _cubic(array.astype(np.float32), shape)


def _linear(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Interpolate along x, y and z in turn, a slice at a time, so that no float32 copy of the array is made.

    The result is that of torch's `interpolate` (trilinear, `align_corners=False`), to the last bit on CPUs
    that multiply and add in one step.
    """
    import torch

    below, above, weight = _neighbours(array.shape[0], shape[0])
    rows, columns = (_neighbours(*sizes) for sizes in zip(array.shape[1:], shape[1:], strict=True))

    def mean(first: Any, second: Any, share: Any) -> Any:
        return torch.addcmul(second * share, first, 1 - share)

    def in_plane(plane: np.ndarray) -> Any:
        maps = torch.from_numpy(np.ascontiguousarray(plane, np.float32))
        for axis, (lower, upper, share) in ((1, columns), (0, rows)):
            first, second = (maps.index_select(axis, torch.from_numpy(source)) for source in (lower, upper))
            maps = mean(first, second, torch.from_numpy(share if axis else share[:, None]))
        return maps

    planes: dict[int, Any] = {}
    out = np.empty(shape, np.float32)
    for z, (lower, upper) in enumerate(zip(below.tolist(), above.tolist(), strict=True)):
        planes = {i: planes[i] if i in planes else in_plane(array[i]) for i in (lower, upper)}
        out[z] = mean(planes[lower], planes[upper], torch.tensor(weight[z])).numpy()
    return out


def _neighbours(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The voxels of `size` around each of `wanted` voxel centres, and the share of the upper, float32."""
    scale = np.float64(np.float32(size) / np.float32(wanted))  # rounded where torch rounds
    position = np.maximum(((np.arange(wanted) + 0.5) * scale - 0.5).astype(np.float32), 0)
    lower = np.minimum(position.astype(int), size - 1)
    return lower, np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32)


def resample_classes(labels: np.ndarray, shape: Shape, *, separate_axis: int | None = 0) -> np.ndarray:
    """Resample a uint8 label map as nnU-Net does: each class linearly, set where it reaches one half.

    Along the separate axis the nearest slice is taken; None interpolates along all three. Where two classes
    reach one half the higher id stands, where none does there is background (`resize_segmentation` of order 1
    and `order_z` 0 in nnU-Net 1.7).
    """
    if separate_axis is not None:
        chosen = _nearest(labels.shape[separate_axis], shape[separate_axis])
        labels = np.take(labels, chosen, axis=separate_axis)
    return settle_classes(
        np.unique(labels).tolist(),
        lambda value: resample((labels == value).astype(np.float32), shape, "linear"),
        half=0.5 - ROUNDING,
    )


def settle_classes(values: Iterable[int], share: Callable[[int], np.ndarray], *, half: float) -> np.ndarray:
    """Choose for each voxel the value whose share reaches `half`: of several the highest, else background.

    Values are class ids, 0 and `IGNORE`, ascending; `share` gives how much of each voxel one has. A voxel is
    `IGNORE` where the result depends on what is ignored: where no class reaches one half, and one would with
    the ignored share added to its own (ours). So no class comes from there, and a thin one beside it stays.
    """
    found, most = np.zeros((), np.uint8), np.zeros((), np.float32)
    for value in values:
        part = share(value)
        reaches = part >= half if value != IGNORE else (found == 0) & (most + part >= half)
        found = np.where(reaches, np.uint8(value), found)
        most = np.maximum(most, part) if value else most
    return found


def without_ignored(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps with background in both where the reference has `IGNORE`: such voxels score nothing.

    Surfaces that end there end in both, so that a class that is right around them keeps its NSD (ours).
    """
    counts = reference != IGNORE
    return (reference, other) if counts.all() else (reference * counts, other * counts)


def _cubic(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Spline of order 3, edges repeated, not beyond the range of the input (as nnU-Net's resize)."""
    from scipy import ndimage

    grid = np.meshgrid(
        *((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(array.shape, shape, strict=True)), indexing="ij"
    )
    out = ndimage.map_coordinates(array, grid, order=3, mode="nearest", output=np.float32)
    return np.clip(out, array.min(), array.max())


@dataclass(frozen=True)
class Intensity:
    """Foreground statistics of the training cohort, in HU (paper section 2.1)."""

    lower: float  # 0.5 percentile; what lies below is clipped
    upper: float  # 99.5 percentile
    mean: float  # mean before clipping
    std: float  # standard deviation (ddof 0) before clipping

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "Intensity":
        """Build from plain values, as stored in `statistics.json` and in checkpoints."""
        return cls(*(float(values[k]) for k in ("lower", "upper", "mean", "std")))

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Preprocessed:
    """A case on the network's grid, and the way back."""

    array: np.ndarray  # `(Z, Y, X)` int16, whole HU, RAS voxel order, at the training spacing
    geometry: Geometry  # the case's own grid, in the file's voxel order

    @property
    def orientation(self) -> Orientation:
        """From the file's voxel order to RAS; `invert` goes back."""
        return orientation_to(self.geometry)

    @property
    def ras(self) -> Geometry:
        """The case's own grid in RAS voxel order, before resampling."""
        return self.orientation.apply_geometry(self.geometry)

    @property
    def grid(self) -> Geometry:
        """The network's grid in space, whose extent is that of `ras`."""
        ras, shape = self.ras, self.array.shape
        steps = [have / want for have, want in zip(ras.shape, shape, strict=True)]
        z, y, x = (step * spacing for step, spacing in zip(steps, ras.spacing_mm, strict=True))
        first, second, third = ras.to_mm([(step - 1) / 2 for step in steps]).tolist()
        return Geometry(shape, (z, y, x), (first, second, third), ras.direction)


def preprocess(volume: Volume, spacing_mm: Spacing, order: str) -> Preprocessed:
    """Reorient to RAS and resample a CT in HU, as `resample` does (paper section 2.1; method section 5).

    The result is rounded to whole HU, which is what the cache stores, so that training and inference see
    the same numbers; the error (0.3 HU rms) is far below the noise of CT (ours).
    """
    orientation = orientation_to(volume.geometry)
    ras = orientation.apply_geometry(volume.geometry)
    shape = resampled_shape(ras.shape, ras.spacing_mm, spacing_mm)
    apart = separate_axis(ras.spacing_mm, spacing_mm)
    array = resample(orientation.apply(volume.array), shape, order, separate_axis=apart)
    limits = np.iinfo(np.int16)
    np.clip(np.rint(array, out=array), limits.min, limits.max, out=array)  # no copy: scans may be long
    return Preprocessed(array.astype(np.int16), volume.geometry)


def separate_axis(spacing_mm: Spacing, target_mm: Spacing) -> int | None:
    """The axis along which nnU-Net takes the nearest slice: the coarsest one of the anisotropic spacing.

    The spacing before resampling is asked first, the one after it second (nnU-Net 1.7 `resample_patient`). It
    is 0, 1 or 2 for Z, Y, X; None if neither is anisotropic or two axes are equally coarse.
    """
    for spacing in (spacing_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarsest = [axis for axis in range(3) if spacing[axis] == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def normalise(array: np.ndarray, intensity: Intensity) -> np.ndarray:
    """Clip HU to the cohort's percentiles, subtract its mean, divide by its standard deviation; float32."""
    clipped = array.astype(np.float32)
    np.clip(clipped, intensity.lower, intensity.upper, out=clipped)
    clipped -= np.float32(intensity.mean)
    clipped /= np.float32(max(intensity.std, 1e-8))
    return clipped
