"""The chunked compressed store: images once, labels once a round, patches read without their volume."""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import IGNORE
from flare.core.errors import CaseError, NoRoomError
from flare.core.files import atomic
from flare.core.geometry import Geometry, Shape, Spacing, Volume, orientation_to, reorient_to_ras
from flare.core.preprocessing import Preprocessed, preprocess, resample, resample_classes, separate_axis

# blosc2 imports numexpr, which would tell the console how many threads it may use
logging.getLogger("numexpr").setLevel(logging.WARNING)
import blosc2  # noqa: E402  after its logger is quiet

CHUNKS = (16, 128, 128)  # voxels compressed into one chunk (ours, see docs/benchmarks.md)
BLOCKS = (8, 32, 32)  # voxels that can be read on their own (ours)
COMPRESSION_LEVEL = 1  # Zstandard's; more saves under 2 % of size and costs several times the time (ours)
FOREGROUND_SAMPLES = 10_000  # voxels kept per class for patches centred on foreground (as nnU-Net)
META, FOREGROUND = "flare", "foreground-{}"  # what is kept with an array


@dataclass(frozen=True)
class Stored:
    """An array on disk, read piece by piece: it opens (0.1 ms) at the first read, and pickles as its path."""

    path: Path

    @cached_property
    def _array(self) -> Any:
        # one thread: readers run in many worker processes already
        return blosc2.open(str(self.path), mode="r", dparams={"nthreads": 1})

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    @property
    def shape(self) -> Shape:
        """Voxels along Z, Y, X."""
        return tuple(self._array.shape)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What was stored with the array."""
        return dict(self._array.schunk.vlmeta[META])

    def __getitem__(self, piece: tuple[slice, ...] | slice) -> np.ndarray:
        """Read a piece; only the blocks it touches are decompressed."""
        return np.asarray(self._array[piece])

    @property
    def foreground_classes(self) -> tuple[int, ...]:
        """Ids of the classes that a label array holds, ascending."""
        return tuple(self.meta.get("foreground", ()))

    def foreground(self, class_id: int) -> np.ndarray:
        """Voxels `(N, 3)` of one of `foreground_classes`, as `sample_foreground` has drawn them."""
        packed = self._array.schunk.vlmeta[FOREGROUND.format(class_id)]
        return np.frombuffer(packed, dtype=np.uint16).reshape(-1, 3).astype(np.int64)


def read_box(
    stored: Stored, lower: Shape, upper: Shape, convert: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Read a box of a volume, from a first voxel to the one after the last; outside of the volume it is 0.

    `convert` is applied to the voxels read, before zeros are set around them: 0 is then the cohort's mean.
    """
    first, last = (np.clip(corner, 0, stored.shape).tolist() for corner in (lower, upper))
    values = convert(stored[tuple(map(slice, first, last))])
    size = tuple(np.subtract(upper, lower).tolist())
    if values.shape == size:
        return values
    box = np.zeros(size, dtype=values.dtype)
    box[tuple(slice(f - a, n - a) for a, f, n in zip(lower, first, last, strict=True))] = values
    return box


def store_array(
    path: Path,
    array: np.ndarray,
    meta: dict[str, Any] | None = None,
    foreground: dict[int, np.ndarray] | None = None,
) -> None:
    """Write an array `(Z, Y, X)` in compressed chunks, whole or not at all, to a file (`.b2nd`).

    Plain values `meta` and voxels of `sample_foreground` are kept with it. A full disk is a `NoRoomError`.
    """
    chunks = np.minimum(CHUNKS, array.shape).clip(min=1).tolist()
    blocks = np.minimum(BLOCKS, chunks).tolist()
    foreground = foreground or {}
    os.environ["BLOSC_NTHREADS"] = "1"  # it counts more than `nthreads`; several threads store in any order
    with atomic(Path(path)) as temporary:
        try:
            stored = blosc2.asarray(
                np.ascontiguousarray(array),
                urlpath=str(temporary),
                mode="w",
                chunks=chunks,
                blocks=blocks,
                cparams={
                    "codec": blosc2.Codec.ZSTD,
                    "clevel": COMPRESSION_LEVEL,
                    "filters": [blosc2.Filter.SHUFFLE],
                    "filters_meta": [0],
                    "nthreads": 1,  # cases are spread over processes
                },
                dparams={"nthreads": 1},  # stored in the header: the same bytes on any machine
            )
            extra = {"foreground": sorted(foreground)} if foreground else {}
            stored.schunk.vlmeta[META] = {**(meta or {}), **extra}
            for class_id, voxels in sorted(foreground.items()):
                stored.schunk.vlmeta[FOREGROUND.format(class_id)] = voxels.astype(np.uint16).tobytes()
        except RuntimeError as error:
            raise NoRoomError(f"{path.name} cannot be written ({error}): is the disk full?") from None


