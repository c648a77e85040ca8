"""Where patches lie: composition of a batch, frequencies, and boxes that leave the volume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.data.cache import Stored, read_box, sample_foreground, store_array
from flare.data.loaders import centred_start, choose_start, uniform_start
from flare.data.settings import PatchSettings

SHAPE = (20, 30, 40)
PATCH = (4, 6, 8)
DRAWS = 2000


@pytest.fixture(scope="module")
def label(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A case with three classes of very different size: 1 (large), 3, and 14, a single voxel."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[5:12, 8:20, 10:25] = 1
    array[14:16, 10:12, 20:22] = 3
    array[9, 21, 30] = 14
    path = tmp_path_factory.mktemp("cache") / "label.b2nd"
    store_array(path, array, foreground=sample_foreground(array, 10_000))
    return Stored(path)


def sampling(**changes: Any) -> PatchSettings:
    values = {
        "patch_size": PATCH,
        "spacing_mm": (1, 1, 1),
        "batch_size": 2,
        "oversample_foreground": 0.33,
        "tumor_fraction": 0.0,
        "workers": 0,
        "augmentation": {},
        "outputs": (0, *changes.pop("classes", (1, 2, 3, 14))),
        "tumor": 14,
        "seed": 0,
    }
    return PatchSettings(**{**values, **changes})


def centres(settings: PatchSettings, label: Stored, position: int) -> list[int]:
    """Class at the centre of many patches."""
    array = label[:, :, :]
    starts = (choose_start(np.random.default_rng((0, i)), position, label, settings) for i in range(DRAWS))
    return [int(array[tuple(s + p // 2 for s, p in zip(start, PATCH, strict=True))]) for start in starts]


@pytest.mark.parametrize(
    ("batch_size", "share", "expected"),
    [(2, 0.33, 1), (3, 0.33, 1), (4, 0.33, 1), (5, 0.33, 2), (6, 0.33, 2), (2, 1.0, 2), (2, 0.0, 0)],
)
def test_the_last_patches_of_a_batch_are_centred_on_foreground(
    label: Stored, batch_size: int, share: float, expected: int
) -> None:
    # batch_size - round(0.67 batch_size): 2 - 1, 3 - 2, 4 - 3, 5 - 3, 6 - 4
    settings = sampling(batch_size=batch_size, oversample_foreground=share)
    always = []
    for position in range(batch_size):
        starts = [choose_start(np.random.default_rng((1, i)), position, label, settings) for i in range(200)]
        array = label[:, :, :]
        found = [array[tuple(s + p // 2 for s, p in zip(start, PATCH, strict=True))] > 0 for start in starts]
        always.append(all(found))
    assert always == [False] * (batch_size - expected) + [True] * expected


def test_the_class_is_drawn_uniformly_however_small(label: Stored) -> None:
    counts = Counter(centres(sampling(), label, position=1))
    assert set(counts) == {1, 3, 14}
    assert all(abs(count / DRAWS - 1 / 3) < 4 * np.sqrt(2 / 9 / DRAWS) for count in counts.values())


def test_the_voxel_is_drawn_uniformly_within_the_class(label: Stored) -> None:
    settings = sampling(classes=(3,))
    starts = [choose_start(np.random.default_rng((0, i)), 1, label, settings) for i in range(DRAWS)]
    counts = Counter(starts)
    assert len(counts) == 8
    assert all(abs(count / DRAWS - 1 / 8) < 0.04 for count in counts.values())


def test_classes_that_the_round_does_not_train_are_no_foreground(label: Stored) -> None:
    assert set(centres(sampling(classes=(14,)), label, position=1)) == {14}
    # none of the round's classes: patches anywhere, mostly in the background
    assert Counter(centres(sampling(classes=(7,)), label, position=1))[0] > DRAWS / 2


def test_the_other_patches_lie_anywhere(label: Stored) -> None:
    settings = sampling()
    starts = np.array([choose_start(np.random.default_rng((0, i)), 0, label, settings) for i in range(DRAWS)])
    free = np.array(SHAPE) - PATCH
    assert (starts.min(axis=0) == 0).all()
    assert (starts.max(axis=0) == free).all()
    np.testing.assert_allclose(starts.mean(axis=0), free / 2, atol=1.0)


def test_at_batch_one_every_third_patch_is_centred_on_foreground(label: Stored) -> None:
    settings = sampling(batch_size=1, classes=(14,))
    share = np.mean([c == 14 for c in centres(settings, label, position=0)])
    assert abs(share - 0.33) < 0.045


def test_a_share_of_the_foreground_patches_is_centred_on_tumor(label: Stored) -> None:
    found = centres(sampling(oversample_foreground=1.0, tumor_fraction=0.5), label, position=0)
    # half on purpose, and a third of the other half by chance
    assert abs(np.mean([c == 14 for c in found]) - 2 / 3) < 0.045


def test_the_share_of_tumor_needs_a_tumor(label: Stored) -> None:
    settings = sampling(classes=(1, 3), tumor_fraction=1.0)
    assert set(centres(settings, label, position=1)) == {1, 3}


def test_a_patch_at_the_border_is_moved_into_the_volume() -> None:
    assert centred_start((0, 15, 39), PATCH, SHAPE) == (0, 12, 32)


def test_a_volume_smaller_than_the_patch_lies_in_its_middle() -> None:
    rng = np.random.default_rng(0)
    # z lacks 3: one slice before (floor), two after
    assert centred_start((0, 5, 7), (4, 6, 8), (1, 30, 40)) == (-1, 2, 3)
    assert uniform_start(rng, (4, 6, 8), (1, 6, 5)) == (-1, 0, -1)


@given(
    lower=st.tuples(*[st.integers(-15, 15)] * 3),
    size=st.tuples(*[st.integers(1, 25)] * 3),
)
def test_a_box_equals_the_same_box_of_the_padded_volume(
    lower: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    array = np.arange(10 * 9 * 8, dtype=np.int16).reshape(10, 9, 8)
    upper = tuple(a + n for a, n in zip(lower, size, strict=True))
    found = read_box(ArrayStore(array), lower, upper, convert=lambda part: part + 1)
    padded = np.pad(array + 1, 40)
    expected = padded[tuple(slice(a + 40, b + 40) for a, b in zip(lower, upper, strict=True))]
    np.testing.assert_array_equal(found, expected)


class ArrayStore(Stored):
    """An array in memory in place of one on disk."""

    def __init__(self, array: np.ndarray) -> None:
        object.__setattr__(self, "path", Path("memory"))
        self.__dict__["_array"] = array


def test_only_the_box_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_array(tmp_path / "image.b2nd", np.zeros(SHAPE, dtype=np.int16))
    pieces = []
    original = Stored.__getitem__

    def spy(self: Stored, piece: Any) -> np.ndarray:
        pieces.append(piece)
        return original(self, piece)

    monkeypatch.setattr(Stored, "__getitem__", spy)
    box = read_box(Stored(tmp_path / "image.b2nd"), (-1, 2, 38), (3, 8, 44), convert=lambda part: part)
    assert box.shape == (4, 6, 6)
    assert pieces == [(slice(0, 3), slice(2, 8), slice(38, 40))]
