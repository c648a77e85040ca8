"""6. Completeness, merging and post-processing, on at least 10,000 random cases each or against nnU-Net."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from nnunet.postprocessing.connected_components import remove_all_but_the_largest_connected_component
from omegaconf import OmegaConf
from rows import NNUNET1, ROOT, Row, counted

from flare.core.classes import ClassList
from flare.inference.largest import keep_largest
from flare.prepare.analysis import kind_of

CASES = 10_000
METHOD = "method, voxel by voxel"


def check() -> Iterator[Row]:
    """The three rules in turn."""
    labels = ClassList.from_config(OmegaConf.load(ROOT / "conf" / "classes" / "flare23.yaml"))
    yield _completeness(labels)
    yield _merging()
    yield _components()


def _completeness(labels: ClassList) -> Row:
    """The kind of a case from what it has and what its source declares, as section 2 says it."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(CASES):
        share = rng.choice([0.3, 0.9, 1.0])
        present = {c for c in range(1, 14) if rng.random() < share} | ({14} if rng.random() < 0.4 else set())
        declared = {c for c in range(1, 15) if rng.random() < 0.5} if rng.random() < 0.5 else set()
        annotated = present | declared if present else set()
        complete = all(organ in annotated for organ in range(1, 14))
        expected = "tumor" if 14 in present else "organs_complete" if complete else "partial"
        wrong += kind_of(present, annotated, labels) != expected
    return counted("kind of a case, random annotations", "method, section 2", wrong, CASES)


def _merging() -> Row:
    """The test's second implementation and its invariants, on seeds that the fast tests do not use."""
    sys.path[:0] = [str(ROOT / "tests" / "merging"), str(ROOT / "tests")]
    import test_merging_reference as tests

    wrong = 0
    for seed in range(1000, 1000 + CASES):
        try:
            tests.check(seed)
        except AssertionError:
            wrong += 1
    return counted("merged maps and invariants, both rules", METHOD, wrong, CASES)


def _components() -> Row:
    """Small maps with many equally large components."""
    rng = np.random.default_rng(0)
    cases, wrong = 2000, 0
    for _ in range(cases):
        shape = tuple(rng.integers(1, 9, 3))
        maps = rng.integers(0, 4, shape).astype(np.uint8) * (rng.random(shape) < rng.choice([0.3, 0.6, 0.9]))
        classes = [c for c in (1, 2, 3) if rng.random() < 0.7]
        expected, _, _ = remove_all_but_the_largest_connected_component(maps.copy(), classes, 1.0)
        wrong += not np.array_equal(keep_largest(maps, tuple(classes)), expected)
    return counted("largest component, ties kept", NNUNET1, wrong, cases)
