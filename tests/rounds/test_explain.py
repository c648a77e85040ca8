"""What a start would do and why, of a run whose files stand but hold nothing; and rounds that are frozen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from flare.core.cases import Case, select_cases
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import write_json, write_text
from flare.prepare.cohort import Foreseen
from flare.rounds.explain import explain_run
from flare.rounds.freeze import freeze_rounds
from flare.rounds.graph import check_rounds, compose_rounds, plan_rounds, tell_frozen
from flare.rounds.label import label_jobs, training_set
from flare.rounds.score import fit_config
from flare.rounds.settings import RoundSettings
from flare.runs.folders import PreparedFolder, RunFolder, TrainingFolder
from flare.runs.journal import Journal
from flare.training.resuming import make_current, mark_trained, training_key

pytestmark = pytest.mark.slow

ORGANS = tuple(range(1, 14))
Told = dict[tuple[str, str], tuple[str, str]]


@cache
def composed(*overrides: str) -> list[RoundSettings]:
    """A second or two a configuration."""
    return compose_rounds(
        ["mo", "mo1"], ["data=flare23", "data.root=/x", "model=tiny", "tta=none", *overrides]
    )


class Run:
    """Rounds MO and MO1 of five cases, as if they had been run: journals are true, contents are not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rounds = self.rounds()
        self.cases = [self.case(f"c{n}", ORGANS if n < 2 else ORGANS[:3]) for n in range(4)]
        for case in self.cases:
            self.cache(rounds[0], case)
        write_json(rounds[0].prepared.statistics, {})
        write_text(rounds[0].prepared.index, "")
        for item in rounds:
            self.train(item)

    def rounds(self, *overrides: str) -> list[RoundSettings]:
        prepared = PreparedFolder(self.root / "cache", (4.0, 1.2, 1.2))
        return [replace(r, run=RunFolder(self.root / "run"), prepared=prepared) for r in composed(*overrides)]

    def case(self, name: str, classes: tuple[int, ...]) -> Case:
        paths = [self.root / "data" / f"{name}.{what}" for what in ("image", "label")]
        for path in paths:
            write_text(path, name)
        kind = "organs_complete" if classes == ORGANS else "partial"
        return Case(name, *paths, "train", kind, classes, classes)

    def cache(self, item: RoundSettings, case: Case) -> None:
        outputs = {"image": item.prepared.image(case.id), "labels": item.prepared.labels(case.id)}
        for path in outputs.values():
            write_text(path, f"{path.name} in the cache")
        assert case.label is not None
        files = {"image": case.image, "label": case.label}
        Journal(item.prepared.journal("cache")).record(case.id, files, {}, outputs)

    def train(self, item: RoundSettings) -> None:
        chosen = select_cases(self.cases, item.labels.cases)
        journal, values = Journal(item.folder.journal("label")), None
        if item.is_hybrid:
            values = {case.id: {"weight": 1.0, "cached": True} for case in chosen}
            for case, job in label_jobs(item, chosen).items():
                prediction = item.folder.predictions / f"{case}.nii.gz"
                for path in (prediction, *job.outputs.values()):
                    write_text(path, f"{path.name} of {item.name}")
                job.note.record(case, *job.known, {"segmentation": prediction})
                journal.record(case, job.inputs, job.config, job.outputs, values[case])
        made = training_set(item, chosen, values, [])
        training = TrainingFolder(item.folder.checkpoints / training_key(item.training, made.key))
        write_text(training.last, f"weights of {item.name}")
        make_current(training)
        mark_trained(training, {"config": item.training.public, "parts": made.parts})

    def explain(self, *overrides: str, freeze: tuple[str, ...] = (), cohort: Foreseen | None = None) -> Told:
        """State and reason of each step of rounds, and of the cohort, that is not done."""
        rounds = self.rounds(*overrides)
        kept = freeze_rounds(freeze, rounds, rounds[0].run)
        steps = explain_run(rounds, cohort or Foreseen(self.cases), kept)
        assert [s.name for s in steps][:: len(steps) - 1] == ["prepare", "report"]
        return {(s.round, s.name): (s.state, s.why) for s in steps[:-1] if s.state != "done"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Explaining writes nothing, so that one run does for all tests that change none of its files."""
    return Run(tmp_path_factory.mktemp("run"))


AGAIN_MO1 = {
    ("mo1", "infer"): ("again", "all 4 cases: round mo is trained again"),
    ("mo1", "merge"): ("again", "all 4 cases: predicted anew"),
    ("mo1", "evaluate"): ("again", "its training"),
}


def test_of_a_finished_run_everything_is_done(run: Run) -> None:
    files = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    assert run.explain() == {}
    assert files == {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}


def test_the_report_follows_the_rounds_and_else_says_its_own_reason(run: Run) -> None:
    def report(key: str = "", finish: str = "", **given: str) -> tuple[str, str]:
        rounds = run.rounds(*([key] if key else []))
        last = explain_run(rounds, Foreseen(run.cases, **given), {}, lambda: finish)[-1]
        return last.state, last.why

    assert report() == ("done", "")
    assert report(finish="seed: 0 -> 1") == ("again", "seed: 0 -> 1")
    assert report("optimizer.lr=0.02", "seed: 0 -> 1") == ("again", "what is done above")
    assert report(statistics="c3 removed") == ("perhaps", "what is done above")


def test_a_key_of_the_labels_is_named_and_what_follows_from_it(run: Run) -> None:
    key = "all 4 cases: labels.dilation_mm: 3 -> 60"
    assert run.explain("labels.dilation_mm=60") == {
        ("mo1", "merge"): ("again", key),
        ("mo1", "train"): ("again", f"its labels: {key}"),
        ("mo1", "evaluate"): ("again", "its training"),
    }


def test_a_key_of_the_training_is_named_and_the_pupil_follows_its_teacher(run: Run) -> None:
    key = "optimizer.lr: 0.01 -> 0.02"
    assert run.explain("optimizer.lr=0.02") == AGAIN_MO1 | {
        ("mo", "train"): ("again", key),
        ("mo", "evaluate"): ("again", "its training"),
        ("mo1", "train"): ("again", f"{key}; its labels: all 4 cases: predicted anew"),
    }


def test_a_case_that_is_added_or_removed_is_named(run: Run) -> None:
    more = run.case("c9", ORGANS[:3])
    added = Foreseen([*run.cases, more], {"c9": "added to the cohort"}, ["c9 added"], statistics="c9 added")
    told = run.explain(cohort=added)
    assert told["", "prepare"] == ("again", "c9 added; 1 of 5 cases (c9): added to the cohort")
    assert told["mo", "train"] == ("perhaps", "intensity statistics are made anew: c9 added")
    assert told["mo1", "merge"] == ("to do", "1 of 5 cases (c9): added to the cohort")
    assert told["mo1", "train"] == ("again", "its labels: 1 of 5 cases (c9): added to the cohort")
    removed = Foreseen(run.cases[:-1], {}, ["c3 removed"], statistics="c3 removed")
    told = run.explain(cohort=removed)
    assert told["mo1", "train"] == ("again", "case c3 removed")
    assert told["mo", "train"][0] == "perhaps"
    assert told["mo1", "infer"] == ("perhaps", "round mo is perhaps trained again")


def test_a_case_that_each_start_tries_makes_nothing_sure(run: Run) -> None:
    failing = run.case("c8", ORGANS[:3])  # cached, but never labelled: its grids differ, say
    told = run.explain(cohort=Foreseen([*run.cases, failing], tried=["bad"]))
    assert told["", "prepare"] == ("again", "1 of 5 cases (bad): refused at the last start, tried again")
    assert told["mo1", "train"] == ("perhaps", "its labels: 1 of 5 cases (c8): not done before")
    assert ("mo", "train") not in told
    known = Foreseen([*run.cases, failing])
    told = run.explain("optimizer.lr=0.02", freeze=("mo",), cohort=known)
    assert told["mo1", "train"][0] == "again"  # for a reason of its own


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Callable[..., Told]:
    """Explain a copy of the run after a change of its files."""
    shutil.copytree(run.root / "run", tmp_path / "run", symlinks=True)
    shutil.copytree(run.root / "cache", tmp_path / "cache")
    copy = object.__new__(Run)
    copy.root, copy.cases = tmp_path, run.cases
    return copy.explain


def rounds_of(tmp_path: Path, name: str) -> Path:
    return tmp_path / "run" / "rounds" / name


def test_a_changed_file_names_its_case_and_its_label(
    run: Run, own: Callable[..., Told], tmp_path: Path
) -> None:
    label = run.cases[3].label
    assert label is not None
    before = label.stat()
    os.utime(label, ns=(1, 1))
    try:
        told = own(cohort=Foreseen(run.cases, {"c3": "its label changed"}))
    finally:
        os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert told["mo1", "merge"] == ("again", "1 of 4 cases (c3): its label changed")
    assert ("mo1", "infer") not in told  # the image is the same
    assert ("mo", "train") not in told
    (rounds_of(tmp_path, "mo1") / "labels" / "c0.nii.gz").unlink()
    assert own()["mo1", "merge"] == (
        "again",
        "1 of 4 cases (c0): what it left is gone or was changed: labels",
    )


def test_a_round_that_was_never_trained_is_to_do_and_an_old_one_is_told_as_far_as_is_known(
    own: Callable[..., Told], tmp_path: Path
) -> None:
    shutil.rmtree(rounds_of(tmp_path, "mo1"))
    told = own()
    assert {state for (name, _), (state, _) in told.items() if name == "mo1"} == {"to do"}
    assert told["mo1", "merge"][1] == "all 4 cases: not done before"
    shutil.rmtree(rounds_of(tmp_path, "mo"))
    assert own()["mo1", "infer"] == ("to do", "all 4 cases: round mo is trained before")


def test_an_earlier_version_has_noted_no_keys(
    own: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Neither in the journal of labels nor with the training, whose checkpoint has the configuration."""
    config = run.rounds()[1].training.public
    asked = []

    class Carried:
        def __init__(self, path: Path) -> None:
            asked.append(path)
            self.config = config

    monkeypatch.setattr("flare.runs.checkpoints.load_checkpoint", Carried)
    for path in rounds_of(tmp_path, "mo1").rglob("*.jsonl"):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps({k: v for k, v in e.items() if k != "whole_config"}) for e in entries]
        write_text(path, "\n".join(lines) + "\n")
    (training,) = rounds_of(tmp_path, "mo1").glob("checkpoints/*/last.ckpt")
    mark_trained(TrainingFolder(training.parent))
    assert own() == {}
    assert asked == []  # nothing heavy is loaded for what is done
    told = own("labels.dilation_mm=60")
    assert told["mo1", "merge"] == ("again", "all 4 cases: the settings changed")
    assert own("optimizer.lr=0.02", freeze=("mo",))["mo1", "train"] == ("again", "optimizer.lr: 0.01 -> 0.02")
    assert asked == [training.parent / "last.ckpt"] * len(asked)


