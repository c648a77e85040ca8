"""Every row of the table of bad input, through the scripts themselves."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import bad_cohort
import warm
from bad_cohort import GOOD, LABELS, REFUSED, image, label, put
from bad_files import truncate
from flare.baselines.predictors import save_untrained
from flare.cli import iterate_rounds
from flare.core.cases import read_index
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json
from flare.core.preprocessing import Intensity
from flare.core.volumes import read_image
from flare.evaluation.scores import evaluate
from flare.inference.predict import infer
from flare.prepare.cohort import prepare
from flare.rounds.iterate import train
from flare.rounds.label import merge
from flare.training.settings import TrainingSettings
from tiny_run import NETWORK, configuration, script, start

pytestmark = pytest.mark.slow  # whole programs


Finished = subprocess.CompletedProcess
NET = ["model=tiny", *NETWORK, "data.patch_size=[4,8,8]", "tta=none", "inference.precision=32", "trainer=cpu"]
ONE_STEP = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.precision=32", "data.workers=0"]


def assert_named(text: str, cases: dict[str, str]) -> None:
    """Each case has a line of its own with its reason, and nothing looks like a crash."""
    assert "Traceback" not in text
    for case, said in cases.items():
        (line, *_) = [row for row in text.splitlines() if row.startswith(f"  {case}: ")] or [""]
        assert re.search(said, line), f"{case}: expected {said!r}, found {line!r}"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    bad_cohort.write_cohort(root)
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights of a tiny network."""
    path = tmp_path_factory.mktemp("weights") / "net.ckpt"
    line = [*NET, "data.spacing_mm=[5,4,4]", "round=mot", "model=tiny"]
    save_untrained(
        TrainingSettings.from_config(configuration("train", line)), Intensity(-200, 300, 50, 100), path
    )
    return path


