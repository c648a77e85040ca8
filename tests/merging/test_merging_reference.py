"""Merging against a second implementation, and its invariants, on random small volumes."""

from __future__ import annotations

from dataclasses import fields
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import merging_reference as reference
from flare.core.classes import IGNORE
from flare.merging.rules import Merged, merge_labels
from flare.merging.settings import MergeRules

LABELS = reference.label_set()
TUMOR = LABELS.tumor
SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.7, 0.9), (2.5, 1.1, 0.6), (0.8, 3.0, 1.5)]


def random_case(seed: int) -> tuple[np.ndarray | None, np.ndarray, dict[str, Any]]:
    """Two maps and the settings to merge them with."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, size=3) if rng.random() < 0.3 else (6, 6, 6)
    shape = tuple(int(n) for n in sizes)
    pseudo = reference.random_maps(rng, shape, list(LABELS.organs), TUMOR)
    truth = None if rng.random() < 0.1 else reference.random_maps(rng, shape, list(LABELS.organs), TUMOR)
    if truth is not None and rng.random() < 0.4:
        truth[truth == TUMOR] = 0
    if truth is not None and rng.random() < 0.4:
        truth[rng.random(shape) < rng.choice([0.02, 0.3])] = IGNORE
        corner = [rng.integers(0, n) for n in shape]
        truth[tuple(slice(c, c + rng.integers(1, 5)) for c in corner)] = IGNORE
    annotated = None
    if rng.random() < 0.3:
        annotated = tuple(c for c in LABELS.ids if rng.random() < 0.6)
    return (
        truth,
        pseudo,
        {
            "classes": LABELS,
            "spacing_mm": SPACINGS[rng.integers(len(SPACINGS))],
            "annotated": annotated,
            "targets": str(rng.choice(["organs", "organs_tumor", "organs_tumor", "tumor"])),
            "rule": str(rng.choice(["paper", "paper", "paper", "gt_first"])),
            "dilation_mm": float(rng.choice([0.0, 0.95, 1.45, 3.05])),
            "tumor_inside_fraction": float(rng.choice([0.5, 0.5, 0.3, 0.8])),
            "constrain_unlabeled": bool(rng.random() < 0.5),
            "tumor_inside": str(rng.choice(["component", "voxel"])),
            "organs": reference.random_maps(rng, shape, list(LABELS.organs), TUMOR)
            if rng.random() < 0.5
            else None,
        },
    )


def ours(truth: np.ndarray | None, pseudo: np.ndarray, **options: Any) -> Merged:
    """Merge with the reference's arguments."""
    rules = MergeRules(**{f.name: options.pop(f.name) for f in fields(MergeRules)})
    return merge_labels(truth, pseudo, rules, **options)


def check(seed: int) -> None:
    truth, pseudo, settings_ = random_case(seed)
    given_maps = (None if truth is None else truth.copy(), pseudo.copy())
    merged = ours(truth, pseudo, **settings_)
    expected = reference.merge(truth, pseudo, **settings_)
    np.testing.assert_array_equal(merged.labels, expected, err_msg=f"seed {seed}")
    np.testing.assert_array_equal(pseudo, given_maps[1])
    if truth is not None:
        np.testing.assert_array_equal(truth, given_maps[0])
        check_invariants(truth, pseudo, merged, settings_)


def check_invariants(truth: np.ndarray, pseudo: np.ndarray, merged: Any, settings_: dict[str, Any]) -> None:
    out, told = merged.labels, merged.origin["classes"]
    trusted = [LABELS.id_of(name) for name in merged.origin["trusted"]]
    if settings_["targets"] == "organs":
        assert not (out == TUMOR).any()
    else:
        assert (out[truth == TUMOR] == TUMOR).all()
    assert not ((out == TUMOR) & (truth != TUMOR) & (pseudo != TUMOR)).any()
    if settings_["targets"] != "tumor":
        silent = truth == IGNORE
        assert ((out == pseudo) | (pseudo == TUMOR))[silent].all()  # neither side claims it in silence
        assert not (out == IGNORE)[~silent | (pseudo != TUMOR)].any()
    told_of = merged.origin.get("ignored", {"ground_truth": 0, "merged": 0})
    assert told_of == {"ground_truth": (truth == IGNORE).sum(), "merged": (out == IGNORE).sum()}
    lost = {c: int(((truth == c) & (out != c)).sum()) for c in trusted}
    assert lost == {c: told[LABELS.name_of(c)]["overwritten_by_pseudo_tumor"] for c in trusted}
    assert (out[np.isin(truth, trusted) & (out != truth)] == TUMOR).all()
    for c in LABELS.ids:
        assert told[LABELS.name_of(c)]["merged"] == (out == c).sum()
        assert told[LABELS.name_of(c)]["before"] == {
            "ground_truth": (truth == c).sum(),
            "pseudo": (pseudo == c).sum(),
        } or (settings_["targets"] == "tumor")


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_equals_the_reference(first: int) -> None:
    for seed in range(first, first + 100):
        check(seed)


@pytest.mark.long
@pytest.mark.slow
def test_equals_the_reference_on_thousands_of_cases(thorough: bool) -> None:
    for seed in range(1000, 11_000 if thorough else 2000):
        check(seed)


ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), order=st.sampled_from(ORDERS))
def test_commutes_with_flips_and_axis_permutations(seed: int, order: Any) -> None:
    axes, flips = order

    def turned(volume: np.ndarray | None) -> np.ndarray | None:
        if volume is None:
            return None
        return np.flip(volume.transpose(axes), [a for a in range(3) if flips[a]])

    truth, pseudo, settings_ = random_case(seed)
    merged = ours(truth, pseudo, **settings_)
    settings_["spacing_mm"] = tuple(settings_["spacing_mm"][a] for a in axes)
    settings_["organs"] = turned(settings_["organs"])
    again = ours(turned(truth), turned(pseudo), **settings_)
    np.testing.assert_array_equal(again.labels, turned(merged.labels))
    assert again.origin == merged.origin


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_is_idempotent_where_the_ground_truth_has_no_tumor(seed: int) -> None:
    truth, pseudo, settings_ = random_case(seed)
    if truth is not None:
        truth[(truth == TUMOR) | (truth == IGNORE)] = 0  # a merged map that ignores voxels is no prediction
    settings_["tumor_inside"] = "component"  # a hull of other organs is another one
    once = ours(truth, pseudo, **settings_).labels
    np.testing.assert_array_equal(ours(truth, once, **settings_).labels, once)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_perfect_teacher_changes_nothing(seed: int) -> None:
    truth, pseudo, settings_ = random_case(seed)
    perfect = pseudo if truth is None else np.where(truth == IGNORE, 0, truth)
    settings_ |= {"targets": "organs_tumor", "annotated": LABELS.ids, "constrain_unlabeled": False}
    np.testing.assert_array_equal(ours(perfect, perfect, **settings_).labels, perfect)
