"""Scores of whole cases: only where a class is defined, averaged over cases, then over organs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.errors import CaseError
from flare.core.geometry import Geometry, Volume
from flare.core.volumes import write_image, write_labels
from flare.inference.settings import InferenceSettings
from flare.training.module import Scores, mean_scores, score_case, segment_case

GRID = Geometry((2, 3, 4), (5.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


@dataclass
class Answer:
    segmentation: np.ndarray


class Fixed:
    """A predictor that always says the same."""

    settings = InferenceSettings()

    def __init__(self, segmentation: np.ndarray) -> None:
        self.segmentation = segmentation

    def predict(self, volume: Volume) -> Any:
        assert volume.array.shape == self.segmentation.shape
        return Answer(self.segmentation)


def case_of(folder: Path, reference: np.ndarray | None) -> Case:
    write_image(folder / "a_0000.nii.gz", np.zeros(GRID.shape, np.int16), GRID)
    label = None
    if reference is not None:
        label = folder / "a.nii.gz"
        write_labels(label, reference, GRID)
    return Case("a", folder / "a_0000.nii.gz", label, "validation", "partial", (), ())


def scores_of(
    predictor: Fixed,
    case: Case,
    *,
    labels: ClassList,
    outputs: Sequence[int],
    nsd: bool = False,
    **reading: Any,
) -> Scores:
    segmented = segment_case(predictor, case, classes=labels, label_map=reading.get("label_map"))
    return score_case(segmented, classes=labels, outputs=outputs, nsd=nsd)


def test_only_trained_classes_of_the_annotation_are_scored(tmp_path: Path, labels: ClassList) -> None:
    reference = np.zeros(GRID.shape, np.uint8)
    reference[0, 0] = labels.id_of("liver")  # four voxels
    reference[1, 0] = labels.id_of("aorta")
    reference[1, 2] = labels.id_of("tumor")
    segmentation = np.zeros(GRID.shape, np.uint8)
    segmentation[0, 0, :3] = labels.id_of("liver")  # three of them
    segmentation[0, 1, :2] = labels.id_of("spleen")  # nowhere annotated
    case = case_of(tmp_path, reference)
    organs = labels.outputs("organs")
    scores = scores_of(Fixed(segmentation), case, labels=labels, outputs=organs)
    assert scores == {"dsc/liver": pytest.approx(6 / 7), "dsc/aorta": 0.0}


def test_surfaces_are_scored_if_asked(tmp_path: Path, labels: ClassList) -> None:
    reference = np.zeros(GRID.shape, np.uint8)
    reference[:, 1:, 1:] = labels.id_of("liver")
    segmentation = np.zeros(GRID.shape, np.uint8)
    segmentation[:, 1:, 2:] = labels.id_of("liver")  # 1 mm short, of 5 mm that are tolerated
    case = case_of(tmp_path, reference)
    scores = scores_of(Fixed(segmentation), case, labels=labels, outputs=labels.outputs("organs"), nsd=True)
    assert scores == {"dsc/liver": pytest.approx(2 * 8 / (12 + 8)), "nsd/liver": 1.0}


def test_foreign_ids_are_renumbered(tmp_path: Path, labels: ClassList) -> None:
    reference = np.full(GRID.shape, 77, np.uint8)
    predictor = Fixed(np.full(GRID.shape, labels.id_of("liver"), np.uint8))
    scores = scores_of(
        predictor,
        case_of(tmp_path, reference),
        labels=labels,
        outputs=labels.outputs("organs_tumor"),
        label_map={"77": labels.id_of("liver")},
    )
    assert scores == {"dsc/liver": 1.0}


def test_a_case_without_annotation_is_refused(tmp_path: Path, labels: ClassList) -> None:
    with pytest.raises(CaseError, match="case a: no annotation"):
        segment_case(
            Fixed(np.zeros(GRID.shape, np.uint8)), case_of(tmp_path, None), classes=labels, label_map=None
        )


def test_means_are_over_the_cases_that_have_a_class_then_over_organs(labels: ClassList) -> None:
    scores = {
        "a": {"dsc/liver": 0.9, "dsc/tumor": 0.1, "nsd/liver": 0.3},
        "b": {"dsc/liver": 0.7, "dsc/spleen": 0.4},
        "c": {},
    }
    assert mean_scores(scores, labels) == {
        "val/dsc/liver": pytest.approx(0.8),
        "val/dsc/spleen": pytest.approx(0.4),
        "val/dsc/tumor": pytest.approx(0.1),
        "val/dsc_mean": pytest.approx(0.6),
        "val/nsd/liver": pytest.approx(0.3),
        "val/nsd_mean": pytest.approx(0.3),
    }


def test_where_no_organ_is_trained_the_mean_is_the_tumors(labels: ClassList) -> None:
    assert mean_scores({"a": {"dsc/tumor": 0.2}}, labels)["val/dsc_mean"] == pytest.approx(0.2)


def test_nothing_to_score_gives_nothing(labels: ClassList) -> None:
    assert mean_scores({"a": {}}, labels) == {}