@pytest.fixture(scope="module")
def prepared(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    outputs = tmp_path_factory.mktemp("prepared")
    return script("prepare", *bad_cohort.overrides(cohort, outputs), cwd=outputs), outputs


def test_prepare_names_every_bad_case_and_does_the_rest(prepared: tuple[Finished, Path]) -> None:
    done, outputs = prepared
    assert done.returncode == 1
    assert_named(done.stderr, REFUSED)
    assert f"prepare: {len(REFUSED)} failed, the rest is done" in done.stderr
    cache = outputs / "cache" / "flare23"
    assert {c.id for c in read_index(cache / "index.csv")} == set(GOOD)
    for folder in ("images", "labels"):
        assert {p.stem for p in (cache / "spacing-5x4x4" / folder).iterdir()} == set(GOOD)
    rows = read_csv(cache / "integrity.csv")
    assert {r["case"] for r in rows if r["status"] == "refused"} == set(REFUSED)
    for case, said in REFUSED.items():
        assert all(re.search(said, r["reason"]) for r in rows if r["case"] == case)
    warned = {r["case"]: r["reason"] for r in rows if r["status"] == "warning"}
    assert set(warned) == {"empty_label", "nearly"}
    assert "without any foreground" in warned["empty_label"]
    assert "snapped" in warned["nearly"]
    assert {c.id: c.kind for c in read_index(cache / "index.csv")} == {
        case: "partial" if case == "empty_label" else "tumor" for case in GOOD
    }


def test_both_values_of_two_grids_and_both_paths_of_one_id_are_printed(
    prepared: tuple[Finished, Path], cohort: Path
) -> None:
    text = prepared[0].stderr
    (moved,) = [row for row in text.splitlines() if row.startswith("  moved: ")]
    assert "0.5" in moved
    assert moved.count("(") >= 2
    (finer,) = [row for row in text.splitlines() if row.startswith("  finer: ")]
    assert "4.9" in finer
    assert "5" in finer
    for path in ("images/twice_0000.nii.gz", "unlabeled/twice.nii.gz"):
        assert str(cohort / path) in text


def test_log_files_hold_no_paths(prepared: tuple[Finished, Path], cohort: Path) -> None:
    logs = list(prepared[1].rglob("*.log"))
    assert logs
    for path in logs:
        text = path.read_text()
        assert str(cohort) not in text
        assert str(prepared[1]) not in text


def test_a_second_start_reads_what_is_good_no_more(cohort: Path, prepared: tuple[Finished, Path]) -> None:
    cfg = configuration("prepare", bad_cohort.overrides(cohort, prepared[1]))
    images = prepared[1] / "cache" / "flare23" / "spacing-5x4x4" / "images"
    before = {p.name: p.stat().st_mtime_ns for p in images.iterdir()}
    with pytest.raises(FlareError) as refused:
        prepare(cfg)
    assert_named(str(refused.value), REFUSED)
    assert {p.name: p.stat().st_mtime_ns for p in images.iterdir()} == before


def test_infer_names_every_bad_image_and_segments_the_rest(
    cohort: Path, checkpoint: Path, tmp_path: Path
) -> None:
    source = tmp_path / "scans"
    bad_cohort.write_images(source / "bad")
    bad_cohort.write_good(source / "good", tmp_path / "labels")
    put(source / "a" / "twice_0000.nii.gz", image())
    put(source / "b" / "twice.nii", image())
    line = [f"checkpoint={checkpoint}", f"input={source}", "output=out", "tta=none", "executor.workers=0"]
    done = script("infer", *line, cwd=tmp_path)
    assert done.returncode == 1
    expected = {c: said for c, said in REFUSED.items() if c not in LABELS}
    assert_named(done.stderr, expected)
    assert f"infer: {len(expected)} failed" in done.stderr
    for path in (source / "a" / "twice_0000.nii.gz", source / "b" / "twice.nii"):
        assert str(path) in done.stderr
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {f"{case}.nii.gz" for case in GOOD}
    for case in GOOD:
        given = read_image(source / "good" / f"{case}_0000.nii").geometry
        assert not given.differences(read_image(tmp_path / "out" / f"{case}.nii.gz").geometry)


def test_evaluate_names_every_bad_label_map_and_scores_the_rest(cohort: Path, tmp_path: Path) -> None:
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    bad_cohort.write_good(tmp_path / "images", references)
    bad_cohort.write_bad_labels(tmp_path / "images", references)
    for case in (*GOOD, *LABELS, "cut"):
        if case != "unlabelled":
            put(predictions / f"{case}.nii.gz", label(), **geometry_of(case))
    put(references / "cut.nii.gz", label())
    truncate(predictions / "cut.nii.gz", 0.5)
    put(references / "twice.nii.gz", label())
    put(predictions / "a" / "twice.nii.gz", label())
    put(predictions / "b" / "twice.nii.gz", label())
    line = [f"predictions={predictions}", f"references={references}", "output=out", "executor.workers=0"]
    done = script("evaluate", *line, cwd=tmp_path)
    assert done.returncode == 1
    expected = {c: said for c, said in LABELS.items() if c != "unlabelled"}
    expected |= {"cut": "truncated", "twice": "2 files of this id"}
    assert_named(done.stderr, expected)
    rows = {r["Name"]: r for r in read_csv(tmp_path / "out" / "metrics.csv")}
    assert set(rows) == set(GOOD)
    assert {c for c in GOOD if float(rows[c]["Liver_DSC"]) == 1} == {*GOOD} - {"empty_label"}
    assert set(read_json(tmp_path / "out" / "summary.json")["failed"]) == set(expected)


def geometry_of(case: str) -> dict[str, tuple]:
    """Grid of the good cases' images."""
    directions = {"oblique": bad_cohort.OBLIQUE, "permuted": (0, 0, 1, 1, 0, 0, 0, 1, 0)}
    return {"direction": directions[case]} if case in directions else {}


def test_merge_labels_names_every_bad_label_map_and_merges_the_rest(tmp_path: Path) -> None:
    bad_cohort.write_good(tmp_path / "images", tmp_path / "truth")
    bad_cohort.write_bad_labels(tmp_path / "images", tmp_path / "truth")
    for case in (*GOOD, *LABELS):
        if case != "unlabelled":
            put(tmp_path / "pseudo" / f"{case}.nii.gz", label(), **geometry_of(case))
    line = [f"{key}={tmp_path / key}" for key in ("pseudo", "output")] + [
        f"ground_truth={tmp_path / 'truth'}"
    ]
    with pytest.raises(FlareError) as refused:
        merge(configuration("merge_labels", [*line, "executor.workers=0"]))
    assert_named(str(refused.value), {c: said for c, said in LABELS.items() if c != "unlabelled"})
    for suffix in (".nii.gz", ".json"):
        found = {p.name for p in (tmp_path / "output").glob(f"*{suffix}")} - {"classes.json"}
        assert found == {f"{case}{suffix}" for case in GOOD}


@pytest.mark.parametrize(
    "folders", [["round=mo1", "ground_truth=a", "pseudo=b", "output=c"], [], ["pseudo=b"]]
)
def test_merge_labels_takes_a_round_or_three_folders(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"expected (either round, or )?all of ground_truth, pseudo, output"):
        merge(configuration("merge_labels", [*folders, f"paths.outputs={tmp_path}"]))
    assert not list(tmp_path.iterdir())


def test_train_and_iterate_go_on_without_the_bad_cases(cohort: Path, prepared: tuple[Finished, Path]) -> None:
    line = [*bad_cohort.overrides(cohort, prepared[1]), *NET, *ONE_STEP]
    with pytest.raises(FlareError) as refused:
        train(configuration("train", line))
    assert_named(str(refused.value), REFUSED)
    rounds = prepared[1] / "default" / "rounds"
    assert (rounds / "all" / "checkpoints" / "last.ckpt").is_file()
    own = [*line, "rounds=[mt]"]
    with pytest.raises(FlareError) as refused:
        iterate_rounds(configuration("iterate", own), own)
    assert_named(str(refused.value), REFUSED)
    assert "iterate: " in str(refused.value)
    assert (rounds / "mt" / "checkpoints" / "last.ckpt").is_file()


def test_a_label_that_goes_bad_leaves_nothing_of_its_case(tmp_path: Path) -> None:
    bad_cohort.write_good(tmp_path / "images", tmp_path / "labels")
    (tmp_path / "unlabeled").mkdir()
    cfg = configuration("prepare", bad_cohort.overrides(tmp_path, tmp_path / "out"))
    prepare(cfg)
    put(tmp_path / "labels" / "plain.nii.gz", np.full_like(label(), 99))
    with pytest.raises(FlareError, match=r"plain: .*\[99\]"):
        prepare(cfg)
    cache = tmp_path / "out" / "cache" / "flare23"
    assert {c.id for c in read_index(cache / "index.csv")} == {*GOOD} - {"plain"}


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"round": "mo"}, ["round=mot"], r"has round=mo; expected mot"),
        ({"spacing_mm": [5, 4, 5]}, ["round=mot"], r"has data\.spacing_mm=\(5.*; expected \(5.0, 4.0, 4.0\)"),
        ({}, ["+classes.bladder={id: 15, short: B, role: organ, tolerance_mm: 2, slice_range: false}"],
         r"its classes are .*14 tumor; the configuration \(classes=\) has .*15 bladder"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused_before_any_work(
    change: dict, overrides: list[str], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["flare"] |= change
    torch.save(content, tmp_path / "other.ckpt")
    put(tmp_path / "scans" / "a.nii.gz", image())
    line = [
        f"checkpoint={tmp_path / 'other.ckpt'}",
        f"input={tmp_path / 'scans'}",
        f"output={tmp_path / 'out'}",
    ]
    with pytest.raises(FlareError, match=message):
        infer(configuration("infer", [*line, "data.spacing_mm=[5,4,4]", *overrides]))
    assert not (tmp_path / "out").exists()


def test_a_missing_teacher_or_checkpoint_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    put(tmp_path / "scans" / "a.nii.gz", image())
    own = [f"paths.outputs={tmp_path / 'outputs'}", "round=mo1", "model=tiny"]
    with pytest.raises(FlareError, match=r"python train\.py round=mo name=default"):
        train(configuration("train", own))
    with pytest.raises(FlareError, match=r"python train\.py round=mo name=default"):
        merge(configuration("merge_labels", own))
    with pytest.raises(FlareError, match=r"python train\.py name=default round=mo1"):
        infer(configuration("infer", [*own, f"input={tmp_path / 'scans'}", f"output={tmp_path / 'out'}"]))
    with pytest.raises(FlareError, match=r"no such file"):
        infer(
            configuration(
                "infer", ["checkpoint=no.ckpt", f"input={tmp_path / 'scans'}", f"output={tmp_path}/o"]
            )
        )
    assert {p.name for p in tmp_path.iterdir()} == {"scans"}


def test_unknown_overrides_get_hydras_message(tmp_path: Path) -> None:
    for name, override, shown in (
        ("prepare", "data.rot=x", "Key 'rot' is not in struct"),
        ("iterate", "model=huge", "medium"),
    ):
        done = script(name, override, cwd=tmp_path)
        assert done.returncode == 1
        assert shown in done.stderr
        assert "Traceback" not in done.stderr


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    with pytest.raises(FlareError, match=r"data\.labeled_images: no folder"):
        prepare(configuration("prepare", bad_cohort.overrides(tmp_path, tmp_path / "out")))
    own = [*bad_cohort.overrides(tmp_path, tmp_path / "out"), "rounds=[mo]", "trainer=cpu"]
    with pytest.raises(FlareError, match=r"data\.labeled_images: no folder"):
        iterate_rounds(configuration("iterate", own), own)
    with pytest.raises(FlareError, match="references: expected a folder"):
        evaluate(configuration("evaluate", [f"predictions={tmp_path}", f"references={tmp_path / 'no'}"]))
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_cohort.write_good(tmp_path / "images", tmp_path / "labels")
    (tmp_path / "unlabeled").mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 9, 0))
    with pytest.raises(FlareError, match=r"data\.cache: needs about .* for 6 cases, 0 MB are free"):
        prepare(configuration("prepare", bad_cohort.overrides(tmp_path, tmp_path / "out")))
    assert not list((tmp_path / "out").rglob("*.b2nd"))


