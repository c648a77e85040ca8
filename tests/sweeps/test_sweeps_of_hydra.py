"""Sweeps as Hydra runs them: noted as they start, going on after failures, resumed job by job."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flare.cli import CONF
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.sweeps.__main__ import command, main
from flare.sweeps.callback import plan
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, RUNNING, Job, failures, read_jobs
from tiny_run import script

pytestmark = pytest.mark.slow  # whole programs


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
objective: val/dsc_mean
hydra:
  callbacks: {sweep: {_target_: flare.sweeps.callback.SweepTable}}
  sweep: {dir: sweep, subdir: "${hydra.job.num}"}
"""


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

    def train(cfg: DictConfig) -> dict[str, float]:
        hydra = HydraConfig.get()
        done.update(cfg=cfg, folder=hydra.runtime.output_dir, given=hydra.overrides.task)
        return {"objective": 0.5}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flare.rounds.iterate.train", train)
        patch.setattr(sys, "argv", line[2:])
        exec(line[2])
    assert done["folder"] == str(tmp_path / "sweep of mine" / "10")
    assert (done["cfg"].round.name, done["cfg"].seed) == ("mot", 7)
    (again,) = read_jobs(tmp_path / "sweep of mine")
    assert (again.status, again.measures) == (COMPLETED, {"objective": 0.5})
    assert again.overrides == [*job.overrides, "seed=7"]
    assert {p.name for p in (tmp_path / "sweep of mine").iterdir() if p.is_file()} == {
        *(f"sweep.{suffix}" for suffix in ("csv", "md", "tex")),
        ".lock",  # no sweeper has left anything
    }


def test_a_killed_sweep_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "train.yaml").write_text(CONFIG)
    line = [sys.executable, "app.py", "-m", "x=1,9,3", "word=b"]
    assert subprocess.run(line, cwd=tmp_path, capture_output=True, check=False).returncode == -9
    found = read_jobs(tmp_path / "sweep")
    assert [job.status for job in found] == [COMPLETED, RUNNING, PLANNED]
    assert found[2].overrides == ["x=3", "word=b"]
    listing = [sys.executable, "-m", "flare.sweeps", "sweep=sweep"]
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(listing, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sweep=sweep: 2 of 3 jobs are not complete" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before  # a listing leaves nothing
    told = " ".join(failures(found, tmp_path).split())
    assert "job 1 (x=9) is running or was killed - job 2 (x=3) has not begun To run" in told


def test_jobs_that_never_began_run_as_well_but_trials_without_parameters_do_not(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Job("0", "train", ["lr=1"], COMPLETED).write(tmp_path)
    Job("1", "train", ["lr=2"], PLANNED).write(tmp_path)
    for number in "23":
        Job(number, "train", None, PLANNED).write(tmp_path)
    ran = []

    def run(line: list[str]) -> None:
        ran.append(line[-1])
        Job("1", "train", ["lr=2"], COMPLETED).write(tmp_path)

    monkeypatch.setattr("flare.sweeps.__main__._run", run)
    with pytest.raises(FlareError, match="2 of 4 jobs are not complete"):
        main(config("sweeps", f"sweep={tmp_path}", "rerun=true"), [])
    assert ran == [f"hydra.run.dir='{tmp_path / '1'}'"]
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
@pytest.mark.parametrize(("objective", "best"), [("val/dsc_mean", max), ("train/loss", min)])
def test_a_search_goes_on_after_a_failed_trial_and_knows_the_best(
    tmp_path: Path, objective: str, best: Callable[..., float]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    first = "hydra.core.hydra_config.HydraConfig.get().job.num == 0"
    (tmp_path / "app.py").write_text(APP.replace("cfg.x == 2", first))
    search = OmegaConf.load(CONF / "experiment" / "ablation" / "search.yaml").hydra
    search.sweeper.params = {"x": "interval(3, 8)"}
    chosen = "defaults: [_self_, {override hydra/sweeper: optuna}]\n"
    config = OmegaConf.merge(OmegaConf.create(CONFIG), {"hydra": search})
    (tmp_path / "train.yaml").write_text(chosen + OmegaConf.to_yaml(config))
    line = [sys.executable, "app.py", "-m", "hydra.sweeper.n_trials=4", f"objective={objective}"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    jobs = read_jobs(tmp_path / "sweep")
    assert [job.status for job in jobs] == [FAILED, COMPLETED, COMPLETED, COMPLETED]
    assert "two is refused" in (tmp_path / "sweep" / "sweep.md").read_text()
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml").best_value
    assert found == pytest.approx(best(job.measures["objective"] for job in jobs[1:]))
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert f"**{found:.4f}**" in table


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "hydra.sweeper.direction=minimize: expected hydra.sweeper.direction=maximize"),
        (["objective=val/nsd/liver"], "expected hydra.sweeper.direction=maximize"),
        (["objective=train/loss", "hydra.sweeper.direction=maximize"], "hydra.sweeper.direction=minimize"),
        (["experiment=ablation/search", "hydra.sweeper.direction=minimize"], "direction=maximize"),
        (["hydra.sweeper.direction=[maximize,minimize]"], "direction=maximize, minimize: expected"),
        (["objective=lr"], "objective=lr of train has no direction"),
        (["objective=null"], "objective=None of train has no direction"),
    ],
)
def test_a_search_without_the_direction_of_its_objective_is_refused(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    line = ["hydra/sweeper=optuna", "optimizer.lr=interval(0.01,0.1)", f"hydra.sweep.dir={tmp_path / 's'}"]
    done = script("train", "-m", *line, *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("job.json"))


def test_only_train_gives_a_search_an_objective(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = script("iterate", "-m", "hydra/sweeper=optuna", "seed=choice(1,2)", cwd=tmp_path)
    assert done.returncode == 1
    assert "of iterate has no direction; expected train.py" in done.stderr
