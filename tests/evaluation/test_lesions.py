"""Lesion-wise detection on volumes made by hand."""

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.evaluation.lesions import (
    RATES,
    Lesion,
    detection,
    detection_tables,
    find_lesions,
    froc,
    size_class,
)
from flare.evaluation.rendering import to_markdown

SPACING = (5.0, 1.0, 1.0)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A liver lesion found in two pieces, a spleen lesion missed, one found where none is."""
    reference = np.zeros((8, 20, 20), np.uint8)
    reference[:, :, :10] = 1
    reference[5:, 10:, 12:18] = 3
    prediction = reference.copy()
    reference[2:4, 4:8, 2:6] = 14  # 32 voxels in the liver
    reference[6, 14, 14] = 14  # one voxel in the spleen
    prediction[2:4, 4:8, 2:3] = 14  # 8 voxels
    prediction[2:4, 4:8, 5:6] = 14  # 8 voxels, not touching those
    prediction[0, 0, 19] = 14  # far from everything
    return reference, prediction


def lesions(pair: tuple[np.ndarray, np.ndarray], labels: ClassList) -> list[Lesion]:
    return find_lesions(*pair, spacing_mm=SPACING, classes=labels)


def test_lesions_are_matched_by_overlap(pair: tuple[np.ndarray, np.ndarray], labels: ClassList) -> None:
    found = lesions(pair, labels)
    assert [(x.side, x.organ, x.matched) for x in found] == [
        ("reference", "Liver", True),
        ("reference", "Spleen", False),
        ("prediction", "none", False),
        ("prediction", "Liver", True),
        ("prediction", "Liver", True),
    ]


def test_dsc_is_against_all_pieces_that_overlap(
    pair: tuple[np.ndarray, np.ndarray], labels: ClassList
) -> None:
    found = lesions(pair, labels)
    assert [x.dsc for x in found] == [pytest.approx(2 * 16 / (32 + 16)), 0, None, None, None]


def test_a_lesions_score_is_its_volume_or_the_mean_confidence_of_its_voxels(
    pair: tuple[np.ndarray, np.ndarray], labels: ClassList
) -> None:
    ml = 5 / 1000  # of a voxel
    by_volume = [8 * ml, None, 1 * ml, 8 * ml, 8 * ml]  # a found lesion has the highest of its pieces
    assert [x.score for x in lesions(pair, labels)] == [
        None if v is None else pytest.approx(v) for v in by_volume
    ]
    confidence = np.zeros(pair[0].shape)
    confidence[..., 2], confidence[:, :6, 5], confidence[..., 19] = 0.75, 0.5, 0.25
    sure = find_lesions(*pair, spacing_mm=SPACING, classes=labels, confidence=confidence)
    assert [x.score for x in sure] == [0.75, None, 0.25, 0.75, 0.25]


def test_volume_and_diameter(pair: tuple[np.ndarray, np.ndarray], labels: ClassList) -> None:
    first = lesions(pair, labels)[0]
    assert first.volume_ml == pytest.approx(32 * 5 / 1000)
    assert np.pi / 6 * first.diameter_mm**3 == pytest.approx(160)


def test_prediction_tells_the_organ_where_the_reference_has_none(labels: ClassList) -> None:
    reference, prediction = (np.zeros((6, 6, 6), np.uint8) for _ in range(2))
    prediction[:] = 2
    reference[2:4, 2:4, 2:4] = prediction[2:4, 2:4, 2:4] = 14
    assert {x.organ for x in lesions((reference, prediction), labels)} == {"RK"}


def test_lesions_at_the_border_and_of_the_whole_volume(labels: ClassList) -> None:
    full = np.full((1, 3, 3), 14, np.uint8)
    found = lesions((full, full), labels)
    assert [(x.side, x.matched, x.organ) for x in found] == [
        ("reference", True, "none"),
        ("prediction", True, "none"),
    ]
    assert found[0].dsc == 1


def test_no_tumor_gives_no_lesion(labels: ClassList) -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert lesions((empty, empty), labels) == []


def test_cohort_counts(pair: tuple[np.ndarray, np.ndarray], labels: ClassList) -> None:
    found = detection({"a": lesions(pair, labels), "b": []})
    assert found["scans"] == 2
    assert (found["lesions"], found["detected"], found["sensitivity"]) == (2, 1, 0.5)
    assert (found["predicted"], found["false_positives"], found["false_positives_per_scan"]) == (3, 1, 0.5)
    assert found["by_organ"]["Liver"]["sensitivity"] == 1
    assert found["by_organ"]["Spleen"]["sensitivity"] == 0
    assert found["by_organ"]["none"]["sensitivity"] is None
    assert found["by_size"]["<10 mm"]["lesions"] == 2
    assert detection({})["false_positives_per_scan"] is None


@pytest.mark.parametrize(
    ("diameter", "name"), [(9.9, "<10 mm"), (10, "10-20 mm"), (19.9, "10-20 mm"), (20, ">=20 mm")]
)
def test_size_classes(diameter: float, name: str) -> None:
    assert size_class(diameter) == name


def lesion(
    side: str, matched: bool, score: float | None, diameter_mm: float = 15, organ: str = "Liver"
) -> Lesion:
    return Lesion(side, 1.0, diameter_mm, organ, matched, None, score)


# four scans: lesions of 0.9 and 0.4 found, one missed; false ones of 0.8, 0.6 and 0.3; a control without any
HAND = {
    "a": [
        lesion("reference", True, 0.9),
        lesion("reference", False, None, 30),
        lesion("prediction", True, 0.9),
    ],
    "b": [
        lesion("reference", True, 0.4, organ="LK"),
        lesion("prediction", True, 0.4),
        lesion("prediction", False, 0.8),
    ],
    "c": [lesion("prediction", False, 0.6), lesion("prediction", False, 0.3)],
    "d": [],
}


def test_an_froc_curve_by_hand() -> None:
    curve = froc([x for found in HAND.values() for x in found], len(HAND))
    points = [(0, 0), (0, 1 / 3), (0.25, 1 / 3), (0.5, 1 / 3), (0.5, 2 / 3), (0.75, 2 / 3)]
    np.testing.assert_allclose(curve, points)
    found = detection(HAND)
    # at 1/8 and 1/4 only the first lesion is found, from 1/2 on both
    assert [found[f"at_{rate:g}"] for rate in RATES] == pytest.approx([1 / 3] * 2 + [2 / 3] * 5)
    assert found["froc"] == pytest.approx((2 / 3 + 5 * 2 / 3) / 7)
    # of groups, with the false positives of all
    assert found["by_organ"]["LK"]["froc"] == pytest.approx(5 / 7)
    assert found["by_size"][">=20 mm"]["froc"] == 0
    assert froc([], 3).shape == (0, 2)


def test_patients_by_hand() -> None:
    found = detection(HAND)
    assert (found["patients_with_tumor"], found["controls"]) == (2, 2)
    assert (found["patient_sensitivity"], found["specificity"]) == (1, 0.5)
    assert found["auc"] == 1  # 0.9 and 0.8 against 0.6 and 0
    assert (found["missed_patients"], found["false_alarms"]) == ([], ["c"])
    silent = detection({"a": HAND["a"][1:2], "d": []})
    assert (silent["patient_sensitivity"], silent["specificity"], silent["auc"]) == (0, 1, 0.5)
    assert silent["missed_patients"] == ["a"]
    assert detection({"d": []})["auc"] is None


def drawn_cohort(rng: np.random.Generator) -> dict[str, list[Lesion]]:
    """Scans with a few lesions of either side; scores of few values, so that there are ties."""
    cases: dict[str, list[Lesion]] = {}
    for case in range(int(rng.integers(1, 9))):
        real = [
            lesion("reference", True, s / 4) if s else lesion("reference", False, None)
            for s in rng.integers(0, 5, rng.integers(0, 3))
        ]
        hits = [lesion("prediction", True, x.score) for x in real if x.matched]
        cases[str(case)] = [
            *real,
            *hits,
            *(lesion("prediction", False, s / 4) for s in rng.integers(1, 5, rng.integers(0, 4))),
        ]
    return cases


def test_auc_and_froc_agree_with_counting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        cases = drawn_cohort(rng)
        found = detection(cases)
        best = {
            c: max((x.score or 0 for x in xs if x.side == "prediction"), default=0) for c, xs in cases.items()
        }
        bears = {c: any(x.side == "reference" for x in xs) for c, xs in cases.items()}
        pairs = [
            1.0 if best[p] > best[q] else 0.5 if best[p] == best[q] else 0.0
            for p in cases
            for q in cases
            if bears[p] and not bears[q]
        ]
        assert found["auc"] == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
        everything = [x for xs in cases.values() for x in xs]
        real = [x for x in everything if x.side == "reference"]
        for rate in RATES if real else ():
            sensitivities = [0.0]
            for least in (0.25, 0.5, 0.75, 1.0):
                kept = [x for x in everything if (x.score or 0) >= least]
                false = sum(x.side == "prediction" and not x.matched for x in kept)
                if false <= rate * len(cases):
                    sensitivities.append(sum(x.side == "reference" for x in kept) / len(real))
            assert found[f"at_{rate:g}"] == pytest.approx(max(sensitivities))


def test_tables_show_patients_lesions_curve_and_groups_of_the_last_round() -> None:
    rows = {"mot": detection({**HAND, "c": []}), "mot1": detection(HAND), "untrained": detection({"d": []})}
    text = to_markdown(detection_tables(rows, "mot1", "Ours."))
    assert "| mot | 2 | 2 | **1.000** | **1.000** | **1.000** |" in text
    assert "| mot1 | 2 | 2 | **1.000** | 0.500 | **1.000** |" in text
    assert "| mot1 | 3 | **0.667** | - | 0.750 | 0.571 |" in text
    assert "| untrained | 0 | - | - | **0.000** | - |" in text
    assert "**Lesions of mot1 by size**" in text
    assert "| >=20 mm | 1 | 0.000 | - | 0.000 | 0.000 |" in text
