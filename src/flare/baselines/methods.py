"""Two methods that learn from annotated cases: HU thresholds, and the vote of aligned atlases (ours).

Thresholds are a window of intensities and a place in the body for each class.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from flare.core.classes import IGNORE
from flare.core.files import read_json
from flare.core.geometry import Spacing, bounding_box
from flare.inference.settings import BodyRule
from flare.inference.windows import find_body
from flare.runs.work import Executor, Outcome, run_cases

BODY = BodyRule(threshold_hu=-500, opening_mm=6, minimum_ml=100)
WINDOW = (10, 90)  # percentiles of a class's HU that make its window
SMOOTHING_MM = 4.0  # noise would break an organ into crumbs
LOWEST_HU, HIGHEST_HU, STEPS = -1024, 3072, 16  # of the histograms: a window is exact to 1/16 HU
Atlas = tuple[np.ndarray, np.ndarray]
SAMPLES = 0.05  # share of voxels that the similarity of atlases is computed on
ITERATIONS = 80
RANGE_HU = (-200, 300)  # what is aligned


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count HU by steps of a histogram: `(N,)` values to the steps that occur, and how often each does."""
    clipped = np.clip(values, LOWEST_HU, HIGHEST_HU)
    return np.unique(np.rint((clipped - LOWEST_HU) * STEPS).astype(np.int64), return_counts=True)


def read_window(histogram: np.ndarray) -> tuple[float, float]:
    """The percentiles `WINDOW` of a histogram, in HU: the lowest values that so many do not exceed."""
    ranks = np.asarray(WINDOW) * histogram.sum() / 100
    low, high = np.searchsorted(np.cumsum(histogram), ranks) / STEPS + LOWEST_HU
    return float(low), float(high)


@dataclass(frozen=True)
class Prior:
    """What the annotated training cases tell of a class."""

    window_hu: tuple[float, float]
    # extent along Z, Y, X as fractions of the body's box, over all cases
    box: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    voxels: float  # mean size, to paint small classes over large ones


def body_box(image: np.ndarray, spacing_mm: Spacing) -> list[tuple[int, int]]:
    """First and last-but-one index of the body along Z, Y, X; of the image where there is none."""
    body = find_body(image, spacing_mm, BODY)
    box = None if body is None else bounding_box(body)
    return [(side.start, side.stop) for side in box] if box else [(0, n) for n in image.shape]


