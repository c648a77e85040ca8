"""What counts as done: inputs, config, outputs; and journals of processes that were killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cohort_files import little_room
from flare.core.errors import NoRoomError
from flare.runs.journal import Journal

CONFIG = {"spacing_mm": [4.0, 1.2, 1.2], "label_map": {5: 1, "rest": 0}}


class Step:
    """A step with one user file, one hash and one output."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "journal" / "step.jsonl"
        self.image, self.output = folder / "image.nii.gz", folder / "out" / "a.b2nd"
        self.image.write_bytes(b"image")
        self.output.parent.mkdir()
        self.output.write_bytes(b"output")
        self.inputs = {"image": self.image, "teacher": "0" * 64}

    def record(self, case: str = "a", **values: float) -> None:
        Journal(self.journal).record(case, self.inputs, CONFIG, {"array": self.output}, values)

    def is_current(self) -> bool:
        return Journal(self.journal).is_current("a", self.inputs, CONFIG)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(tmp_path)


def test_unknown_then_done(step: Step) -> None:
    assert not step.is_current()
    assert "a" not in Journal(step.journal)
    step.record(voxels=3)
    assert step.is_current()
    journal = Journal(step.journal)
    assert "a" in journal
    assert journal.values("a") == {"voxels": 3}
    # printf output | sha256sum
    digest = "e0ee8bb50685e05fa0f47ed04203ae953fdfd055f5bd2892ea186504254f8c3a"
    assert journal.output_hash("a", "array") == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda s: os.utime(s.image, ns=(0, 10**18)),
        lambda s: s.image.write_bytes(b"another image"),
        lambda s: s.image.unlink(),
        lambda s: s.output.unlink(),
        lambda s: s.output.write_bytes(b"outpux"),
        lambda s: s.inputs.update(teacher="1" * 64),
        lambda s: s.inputs.update(label=s.image),
        lambda s: s.inputs.pop("teacher"),
    ],
    ids=["touched", "rewritten", "input gone", "output gone", "output changed", "hash", "more", "fewer"],
)
def test_any_change_makes_it_undone(step: Step, change: Callable[[Step], object]) -> None:
    step.record()
    change(step)
    assert not step.is_current()


def test_another_config_makes_it_undone(step: Step) -> None:
    step.record()
    journal = Journal(step.journal)
    assert not journal.is_current("a", step.inputs, {**CONFIG, "interpolation": "cubic"})
    assert journal.is_current("a", step.inputs, json.loads(json.dumps(CONFIG)))  # as it comes from disk


def test_a_dicom_folder_as_input(step: Step, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "0.dcm").write_bytes(b"1")
    step.inputs["image"] = folder
    step.record()
    assert step.is_current()
    (folder / "1.dcm").write_bytes(b"2")
    assert not step.is_current()


def test_the_last_line_of_a_case_wins(step: Step) -> None:
    step.record(score=1)
    step.record("b", score=5)
    step.record(score=2)
    assert Journal(step.journal).values("a") == {"score": 2}
    assert len(step.journal.read_text().splitlines()) == 3


def test_a_record_counts_at_once(step: Step) -> None:
    journal = Journal(step.journal)
    journal.record("a", step.inputs, CONFIG, {"array": step.output})
    assert journal.is_current("a", step.inputs, CONFIG)
    assert journal.values("a") == {}


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_truncated_last_line_is_ignored_and_written_past(step: Step, cut: int) -> None:
    step.record(score=1)
    step.record("b", score=2)
    step.journal.write_text(step.journal.read_text()[:-cut])
    journal = Journal(step.journal)
    assert journal.values("a") == {"score": 1}
    assert ("b" in journal) == (cut == 1)  # but for its newline the line is whole
    journal.record("c", step.inputs, CONFIG, {}, {"score": 3})
    again = Journal(step.journal)
    assert again.values("a") == {"score": 1}
    assert again.values("c") == {"score": 3}


def test_what_a_crash_of_the_machine_leaves_is_ignored(step: Step) -> None:
    step.record(score=1)
    with step.journal.open("a") as stream:
        stream.write("\0" * 64)
    step.record("b", score=2)
    assert Journal(step.journal).values("a") == {"score": 1}
    assert Journal(step.journal).values("b") == {"score": 2}


def test_a_moved_folder_is_still_done(tmp_path: Path) -> None:
    output = tmp_path / "run" / "labels" / "a.nii.gz"
    output.parent.mkdir(parents=True)
    output.write_bytes(b"labels")
    Journal(tmp_path / "run" / "journal" / "merge.jsonl").record("a", {}, {}, {"labels": output})
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert Journal(moved / "journal" / "merge.jsonl").is_current("a", {}, {})
    (moved / "labels" / "a.nii.gz").unlink()
    assert not Journal(moved / "journal" / "merge.jsonl").is_current("a", {}, {})


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    step = Step(tmp_path)
    step.record("a")
    size = step.journal.stat().st_size
    with (
        little_room(size + 20),
        pytest.raises(NoRoomError, match=r"^step\.jsonl cannot be written.*make room"),
    ):
        step.record("b")
    step.record("b")  # with room again, after half a line
    journal = Journal(step.journal)
    assert journal.is_current("a", step.inputs, CONFIG)
    assert journal.is_current("b", step.inputs, CONFIG)
