"""`python train.py -m ...` with each launcher, and with Optuna, on the tiny cohort."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import warm
from flare.core.files import read_csv
from tiny_round import TINY, write_cohort

ROOT = Path(__file__).parents[2]
ONCE = ["trainer.max_epochs=1", "labels.cases=labeled", "model=tiny", "validation.nsd=false"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder)
    return folder


def sweep(root: Path, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    own = [f"data.root={root}", f"paths.outputs={folder}", f"paths.cache={root / 'cache'}"]
    place = f"hydra.sweep.dir={folder / 'sweep'}"
    tiny = [o for o in TINY if not o.startswith("optimizer.lr")]  # which a search is after
    line = [sys.executable, str(ROOT / "train.py"), "-m", *tiny, *ONCE, *own, place, *overrides]
    return warm.run(line, folder)


def test_two_rounds_are_compared(root: Path, tmp_path: Path) -> None:
    done = sweep(root, tmp_path, "round=mo,mt")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [(r["round"], r["status"]) for r in (first, second)] == [("mo", "completed"), ("mt", "completed")]
    assert first["val/dsc/liver"]
    assert not first["val/dsc/tumor"]
    assert second["val/dsc/tumor"]
    assert float(first["objective"]) == pytest.approx(float(first["val/dsc_mean"]))


@pytest.mark.long
def test_a_failed_job_runs_again_alone(root: Path, tmp_path: Path) -> None:
    # the second has no teacher yet
    done = sweep(root, tmp_path, "round=mo,mo1")
    assert done.returncode == 1
    before, failed = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert (before["status"], failed["status"]) == ("completed", "failed")
    assert "needs its teacher's checkpoint" in failed["error"]
    stamp = (tmp_path / "sweep" / "0" / "job.json").stat().st_mtime_ns
    again = [sys.executable, "-m", "flare.sweeps", f"sweep={tmp_path / 'sweep'}", "rerun=true"]
    teacher = f"round.checkpoint={tmp_path / 'sweep' / '0' / 'rounds' / 'mo' / 'checkpoints' / 'last.ckpt'}"
    done = warm.run([*again, teacher])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [r["status"] for r in rows] == ["completed", "completed"]
    assert (tmp_path / "sweep" / "0" / "job.json").stat().st_mtime_ns == stamp


@pytest.mark.long
@pytest.mark.parametrize(
    ("package", "launcher"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
    ],
)
def test_launchers(package: str, launcher: list[str], root: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    done = sweep(root, tmp_path, "seed=1,2", *launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [(r["seed"], r["status"]) for r in rows] == [("1", "completed"), ("2", "completed")]


def test_optuna_follows_the_objective(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    chosen = ["experiment=ablation/search", "hydra.sweeper.n_trials=2", "hydra/launcher=basic"]
    done = sweep(root, tmp_path, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert len(rows) == 2
    assert len({r["optimizer.lr"] for r in rows}) == 2
    assert "best_value" in (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    job = json.loads((tmp_path / "sweep" / "0" / "job.json").read_text())
    assert job["measures"]["objective"] == job["measures"]["val/dsc_mean"]
