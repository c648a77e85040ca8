"""3. Preprocessing of a real CT against nnU-Net v2's default preprocessor and fingerprint."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from peers import configuration, plans
from rows import ABDOMEN, ABDOMEN_LABELS, NNUNET2, Row, counted, limited, stated

from flare.core.geometry import Orientation, Volume
from flare.core.preprocessing import (
    Intensity,
    normalise,
    preprocess,
    resample,
    resample_classes,
    resampled_shape,
    separate_axis,
)
from flare.core.volumes import read_image, write_image
from flare.prepare.intensity import foreground_histogram, intensity_of

SPACING = (4.0, 1.2, 1.2)


def check() -> Iterator[Row]:
    """Compare the voxel order first, then statistics, then arrays with the same statistics."""
    volume = read_image(ABDOMEN)
    labels = read_image(ABDOMEN_LABELS).array
    yield _orders(volume)
    ours, rows = _statistics(volume.array, labels)
    yield from rows
    yield _classes(labels, volume.geometry.spacing_mm)
    intensity = {
        "mean": ours.mean,
        "std": ours.std,
        "percentile_00_5": ours.lower,
        "percentile_99_5": ours.upper,
    }
    for order, apart in (("nnunet", None), ("cubic", False)):
        kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": apart}
        theirs = _theirs(volume, configuration("medium", resampling_fn_data_kwargs=kwargs), intensity)
        yield from _arrays(volume, order, ours, theirs)
    torch_linear = {
        "resampling_fn_data": "resample_torch_fornnunet",
        "resampling_fn_data_kwargs": {"is_seg": False, "force_separate_z": False},
    }
    theirs = _theirs(volume, configuration("medium", **torch_linear), intensity)
    yield from _arrays(volume, "linear", ours, theirs)


def _orders(volume: Volume) -> Row:
    """Store the CT in every voxel order, flipped and permuted, and bring it back by both readers."""
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "ct_0000.nii")
        for axes in itertools.permutations(range(3)):
            for flips in itertools.product((False, True), repeat=3):
                order = Orientation(axes, flips)
                stored = Volume(order.apply(volume.array), order.apply_geometry(volume.geometry))
                write_image(Path(path), stored.array, stored.geometry)
                theirs, properties = NibabelIOWithReorient().read_images([path])
                spacing = volume.geometry.spacing_mm  # its own, so that nothing is resampled
                ours = preprocess(read_image(Path(path)), spacing, "linear")
                equal = np.array_equal(ours.array, theirs[0])
                wrong += not (equal and np.allclose(ours.ras.spacing_mm, properties["spacing"], rtol=1e-6))
    return counted("voxel order: all 48, flipped and permuted", NNUNET2, wrong, 48)


def _statistics(image: np.ndarray, labels: np.ndarray) -> tuple[Intensity, list[Row]]:
    """Foreground statistics, over all voxels; nnU-Net pools a sample of each case."""
    sample, per_case = DatasetFingerprintExtractor.collect_foreground_intensities(labels[None], image[None])
    ours = intensity_of(foreground_histogram(image, labels), (0.5, 99.5))
    theirs = per_case[0]
    rows = [
        limited(f"{name} of the foreground, HU", peer, abs(a - b), 1e-3)
        for name, peer, a, b in (
            ("0.5 percentile", NNUNET2, ours.lower, theirs["percentile_00_5"]),
            ("99.5 percentile", NNUNET2, ours.upper, theirs["percentile_99_5"]),
            ("mean", NNUNET2, ours.mean, theirs["mean"]),
            ("standard deviation", "numpy", ours.std, float(np.std(image[labels > 0].astype(float)))),
        )
    ]
    drawn = np.asarray(sample[0], float)
    text = (
        f"mean {abs(drawn.mean() - ours.mean):.2f}, standard deviation {abs(drawn.std() - ours.std):.2f} HU"
    )
    rows.append(stated("all voxels instead of its sample of 10,000", NNUNET2, text))
    return ours, rows


def _classes(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> Row:
    """Labels on the training grid, class by class."""
    shape = resampled_shape(labels.shape, spacing_mm, SPACING)
    theirs = resample_data_or_seg_to_shape(
        labels[None], shape, spacing_mm, SPACING, is_seg=True, order=1, order_z=0, force_separate_z=None
    )[0]
    apart = separate_axis(spacing_mm, SPACING)
    wrong = int(np.count_nonzero(resample_classes(labels, shape, separate_axis=apart) != theirs))
    return counted("labels by class, linear in plane and nearest in z", NNUNET2, wrong, theirs.size)


def _theirs(volume: Any, made: dict[str, Any], intensity: dict[str, float]) -> np.ndarray:
    manager = PlansManager(plans(made, intensity))
    array, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        volume.array[None],
        None,
        {"spacing": list(volume.geometry.spacing_mm)},
        manager,
        manager.get_configuration("3d_fullres"),
        {"labels": {"background": 0}},
    )
    return np.asarray(array[0], float)


def _arrays(volume: Any, order: str, intensity: Intensity, theirs: np.ndarray) -> Iterator[Row]:
    """The resampling alone in nnU-Net's order of steps, then all of ours."""
    case = preprocess(volume, SPACING, order)
    wrong = int(case.array.shape != theirs.shape)
    yield counted(f"{order}: size of the grid", NNUNET2, wrong, 1)
    shape = resampled_shape(case.ras.shape, case.ras.spacing_mm, SPACING)
    resampled = resample(
        normalise(volume.array, intensity), shape, order
    )  # normalised first, as nnU-Net does
    difference = np.abs(resampled - theirs)
    yield limited(
        f"{order}: resampling alone, largest, in deviations", NNUNET2, float(difference.max()), 1e-3
    )
    whole = np.abs(normalise(case.array, intensity) - theirs) * intensity.std
    yield stated(
        f"{order}: all steps (ours clips after resampling and rounds to whole HU)",
        NNUNET2,
        f"mean {whole.mean():.2f}, 99 % below {np.percentile(whole, 99):.1f}, largest {whole.max():.0f} HU",
    )