def cache_image(image: Volume, path: Path, *, spacing_mm: Spacing, interpolation: str, case_id: str) -> None:
    """Store a CT (HU, any voxel order) as the network's grid has it: RAS order, resampled, int16 HU.

    `spacing_mm` is along Z, Y, X, `interpolation` `linear`, `cubic` or `nnunet`. The CT's own grid is kept.
    """
    done = preprocess(image, spacing_mm, interpolation)
    grid = {"spacing_mm": list(map(float, spacing_mm)), "interpolation": interpolation}
    store_array(path, done.array, {"case": case_id, **grid, "geometry": asdict(done.geometry)})


def read_preprocessed(path: Path, spacing_mm: Spacing, interpolation: str) -> Preprocessed | None:
    """Read a cached image as `preprocess` gives it, to the bit; None at another spacing or interpolation."""
    stored = Stored(path)
    if (stored.meta["spacing_mm"], stored.meta["interpolation"]) != (list(spacing_mm), interpolation):
        return None
    return Preprocessed(stored[:], _geometry(stored))


def _geometry(stored: Stored) -> Geometry:
    """A cached image's own grid, in the file's voxel order."""
    return Geometry(**{name: tuple(values) for name, values in stored.meta["geometry"].items()})


def cache_labels(
    labels: Volume,
    path: Path,
    *,
    image: Path,
    case_id: str,
    interpolation: str = "nearest",
    ignore: np.ndarray | None = None,
) -> None:
    """Store a label map of any round on the grid of its cached image, with sampled foreground voxels.

    The cached image, not the label file's header, decides the size, so that headers which differ in the last
    digit cannot give arrays one voxel apart; a map of another size refuses the case. `labels` are class ids
    in any voxel order; `interpolation` is `nearest`, or `nnunet` as in `resample_classes`; the boolean
    `ignore` marks voxels that training leaves out, a voxel of the grid by the nearest one.
    """
    grid = Stored(image)
    ras, order = reorient_to_ras(labels)
    own = _geometry(grid)
    expected = orientation_to(own).apply_geometry(own).shape
    if ras.array.shape != expected:
        given = f"labels of size {ras.array.shape} for an image of size {expected} (z, y, x, RAS)"
        raise CaseError(case_id, given)
    if interpolation == "nnunet":
        apart = separate_axis(ras.geometry.spacing_mm, tuple(grid.meta["spacing_mm"]))
        array = resample_classes(ras.array, grid.shape, separate_axis=apart)
    else:
        array = resample(ras.array, grid.shape, "nearest").astype(np.uint8)
    if ignore is not None:
        array[resample(order.apply(ignore), grid.shape, "nearest")] = IGNORE
    meta = {"case": case_id, "spacing_mm": grid.meta["spacing_mm"]}
    store_array(path, array, meta, sample_foreground(array, FOREGROUND_SAMPLES))


def sample_foreground(labels: np.ndarray, samples: int) -> dict[int, np.ndarray]:
    """Draw at most `samples` voxels of each class but `IGNORE`, uniformly, the same for the same array.

    They are `(N, 3)` indices (Z, Y, X) by class id, in scan order, and all of a class where it has no more.
    """
    where = np.flatnonzero((labels != 0) & (labels != IGNORE))
    values = labels.reshape(-1)[where]
    drawn = {}
    for class_id in np.unique(values).tolist():
        voxels = where[values == class_id]
        if len(voxels) > samples:
            chosen = np.random.default_rng(class_id).choice(len(voxels), samples, replace=False)
            voxels = voxels[np.sort(chosen)]
        drawn[class_id] = np.stack(np.unravel_index(voxels, labels.shape), axis=1)
    return drawn