LIMITED = """
import resource, sys
sys.path[:0] = [{tests!r}]
from flare.cli import run
sys.argv[0] = {script!r}
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
run({script!r})
"""


def with_little_room(name: str, *arguments: str, cwd: Path, limit: int) -> Finished:
    """Run a script that cannot write more than `limit` bytes into any file."""
    code = LIMITED.format(tests=str(Path(__file__).parent), script=name, limit=limit)
    return warm.run([sys.executable, "-c", code, *arguments], cwd)


def test_no_half_file_is_left_when_the_disk_is_full(tmp_path: Path, checkpoint: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    bad_cohort.write_good(tmp_path / "images", tmp_path / "labels")
    (tmp_path / "unlabeled").mkdir()
    put(tmp_path / "images" / "large_0000.nii", image(9, (60, 100, 100)))
    put(tmp_path / "labels" / "large.nii.gz", np.ones((60, 100, 100), np.uint8))
    line = bad_cohort.overrides(tmp_path, tmp_path / "out")
    done = with_little_room("prepare", *line, cwd=tmp_path, limit=150_000)
    assert done.returncode == 1
    assert re.search(r"^large\.b2nd cannot be written .*is the disk full", done.stderr, re.MULTILINE)
    cache = tmp_path / "out" / "cache" / "flare23"
    before = {p.stem for p in (cache / "spacing-5x4x4" / "images").iterdir()}
    assert before <= set(GOOD)  # it stops there
    # with room again: only what is missing
    assert set(prepare(configuration("prepare", line)).processed) == {*GOOD, "large"} - before
    scans = [f"checkpoint={checkpoint}", f"input={tmp_path / 'images'}", f"output={tmp_path / 'segmented'}"]
    done = with_little_room("infer", *scans, "tta=none", "executor.workers=0", cwd=tmp_path, limit=12_000)
    assert done.returncode == 1
    assert "large.nii.gz cannot be written, the disk is full" in done.stderr
    assert {p.name for p in (tmp_path / "segmented").glob("*.nii.gz")} <= {f"{case}.nii.gz" for case in GOOD}
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.long
def test_killed_at_random_moments_prepare_and_infer_end_as_if_nothing_had_been(
    tmp_path: Path, checkpoint: Path, thorough: bool
) -> None:
    for number in range(16):
        put(tmp_path / "images" / f"case{number:02d}_0000.nii.gz", image(number, (40, 60, 60)))
        put(tmp_path / "labels" / f"case{number:02d}.nii.gz", np.ones((40, 60, 60), np.uint8))
    (tmp_path / "unlabeled").mkdir()
    moments = random.Random(7)

    def line(name: str, outputs: Path, workers: int) -> list[str]:
        if name == "prepare":
            return [*bad_cohort.overrides(tmp_path, outputs, workers)]
        scans = [f"input={tmp_path / 'images'}", f"output={outputs / 'segmented'}"]
        return [*scans, f"checkpoint={checkpoint}", f"executor.workers={workers}", "tta=none"]

    for name, work, latest_s in (("prepare", prepare, 2), ("infer", infer, 6)):
        for _ in range(10 if thorough else 1):
            process = start(name, *line(name, tmp_path / "killed", 2), cwd=tmp_path)
            time.sleep(moments.uniform(1, latest_s))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        done = script(name, *line(name, tmp_path / "killed", 2), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        work(configuration(name, line(name, tmp_path / "whole", 0)))
    assert same_files(tmp_path / "killed", tmp_path / "whole") >= 4 * 16
    assert not list((tmp_path / "killed").rglob(".partial-*"))


def same_files(first: Path, second: Path) -> int:
    """Compare the content of all results; returns how many there are."""
    count = 0
    for pattern in ("*.b2nd", "*.npz", "*.nii.gz", "index.csv", "statistics.json", "label_analysis.csv"):
        names = {str(p.relative_to(second)) for p in second.rglob(pattern)}
        assert {str(p.relative_to(first)) for p in first.rglob(pattern)} == names
        for name in names:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
        count += len(names)
    return count


def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / "images" / f"case{number:02d}_0000.nii.gz"
        path.parent.mkdir(exist_ok=True)
        put(path, image(number, (60, 100, 100)))
        put(tmp_path / "labels" / f"case{number:02d}.nii.gz", np.ones((60, 100, 100), np.uint8))
    (tmp_path / "unlabeled").mkdir()
    process = start("prepare", *bad_cohort.overrides(tmp_path, tmp_path / "out", workers=2), cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("*.b2nd")) and time.monotonic() < deadline:
        time.sleep(0.05)
    group = os.getpgid(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(group) == []


def members(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(number) == group and state != "Z":
                found.append(int(entry.name))
    return found


def test_a_case_whose_id_ends_as_image_names_do(checkpoint: Path, tmp_path: Path) -> None:
    """`x_0000` and `x` are two cases, from images through predictions to scores and merged labels."""
    for case in ("x", "x_0000"):
        put(tmp_path / "images" / f"{case}_0000.nii.gz", image())
        put(tmp_path / "labels" / f"{case}.nii.gz", label())
    own = [f"checkpoint={checkpoint}", f"input={tmp_path / 'images'}", f"output={tmp_path / 'out'}"]
    infer(configuration("infer", [*own, "tta=none", "executor.workers=0"]))
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {"x.nii.gz", "x_0000.nii.gz"}
    scored = [f"predictions={tmp_path / 'out'}", f"references={tmp_path / 'labels'}", "executor.workers=0"]
    evaluate(configuration("evaluate", [*scored, f"output={tmp_path / 'scores'}"]))
    assert [r["Name"] for r in read_csv(tmp_path / "scores" / "metrics.csv")] == ["x", "x_0000"]
    folders = [
        f"ground_truth={tmp_path / 'labels'}",
        f"pseudo={tmp_path / 'out'}",
        f"output={tmp_path / 'merged'}",
    ]
    done = merge(configuration("merge_labels", [*folders, "executor.workers=0"]))
    assert sorted(done["merged"]) == ["x", "x_0000"]
