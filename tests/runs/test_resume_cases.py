"""A step over cases: only what is new or changed is done, and each case is noted as it is done."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flare.core.errors import CaseError, FlareError
from flare.runs.journal import Journal, Resumed, resume_cases
from flare.runs.work import LocalExecutor


def copy_upper(case: str, source: Path, target: Path) -> dict[str, Any]:
    """The work: refuses what is empty, meets a fault of the machine at `fault`."""
    text = source.read_text()
    if not text:
        raise CaseError(case, "empty")
    if text == "fault":
        raise MemoryError("no room in memory")
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(packed(text.upper()) if target.suffix == ".gz" else json.dumps(text.upper()).encode())
    if text == "killed":
        raise KeyboardInterrupt
    return {"length": len(text)}


def packed(text: str) -> bytes:
    """The same bytes for the same text."""
    return gzip.compress(text.encode(), mtime=0)


class Step:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[list[str]] = []
        self.suffix = ".txt"
        for name in "abc":
            self.write(name, f"text of {name}")

    def write(self, case: str, text: str) -> None:
        (self.root / f"{case}.txt").write_text(text)

    def target(self, case: str) -> Path:
        return self.root / "out" / f"{case}{self.suffix}"

    def run(self, config: Any = None, again: Mapping[str, str] | None = None) -> Resumed:
        sources = {name: self.root / f"{name}.txt" for name in "abc"}
        jobs: Mapping[str, dict[str, Any]] = {
            n: {"case": n, "source": p, "target": self.target(n)} for n, p in sources.items()
        }
        return resume_cases(
            copy_upper,
            jobs,
            inputs={n: {"source": p} for n, p in sources.items()},
            config=config or {"version": 1},
            outputs=lambda case: {"text": self.target(case)},
            journal=Journal(self.root / "journal" / "step.jsonl"),
            executor=LocalExecutor(workers=0, retries=0),
            description="step",
            again=again,
            before=lambda todo: self.seen.append(sorted(todo)),
        )


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(tmp_path)


def test_a_second_call_does_nothing_and_knows_everything(step: Step) -> None:
    assert step.run().processed == ["a", "b", "c"]
    found = step.run()
    assert found.processed == []
    assert found.values == {name: {"length": 9} for name in "abc"}
    assert step.seen == [["a", "b", "c"]]


def test_what_is_done_again_is_told_in_a_line_and_the_first_time_is_not(
    step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    step.run()
    step.run()
    assert caplog.messages == []
    step.write("b", "another text")
    step.run({"version": 2})
    assert caplog.messages == [
        "step again: 2 of 3 cases (a, c): flare's own format changed; "
        "1 of 3 cases (b): flare's own format changed; source changed"
    ]


def test_only_what_changed_is_done_again(step: Step) -> None:
    step.run()
    step.write("b", "another text")
    step.target("c").unlink()
    assert step.run().processed == ["b", "c"]
    assert step.target("b").read_text() == '"ANOTHER TEXT"'
    assert step.run(again={"a": "asked for"}).processed == ["a"]


def test_a_configuration_may_be_of_each_case(step: Step) -> None:
    step.run(lambda case: {"teacher": case})
    assert step.run(lambda case: {"teacher": case}).processed == []
    assert step.run(lambda case: {"teacher": "a"}).processed == ["b", "c"]


def test_a_refused_case_loses_what_it_had_and_a_fault_does_not(step: Step) -> None:
    step.run()
    step.write("a", "")
    step.write("b", "fault")
    found = step.run()
    assert {f.case_id: f.is_fault for f in found.failures} == {"a": False, "b": True}
    assert not step.target("a").exists()
    assert step.target("b").read_text() == '"TEXT OF B"'
    assert (found.processed, list(found.values)) == ([], ["c"])
    step.write("a", "whole again")
    step.write("b", "text of b")
    assert step.run().processed == ["a", "b"]


def test_a_stranger_under_the_name_of_an_output_is_not_deleted(step: Step) -> None:
    step.write("a", "")
    step.target("a").parent.mkdir()
    step.target("a").write_text("drawn by hand")
    step.run()
    assert step.target("a").read_text() == "drawn by hand"


# --- what people made or changed under the names of segmentations and sidecars


@pytest.fixture(params=[".nii.gz", ".json"])
def guarded(step: Step, request: pytest.FixtureRequest) -> Step:
    step.suffix = request.param
    return step


def by_hand(step: Step, case: str) -> bytes:
    """Put something sound under the name of an output, and give its bytes."""
    target, text = step.target(case), "drawn by hand"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(packed(text) if step.suffix == ".nii.gz" else json.dumps(text).encode())
    return target.read_bytes()


def test_a_strangers_file_stops_a_step_before_any_work(guarded: Step) -> None:
    drawn = by_hand(guarded, "b")
    for _ in range(2):
        with pytest.raises(
            FlareError, match=r"out: holds 1 files that this step did not make.*: b\..*output="
        ):
            guarded.run()
    assert guarded.target("b").read_bytes() == drawn
    assert not guarded.target("a").exists()
    assert guarded.seen == []
    guarded.target("b").unlink()
    assert guarded.run().processed == ["a", "b", "c"]


@pytest.mark.parametrize("again", [{"a": "asked for"}, {}])
def test_a_correction_by_hand_is_not_overwritten(guarded: Step, again: dict[str, str]) -> None:
    guarded.run()
    drawn = by_hand(guarded, "a")
    with pytest.raises(FlareError, match="or that were changed since: a"):
        guarded.run({"version": 2}, again)
    assert guarded.target("a").read_bytes() == drawn


def test_what_is_damaged_gone_or_copied_is_made_again(guarded: Step) -> None:
    guarded.run()
    whole = guarded.target("a").read_bytes()
    for damaged in (whole[:-1], whole[:5], b"", whole[:-4] + b"\xff\xff\xff\xff"):
        guarded.target("a").write_bytes(damaged)
        assert guarded.run().processed == ["a"]
        assert guarded.target("a").read_bytes() == whole
    os.utime(guarded.target("b"), (1, 1))  # as a copy has it
    assert guarded.run({"version": 2}).processed == ["a", "b", "c"]


def test_a_step_that_was_killed_goes_on(guarded: Step) -> None:
    """Between the last byte of a result and the line of the journal, new and made anew."""
    for _ in range(2):
        guarded.write("b", "killed")
        with pytest.raises(KeyboardInterrupt):
            guarded.run()
        assert guarded.target("b").exists()
        guarded.write("b", "text of b")
        assert guarded.run().processed == ["b", "c"]
        assert guarded.run().processed == []
        guarded.target("c").unlink()
    assert [p.name for p in (guarded.root / "journal").iterdir()] == ["step.jsonl"]


def test_what_is_drawn_for_a_refused_case_is_not_overwritten(guarded: Step) -> None:
    guarded.write("a", "")
    assert [f.case_id for f in guarded.run().failures] == ["a"]
    drawn = by_hand(guarded, "a")
    guarded.write("a", "whole again")
    with pytest.raises(FlareError, match="did not make"):
        guarded.run()
    assert guarded.target("a").read_bytes() == drawn
