"""DSC and NSD of one case: ours against the challenge's loop over DeepMind's surface-distance.

    python -m venv .venv-metrics
    .venv-metrics/bin/pip install surface-distance-based-measures==0.1 numpy scipy edt hydra-core SimpleITK
    PYTHONPATH=src .venv-metrics/bin/python benchmarks/metrics.py

Both run in turn in one process on the same cores. Prints agreement on random pairs of label maps, then times
on ellipsoids and on real anatomy of 512 x 512 x 200 voxels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import surface_distance
from omegaconf import OmegaConf
from scipy import ndimage

from flare.core.classes import ClassList
from flare.evaluation.metrics import score_case

ROOT = Path(__file__).parents[1]
MAP = ROOT / "src" / "flare" / "phantom" / "maps" / "amos_0001.nii.gz"
AMOS_IDS = {6: 1, 2: 2, 1: 3, 10: 4, 8: 5, 9: 6, 11: 7, 12: 8, 4: 9, 5: 10, 7: 11, 13: 12, 3: 13}
SHAPE = (200, 512, 512)
TUMOR = 14
SLICE_RANGE = (5, 6, 10)  # aorta, IVC, esophagus

Spacing = tuple[float, float, float]
Scores = list[tuple[float, float]]

# names that numpy 2 took away and the package still uses
np.Inf, np.NaN = np.inf, np.nan  # type: ignore[attr-defined]
warnings.simplefilter("ignore", DeprecationWarning)


def challenge(
    reference: np.ndarray, prediction: np.ndarray, spacing: Spacing, tolerances: list[float]
) -> Scores:
    """The challenge's rules with the package it uses; arrays and spacing in x, y, z order."""
    found: Scores = []
    for label, tolerance in enumerate(tolerances, start=1):
        r, p = reference == label, prediction == label
        if not r.any() or not p.any():
            found.append((1.0, 1.0) if r.any() == p.any() else (0.0, 0.0))
            continue
        if label in SLICE_RANGE:
            z = np.nonzero(r)[2]
            if z.min() == z.max():  # the package fails on an empty range
                found.append((1.0, 1.0))
                continue
            r, p = r[:, :, z.min() : z.max()], p[:, :, z.min() : z.max()]
        dsc = surface_distance.compute_dice_coefficient(r, p)
        nsd = 0.0
        if dsc >= 0.2:
            distances = surface_distance.compute_surface_distances(r, p, spacing)
            nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        found.append((round(dsc, 4), round(nsd, 4)))
    return found


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Small maps whose classes touch each other and the border, some absent; spacing anisotropic."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(8, 28, 3)
    coarse = rng.integers(0, 15, (5, 5, 5)) * (rng.random((5, 5, 5)) < 0.6)
    reference = coarse[np.ix_(*(np.sort(rng.integers(0, 5, n)) for n in shape))].astype(np.uint8)
    prediction = np.roll(reference, rng.integers(-2, 3, 3), (0, 1, 2))
    prediction[rng.random(shape) < rng.choice([0, 0.05, 0.3])] = 0
    prediction[prediction == rng.integers(1, 15)] = 0
    spacing = rng.choice([0.5, 0.6, 0.7, 0.78, 0.8, 1.0, 1.2, 2.5, 3.0, 5.0], 3).astype(np.float32)
    z, y, x = spacing.astype(float).tolist()
    return reference, prediction, (z, y, x)


