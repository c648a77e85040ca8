import numpy as np

from flare.inference.settings import InferenceSettings
from flare.inference.windows import judge_flare22, plan_windows, walk

PATCH = (4, 32, 32)
LIVER, AORTA, IVC, ESOPHAGUS = 1, 5, 6, 10
TUBES = frozenset({AORTA, IVC, ESOPHAGUS})
# three starts along each in-plane axis of 64 voxels, the central one 16; z starts 0, 2, 4, 6, 8
ROWS = plan_windows(InferenceSettings(name="flare22"), (12, 64, 64), patch=PATCH, body=None)


def judge(row, segmentation):
    return judge_flare22(row, segmentation, TUBES)


def visit(predict):
    visited = []

    def look(start):
        visited.append(start)
        return predict(start)

    counted = [start for start, _ in walk(ROWS, look, judge)]
    return visited, counted


def block(*, label=LIVER, voxels=2000, y=slice(8, 24)):
    """A patch with foreground in some y planes."""
    patch = np.zeros(PATCH, dtype=np.uint8)
    flat = np.zeros(patch[:, y].size, dtype=np.uint8)
    flat[:voxels] = label
    patch[:, y] = flat.reshape(patch[:, y].shape)
    return patch


def test_a_full_centre_is_followed_by_all_eight_neighbours():
    visited, counted = visit(lambda start: block())
    assert visited == counted == [start for row in ROWS for start in row]
    assert len(visited) == 5 * 9


def test_an_empty_centre_is_discarded_with_its_neighbours_and_the_next_row():
    visited, counted = visit(lambda start: block(voxels=999))
    assert visited == [(0, 16, 16), (4, 16, 16), (8, 16, 16)]
    assert counted == []


def test_a_thousand_voxels_are_enough():
    visited, _ = visit(lambda start: block(voxels=1000))
    assert len(visited) == 5 * 9


def test_after_a_skipped_row_the_next_one_is_looked_at_again():
    visited, counted = visit(lambda start: block(voxels=0 if start[0] == 2 else 2000))
    assert [start for start in visited if start[1:] == (16, 16)] == [(z, 16, 16) for z in (0, 2, 6, 8)]
    assert (2, 16, 16) not in counted
    assert len(counted) == 3 * 9


def test_tubes_away_from_both_faces_ask_for_no_neighbour():
    visited, counted = visit(lambda start: block(label=AORTA))
    assert visited == counted == [(z, 16, 16) for z in (0, 2, 4, 6, 8)]


def tube(front, back):
    patch = block(label=IVC)
    patch[0, 0, :front] = AORTA
    patch[0, -1, :back] = ESOPHAGUS
    return patch


def test_tubes_at_a_face_ask_for_the_neighbour_there():
    for front, back, expected in [
        (11, 0, [0]),
        (0, 11, [32]),
        (11, 11, [0, 32]),
        (10, 10, []),
    ]:
        visited, counted = visit(
            lambda start, front=front, back=back: tube(front, back) if start[1:] == (16, 16) else block()
        )
        first_row = [start for start in visited if start[0] == 0]
        assert first_row == [(0, 16, 16), *((0, y, 16) for y in expected)]
        assert visited == counted


def test_one_voxel_of_an_organ_beside_tubes_asks_for_all_neighbours():
    patch = block(label=AORTA)
    patch[3, 31, 31] = LIVER
    visited, _ = visit(lambda start: patch)
    assert len(visited) == 5 * 9


def test_a_lone_window_along_y_has_no_neighbour_to_ask_for():
    rows = plan_windows(InferenceSettings(name="flare22"), (4, 32, 64), patch=PATCH, body=None)
    counted = list(walk(rows, lambda start: tube(32, 32), judge))
    assert [start for start, _ in counted] == [(0, 0, 16)]


def test_without_a_judge_every_window_counts_in_order():
    assert [start for start, _ in walk(ROWS, lambda start: None)] == [start for row in ROWS for start in row]