def test_a_frozen_round_says_why_it_would_be_done_again_and_its_pupil_stands(run: Run) -> None:
    key = "optimizer.lr: 0.01 -> 0.02"
    assert run.explain("optimizer.lr=0.02", freeze=("mo",)) == {
        ("mo", "train"): ("frozen", f"would be done again because {key}"),
        ("mo1", "train"): ("again", key),  # with its own settings, but on the labels that it has
        ("mo1", "evaluate"): ("again", "its training"),
    }
    told = run.explain("labels.dilation_mm=60", freeze=("mo", "mo1"))
    assert told["mo1", "merge"][0] == told["mo1", "train"][0] == told["mo", "train"][0] == "frozen"
    assert "labels.dilation_mm: 3 -> 60" in told["mo1", "train"][1]
    assert told["mo", "train"][1] == ""
    assert ("mo1", "evaluate") not in told


def test_a_frozen_round_has_the_settings_of_its_training_in_plan_and_table(run: Run) -> None:
    line = ["trainer.max_epochs=7", "labels.targets=organs_tumor", "labels.cases=all", "tta=tta4"]
    rounds = run.rounds(*line)
    kept = freeze_rounds("mo1", rounds, rounds[0].run)
    plan = plan_rounds([kept.get(str(r.name), r) for r in rounds], [])
    mo, mo1 = plan
    assert (mo["epochs"], mo["targets"], mo["frozen"]) == (7, "organs_tumor", None)
    assert (mo1["epochs"], mo1["targets"], mo1["of"]) == (1500, "organs", "labeled")
    assert (mo1["cases"], mo1["frozen"]) == (4, "yes")  # as many as it was trained on
    assert mo1["tta"] == "tta4"  # held-out cases are predicted alike in all rounds
    assert tell_frozen(plan).startswith("Frozen (freeze): MO1, with the weights and labels of an earlier")
    assert tell_frozen(plan_rounds(rounds, [])) == ""


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mo9"], r"^freeze: no round is named mo9; known: mo, mo1, "),
        (["mot"], r"^freeze: round mot was never trained to its end in .*run; leave it out of freeze, or"),
        ("mo", r"^freeze: round mo was trained with the classes .*spleen.*; the configuration \(classes=\)"),
    ],
)
def test_what_cannot_be_frozen_is_refused(run: Run, names: list[str], said: str) -> None:
    organ = {"role": "organ", "tolerance_mm": 1, "slice_range": False}
    two = ClassList.from_config(
        {n: {"id": i, "short": n, **organ} for i, n in ((1, "liver"), (2, "bladder"))}
    )
    mo = run.rounds()[0]
    other = replace(mo, labels=replace(mo.labels, merge=replace(mo.labels.merge, classes=two)))
    with pytest.raises(FlareError, match=said):
        freeze_rounds(names, [other], mo.run)


