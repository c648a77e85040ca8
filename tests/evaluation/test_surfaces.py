"""Surface elements, their areas and distances, against hand values and an independent table."""

import numpy as np
import pytest

from flare.evaluation.surfaces import distances_mm, element_areas, robust_hausdorff_mm, surface, surface_dice


def cube(
    start: tuple[int, int, int], size: int = 4, shape: tuple[int, int, int] = (12, 12, 12)
) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + size) for s in start)] = True
    return mask


def both_ways(
    a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float], threshold: float
) -> tuple[np.ndarray, np.ndarray, object, object]:
    start, end = surface(a, spacing), surface(b, spacing)
    there = distances_mm(start, end, spacing_mm=spacing, threshold_mm=threshold)
    back = distances_mm(end, start, spacing_mm=spacing, threshold_mm=threshold)
    return there, back, start, end


def test_area_of_one_voxel_is_eight_corner_triangles() -> None:
    mask = np.ones((1, 1, 1), bool)
    # a triangle through the middles of three edges of a 2 x 1 x 1 mm voxel: |(1, 2, 2)| / 8
    assert surface(mask, (2.0, 1.0, 1.0)).areas == pytest.approx([np.sqrt(1 + 4 + 4) / 8] * 8)


def test_flat_faces_have_the_area_of_a_voxel_face() -> None:
    codes = {"z": 0b11110000, "y": 0b11001100, "x": 0b10101010}
    areas = element_areas((4.0, 1.2, 0.8))
    assert areas[codes["z"]] == pytest.approx(1.2 * 0.8)
    assert areas[codes["y"]] == pytest.approx(4.0 * 0.8)
    assert areas[codes["x"]] == pytest.approx(4.0 * 1.2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.2, 1.2), (2.5, 0.7, 0.9)])
def test_all_areas_equal_monais_table(spacing: tuple[float, float, float]) -> None:
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    theirs = create_table_neighbour_code_to_surface_area(spacing)[0].numpy()
    np.testing.assert_allclose(element_areas(spacing), theirs, rtol=1e-6)


def test_border_includes_the_edge_of_the_array() -> None:
    assert surface(np.ones((2, 2, 2), bool), (1, 1, 1)).border.sum() == 27 - 1


def test_equal_masks_have_distance_zero() -> None:
    there, back, start, end = both_ways(cube((3, 3, 3)), cube((3, 3, 3)), (3.0, 1.0, 2.0), 2.0)
    assert not there.any()
    assert not back.any()
    assert surface_dice(there, back, start, end, 0.0) == 1


def test_a_cube_shifted_along_z_is_a_slice_away() -> None:
    there, back, start, end = both_ways(cube((3, 3, 3)), cube((4, 3, 3)), (2.5, 1.0, 1.0), 2.5)
    assert there.max() == back.max() == 2.5
    assert surface_dice(there, back, start, end, 2.5) == 1
    assert surface_dice(there, back, start, end, 2.4) < 1
    assert robust_hausdorff_mm(there, back, start, end, percent=100) == 2.5


def test_distances_at_the_threshold_are_decided_in_double_precision() -> None:
    stored = float(np.float32(0.6))  # as NIfTI keeps 0.6 mm: five voxels are 3.0000001 mm, 3.0 if rounded
    there, back, start, end = both_ways(cube((3, 3, 0), 1), cube((3, 3, 5), 1), (stored,) * 3, 3.0)
    assert there.max() == 5 * stored > 3
    exact = both_ways(cube((3, 3, 0), 1), cube((3, 3, 5), 1), (0.6,) * 3, 3.0)
    assert surface_dice(*exact, 3.0) == 1
    assert surface_dice(there, back, start, end, 3.0) == 0.5


def test_search_and_distance_transform_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((9, 10, 11)) < 0.1 for _ in range(2))
    start, end = surface(a, (2.5, 0.8, 0.8)), surface(b, (2.5, 0.8, 0.8))
    whole = distances_mm(start, end, spacing_mm=(2.5, 0.8, 0.8), threshold_mm=2)
    monkeypatch.setattr("flare.evaluation.surfaces._VOXELS_PER_POINT", 0)
    near = distances_mm(start, end, spacing_mm=(2.5, 0.8, 0.8), threshold_mm=2, beyond=False)
    np.testing.assert_allclose(near, np.where(whole <= 2, whole, np.inf), rtol=1e-6)
    assert np.isinf(near).any()


def test_hausdorff_percentile_is_weighted_by_area() -> None:
    distances, areas = np.array([3.0, 0.0, 1.0]), np.array([1.0, 90.0, 9.0])
    element = type("Areas", (), {"areas": areas})
    assert robust_hausdorff_mm(distances, distances, element, element, percent=95) == 1.0
    assert robust_hausdorff_mm(distances, distances, element, element, percent=90) == 0.0
    assert robust_hausdorff_mm(distances, distances, element, element, percent=99.5) == 3.0
