"""`iterate.py`, but the pseudo labels of one teacher are corrupted; the product knows nothing of it.

    python benchmarks/corrupted.py partial1 0.2 7 experiment=ablate_labels rounds=[partial2] ...

Of each map that the teacher (round `partial1`) makes, each class is corrupted with the given probability,
drawn from the seed and the case: swapped with the class whose centre is nearest, deleted, shifted by half its
extent, or dilated by two voxels. So the teacher errs in training and validation cases alike, and its map
without mirroring errs in the same places; maps of its own teacher, and its confidence, are as they were.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from flare.cli import iterate
from flare.rounds import label_case


def corrupt(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Corrupt each class of a `(Z, Y, X)` label map with probability `share`; the map itself stays."""
    found = labels.copy()
    present = [int(c) for c in np.unique(labels) if c]
    centres = {c: np.mean(np.nonzero(labels == c), axis=1) for c in present}
    for c in present:
        how = rng.choice(["swapped", "deleted", "shifted", "dilated"])
        sign = rng.choice([-1, 1])
        if rng.random() >= share:
            continue
        own = labels == c
        others = sorted((o for o in present if o != c), key=lambda o: np.linalg.norm(centres[o] - centres[c]))
        if how == "swapped" and others:
            found[own], found[labels == others[0]] = others[0], c
        elif how == "dilated":
            found[ndimage.binary_dilation(own, iterations=2) & (labels == 0)] = c
        else:  # a lone class has no neighbour: it is deleted
            found[own] = 0
            if how == "shifted":
                axis = int(rng.integers(1, labels.ndim))
                found[np.roll(own, sign * (-(-np.ptp(np.nonzero(own)[axis]) // 2) or 1), axis)] = c
    return found


def corrupting(made: Callable[..., Any], teacher: str, share: float, seed: int) -> Callable[..., Any]:
    """Put `corrupt` behind what gives a case's pseudo labels, for the maps of one teacher."""

    def pseudo_labels(job: Any) -> Any:
        volume, row = made(job)
        if job.labeller.round != teacher:
            return volume, row
        digest = hashlib.sha256(f"{seed}/{job.case.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return replace(volume, array=corrupt(volume.array, share, rng)), row

    return pseudo_labels


def main() -> None:
    """Patch the one seam through which a round gets pseudo labels, then do as `iterate.py`."""
    teacher, share, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    del sys.argv[1:4]
    label_case.pseudo_labels = corrupting(label_case.pseudo_labels, teacher, share, seed)
    iterate()


if __name__ == "__main__":
    main()
