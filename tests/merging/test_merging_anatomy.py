"""Merging on real anatomy: the two organ maps, with tumors put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from flare.core.classes import ClassList
from flare.core.volumes import read_labels
from flare.merging.rules import Merged, merge_labels
from flare.merging.settings import MergeRules

pytestmark = pytest.mark.slow

AMOS = {1: 3, 2: 2, 3: 13, 4: 9, 5: 10, 6: 1, 7: 11, 8: 5, 9: 6, 10: 4, 11: 7, 12: 8, 13: 12, "rest": 0}
SPACING_MM = (5.0, 3.1, 3.1)


@pytest.fixture(scope="module", params=["amos_0001", "amos_0013"])
def organs(request: pytest.FixtureRequest, real_data: Path, labels: ClassList) -> np.ndarray:
    """Every fourth voxel in plane of a real map, in our ids."""
    path = real_data / "amos_labels" / f"{request.param}.nii.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} among the real CT scans")
    return np.ascontiguousarray(read_labels(path, labels, AMOS).array[:, ::4, ::4])


def ball_in(organs: np.ndarray, class_id: int, radius_mm: float) -> np.ndarray:
    """A ball around the organ's deepest voxel."""
    depth = ndimage.distance_transform_edt(organs == class_id, sampling=SPACING_MM)
    centre = np.unravel_index(np.argmax(depth), depth.shape)
    offsets = (np.indices(organs.shape).transpose(1, 2, 3, 0) - centre) * SPACING_MM
    return (offsets**2).sum(-1) <= radius_mm**2


def merged(
    truth: np.ndarray | None, pseudo: np.ndarray, labels: ClassList, targets: str = "organs_tumor"
) -> Merged:
    rules = MergeRules(targets, "paper", 3.0, 0.5, False)
    return merge_labels(truth, pseudo, rules, classes=labels, spacing_mm=SPACING_MM)


def test_a_liver_annotated_without_its_tumor_is_whole_again(organs: np.ndarray, labels: ClassList) -> None:
    liver, tumor = labels.id_of("liver"), labels.tumor
    lesion = ball_in(organs, liver, 15.0) & (organs == liver)
    truth = np.where(lesion, np.uint8(tumor), organs)
    truth[truth == labels.id_of("spleen")] = 0  # not annotated
    both = merged(truth, organs, labels)
    np.testing.assert_array_equal(both.labels, np.where(lesion, tumor, organs))
    assert "liver" in both.origin["tumor_bearing"]
    np.testing.assert_array_equal(merged(truth, organs, labels, "organs").labels, organs)


def test_an_organ_round_closes_the_hole_that_the_teacher_left(organs: np.ndarray, labels: ClassList) -> None:
    liver = labels.id_of("liver")
    lesion = ball_in(organs, liver, 12.0)
    assert (organs[lesion] == liver).all()
    truth = np.where(lesion, np.uint8(labels.tumor), organs)
    pseudo = np.where(lesion, np.uint8(0), organs)
    np.testing.assert_array_equal(merged(truth, pseudo, labels, "organs").labels, organs)


def test_pseudo_tumors_stay_inside_organs_only(organs: np.ndarray, labels: ClassList) -> None:
    kidney, tumor = labels.id_of("left_kidney"), labels.tumor
    inside = ball_in(organs, kidney, 8.0) & (organs == kidney)
    outside = np.zeros_like(inside)
    outside[2:5, 2:6, 2:6] = True
    assert not organs[outside].any()
    pseudo = np.where(inside | outside, np.uint8(tumor), organs)
    found = merged(organs, pseudo, labels)
    np.testing.assert_array_equal(found.labels, np.where(inside, tumor, organs))
    assert sorted(t["fate"] for t in found.origin["tumors"]) == ["dropped", "kept"]
    assert found.origin["classes"]["left_kidney"]["overwritten_by_pseudo_tumor"] == inside.sum()


def test_trusted_organs_replace_a_teacher_that_is_off_by_a_voxel(
    organs: np.ndarray, labels: ClassList
) -> None:
    partial = np.where(np.isin(organs, [labels.id_of("liver"), labels.id_of("aorta")]), organs, np.uint8(0))
    shifted = np.roll(organs, 1, axis=2)
    result = merged(partial, shifted, labels).labels
    for name in labels.names[:-1]:
        c = labels.id_of(name)
        if c in partial:
            np.testing.assert_array_equal(result == c, organs == c)
        else:
            np.testing.assert_array_equal(result == c, (shifted == c) & (partial == 0))
