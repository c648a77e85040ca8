"""Aligned-atlas vote: annotated cases registered to a scan, each voxel takes the most votes (ours)."""

from collections.abc import Iterable

import numpy as np
import SimpleITK as sitk

from flare.core.classes import IGNORE
from flare.core.geometry import Spacing

SAMPLES = 0.05  # share of voxels that the similarity is computed on
ITERATIONS = 80
RANGE_HU = (-200, 300)  # what is aligned


def vote(
    image: np.ndarray, atlases: Iterable[tuple[np.ndarray, np.ndarray]], spacing_mm: Spacing
) -> np.ndarray:
    """Segment a scan by the majority of aligned atlases; ties go to the lowest id.

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
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
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
