"""The whole graph of rounds on a tiny phantom: files left, steps done again or skipped, also after a kill."""

import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flare.core.cases import read_index
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv, stat_key, write_text
from flare.core.volumes import read_image, write_image
from flare.rounds import iterate
from flare.rounds.graph import compose_rounds
from flare.rounds.label_case import LabelJob, label_case
from flare.rounds.settings import RoundSettings
from flare.runs.journal import Journal
from flare.runs.locks import lock
from tiny_run import FEW, SETTINGS, changed, counts, given, run_iterate, script, start, times

pytestmark = pytest.mark.slow  # whole programs


WORK = ("*.nii.gz", "*.b2nd", "*.npz", "*.ckpt", "*.jsonl", "metrics.csv", "training.csv", "components.json")
TWO = "rounds=[mo,mo1]"
ALL = ("mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of a run of two rounds."""
    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    run_iterate(outputs, TWO)
    return outputs


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Callable[..., set[str]]:
    """Call `iterate` on a copy of the finished run; gives the files of its work that were written."""
    outputs = tmp_path / "outputs"
    shutil.copytree(finished, outputs)

    def run(*overrides: str) -> set[str]:
        before = times(outputs, *WORK)
        run_iterate(outputs, TWO, *overrides)
        return changed(before, times(outputs, *WORK))

    run.outputs = outputs  # type: ignore[attr-defined]
    return run


def test_two_rounds_leave_labels_checkpoints_and_the_table(finished: Path) -> None:
    run = finished / "demo"
    assert [(r["round"], r["cases"]) for r in read_csv(run / "plan.csv")] == [("mo", "2"), ("mo1", "4")]
    for name in ("mo", "mo1"):
        folder = run / "rounds" / name
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert (folder / "validation" / "metrics.csv").is_file()
        assert (folder / "components.json").is_file()
        assert len(read_csv(folder / "training.csv")) == 1
    pupil = run / "rounds" / "mo1"
    train = {c.id for c in read_index(finished / "cache" / "phantom" / "index.csv") if c.split == "train"}
    for folder, suffix in (("predictions", ".nii.gz"), ("labels", ".nii.gz"), ("training_labels", ".b2nd")):
        assert {p.name for p in (pupil / folder).glob(f"*{suffix}")} == {f"{c}{suffix}" for c in train}
    assert len(read_csv(pupil / "labels" / "provenance.csv")) > 0
    assert (run / "report.html").is_file()
    assert not list(finished.rglob(".partial-*"))


def test_the_table_has_the_columns_that_are_promised(finished: Path, labels: ClassList) -> None:
    with (finished / "demo" / "table5.csv").open(newline="") as stream:
        head, *rows = csv.reader(stream)
    keys = [f"{c.short}_{m}" for m in ("DSC", "NSD") for c in labels.entries]
    keys += ["organ_mean_DSC", "organ_mean_NSD"]
    assert head == ["round", "cases", *keys, "paper_cases", *(f"paper_{k}" for k in keys)]
    assert [row[:2] for row in rows] == [["mo", "2"], ["mo1", "4"]]
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [r["paper_organ_mean_DSC"] for r in table] == ["86.68", "87.88"]
    assert all(r["Lesion_DSC"] == "" for r in table)  # organ rounds
    assert all(0 <= float(r["organ_mean_DSC"]) <= 100 for r in table)


def test_a_second_start_does_nothing_and_imports_nothing_heavy(finished: Path) -> None:
    before = times(finished, *WORK, "*.html", "*.png")
    code = (
        "import sys; sys.argv[0] = 'iterate.py'\n"
        "from flare.cli import iterate; iterate()\n"
        "print([m for m in ('torch', 'pytorch_lightning', 'monai', 'matplotlib') if m in sys.modules])\n"
    )
    began = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code, *given(finished, TWO)],
        cwd=finished.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.times().children_user - began < 30  # of the processor: the clock goes on beside other tests
    assert done.stdout.splitlines()[-1] == "[]"
    # the ablation table is the last thing on the console
    (mo1,) = (row for row in read_csv(finished / "demo" / "table5.csv") if row["round"] == "mo1")
    last = done.stderr.rstrip().splitlines()[-2]
    assert [cell.strip() for cell in last.strip("│").split("│")][:3] == [
        *("mo1", mo1["cases"]),
        f"{float(mo1['organ_mean_DSC']):.2f} ({mo1['paper_organ_mean_DSC']})",
    ]
    assert changed(before, times(finished, *WORK, "*.html", "*.png")) == set()


