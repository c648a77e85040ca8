import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from flare.core.errors import FlareError
from flare.prepare.read import Estimate, duration, estimate, require_room, size


def test_the_estimate_comes_from_file_sizes(tmp_path: Path) -> None:
    """1 MB packed is about a million voxels of 1.6 mm3, 200,000 of 8 mm3; a raw voxel takes two bytes."""
    packed, raw = tmp_path / "a.nii.gz", tmp_path / "b.nii"
    packed.write_bytes(bytes(10**6))  # no image at all: nothing looks into it
    raw.write_bytes(bytes(10**6))
    found = estimate([packed, raw], (2.0, 2.0, 2.0), workers=2, is_cached=True)
    assert (found.cases, found.disk_bytes) == (2, 300_000)
    assert found.seconds == pytest.approx((1.5 * 0.05 + 2 * 0.02) / 2)
    assert found.label_bytes == 33_000  # a hundredth of twice 1.5 million voxels and of 300,000
    assert estimate([packed], (2.0, 2.0, 2.0), workers=2, is_cached=False).disk_bytes == 0


def test_no_case_counts_more_than_a_body(tmp_path: Path) -> None:
    with (tmp_path / "a.nii").open("wb") as stream:
        stream.truncate(10**12)  # sparse: takes no room
    assert estimate([tmp_path / "a.nii"], (2.0, 2.0, 2.0), 1, is_cached=True).disk_bytes == 30e6 / 8


def test_a_series_counts_by_its_slices_and_a_missing_file_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for number in range(4):
        (tmp_path / "s" / f"{number}.dcm").write_bytes(bytes(500_000))
    paths = [tmp_path / "s", tmp_path / "gone.nii.gz"]
    assert estimate(paths, (2.0, 2.0, 2.0), 1, is_cached=True).disk_bytes == 200_000


def test_too_little_room_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 0, 10**9))
    with pytest.raises(FlareError, match=r"data\.cache: needs about 2\.0 GB for 7 cases, 1\.0 GB are free"):
        require_room(tmp_path / "not" / "yet", Estimate(7, 60, 2 * 10**9))
    require_room(tmp_path, Estimate(7, 60, 10**9))


def test_time_and_room_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        require_room(tmp_path, Estimate(4000, 3000, 25 * 10**6))
    assert "4000 cases to read: about 50 min and 25 MB of" in caplog.text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (601, "11 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(n) for n in (2_000_000, 31_500_000_000)] == ["2 MB", "31.5 GB"]