def measure_case(
    image: Path, labels: Path, classes: Sequence[int], spacing_mm: Spacing
) -> dict[int, tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Measure one annotated case for the fit, from its cached HU image and labels.

    Gives, by class, its `(3, 2)` extent along Z, Y, X as fractions of the body's box, and its counted HU.
    """
    from flare.data.cache import Stored  # only the workers need the store

    array, annotated = Stored(image)[:, :, :], Stored(labels)[:, :, :]
    box = np.array(body_box(array, spacing_mm), dtype=float)
    smooth = _smooth(array, spacing_mm)
    found = {}
    for class_id in classes:
        where = np.argwhere(annotated == class_id)
        if len(where):
            extent = np.stack([where.min(0), where.max(0) + 1], axis=1)
            place = (extent - box[:, :1]) / np.ptp(box, axis=1)[:, None]
            found[class_id] = place, count_values(smooth[tuple(where.T)])
    return found


def fit_priors(
    pairs: Mapping[str, tuple[Path, Path]], classes: Sequence[int], spacing_mm: Spacing, executor: Executor
) -> tuple[dict[int, Prior], list[Outcome]]:
    """Learn windows and places from cached HU images and labels, each read once and none kept.

    Returns class id -> prior, for classes that some case has, and the cases that failed; with any, no prior.
    """
    shared = {"classes": list(classes), "spacing_mm": spacing_mm}
    jobs = {case: {"image": i, "labels": known, **shared} for case, (i, known) in pairs.items()}
    size = (HIGHEST_HU - LOWEST_HU) * STEPS + 1
    histograms: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(size, np.int64))
    places: dict[int, list[np.ndarray]] = defaultdict(list)
    failures = []
    for outcome in run_cases(measure_case, jobs, executor=executor, description="fit thresholds"):
        if outcome.error is not None:
            failures.append(outcome)
            continue
        for class_id, (place, (steps, counts)) in outcome.value.items():
            places[class_id].append(place)
            histograms[class_id][steps] += counts
    if failures:
        return {}, failures
    return {c: _prior(places[c], histograms[c]) for c in classes if c in places}, []


def _prior(places: Sequence[np.ndarray], histogram: np.ndarray) -> Prior:
    """The prior of a class that some case has."""
    z, y, x = zip(np.min(places, 0)[:, 0].tolist(), np.max(places, 0)[:, 1].tolist(), strict=True)
    return Prior(read_window(histogram), (z, y, x), float(histogram.sum()) / len(places))


def read_priors(path: Path) -> dict[int, Prior]:
    """Read a fit, as `predictors` writes it."""
    return {int(class_id): Prior(**given) for class_id, given in read_json(path).items()}


def segment_by_thresholds(image: np.ndarray, priors: dict[int, Prior], spacing_mm: Spacing) -> np.ndarray:
    """Segment by window, place and largest component, large classes first.

    Takes HU, `(Z, Y, X)` RAS on the training grid, and returns uint8 class ids of that shape.
    """
    box = body_box(image, spacing_mm)
    smooth = _smooth(image, spacing_mm)
    out = np.zeros(image.shape, np.uint8)
    for class_id, prior in sorted(priors.items(), key=lambda item: -item[1].voxels):
        place = tuple(
            slice(max(0, int(low + a * (high - low))), max(0, int(np.ceil(low + b * (high - low)))))
            for (low, high), (a, b) in zip(box, prior.box, strict=True)
        )
        piece = smooth[place]
        inside = (piece >= prior.window_hu[0]) & (piece <= prior.window_hu[1])
        if prior.voxels > 500:  # an opening would erase an adrenal gland
            inside = ndimage.binary_opening(inside)
        if inside.any():
            out[place][cc3d.largest_k(inside, k=1, connectivity=6) > 0] = class_id
    return out


def _smooth(image: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float32), [SMOOTHING_MM / s / 2 for s in spacing_mm])


def vote(image: np.ndarray, atlases: Iterable[Atlas], spacing_mm: Spacing) -> np.ndarray:
    """Segment a scan by the majority of atlases, registered to it; ties go to the lowest id.

    The scan is HU, `(Z, Y, X)` RAS on the training grid. An atlas is an image like it and its complete
    labels, on a grid of the same spacing; one is held at a time. The result is `(Z, Y, X)` uint8 class ids.
    """
    fixed = _image(image.clip(*RANGE_HU).astype(np.float32), spacing_mm)
    votes: dict[int, np.ndarray] = {}
    for atlas, labels in atlases:
        moving = _image(atlas.clip(*RANGE_HU).astype(np.float32), spacing_mm)
        moved = _carry(labels, _register(fixed, moving), fixed, spacing_mm)
        for class_id in set(np.unique(moved)) - {IGNORE}:  # what an atlas ignores is no vote
            count = votes.setdefault(int(class_id), np.zeros(image.shape, np.uint16))
            count += moved == class_id
    ids = sorted(votes)
    return np.array(ids, np.uint8)[np.argmax(np.stack([votes[i] for i in ids]), axis=0)]


def _image(array: np.ndarray, spacing_mm: Spacing) -> sitk.Image:
    """Put an array at the origin; only relative positions matter."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in spacing_mm[::-1]])
    return image


def _register(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    """Affine alignment by mutual information, two levels; the same every time."""
    centres = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(3), centres)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLES, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, ITERATIONS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 0])
    method.SetInitialTransform(start, inPlace=False)
    method.SetNumberOfThreads(1)  # sums in another order would give another vote
    return method.Execute(fixed, moving)


def _carry(
    labels: np.ndarray, transform: sitk.Transform, fixed: sitk.Image, spacing_mm: Spacing
) -> np.ndarray:
    moving = _image(labels.astype(np.uint8), spacing_mm)
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor, 0))