def test_another_merge_setting_redoes_the_merge_and_what_follows_and_says_why(
    again: Callable[..., set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    redone = again("labels.dilation_mm=60")
    told = [message for message in caplog.messages if " again: " in message]
    assert told[0] == "round mo1: merge labels again: all 4 cases: labels.dilation_mm: 3 -> 60"
    assert re.fullmatch(r"round mo1: train again: case .*phantom_1001.* changed", told[1])
    weights = "the network's weights changed"
    assert f"round mo1: predict again: 1 of 1 cases (phantom_5001): {weights}" in told
    assert any(line.startswith(f"round mo1: fit components again: {weights}") for line in told)
    assert told[-1].startswith("report again: labels.dilation_mm: 3 -> 60; ")
    assert not [line for line in told if line.startswith("round mo:")]
    assert "demo/rounds/mo1/labels/phantom_1001.nii.gz" in redone
    assert not [name for name in redone if "/mo/" in name or "/mo1/predictions/" in name]
    assert again("labels.dilation_mm=60") == set()


def test_a_dry_run_of_a_finished_run_says_what_a_changed_key_redoes_and_loads_no_network(
    again: Callable[..., set[str]],
) -> None:
    finished: Path = again.outputs  # type: ignore[attr-defined]
    before = times(finished, *WORK, "*.html", "*.csv")
    code = (
        "import sys; sys.argv[0] = 'iterate.py'\n"
        "from flare.cli import iterate; iterate()\n"
        "print([m for m in ('torch', 'pytorch_lightning', 'monai') if m in sys.modules])\n"
    )
    line = given(finished, TWO, "dry_run=true", "labels.dilation_mm=60", "freeze=[mo]")
    done = subprocess.run(
        [sys.executable, "-c", code, *line],
        cwd=finished.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    told = [[cell.strip() for cell in row.strip("│").split("│")] for row in done.stderr.splitlines()]
    assert ["mo", "train", "frozen", ""] in told
    assert ["mo1", "infer", "done", ""] in told
    assert ["", "merge", "again", "all 4 cases: labels.dilation_mm: 3 -> 60"] in told
    assert ["", "report", "again", "what is done above"] in told
    after = times(finished, *WORK, "*.html", "*.csv")
    assert changed(before, after) == {"demo/plan.csv"}


def test_of_a_finished_run_a_dry_run_says_that_everything_is_done(
    finished: Path, again: Callable[..., set[str]]
) -> None:
    steps = run_iterate(finished, TWO, "dry_run=true")["steps"]
    assert [(s.round, s.name) for s in steps] == [
        ("", "prepare"), ("mo", "train"), ("mo", "evaluate"),
        ("mo1", "infer"), ("mo1", "merge"), ("mo1", "train"), ("mo1", "evaluate"), ("", "report"),
    ]  # fmt: skip
    assert {(s.state, s.why) for s in steps} == {("done", "")}
    named = {"data.scoring.protocol=flare23": "score test: data.scoring.protocol: present -> flare23"}
    named["restore=nearest"] = "predict test: 1 of 1 cases (phantom_5001): restore: trilinear -> nearest"
    outputs: Path = again.outputs  # type: ignore[attr-defined]
    for key, why in named.items():
        (own,) = (
            s
            for s in run_iterate(outputs, TWO, "dry_run=true", key)["steps"]
            if (s.round, s.name) == ("mo", "evaluate")
        )
        assert own.state == "again"
        assert why in own.why


def test_a_frozen_run_stands_whatever_is_changed_and_the_report_says_so(
    again: Callable[..., set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    outputs: Path = again.outputs  # type: ignore[attr-defined]
    caplog.set_level("INFO")
    redone = again("freeze=[mo,mo1]", "optimizer.lr=0.02", "labels.dilation_mm=60")
    assert {name for name in redone if not name.startswith("demo/journal/")} == set()
    assert [m for m in caplog.messages if "frozen" in m] == [
        f"round {name} is frozen: it stays as it was trained" for name in ("mo", "mo1")
    ]
    assert [row["frozen"] for row in read_csv(outputs / "demo" / "plan.csv")] == ["yes", "yes"]
    for name in ("report.html", "table5.md"):
        assert "Frozen (freeze): MO, MO1, with the weights" in (outputs / "demo" / name).read_text()


@pytest.mark.long
def test_an_inference_setting_redoes_predictions_but_no_teacher(again: Callable[..., set[str]]) -> None:
    redone = again("restore=nearest")
    assert "demo/rounds/mo1/predictions/phantom_1001.nii.gz" in redone
    assert "demo/rounds/mo/checkpoints/last.ckpt" not in redone


def test_a_changed_image_redoes_its_case_alone(again: Callable[..., set[str]]) -> None:
    outputs: Path = again.outputs  # type: ignore[attr-defined]
    root = outputs / "data" / "phantom-demo-0"
    # air becomes thinner: outside of all labels, so that the cohort's statistics stand
    path = root / "imagesTr2200" / "phantom_1001_0000.nii.gz"
    volume = read_image(path)
    write_image(path, np.where(volume.array < -900, volume.array + 1, volume.array), volume.geometry)
    # as if the phantom had been made so
    entries = [json.loads(line) for line in (root / "cohort.jsonl").read_text().splitlines()]
    (own,) = (entry for entry in entries if entry["case"] == "phantom_1001")
    own["outputs"]["image"]["stat"] = stat_key(path)
    write_text(root / "cohort.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    redone = {name for name in again() if not name.startswith("data/")}
    touched = {name for name in redone if "phantom_" in name and "/validation/" not in name}
    touched = {name for name in touched if "/test/" not in name}
    assert {"phantom_1001" in name for name in touched} == {True}
    assert "demo/rounds/mo1/predictions/phantom_1001.nii.gz" in touched
    assert "demo/rounds/mo/checkpoints/last.ckpt" not in redone
    assert "demo/rounds/mo1/checkpoints/last.ckpt" in redone


def test_an_added_case_is_the_only_one_that_is_read(again: Callable[..., set[str]]) -> None:
    redone = again(counts(organs_complete=2, tumor=1, partial=1, unlabeled=1, validation=1, test=1))
    cached = {name for name in redone if name.startswith("cache/") and "phantom_" in name}
    assert cached == {"cache/phantom/spacing-10x9x9/images/phantom_3001.b2nd"}
    # none of these two rounds trains on unlabelled cases
    assert not [name for name in redone if "/rounds/" in name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds=[mot]"], r"round=mot needs its teacher's .*python train\.py round=mo2 name=demo"),
        ([TWO, "data.patch_size=[8,16,18]"], "data.patch_size: size 18 along x is no multiple"),
        ([TWO, "restore=cubic"], "restore=cubic: expected one of"),
        ([TWO, "labels.rule=ours"], r"labels\.rule=ours: expected one of"),
        ([TWO, "labels.cases=some"], r"labels\.cases=some: expected one of"),
        ([TWO, "data.oversample_foreground=33"], r"data\.oversample_foreground=33: expected"),
        ([TWO, "data.scoring.protocol=flare22"], r"data\.scoring\.protocol=flare22: expected one of"),
        ([TWO, "data.sources=[a]"], r"data\.sources\[0\]: expected"),
        ([TWO, "baselines=[oracle]"], "baselines: expected some of"),
        (["rounds=[mo,mo9]"], "no round is named mo9"),
        (["rounds=[]"], "rounds: expected at least one"),
        ([TWO, "executor.workers=-1"], r"executor\.workers"),
        ([TWO, "data.spacing_mm=[10,9]"], r"data\.spacing_mm"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FlareError, match=message):
        run_iterate(tmp_path / "outputs", *overrides)
    assert not (tmp_path / "outputs").exists()


def test_weights_of_a_planned_teacher_of_another_architecture_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    line = ["labels.source=ground_truth", "round.init=teacher", "trainer=cpu", "trainer.precision=32"]
    teacher, pupil = compose_rounds(["mot2", "mot3"], line)
    teacher = replace(teacher, training=replace(teacher.training, init="fresh"))
    with pytest.raises(FlareError, match=r"^round\.init=teacher: round=mot3: round mot2 has another"):
        iterate._check([teacher, pupil], Journal(tmp_path / "configurations.jsonl"))
    assert not list(tmp_path.iterdir())
    pupil.config.model = teacher.config.model
    pupil = RoundSettings.from_config(pupil.config)
    iterate._check([teacher, pupil], Journal(tmp_path / "configurations.jsonl"))


@pytest.mark.long
def test_no_round_is_trained_while_a_disk_is_away_and_a_lone_failure_stops_none(
    again: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Path = again.outputs / "demo" / "rounds" / "mo1"  # type: ignore[attr-defined]

    def start(error: Exception, message: str) -> bool:
        """Start with one case that meets an error; whether the round was trained again."""

        def fails(job: LabelJob) -> dict[str, object]:
            if job.case.id == "phantom_1001":
                raise error
            return label_case(job)

        monkeypatch.setattr("flare.rounds.label.label_case", fails)
        with pytest.raises(FlareError, match=message):
            again("labels.dilation_mm=60")
        return len(list(run.glob("checkpoints/*/last.ckpt"))) == 2

    away = r"round=mo1, labelling: 1 of 4 cases .* OSError.*the share is away.* \(case phantom_1001\)"
    assert not start(OSError(errno.EIO, "the share is away"), away)
    assert start(MemoryError("too large"), r"iterate: 1 failed, the rest is done.*\n  phantom_1001: Memory")


@pytest.mark.parametrize(
    ("function", "override"),
    [
        ("flare.rounds.label_case.load_predictor", "restore=nearest"),
        ("flare.rounds.label_case.merge_maps", "labels.dilation_mm=60"),
        ("flare.data.cache.cache_labels", "labels.dilation_mm=60"),
    ],
)
def test_no_round_trains_on_what_a_general_fault_left(
    again: Callable[..., set[str]],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    override: str,
) -> None:
    outputs: Path = again.outputs  # type: ignore[attr-defined]
    before = times(outputs, *WORK)

    def fails(*_: object, **__: object) -> None:
        raise MemoryError("no 4 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(function, fails)
        said = r"^round=mo1, labelling: 4 of 4 cases .*executor\.max_failed=0\.05.*4 x MemoryError: no 4 GiB"
        with pytest.raises(FlareError, match=said):
            again(override)
    after = times(outputs, *WORK)
    assert before.keys() <= after.keys()  # nothing was removed
    assert not [name for name in changed(before, after) if name.endswith((".ckpt", "training.csv"))]


def test_a_teacher_of_another_spacing_or_class_list_is_refused(
    again: Callable[..., set[str]], tmp_path: Path
) -> None:
    outputs: Path = again.outputs  # type: ignore[attr-defined]
    before = times(outputs, *WORK)
    alone = "rounds=[mo1]"
    with pytest.raises(FlareError, match=r"data\.spacing_mm=\[12\.0, 9\.0, 9\.0\]: the teacher .* has \[10"):
        run_iterate(outputs, alone, "data.spacing_mm=[12,9,9]")
    with pytest.raises(FlareError, match=r"classes: the teacher .*1 liver.*15 bladder"):
        run_iterate(
            outputs, alone,
            "+classes.bladder={id: 15, short: Bladder, role: organ, tolerance_mm: 2, slice_range: false}",
        )  # fmt: skip
    teacher = outputs / "demo" / "rounds" / "mo" / "checkpoints" / "last.ckpt"
    shutil.copy(outputs / "demo" / "rounds" / "mo1" / "checkpoints" / "last.ckpt", teacher)
    with pytest.raises(FlareError, match=r"round\.teacher=mo: .* is a checkpoint of round mo1"):
        run_iterate(outputs, alone)
    assert changed(before, times(outputs, *WORK)) == {"demo/rounds/mo/checkpoints/last.ckpt"}


def test_two_starts_of_one_run_refuse_each_other(finished: Path) -> None:
    with lock(finished / "demo"), pytest.raises(FlareError, match=r"in use by process \d+"):
        run_iterate(finished, TWO)
    with lock(finished / "demo" / "rounds" / "mo1"), pytest.raises(FlareError, match="in use"):
        run_iterate(finished, TWO)


def test_a_dry_run_writes_the_plan_and_does_nothing(tmp_path: Path) -> None:
    result = run_iterate(tmp_path / "outputs", "dry_run=true")
    rows = read_csv(tmp_path / "outputs" / "demo" / "plan.csv")
    assert [r["round"] for r in rows] == [r["round"] for r in result["plan"]]
    assert [int(r["cases"]) for r in rows] == [2, 4, 4, 1, 1, 4, 4, 4]
    teachers = ["", "mo", "mo1", "", "mo2", "mot", "mot1", "mot2"]
    assert [r["teacher"] for r in rows] == teachers
    assert {r["targets"] for r in rows[:3]} == {"organs"}
    assert rows[3]["targets"] == "tumor"
    # neither the cohort, which would take minutes, nor a journal
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.relative_to(tmp_path / "outputs" / "demo").as_posix() for p in written} == {"plan.csv", ".lock"}


def test_a_dry_run_tells_of_an_unmade_cohort_what_the_run_finds(finished: Path, tmp_path: Path) -> None:
    run_iterate(tmp_path, TWO, "dry_run=true")
    plan = read_csv(tmp_path / "demo" / "plan.csv")
    assert plan == read_csv(finished / "demo" / "plan.csv")
    assert [row["cases"] for row in plan] == ["2", "4"]


def test_a_dry_run_leaves_the_plan_of_a_start_at_work(tmp_path: Path) -> None:
    run_iterate(tmp_path, "rounds=[mo]", "dry_run=true")
    before = (tmp_path / "demo" / "plan.csv").read_text()
    with lock(tmp_path / "demo"), pytest.raises(FlareError, match="is in use by process"):
        run_iterate(tmp_path, "dry_run=true")
    assert (tmp_path / "demo" / "plan.csv").read_text() == before


CHALLENGE = {"organs_complete": 222, "tumor": 1497, "partial": 481, "unlabeled": 1800}
PAPER = {
    "mo": 222, "mo1": 2200, "mo2": 2200, "mt": 1497, "mot": 1497, "mot1": 2200, "mot2": 4000, "mot3": 4000,
}  # fmt: skip


@pytest.mark.long
def test_the_challenges_cohort_gives_each_round_the_papers_cases(tmp_path: Path, labels: ClassList) -> None:
    root = tmp_path / "FLARE23"
    write_challenge(root, labels)
    line = ["experiment=flare23", f"data.root={root}", "dry_run=true", "executor.workers=0"]
    done = script("iterate", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "outputs" / "flare23" / "plan.csv")
    assert {r["round"]: int(r["cases"]) for r in rows} == PAPER
    assert {p.name for p in (tmp_path / "outputs" / "flare23").iterdir()} == {"plan.csv", ".lock", "hydra"}
    assert not (tmp_path / "outputs" / "cache").exists()
    # the table on the console says the same
    text = done.stderr + done.stdout
    for name, cases in PAPER.items():
        assert [line for line in text.splitlines() if f"│ {name} " in line and f" {cases} " in line]


def write_challenge(root: Path, labels: ClassList) -> None:
    """4000 cases of a few voxels in the challenge's layout: one file of each kind, hard-linked."""
    from cohort_files import image_array, label_array, write

    shape = (4, 8, 10)
    organs = [i for i in labels.ids if i != labels.tumor]
    present = {"organs_complete": organs, "tumor": [1, labels.tumor], "partial": [1, 2, 3]}
    image = write(root / "image.nii.gz", image_array(shape=shape))
    number = Counter[str]()
    for kind, count in CHALLENGE.items():
        is_labelled = kind in present
        label = root / f"{kind}.nii.gz"
        if is_labelled:
            write(label, label_array(*present[kind], shape=shape))
        for _ in range(count):
            key = "labelled" if is_labelled else "unlabelled"
            number[key] += 1
            case = f"FLARE23_{number[key] + 2200 * (not is_labelled):04d}"
            part = root / ("imagesTr2200" if is_labelled else "unlabelTr1800") / f"{number[key] // 500}"
            part.mkdir(parents=True, exist_ok=True)
            os.link(image, part / f"{case}_0000.nii.gz")
            if is_labelled:
                (root / "labelsTr2200").mkdir(exist_ok=True)
                os.link(label, root / "labelsTr2200" / f"{case}.nii.gz")


@pytest.mark.long
def test_all_rounds_and_baselines_fill_the_table(tmp_path: Path) -> None:
    cohort = counts(organs_complete=2, tumor=2, partial=1, unlabeled=1, validation=1, test=1)
    outputs = tmp_path / "outputs"
    run_iterate(outputs, cohort, "baselines=[untrained,thresholds,atlas]")
    rows = read_csv(outputs / "demo" / "table5.csv")
    assert [r["round"] for r in rows] == [*ALL, "untrained", "thresholds", "atlas"]
    assert [r["cases"] for r in rows] == ["2", "5", "5", "2", "2", "5", "6", "6", "", "", ""]
    by_name = {r["round"]: r for r in rows}
    assert by_name["mt"]["organ_mean_DSC"] == ""
    assert by_name["mt"]["Lesion_DSC"] != ""
    assert by_name["mot3"]["paper_Lesion_DSC"] == "45.76"
    text = (outputs / "demo" / "table5.md").read_text()
    for name in by_name:
        assert f"| {name} |" in text
    assert not list(outputs.rglob(".partial-*"))
    before = times(outputs, *WORK)
    run_iterate(outputs, cohort, "baselines=[untrained,thresholds,atlas]")
    assert changed(before, times(outputs, *WORK)) == set()


@pytest.mark.long
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    finished: Path, tmp_path: Path, thorough: bool
) -> None:
    outputs = tmp_path / "outputs"
    line = given(outputs, TWO, "executor.workers=1")
    moments = random.Random(4)
    for _ in range(20 if thorough else 3):
        process = start("iterate", *line, cwd=tmp_path)
        time.sleep(moments.uniform(1, 8))
        os.killpg(process.pid, 0)
        process.send_signal(signal.SIGKILL)  # its workers are left to notice
        process.communicate()
        for path in outputs.rglob("*.nii.gz"):
            if ".partial-" not in str(path):
                read_image(path)  # whole under its final name
    done = script("iterate", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(outputs / "demo", finished / "demo")
    assert not list((outputs / "demo").rglob(".partial-*"))


def assert_same_run(first: Path, second: Path) -> None:
    """Same labels to the voxel, same scores to the digit."""
    names = {str(p.relative_to(second)) for p in second.rglob("*.nii.gz")}
    assert {str(p.relative_to(first)) for p in first.rglob("*.nii.gz")} == names
    for name in names:
        np.testing.assert_array_equal(read_image(first / name).array, read_image(second / name).array)
    for name in ("table5.csv", "rounds/mo1/labels/provenance.csv", "rounds/mo1/validation/metrics.csv"):
        # a checkpoint carries its configuration, in which the number of processes differs, and so its hash
        one, two = (re.sub("@[0-9a-f]{12}", "@", (run / name).read_text()) for run in (first, second))
        assert one == two


@pytest.mark.long
def test_rounds_trained_one_by_one_are_those_of_iterate(finished: Path, tmp_path: Path) -> None:
    for name in ("mo", "mo1"):
        line = [*SETTINGS, FEW, f"paths.outputs={tmp_path / 'outputs'}", f"round={name}", "model=tiny"]
        done = script("train", *line, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    before = times(tmp_path / "outputs" / "demo" / "rounds", *WORK)
    run_iterate(tmp_path / "outputs", TWO)
    redone = changed(before, times(tmp_path / "outputs" / "demo" / "rounds", *WORK))
    assert not [name for name in redone if "/test/" not in name and "predict-test" not in name]
    assert_same_run(tmp_path / "outputs" / "demo", finished / "demo")
