"""Every job of a sweep says what became of it; the table compares them; those that failed run again alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from flare.files import read_csv, write_csv
from flare.sweeps.jobs import COMPLETED, FAILED, Job, measure, read_jobs
from flare.sweeps.rerun import command, main
from flare.sweeps.table import compare, varied, write_sweep

ROOT = Path(__file__).parents[1]

# a script of its own: what it does takes no time, what surrounds it is Hydra's
APP = """
import hydra
@hydra.main(version_base="1.3", config_path=".", config_name="train")
def main(cfg):
    if cfg.x == 2:
        raise ValueError("two is\\nrefused")
    return cfg.x / 10
main()
"""
CONFIG = """
x: 1
word: a
hydra:
  callbacks: {sweep: {_target_: flare.sweeps.SweepTable}}
  sweep: {dir: sweep, subdir: "${hydra.job.num}"}
"""


def jobs() -> list[Job]:
    common = ["experiment=demo"]
    return [
        Job("0", "train", ["round=mo", *common], COMPLETED, 4.0, None, {"val/dsc_mean": 0.5, "lr": 0.1}),
        Job("10", "train", ["round=mot", *common], FAILED, 1.0, "no teacher"),
        Job("2", "train", ["round=mt", *common], COMPLETED, 3.0, None, {"val/dsc_mean": 0.25, "lr": 0.1}),
    ]


def test_jobs_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    assert [job.folder for job in read_jobs(tmp_path)] == ["0", "2", "10"]
    assert read_jobs(tmp_path)[0] == jobs()[0]


def test_only_what_differs_is_a_column() -> None:
    assert varied(jobs()) == ["round"]
    assert varied(jobs()[:1]) == ["round", "experiment"]


def test_the_table_compares_the_jobs_and_names_the_failed_ones(tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    write_sweep(tmp_path)
    rows = read_csv(tmp_path / "sweep.csv")
    assert [(r["job"], r["round"], r["status"], r["val/dsc_mean"]) for r in rows] == [
        ("0", "mo", "completed", "0.5"),
        ("2", "mt", "completed", "0.25"),
        ("10", "mot", "failed", ""),
    ]
    assert rows[2]["error"] == "no teacher"
    text = (tmp_path / "sweep.md").read_text()
    assert "| 0 | mo | completed | 4 | **0.5000** |" in text
    assert "| 2 | mt | completed | 3 | 0.2500 |" in text
    assert "lr" not in text  # a setting, not a result
    assert "job 10 (round=mot) failed: no teacher" in text
    assert f"sweep={tmp_path} rerun=true" in text
    assert (tmp_path / "sweep.tex").exists()


def test_of_losses_and_times_the_lowest_is_best() -> None:
    both = [Job(x, "train", [f"x={x}"], COMPLETED, measures={"train/loss": 2.0}) for x in "12"]
    assert {c.heading: c.best for c in compare(both).columns}["train/loss"] == "min"


def test_means_over_different_classes_are_not_ranked() -> None:
    organs = {"val/dsc_mean": 0.5, "val/dsc/liver": 0.5}
    tumor = {"val/dsc_mean": 0.1, "val/dsc/tumor": 0.1}
    table = compare(
        [Job(n, "train", [f"round={n}"], COMPLETED, measures=m) for n, m in (("mo", organs), ("mt", tumor))]
    )
    assert not any(column.best for column in table.columns)
    assert "none is best" in table.title


def test_numbers_of_a_job_are_the_last_of_its_rounds_and_what_it_returned(tmp_path: Path) -> None:
    path = tmp_path / "rounds" / "mo" / "training.csv"
    write_csv(path, [{"train/loss": 2, "val/dsc_mean": 0.5}, {"train/loss": 1, "val/dsc_mean": None}])
    assert measure(tmp_path, 0.5) == {"train/loss": 1.0, "val/dsc_mean": 0.5, "objective": 0.5}
    write_csv(tmp_path / "rounds" / "mt" / "training.csv", [{"train/loss": 3}])
    assert measure(tmp_path, None) == {"mo/train/loss": 1.0, "mo/val/dsc_mean": 0.5, "mt/train/loss": 3.0}


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"organ_mean": {"DSC": 0.9, "NSD": None}, "failed": {}}, {"organ_mean/DSC": 0.9}),  # evaluate
        ({"output": "x", "cases": [{"total_s": 1.0}, {"total_s": 3.0}]}, {"total_s": 2.0}),  # infer
        ({"table": [{"round": "mo", "organ_mean_DSC": 80}]}, {"mo/organ_mean_DSC": 80.0}),  # iterate
        ({"x": float("nan"), "done": True}, {}),
    ],
)
def test_whatever_a_script_returns(returned: object, expected: dict[str, float], tmp_path: Path) -> None:
    assert measure(tmp_path, returned) == expected


def test_a_sweep_goes_on_after_a_failure_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "train.yaml").write_text(CONFIG)
    line = [sys.executable, "app.py", "-m", "x=1,2,3", "word=b"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "job 1 (x=2) failed: two is refused" in done.stdout + done.stderr  # also at the very end
    rows = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [(r["x"], r["status"], r["objective"]) for r in rows] == [
        ("1", "completed", "0.1"),
        ("2", "failed", ""),
        ("3", "completed", "0.3"),
    ]
    single = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, check=False)
    assert single.returncode == 0
    assert len(list(tmp_path.rglob("job.json"))) == 3  # a single run is no sweep


def test_a_job_again_is_a_sweep_of_one_in_its_own_folder(tmp_path: Path) -> None:
    line = command(jobs()[1], tmp_path, ["ckpt_path=auto"])
    assert line[line.index("-m") + 1 : line.index("-m") + 4] == [
        "round=mot",
        "experiment=demo",
        "ckpt_path=auto",
    ]
    assert line[-1] == "hydra.sweep.subdir='10'"
    assert "hydra.sweeper.params=null" in line


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert main([f"sweep={tmp_path}"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("sweep: not given")
    assert "no job of a sweep" in second


def test_listing_tells_by_its_exit_code_whether_all_is_done(tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    assert main([f"sweep={tmp_path}"]) == 1
    Job("10", "train", ["round=mot"], COMPLETED).write(tmp_path)
    assert main([f"sweep={tmp_path}"]) == 0