def ellipsoids() -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Fourteen ellipsoids, one missing from the prediction."""
    rng = np.random.default_rng(0)
    grid = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    maps = [np.zeros(SHAPE, np.uint8) for _ in range(2)]
    for label in range(1, 15):
        size = np.array([30, 60, 60]) * rng.uniform(0.3, 1.3)
        centre = rng.uniform(size, SHAPE - size)
        for map_, shift in zip(maps, (0, rng.uniform(-2, 2, 3)), strict=True):
            inside = sum(((g - c) / s) ** 2 for g, c, s in zip(grid, centre + shift, size, strict=True)) < 1
            map_[inside] = label
    maps[1][maps[1] == 7] = 0
    return maps[0], maps[1], (2.0, 0.8, 0.8)


def anatomy() -> tuple[np.ndarray, np.ndarray, Spacing]:
    """A real label map with a round tumor in the liver, and the same smoothly displaced by a few voxels."""
    image = sitk.ReadImage(str(MAP))
    stored = sitk.GetArrayFromImage(image)
    table = np.zeros(256, np.uint8)
    table[list(AMOS_IDS)] = list(AMOS_IDS.values())
    nearest = [((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(stored.shape, SHAPE, strict=True)]
    reference = table[stored.astype(np.uint8)][np.ix_(*nearest)]
    spacing = [s * n / m for s, n, m in zip(image.GetSpacing()[::-1], stored.shape, SHAPE, strict=True)]
    liver = np.argwhere(reference == 1)
    grid = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    offsets = zip(grid, liver[len(liver) // 2], spacing, strict=True)
    reference[sum(((g - c) * s) ** 2 for g, c, s in offsets) < 15**2] = TUMOR
    rng = np.random.default_rng(0)
    index = []
    for axis, amplitude in enumerate((0.8, 2, 2)):
        field = ndimage.zoom(rng.normal(size=(8, 8, 8)) * amplitude, np.array(SHAPE) / 8, order=1)
        moved = np.round(grid[axis] + field).astype(np.int32)
        index.append(np.clip(moved, 0, SHAPE[axis] - 1))
    z, y, x = spacing
    return reference, reference[tuple(index)], (z, y, x)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    labels = ClassList.from_config(OmegaConf.load(ROOT / "conf" / "classes" / "flare23.yaml"))
    tolerances = [c.tolerance_mm for c in labels.entries]
    names = ("surface-distance-based-measures", "edt", "scipy", "numpy")
    print(", ".join(f"{n} {importlib.metadata.version(n)}" for n in names))

    def ours(r: np.ndarray, p: np.ndarray, s: Spacing, **more: bool) -> Scores:
        found = score_case(
            r, p, spacing_mm=s, classes=labels, protocol="flare23", threads=args.threads, **more
        )
        return [(c.dsc, c.nsd) for c in found.values()]  # type: ignore[misc]

    def theirs(r: np.ndarray, p: np.ndarray, s: Spacing) -> Scores:
        return challenge(r, p, s, tolerances)

    differ = 0
    for seed in range(args.pairs):
        r, p, s = random_pair(seed)
        differ += sum(a != b for a, b in zip(ours(r, p, s), theirs(r.T, p.T, s[::-1]), strict=True))
    print(
        f"{args.pairs} random pairs, {args.pairs * len(tolerances)} classes: {differ} differ in four digits"
    )

    for name, make in (("ellipsoids", ellipsoids), ("anatomy", anatomy)):
        r, p, s = make()
        r_xyz, p_xyz = r.T.view(np.int8), p.T.view(np.int8)  # as nibabel gives a NIfTI file: x runs fastest
        same = ours(r, p, s) == theirs(r_xyz, p_xyz, s[::-1])
        runs = []
        for _ in range(args.repeats):
            t_theirs = timed(lambda: theirs(r_xyz, p_xyz, s[::-1]))  # noqa: B023
            t_ours = timed(lambda: ours(r, p, s))  # noqa: B023
            t_details = timed(lambda: ours(r, p, s, details=True))  # noqa: B023
            runs.append((t_theirs, t_ours, t_details))
        official, mine, details = (statistics.median(column) for column in zip(*runs, strict=True))
        ratio = statistics.median(a / b for a, b, _ in runs)
        print(
            f"{name:<11} {r.shape}: challenge {official:.2f} s, ours {mine:.2f} s ({args.threads} threads), "
            f"with HD95 and volumes {details:.2f} s; ratio {ratio:.1f}; equal to four digits: {same}"
        )


if __name__ == "__main__":
    main()
