"""8. `protocol=flare23` against the challenge's loop over DeepMind's surface-distance, on random pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from omegaconf import OmegaConf
from rows import ROOT, SURFACE_DISTANCE, Row, counted

from flare.core.classes import ClassList
from flare.evaluation.metrics import score_case

PAIRS = 200


def check() -> Iterator[Row]:
    """Absent, empty and touching classes, anisotropic spacing; see `benchmarks/metrics.py`."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import metrics

    labels = ClassList.from_config(OmegaConf.load(ROOT / "conf" / "classes" / "flare23.yaml"))
    tolerances = [c.tolerance_mm for c in labels.entries]
    wrong = 0
    for seed in range(PAIRS):
        reference, prediction, spacing = metrics.random_pair(seed)
        found = score_case(reference, prediction, spacing_mm=spacing, classes=labels, protocol="flare23")
        ours = [(score.dsc, score.nsd) for score in found.values()]
        # the challenge reads arrays and spacing in x, y, z order
        theirs = metrics.challenge(reference.T, prediction.T, spacing[::-1], tolerances)
        wrong += sum(a != b for a, b in zip(ours, theirs, strict=True))
    yield counted(
        f"DSC and NSD to four digits, {PAIRS} pairs", SURFACE_DISTANCE, wrong, PAIRS * len(tolerances)
    )
