"""What merging one case gave: the map, and where each of its voxels came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from flare.labels import LabelSet
from flare.merging.components import Component, Shell

GROUND_TRUTH = "ground_truth"
PSEUDO = "pseudo"
NONE = "none"  # source of a class that the round does not have


@dataclass(frozen=True)
class TumorComponent:
    """What became of one component of a tumor.

    Args:
        origin: The map it was found in, `ground_truth` or `pseudo`.
        fate: `kept`; `dropped` (a pseudo tumor outside the organs); `superseded` (a pseudo tumor where the
            ground truth answers for tumors, or where tumors are no target); `absorbed` (a ground-truth tumor
            in an organ-only round).
        voxels: Size of the component.
        shell_voxels: Size of its shell.
        organ_fraction: Share of organ in the shell.
        filled_with: Class that its voxels took where nothing else did; 0 is background.
    """

    origin: str
    fate: str
    voxels: int
    shell_voxels: int
    organ_fraction: float
    filled_with: int


def describe(origin: str, fate: str, component: Component, shell: Shell) -> TumorComponent:
    """Note what became of a component."""
    filled = 0 if fate == "kept" else shell.fill
    return TumorComponent(origin, fate, component.voxels, shell.voxels, shell.organ_fraction, filled)


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels of one class, before and after.

    Args:
        before: In each source's map, by source.
        merged: In the result.
        taken: Of these, how many are the class in the source that the class was taken from; the others were
            filled in where a tumor was.
        overwritten: Trusted ground-truth voxels that a kept pseudo tumor took.
    """

    before: Mapping[str, int]
    merged: int
    taken: int
    overwritten: int = 0


@dataclass(frozen=True)
class MergeReport:
    """Where the merged labels of one case came from.

    Args:
        class_source: Class id -> the source that it was taken from; any number of sources may be named.
        trusted: Organs whose ground truth was taken, ascending.
        tumor_bearing: Organs that a dilated ground-truth tumor overlaps, ascending.
        components: Every tumor component that was judged, the largest first.
        counts: Class id -> voxel counts.
    """

    class_source: Mapping[int, str]
    trusted: tuple[int, ...] = ()
    tumor_bearing: tuple[int, ...] = ()
    components: tuple[TumorComponent, ...] = ()
    counts: Mapping[int, VoxelCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """Merged labels `(Z, Y, X)` uint8 and their report."""

    labels: np.ndarray
    report: MergeReport


def _joint(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(256, 256)` counts of voxels by their values in two uint8 maps, in slabs to bound memory."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for a, b in zip(np.array_split(first, 16), np.array_split(second, 16), strict=True):
        counts += np.bincount(((a.astype(np.uint16) << 8) | b).ravel(), minlength=1 << 16)
    return counts.reshape(256, 256)


def count_voxels(
    sources: Mapping[str, np.ndarray],
    merged: np.ndarray,
    class_source: Mapping[int, str],
    labels: LabelSet,
    overwritten: Mapping[int, int],
) -> dict[int, VoxelCounts]:
    """Count voxels per class in every source and in the merged map.

    Args:
        sources: Source name -> `(Z, Y, X)` uint8 map.
        merged: `(Z, Y, X)` uint8.
        class_source: Class id -> name of the source it was taken from.
        labels: The class list.
        overwritten: Class id -> trusted voxels that a kept pseudo tumor took.
    """
    joint = {name: _joint(volume, merged) for name, volume in sources.items()}
    after = next(iter(joint.values())).sum(axis=0)
    return {
        c: VoxelCounts(
            before={name: int(table[c].sum()) for name, table in joint.items()},
            merged=int(after[c]),
            taken=int(joint[class_source[c]][c, c]) if class_source[c] in joint else 0,
            overwritten=int(overwritten.get(c, 0)),
        )
        for c in labels.ids
    }
