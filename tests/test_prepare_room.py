import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from cohort_files import image_array, write
from flare.errors import FlareError
from flare.prepare.room import Estimate, duration, estimate, require_room, size


def test_the_estimate_comes_from_headers(tmp_path: Path) -> None:
    """6 x 8 x 10 voxels of 5 x 2 x 2 mm are 3 x 8 x 10 of 10 x 2 x 2 mm: 240 bytes, and labels no larger."""
    image = write(tmp_path / "a.nii.gz", image_array())
    found = estimate([image], [image], (10.0, 2.0, 2.0), workers=2)
    assert found.cases == 2
    assert found.disk_bytes == 480
    assert found.seconds == pytest.approx((2 * 480 / 1e6 * 0.05 + 2 * 0.02) / 2)


def test_an_unreadable_header_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"")
    assert estimate([tmp_path / "a.nii.gz"], [], (4.0, 1.2, 1.2), workers=1).disk_bytes == 0


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
