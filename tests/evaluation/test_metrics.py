"""Scores of one case: hand values, the challenge's special rules, and random pairs against an oracle."""

import numpy as np
import pytest

from challenge_reference import challenge_scores
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.evaluation.metrics import ClassScore, score_case

ONE_MM = (1.0, 1.0, 1.0)


def score(
    labels: ClassList, r: np.ndarray, p: np.ndarray, protocol: str = "flare23", **more: object
) -> dict[str, ClassScore]:
    return score_case(
        r, p, **{"spacing_mm": ONE_MM, "classes": labels, "protocol": protocol, "threads": 1, **more}
    )


def volume(class_id: int, *where: slice, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[where] = class_id
    return array


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Blocks of classes that touch each other and the border; the prediction moved, thinned, mixed up."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(4, 12, 3)
    coarse = rng.integers(0, 15, (4, 4, 4)) * (rng.random((4, 4, 4)) < 0.6)
    index = [np.sort(rng.integers(0, 4, n)) for n in shape]
    reference = coarse[np.ix_(*index)].astype(np.uint8)
    prediction = np.roll(reference, rng.integers(-1, 2, 3), (0, 1, 2))
    prediction[rng.random(shape) < rng.choice([0, 0.05, 0.4])] = 0
    noisy = rng.random(shape) < rng.choice([0, 0.02])
    prediction[noisy] = rng.integers(0, 15, noisy.sum())
    prediction[prediction == rng.integers(1, 15)] = 0
    # half of them as NIfTI stores them, in single precision: multiples may then pass a tolerance by 1e-7
    spacing = rng.choice([0.2, 0.5, 0.6, 0.75, 0.8, 1.0, 1.2, 2.5, 3.0, 5.0], 3)
    stored = spacing.astype(np.float32) if seed % 2 else spacing
    return reference, prediction, tuple(stored.astype(float).tolist())


def test_both_empty_is_one_and_one_empty_is_zero(labels: ClassList) -> None:
    found = score(labels, volume(1, slice(2, 5)), volume(2, slice(2, 5)))
    assert (found["Liver"].dsc, found["Liver"].nsd) == (0, 0)
    assert (found["RK"].dsc, found["RK"].nsd) == (0, 0)
    assert (found["Spleen"].dsc, found["Spleen"].nsd) == (1, 1)


def test_shifted_cube(labels: ClassList) -> None:
    s = slice(3, 7)
    found = score(labels, volume(2, s, s, s), volume(2, slice(4, 8), s, s))
    assert found["RK"].dsc == 0.75
    assert found["RK"].nsd == 1  # one millimetre, tolerance three


def test_nsd_is_zero_below_a_dsc_of_one_fifth(labels: ClassList) -> None:
    row = [volume(1, slice(4, 6), slice(4, 6), slice(a, a + 5)) for a in (0, 4)]
    found = score(labels, *row)
    assert found["Liver"].dsc == 0.2
    assert found["Liver"].nsd > 0.9
    found = score(labels, row[0], volume(1, slice(4, 6), slice(4, 6), slice(4, 10)))
    assert found["Liver"].dsc == 0.1818
    assert found["Liver"].nsd == 0


def test_slice_range_leaves_out_what_lies_beyond_and_the_last_slice(labels: ClassList) -> None:
    s = slice(3, 7)
    reference = volume(5, s, s, s)
    prediction = volume(5, slice(0, 12), s, s)
    prediction[6] = 0  # the reference's last slice
    assert score(labels, reference, prediction)["Aorta"].dsc == 1
    assert score(labels, reference, prediction, "corrected")["Aorta"].dsc == pytest.approx(
        2 * 3 / 7, abs=1e-4
    )
    assert score(labels, reference, prediction)["Aorta"].nsd == 1


def test_slice_range_is_along_the_stored_z_only(labels: ClassList) -> None:
    s = slice(3, 7)
    found = score(labels, volume(5, s, s, s), volume(5, s, s, slice(0, 12)))
    assert found["Aorta"].dsc == 0.5


def test_prediction_wholly_outside_the_range_is_zero(labels: ClassList) -> None:
    s = slice(3, 7)
    found = score(labels, volume(6, s, s, s), volume(6, slice(8, 11), s, s))
    assert (found["IVC"].dsc, found["IVC"].nsd) == (0, 0)


def test_reference_of_one_slice_is_scored_by_what_remains(labels: ClassList) -> None:
    s = slice(3, 7)
    reference, prediction = volume(10, slice(3, 4), s, s), volume(10, slice(5, 9), s, s)
    found = score(labels, reference, prediction)["Esophagus"]
    assert (found.dsc, found.nsd, found.one_slice) == (1, 1, True)
    found = score(labels, reference, prediction, "corrected")["Esophagus"]
    assert (found.dsc, found.nsd, found.one_slice) == (0, 0, True)


def test_present_scores_only_what_the_reference_has(labels: ClassList) -> None:
    found = score(labels, volume(1, slice(2, 5)), volume(2, slice(2, 5)), "present")
    assert found["Liver"].dsc == 0
    assert found["RK"].dsc is None
    assert found["Spleen"].nsd is None


def test_details_give_hd95_and_volumes(labels: ClassList) -> None:
    s = slice(3, 7)
    found = score(
        labels,
        volume(1, s, s, s),
        volume(1, slice(5, 9), s, s),
        details=True,
        spacing_mm=(5.0, 1.0, 1.0),
    )
    assert found["Liver"].reference_ml == found["Liver"].prediction_ml == pytest.approx(64 * 5 / 1000)
    assert found["Liver"].hd95_mm == 10
    assert found["RK"].hd95_mm is None
    assert found["RK"].reference_ml == 0


def test_values_are_rounded_to_four_digits_as_numpy_rounds(labels: ClassList) -> None:
    reference = volume(1, slice(0, 2), slice(0, 8), slice(0, 8), shape=(8, 8, 8))
    prediction = volume(1, slice(1, 5), slice(0, 8), slice(0, 4), shape=(8, 8, 8))
    assert score(labels, reference, prediction)["Liver"].dsc == 0.25  # 2 x 32 / 256
    prediction[7, 0, :] = 1
    # 64 / 264 = 0.242424...; numpy scales, rounds half to even and scales back
    assert score(labels, reference, prediction)["Liver"].dsc == 0.2424


def test_unknown_protocol_and_unequal_sizes_are_refused(labels: ClassList) -> None:
    with pytest.raises(FlareError, match="protocol"):
        score(labels, volume(1), volume(1), "official")
    with pytest.raises(FlareError, match="size"):
        score(labels, volume(1), volume(1, shape=(3, 3, 3)))


@pytest.mark.parametrize("value", ["4,2", " 1", "0", "", "many"])
def test_any_number_of_openmp_threads_will_do(
    labels: ClassList, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    a = volume(1, slice(2, 8), slice(2, 8), slice(2, 8))
    assert score(labels, a, a, threads=None)["Liver"].dsc == 1


def test_threads_change_nothing(labels: ClassList) -> None:
    reference, prediction, spacing = random_pair(3)
    one, two = (score(labels, reference, prediction, spacing_mm=spacing, threads=n) for n in (1, 2))
    assert one == two


@pytest.mark.slow
def test_random_pairs_agree_with_the_challenges_rules_to_four_digits(
    labels: ClassList, thorough: bool
) -> None:
    tolerances = [c.tolerance_mm for c in labels.entries]
    kinds = {"absent": 0, "scored": 0, "below": 0}
    for seed in range(200 if thorough else 100):
        reference, prediction, spacing = random_pair(seed)
        ours = score(labels, reference, prediction, spacing_mm=spacing)
        theirs = challenge_scores(reference.T, prediction.T, spacing[::-1], tolerances)
        assert [(s.dsc, s.nsd) for s in ours.values()] == theirs, seed
        detailed = score(labels, reference, prediction, spacing_mm=spacing, details=True)
        assert [(s.dsc, s.nsd) for s in detailed.values()] == theirs, seed
        kinds["absent"] += sum(t in ((0, 0), (1, 1)) for t in theirs)
        kinds["below"] += sum(t[0] > 0 and t[1] == 0 for t in theirs)
        kinds["scored"] += sum(0 < t[1] < 1 for t in theirs)
    assert min(kinds.values()) > 25, kinds
