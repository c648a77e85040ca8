"""A step over cases: only what is new or changed is done, and each case is noted as it is done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from flare.core.errors import CaseError
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
    target.write_text(text.upper())
    return {"length": len(text)}


class Step:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[list[str]] = []
        for name in "abc":
            self.write(name, f"text of {name}")

    def write(self, case: str, text: str) -> None:
        (self.root / f"{case}.txt").write_text(text)

    def target(self, case: str) -> Path:
        return self.root / "out" / f"{case}.txt"

    def run(self, config: Any = None, again: Collection[str] = ()) -> Resumed:
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


def test_only_what_changed_is_done_again(step: Step) -> None:
    step.run()
    step.write("b", "another text")
    step.target("c").unlink()
    assert step.run().processed == ["b", "c"]
    assert step.target("b").read_text() == "ANOTHER TEXT"
    assert step.run(again=["a"]).processed == ["a"]


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
    assert step.target("b").read_text() == "TEXT OF B"
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
