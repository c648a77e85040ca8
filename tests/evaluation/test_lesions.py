"""Lesion-wise detection on volumes made by hand."""

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.evaluation.lesions import Lesion, detection, find_lesions, size_class

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