def test_a_round_whose_training_was_cut_short_is_frozen_with_the_complete_one_before(
    own: Callable[..., Told], tmp_path: Path
) -> None:
    checkpoints = rounds_of(tmp_path, "mo") / "checkpoints"
    cut = TrainingFolder(checkpoints / "another")
    write_text(cut.last, "weights of half a training")
    make_current(cut)
    told = own("optimizer.lr=0.02", freeze=("mo",))
    assert told["mo", "train"] == ("frozen", "would be done again because optimizer.lr: 0.01 -> 0.02")
    for path in checkpoints.glob("*/last.ckpt"):
        write_text(path, "no longer what the training left")
    with pytest.raises(FlareError, match=r"^freeze: round mo was never trained to its end"):
        own(freeze=("mo",))


def test_a_pupil_of_a_frozen_round_needs_its_weights_and_a_frozen_round_no_teacher(run: Run) -> None:
    mo, mo1 = (replace(item, teacher_kind="best") for item in run.rounds())
    kept = freeze_rounds(["mo", "mo1"], [mo, mo1], mo.run)
    check_rounds([mo, mo1])  # the teacher's best weights are made before
    with pytest.raises(FlareError, match=r"^round=mo1 needs its teacher's checkpoint .*best\.ckpt"):
        check_rounds([kept["mo"], mo1])
    check_rounds([kept["mo"], kept["mo1"]])


def test_a_frozen_round_keeps_the_fit_of_its_weights(run: Run, tmp_path: Path) -> None:
    mo = replace(run.rounds()[0], run=RunFolder(tmp_path / "run"), is_frozen=True)
    assert fit_config(mo, "own") is not None
    write_json(mo.folder.components, {"checkpoint": "another", "organs": {}})
    assert fit_config(mo, "own") is not None
    write_json(mo.folder.components, {"checkpoint": "own", "organs": {}})
    assert fit_config(mo, "own") is None
    assert fit_config(replace(mo, is_frozen=False), "own") is not None
