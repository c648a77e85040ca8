"""Every job of a sweep says what became of it; the table compares them; those that failed run again alone."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flare.cli import CONF
from flare.files import read_csv, write_csv
from flare.inference.casework import predict_case
from flare.inference.predictor import Prediction
from flare.inference.settings import InferenceSettings
from flare.sweeps.alone import run_alone
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, RUNNING, Job, measure, read_jobs
from flare.sweeps.planning import plan
from flare.sweeps.rerun import command, main
from flare.sweeps.table import compare, failures, varied, write_sweep

ROOT = Path(__file__).parents[1]

# a script of its own: what it does takes no time, what surrounds it is Hydra's
APP = """
import os, signal
import hydra
@hydra.main(version_base="1.3", config_path=".", config_name="train")
def main(cfg):
    if cfg.x == 9:
        os.kill(os.getpid(), signal.SIGKILL)
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
    assert "| job | round | status | job_seconds | val/dsc_mean |" in text
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
        ({"output": "x", "cases": [{"windows": 1}, {"windows": 4}]}, {"windows": 2.5}),  # infer
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


@pytest.mark.parametrize("experiment", ["search", "models"])
def test_a_job_again_composes_and_runs_in_its_own_folder(experiment: str, tmp_path: Path) -> None:
    if experiment == "search":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    job = Job("10", "train", [f"experiment=[demo,ablation/{experiment}]", "round=mot", "model=small"], FAILED)
    line = command(job.script, [*job.overrides, "seed=7"], tmp_path / "sweep of mine" / job.folder)
    done: dict[str, Any] = {}

    def work(cfg: DictConfig) -> None:
        hydra = HydraConfig.get()
        done.update(cfg=cfg, folder=hydra.runtime.output_dir, given=hydra.overrides.task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flare.sweeps.alone.task", lambda script: work)
        run_alone(job.script, line[3:])
    assert done["folder"] == str(tmp_path / "sweep of mine" / "10")
    assert (done["cfg"].round.name, done["cfg"].seed) == ("mot", 7)
    (again,) = read_jobs(tmp_path / "sweep of mine")
    assert again.status == COMPLETED
    assert again.overrides == [*job.overrides, "seed=7"]
    assert {p.name for p in (tmp_path / "sweep of mine").iterdir() if p.is_file()} == {
        *(f"sweep.{suffix}" for suffix in ("csv", "md", "tex")),
        ".sweep.lock",  # no sweeper has left anything
    }


def test_a_killed_sweep_is_not_complete(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "train.yaml").write_text(CONFIG)
    line = [sys.executable, "app.py", "-m", "x=1,9,3", "word=b"]
    assert subprocess.run(line, cwd=tmp_path, capture_output=True, check=False).returncode == -9
    found = read_jobs(tmp_path / "sweep")
    assert [job.status for job in found] == [COMPLETED, RUNNING, PLANNED]
    assert found[2].overrides == ["x=3", "word=b"]
    assert main([f"sweep={tmp_path / 'sweep'}"]) == 1
    told = " ".join(failures(found, tmp_path).split())
    assert "job 1 (x=9) is running or was killed - job 2 (x=3) has not begun To run" in told


def test_jobs_that_never_began_run_as_well_but_trials_without_parameters_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job("0", "train", ["lr=1"], COMPLETED).write(tmp_path)
    Job("1", "train", ["lr=2"], PLANNED).write(tmp_path)
    for number in "23":
        Job(number, "train", None, PLANNED).write(tmp_path)
    ran = []

    def run(line: list[str], **_: Any) -> None:
        ran.append(line[-1])
        Job("1", "train", ["lr=2"], COMPLETED).write(tmp_path)

    monkeypatch.setattr("flare.sweeps.rerun.subprocess.run", run)
    assert main([f"sweep={tmp_path}", "rerun=true"]) == 1
    assert ran == ["hydra.sweep.subdir='1'"]
    text = (tmp_path / "sweep.md").read_text()
    assert "| 1 | 2 | completed |" in text
    assert "2 trials have not begun" in text
    assert "rerun=true" not in text


def test_the_plan_of_a_sweep(tmp_path: Path) -> None:
    def planned(*overrides: str) -> list[list[str] | None]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("evaluate", list(overrides), return_hydra_config=True)
            jobs = plan(config)
        assert [(j.folder, j.script, j.status) for j in jobs] == [
            (str(n), "evaluate", PLANNED) for n in range(len(jobs))
        ]
        return [job.overrides for job in jobs]

    tta = "experiment=ablation/tta"
    assert planned(tta) == [[f"tta={tta_}", tta] for tta_ in ("none", "tta4", "tta8")]
    assert planned(tta, "tta=none") == [["tta=none", tta]]  # the command line has the last word
    assert planned(tta, "hydra.sweep.subdir=x") == []
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert planned("experiment=ablation/search", "hydra.sweeper.n_trials=2") == [None, None]


@pytest.mark.slow  # Optuna alone takes seconds to import
def test_a_search_goes_on_after_a_failed_trial_and_ends_with_one(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    first = "hydra.core.hydra_config.HydraConfig.get().job.num == 0"
    (tmp_path / "app.py").write_text(APP.replace("cfg.x == 2", first))
    search = OmegaConf.load(CONF / "experiment" / "ablation" / "search.yaml").hydra
    search.sweeper.params = {"x": "interval(3, 8)"}
    chosen = "defaults: [_self_, {override hydra/sweeper: optuna}]\n"
    config = OmegaConf.merge(OmegaConf.create(CONFIG), {"hydra": search})
    (tmp_path / "train.yaml").write_text(chosen + OmegaConf.to_yaml(config))
    line = [sys.executable, "app.py", "-m", "hydra.sweeper.n_trials=2"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert [job.status for job in read_jobs(tmp_path / "sweep")] == [FAILED, COMPLETED]
    assert "two is refused" in (tmp_path / "sweep" / "sweep.md").read_text()
    assert (tmp_path / "sweep" / "optimization_results.yaml").exists()


def test_what_depends_on_predictions_does_not_keep_scores_from_being_compared() -> None:
    scores = {"classes/Liver/DSC": 0.5, "organ_mean/DSC": 0.5}
    more = {"lesions/by_organ/Liver/found": 1.0, "distances/Liver/HD95_mm": 3.0}
    found = (("a", scores), ("b", scores | more))
    table = compare([Job(n, "evaluate", [f"tta={n}"], COMPLETED, measures=m) for n, m in found])
    assert {c.heading: c.best for c in table.columns}["organ_mean/DSC"] == "max"


def test_what_a_case_costs_is_shown_beside_what_the_job_took(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(image))
    prediction = Prediction(np.zeros((4, 4, 4), np.uint8), 12, 0, True, {"network": 40.0})
    predictor = SimpleNamespace(predict=lambda volume, components: prediction)
    monkeypatch.setattr("flare.inference.casework.load_predictor", cache(lambda *_: predictor))
    settings = InferenceSettings.from_config(config("infer", "inference.measure=true"))
    row = predict_case("a", image, tmp_path / "out" / "a.nii.gz", image, "", settings, ())
    for n, tta in enumerate(("none", "tta4")):
        found = measure(tmp_path, {"cases": [row]})
        Job(str(n), "infer", [f"tta={tta}"], COMPLETED, 90.0, None, found).write(tmp_path)
    write_sweep(tmp_path)
    header, line = (tmp_path / "sweep.csv").read_text().splitlines()[:2]
    assert line.startswith("0,none,completed,90.0,12.0,")
    assert len(set(header.split(","))) == len(header.split(","))
    assert 40 <= float(read_csv(tmp_path / "sweep.csv")[0]["seconds"]) < 90
    best = {c.heading: c.best for c in compare(read_jobs(tmp_path)).columns if c.best}
    assert best == {"windows": "min", "seconds": "min", "time_s": "min"}


def test_a_diverged_training_has_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "rounds" / "mo" / "training.csv"
    write_csv(path, [{"train/loss": 2, "val/dsc_mean": 0.5}, {"train/loss": float("nan")}])
    assert measure(tmp_path, float("nan")) == {"val/dsc_mean": 0.5}


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert main([f"sweep={tmp_path}"]) == 1
    jobs()[0].write(tmp_path)
    assert main([f"sweep={tmp_path}", "rerun=1"]) == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert third == "rerun=1: expected true or false"
    assert first.startswith("sweep: not given")
    assert "no job of a sweep" in second


def test_listing_tells_by_its_exit_code_whether_all_is_done(tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    assert main([f"sweep={tmp_path}"]) == 1
    Job("10", "train", ["round=mot"], COMPLETED).write(tmp_path)
    assert main([f"sweep={tmp_path}"]) == 0
