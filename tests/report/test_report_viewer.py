"""Volumes for the viewer, read back with another reader."""

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from flare.core.classes import ClassList
from flare.report.examples import coarsen, encode, lookup_table, pack_case
from tiny_round import LIVER, SHAPE, TUMOR, write_case


def read_back(text: str, folder: Path) -> sitk.Image:
    path = folder / "back.nii.gz"
    path.write_bytes(base64.b64decode(text))
    return sitk.ReadImage(str(path))


def test_the_file_is_the_array_in_ras_order(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    image = read_back(encode(array, [5.0, 2.0, 1.0]), tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(image), array)
    assert image.GetSpacing() == (1.0, 2.0, 5.0)
    assert image.GetDirection() == (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)  # RAS, told in LPS
    middle = image.TransformContinuousIndexToPhysicalPoint((1.5, 1.0, 0.5))
    assert middle == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("limit", [10**6, SHAPE[0] * SHAPE[1] * SHAPE[2] // 8])
def test_large_volumes_are_packed_coarser(tmp_path: Path, labels: ClassList, limit: int) -> None:
    write_case(tmp_path, "case", 0)
    label = tmp_path / "labelsTr2200" / "case.nii.gz"
    image = tmp_path / "imagesTr2200" / "case_0000.nii.gz"
    settings: Any = SimpleNamespace(classes=labels, label_map=None)
    packed = pack_case("case", (image, label, label), settings, limit)
    shown = read_back(packed["reference"], tmp_path)
    assert shown.GetSize() == tuple(n if limit == 10**6 else n // 2 for n in SHAPE[::-1])
    assert set(np.unique(sitk.GetArrayFromImage(shown))) >= {LIVER, TUMOR}
    extent = np.array(shown.GetSize()) * shown.GetSpacing()
    assert extent == pytest.approx((28 * 2, 24 * 2, 12 * 3))
    grey = sitk.GetArrayFromImage(read_back(packed["image"], tmp_path))
    assert grey.dtype == np.uint8
    # 120 HU of the liver in a window from -160 to 240
    assert np.median(grey[sitk.GetArrayFromImage(shown) == LIVER]) == pytest.approx(280 / 400 * 255, abs=5)


def test_the_background_is_clear_and_classes_are_named(labels: ClassList) -> None:
    table = lookup_table(labels)
    assert table["I"] == [0, *labels.ids]
    assert table["A"][0] == 0
    assert set(table["A"][1:]) == {255}
    assert table["labels"][6] == "inferior vena cava"


def test_a_small_tumor_is_not_lost_in_a_coarser_map() -> None:
    fine = np.zeros((8, 8, 8), np.uint8)
    fine[:, :, 4:] = LIVER
    fine[2, 4, 6] = TUMOR  # one voxel: the nearest voxels of the coarse map are others
    fine[4:, :4, 4:] = TUMOR
    found = coarsen(fine, (4, 4, 4), TUMOR)
    assert found[1, 2, 3] == TUMOR
    assert (found == TUMOR).sum() == 1 + 2 * 2 * 2
    assert set(np.unique(coarsen(fine, (4, 4, 4), None))) == {0, LIVER, TUMOR}
    assert np.array_equal(coarsen(fine, (8, 8, 8), TUMOR), fine)
