from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flare.core.errors import FlareError
from flare.core.files import read_json
from flare.prepare.intensity import (
    foreground_histogram,
    intensity_of,
    pool,
    write_histogram,
    write_statistics,
)

PERCENTILES = (0.5, 99.5)


@given(
    st.lists(st.lists(st.integers(-32768, 32767), min_size=1, max_size=60), min_size=1, max_size=4),
    st.tuples(st.floats(0, 100), st.floats(0, 100)),
)
def test_statistics_are_those_of_all_voxels_together(
    cases: list[list[int]], percentiles: tuple[float, float]
) -> None:
    histogram = sum(foreground_histogram(np.array(c, np.int16), np.ones(len(c), np.uint8)) for c in cases)
    everything = np.concatenate([np.array(c, float) for c in cases])
    found = intensity_of(histogram, percentiles)
    expected = np.percentile(everything, percentiles)
    assert (found.lower, found.upper) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-8)
    assert found.mean == pytest.approx(everything.mean(), rel=1e-12, abs=1e-9)
    assert found.std == pytest.approx(everything.std(), rel=1e-9, abs=1e-6)


def test_statistics_by_hand() -> None:
    """Voxels 0, 0, 10, 30 HU: mean 10, variance (100 + 100 + 0 + 400) / 4, median 5."""
    image = np.array([[[0, 0, 10, 30, -1000]]], np.int16)
    labels = np.array([[[1, 14, 2, 3, 0]]], np.uint8)
    found = intensity_of(foreground_histogram(image, labels), (50, 100))
    assert (found.lower, found.upper, found.mean, found.std) == (5.0, 30.0, 10.0, pytest.approx(np.sqrt(150)))


def test_statistics_are_taken_before_clipping() -> None:
    histogram = foreground_histogram(np.array([0] * 999 + [3000], np.int16), np.ones(1000, np.uint8))
    found = intensity_of(histogram, PERCENTILES)
    assert found.upper == 0.0
    assert found.mean == 3.0


def test_fractions_are_rounded_and_extremes_clipped() -> None:
    image = np.array([0.4, 0.6, 1e6, -1e6], np.float32)
    histogram = foreground_histogram(image, np.ones(4, np.uint8))
    assert np.flatnonzero(histogram).tolist() == [0, 32768, 32769, 65535]


def test_a_histogram_survives_the_disk_and_the_same_one_gives_the_same_bytes(tmp_path: Path) -> None:
    histogram = foreground_histogram(np.arange(-50, 70, dtype=np.int16), np.ones(120, np.uint8))
    for name in ("a.npz", "b.npz"):
        write_histogram(tmp_path / name, histogram)
    assert np.array_equal(pool([tmp_path / "a.npz"]), histogram)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.array_equal(pool([tmp_path / "a.npz", tmp_path / "b.npz"]), 2 * histogram)


def test_the_hash_changes_with_the_voxels_and_the_percentiles(tmp_path: Path) -> None:
    hashes = []
    for values, percentiles in (([1, 2], PERCENTILES), ([1, 3], PERCENTILES), ([1, 2], (1, 99))):
        histogram = foreground_histogram(np.array(values, np.int16), np.ones(2, np.uint8))
        intensity = write_statistics(tmp_path / "s.json", histogram, 1, percentiles)
        assert read_json(tmp_path / "s.json")["intensity"] == intensity.to_dict()
        hashes.append((tmp_path / "s.json").read_text())
    assert len(set(hashes)) == 3


def test_unchanged_statistics_are_not_written_again(tmp_path: Path) -> None:
    histogram = foreground_histogram(np.array([1, 2], np.int16), np.ones(2, np.uint8))
    write_statistics(tmp_path / "s.json", histogram, 1, PERCENTILES)
    before = (tmp_path / "s.json").stat().st_mtime_ns
    write_statistics(tmp_path / "s.json", histogram, 1, PERCENTILES)
    assert (tmp_path / "s.json").stat().st_mtime_ns == before


def test_no_foreground_is_refused() -> None:
    with pytest.raises(FlareError, match=r"data\.labels: no labelled training case"):
        intensity_of(np.zeros(65536, np.int64), PERCENTILES)
