"""That `make soak` sees what it looks for: runs that differ, and processes ended in the middle of a write."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault import __file__ as fault
from works import differences

WRITES = f"""
import sys
sys.path[:0] = [{str(Path(fault).parent)!r}]
import fault, os
from pathlib import Path
fault.arm(sys.argv[1], int(sys.argv[2]), "counts.json")
Path("a.json").write_text("1234")
os.replace("a.json", "c.json")
with Path("d.jsonl").open("ab+") as stream:
    stream.write(b"56")
    stream.write(b"7890")
"""


def write_run(run: Path) -> None:
    for name, text in {"labels/a.json": '{"voxels": 3}', "metrics.csv": "Name,DSC,seconds\na,1,2\n"}.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    (run / "labels" / "a.nii.gz").write_bytes(b"abc")
    torch.save({"state_dict": {"w": torch.ones(2)}, "time": 1}, run / "last.ckpt")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: (run / "labels/a.nii.gz").write_bytes(b"abd"), ["/labels/a.nii.gz differs"]),
        (lambda run: (run / "labels/a.json").write_text('{"voxels": 4}'), ["/labels/a.json differs"]),
        (lambda run: (run / "metrics.csv").write_text("Name,DSC,seconds\na,2,2\n"), ["/metrics.csv differs"]),
        (lambda run: (run / "metrics.csv").write_text("Name,DSC,seconds\na,1,3\n"), []),
        (lambda run: (run / "metrics.csv").unlink(), ["/metrics.csv is missing"]),
        (lambda run: (run / "more.npz").write_bytes(b""), ["/more.npz is too much"]),
        (lambda run: (run / ".partial-x").mkdir(), [".partial-x was left"]),
        (lambda run: torch.save({"state_dict": {"w": torch.ones(2)}}, run / "last.ckpt"), []),
        (
            lambda run: torch.save({"state_dict": {"w": torch.zeros(2)}}, run / "last.ckpt"),
            ["/last.ckpt differs"],
        ),
    ],
)
def test_what_differs_between_two_runs(
    change: Callable[[Path], object], told: list[str], tmp_path: Path
) -> None:
    for run in ("one", "two"):
        write_run(tmp_path / run)
    assert differences(tmp_path / "one", tmp_path / "two") == []
    change(tmp_path / "one")
    assert differences(tmp_path / "one", tmp_path / "two") == told


def write_all(point: str, number: int, folder: Path) -> int:
    """Write in a process group of its own; gives the exit code."""
    line = [sys.executable, "-c", WRITES, point, str(number)]
    return subprocess.run(line, cwd=folder, start_new_session=True, check=False).returncode


@pytest.mark.parametrize(
    ("point", "number", "left"),
    [
        ("file", 1, {"a.json": "12"}),
        ("rename", 1, {"a.json": "1234"}),
        ("renamed", 1, {"c.json": "1234"}),
        ("line", 2, {"c.json": "1234", "d.jsonl": "5678"}),
    ],
)
def test_a_process_ends_in_the_middle_of_a_write(
    point: str, number: int, left: dict[str, str], tmp_path: Path
) -> None:
    assert write_all(point, number, tmp_path) == -signal.SIGKILL
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == left


def test_calls_are_counted_where_nothing_ends(tmp_path: Path) -> None:
    assert write_all("", 0, tmp_path) == 0
    assert (tmp_path / "counts.json").read_text() == '{"file": 1, "rename": 1, "renamed": 1, "line": 2}'
