import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from flare.core.geometry import Geometry
from flare.core.volumes import write_labels
from flare.inference.components import decide, dice, fit_components, fitted_classes, write_fit
from flare.inference.largest import keep_largest
from flare.runs.work import LocalExecutor


def test_the_largest_of_each_class_stays():
    segmentation = np.zeros((1, 5, 9), dtype=np.uint8)
    segmentation[0, 0, :4] = 1
    segmentation[0, 2, :2] = 1
    segmentation[0, 4, :3] = 2
    segmentation[0, 4, 5:7] = 2
    cleaned = keep_largest(segmentation, (1, 2))
    expected = segmentation.copy()
    expected[0, 2, :2] = expected[0, 4, 5:7] = 0
    np.testing.assert_array_equal(cleaned, expected)
    np.testing.assert_array_equal(keep_largest(segmentation, ()), segmentation)


def test_equally_large_components_all_stay():
    segmentation = np.array([[[1, 1, 0, 1, 1, 0, 1]]], dtype=np.uint8)
    np.testing.assert_array_equal(keep_largest(segmentation, (1,)), [[[1, 1, 0, 1, 1, 0, 0]]])


def test_voxels_that_touch_by_an_edge_are_two_components():
    segmentation = np.array([[[1, 1, 0], [0, 0, 1]]], dtype=np.uint8)
    np.testing.assert_array_equal(keep_largest(segmentation, (1,)), [[[1, 1, 0], [0, 0, 0]]])


@settings(max_examples=100, deadline=None)
@given(arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 3)))
def test_it_agrees_with_class_by_class_labelling(segmentation):
    expected = segmentation.copy()
    for label in (1, 3):
        components, count = ndimage.label(segmentation == label)
        sizes = [np.count_nonzero(components == c) for c in range(1, count + 1)]
        for component, size in enumerate(sizes, start=1):
            if size < max(sizes):
                expected[components == component] = 0
    np.testing.assert_array_equal(keep_largest(segmentation, (1, 3)), expected)


def test_dice_by_hand():
    a = np.array([1, 1, 1, 0, 0], dtype=bool)
    b = np.array([0, 1, 1, 1, 1], dtype=bool)
    assert dice(a, b) == pytest.approx(4 / 7)


def test_an_organ_is_chosen_only_if_its_mean_improves(labels, tmp_path):
    scores = {
        "a": {"liver": (0.90, 0.92), "spleen": (0.8, 0.9), "aorta": (0.7, 0.7)},
        "b": {"liver": (0.90, 0.89), "spleen": (0.8, 0.6)},
    }
    fit = decide(scores, labels)
    assert set(fit) == {labels.name_of(organ) for organ in labels.organs}
    assert fit["liver"] == {
        "keep_largest": True,
        "dice_before": pytest.approx(0.9),
        "dice_after": pytest.approx(0.905),
        "dice_judged": pytest.approx((0.90 + 0.89) / 2),  # a is left as it is, as b chooses; b follows a
        "cases": 2,
    }
    assert not fit["spleen"]["keep_largest"]
    assert not fit["aorta"]["keep_largest"]  # equal is no improvement
    none = dict.fromkeys(("dice_before", "dice_after", "dice_judged"), 0.0)
    assert fit["pancreas"] == {"keep_largest": False, **none, "cases": 0}
    write_fit(tmp_path / "components.json", fit, "hash")
    assert fitted_classes(tmp_path / "components.json", "hash", labels) == (labels.id_of("liver"),)


def test_each_half_is_judged_by_the_choice_of_the_other(labels):
    rng = np.random.default_rng(0)
    for cases in rng.integers(2, 12, size=40):
        names = [f"case{n}" for n in range(cases)]
        scores = {c: {"liver": tuple(rng.integers(0, 9, size=2) / 8)} for c in names if rng.random() < 0.9}
        order = sorted(scores, key=lambda case: hashlib.sha256(case.encode()).hexdigest())
        total = 0.0
        for own, other in ((order[0::2], order[1::2]), (order[1::2], order[0::2])):
            helps = sum(scores[c]["liver"][1] - scores[c]["liver"][0] for c in other) > 0
            total += sum(scores[c]["liver"][int(helps)] for c in own)
        expected = total / len(scores) if scores else 0.0
        assert decide(scores, labels)["liver"]["dice_judged"] == pytest.approx(expected)


def test_a_fit_counts_for_its_own_checkpoint_alone(labels, tmp_path, caplog):
    path = tmp_path / "components.json"
    assert fitted_classes(path, "hash", labels) == ()
    assert not caplog.messages
    write_fit(path, decide({"a": {"liver": (0.8, 0.9)}}, labels), "hash of the last")
    assert fitted_classes(path, "hash of the best", labels) == ()
    assert "fitted on another checkpoint" in caplog.text


def test_the_fit_reads_cases_and_only_scores_what_the_reference_has(labels, tmp_path):
    geometry = Geometry((4, 8, 8), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    reference = np.zeros(geometry.shape, dtype=np.uint8)
    reference[:, :4, :4] = 1
    predicted = reference.copy()
    predicted[0, 7, 7] = 1  # a stray voxel of liver: keeping the largest helps
    predicted[0, 7, 0] = 3  # a spleen that the reference does not have
    write_labels(tmp_path / "predicted.nii.gz", predicted, geometry)
    write_labels(tmp_path / "reference.nii.gz", reference, geometry)
    pair = (tmp_path / "predicted.nii.gz", tmp_path / "reference.nii.gz")
    executor = LocalExecutor(workers=0, retries=0)
    pairs = {"a": pair, "b": (tmp_path / "none.nii.gz", pair[1])}
    fit, (failure,) = fit_components(pairs, classes=labels, label_map=None, executor=executor)
    assert failure.case_id == "b"
    assert fit["liver"] == {
        "keep_largest": True,
        "dice_before": pytest.approx(128 / 129),
        "dice_after": 1.0,
        "dice_judged": pytest.approx(128 / 129),  # the other half has no case to choose by
        "cases": 1,
    }
    assert fit["spleen"]["cases"] == 0
