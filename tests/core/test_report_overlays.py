"""Pictures of cases: where they are cut, which way is up, and what is coloured."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flare.core.classes import ClassList
from flare.core.geometry import Geometry, Volume
from flare.core.pictures import _planes, class_colours, draw_case, find_view, paint, rgb
from flare.core.volumes import read_compared
from tiny_round import LIVER, SHAPE, TUMOR, write_case

GEOMETRY = Geometry((8, 8, 8), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def volume(array: np.ndarray) -> Volume:
    return Volume(array, GEOMETRY)


def test_the_cut_goes_through_the_largest_part_of_the_tumor(labels: ClassList) -> None:
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[1:7, 1:7, 1:7] = LIVER
    truth[2, 3, 4] = truth[3, 3, 4] = truth[3, 4, 4] = TUMOR
    centre, _ = find_view(volume(truth), truth, labels)
    assert centre == (3, 3, 4)


def test_an_empty_reference_is_shown_where_something_is_predicted(labels: ClassList) -> None:
    predicted = np.zeros((8, 8, 8), np.uint8)
    predicted[6, 5, 1] = LIVER
    centre, box = find_view(volume(np.zeros_like(predicted)), predicted, labels)
    assert centre == (6, 5, 1)
    assert all(part.start == 0 for part in box)  # a margin of 30 mm is wider than the volume


def test_the_patients_right_is_on_the_left_and_anterior_is_up(labels: ClassList) -> None:
    shown = np.zeros((8, 8, 8), np.uint8)
    shown[7, 7, 7] = LIVER  # superior, anterior, right: the last voxel of each axis in RAS order
    ct = volume(np.zeros((8, 8, 8), np.int16))
    whole = (slice(0, 8), slice(0, 8), slice(0, 8))
    axial, coronal, sagittal = _planes(ct, shown, ((7, 7, 7), whole), (0, 1, 2), 0.5, labels)
    colour = rgb(class_colours(labels)[LIVER])
    # axial: anterior and right; coronal: superior and right; sagittal: superior and anterior
    for plane in (axial, coronal, sagittal):
        assert tuple(plane[0, 0]) == colour
        assert len(np.unique(plane[1:, 1:])) == 1


def test_a_voxel_fills_its_share_of_the_picture(labels: ClassList) -> None:
    classes = np.zeros((4, 6), np.uint8)
    classes[1, 2] = LIVER
    painted = paint(np.full((4, 6), -1000, np.int16), classes, (3.0, 2.0), labels)
    assert painted.shape == (12, 12, 3)
    assert (painted.any(axis=-1)).sum() == 3 * 2


@pytest.mark.parametrize("small", [False, True])
def test_reference_and_prediction_have_one_size(tmp_path: Path, labels: ClassList, small: bool) -> None:
    write_case(tmp_path, "case", 0)
    label = tmp_path / "labelsTr2200" / "case.nii.gz"
    image = tmp_path / "imagesTr2200" / "case_0000.nii.gz"
    drawn = draw_case(read_compared("case", (image, label, label), labels, None), labels, small=small)
    assert drawn["reference"] == drawn["prediction"]
    width, height = Image.open(io.BytesIO(drawn["reference"])).size
    assert height == round(SHAPE[1] * 2.0 * (0.9 if small else 1.5))
    assert width > height or small
