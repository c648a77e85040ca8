import numpy as np
import pytest

from flare.inference.settings import BodyRule
from flare.inference.windows import find_body

SPACING = (4.0, 1.2, 1.2)
RULE = BodyRule(threshold_hu=-500, opening_mm=6, minimum_ml=100)


def torso():
    """An ellipse with two lungs on a curved table that touches its back; returns HU, body, table."""
    _, y, x = np.mgrid[:12, :160, :200]
    body = ((y - 90) / 50) ** 2 + ((x - 100) / 75) ** 2 <= 1
    lungs = (np.abs(x - 100) > 12) & (((y - 90) / 25) ** 2 + ((np.abs(x - 100) - 35) / 20) ** 2 <= 1)
    table = np.abs(y - 38 + ((x - 100) / 60) ** 2 * 4) <= 1  # 3 voxels, 3.6 mm, right below the back
    hu = np.full(body.shape, -1000, dtype=np.int16)
    hu[table] = 100
    hu[body] = 40
    hu[lungs & body] = -850
    hu += np.random.default_rng(0).normal(0, 40, hu.shape).astype(np.int16)
    return hu, body, table & ~body


def test_the_body_is_found_without_its_table_and_with_its_lungs():
    hu, body, table = torso()
    found = find_body(hu, SPACING, RULE)
    assert found.shape == hu.shape
    assert np.count_nonzero(found & body) > 0.98 * np.count_nonzero(body)
    assert np.count_nonzero(found & ~body) < 0.02 * np.count_nonzero(body)
    assert np.count_nonzero(found & table) < 0.05 * np.count_nonzero(table)
    assert found[:, 90, 65].all()
    assert hu[:, 90, 65].mean() < -700


def test_only_the_largest_part_is_body():
    hu = np.full((6, 100, 200), -1000, dtype=np.int16)
    hu[:, 20:80, 20:120] = 0
    hu[:, 30:60, 150:180] = 0  # an arm
    found = find_body(hu, SPACING, RULE)
    assert found[:, 30:70, 30:110].all()
    assert not found[:, :, 140:].any()


def test_a_body_that_fills_the_image_is_all_body():
    assert find_body(np.zeros((5, 61, 83), dtype=np.int16), SPACING, RULE).all()


@pytest.mark.parametrize("hu", [-1000, -500])
def test_air_has_no_body(hu):
    assert find_body(np.full((5, 60, 80), hu, dtype=np.int16), SPACING, RULE) is None


def test_a_body_below_the_minimum_is_none():
    hu = np.full((5, 60, 80), -1000, dtype=np.int16)
    hu[:, 20:40, 20:40] = 0  # 5 x 20 x 20 voxels of 5.76 mm3 are 11.5 ml
    assert find_body(hu, SPACING, RULE) is None
    assert find_body(hu, SPACING, BodyRule(-500, 6, 5)) is not None


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (3, 1, 9)])
def test_tiny_volumes_are_no_error(shape):
    assert find_body(np.zeros(shape, dtype=np.int16), SPACING, BodyRule(-500, 6, 0)).shape == shape


def test_a_real_scan_on_its_table(real_data):
    from flare.core.preprocessing import preprocess
    from flare.core.volumes import read_image

    case = preprocess(read_image(real_data / "torso_512" / "torso_0000.nii.gz"), SPACING, "linear")
    body = find_body(case.array, SPACING, RULE)
    rows = np.flatnonzero(body.any(axis=(0, 2)))
    # counted from the back: the skin begins at row 42, the table's upper sheet ends at about 36
    assert 38 <= rows[0] <= 46
    assert 0.3 < body.mean() < 0.45
    assert case.array[body].mean() > -300
