"""What a command line may hold, and how a command answers: in one line, in a table, in its own folder."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bad_cohort
import warm
from bad_cohort import image, put
from tiny_run import FEW, ROOT, SETTINGS, script

pytestmark = pytest.mark.slow  # whole programs


def run(cwd: Path, *line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.run([sys.executable, *line], cwd, **environment)


def scores(root: Path) -> list[str]:
    """Two segmentations of one case below a folder, as `evaluate` takes them."""
    for name in ("found", "truth"):
        put(root / name / "a.nii.gz", np.ones(bad_cohort.SHAPE, np.uint8))
    return [f"predictions={root / 'found'}", f"references={root / 'truth'}"]


def test_a_path_that_hydra_cannot_read_is_told_with_its_quotes(tmp_path: Path) -> None:
    root = tmp_path / "CT (1) a=b #ü"
    given = scores(root)
    done = run(tmp_path, str(ROOT / "evaluate.py"), *given, "executor.workers=0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = [line.rpartition(": ")[2] for line in done.stderr.splitlines() if "quotes within quotes" in line]
    assert len(told) == 2
    quoted = shlex.split(" ".join(told))
    done = run(tmp_path, str(ROOT / "evaluate.py"), *quoted, "executor.workers=0")
    assert done.returncode == 0, done.stderr
    assert (root / "found" / "metrics.csv").is_file()


def test_evaluate_shows_a_table_and_writes_nothing_elsewhere(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    done = script("evaluate", *scores(tmp_path), "protocol=present", "executor.workers=0", cwd=here)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    (row,) = [line for line in shown.splitlines() if "Liver" in line]
    assert [cell.strip() for cell in row.strip("│ ").split("│")][:3:2] == ["Liver", "1.0000 to 1.0000"]
    assert "organ_mean" in shown
    assert list(here.iterdir()) == []


def test_relative_paths_start_where_the_command_was_typed(tmp_path: Path) -> None:
    put(tmp_path / "data" / "images" / "case_0000.nii.gz", image())
    put(tmp_path / "data" / "labels" / "case.nii.gz", np.ones(bad_cohort.SHAPE, np.uint8))
    (tmp_path / "data" / "unlabeled").mkdir()
    line = bad_cohort.overrides(Path("data"), Path("out"))
    done = script("prepare", *line, "hydra.job.chdir=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "cache").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("infer", ["input=20231107", "output=x", "checkpoint=y"], "input=20231107: expected a path"),
        ("evaluate", ["predictions=5", "references=x"], "predictions=5: expected a path"),
        ("train", ["data.root=5"], "data.root=5: expected a path"),
        ("train", ["~optimizer"], "optimizer"),
        ("train", ["~scheduler"], "scheduler"),
        ("train", ["~callbacks"], "callbacks.checkpoint"),
        ("train", ["~optimizer.momentum"], "optimizer: torch.optim.SGD"),
        ("train", ["paths.outputs=file"], "file is a file; expected a folder"),
        ("train", ["ckpt_path=/nowhere.ckpt"], "ckpt_path=/nowhere.ckpt"),
        ("infer", ["~inference", "input=x", "output=y"], "inference"),
    ],
)
def test_a_configuration_is_refused_in_one_line(
    tmp_path: Path, name: str, overrides: list[str], told: str
) -> None:
    (tmp_path / "file").touch()
    done = script(name, *overrides, cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert told in lines[0]
    assert not list(tmp_path.rglob("*.b2nd"))


@pytest.mark.parametrize("own", [["logger=[]"], ["~logger"]])
def test_a_training_does_without_loggers(tmp_path: Path, own: list[str]) -> None:
    line = [*SETTINGS, FEW, "round=mo", f"paths.outputs={tmp_path / 'out'}", "trainer.limit_train_batches=1"]
    done = script("train", *line, *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "environment", [{}, {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}]
)
def test_wandb_without_a_login_is_refused_before_the_cohort_is_prepared(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("wandb")
    line = [*SETTINGS, FEW, f"paths.outputs={tmp_path / 'out'}", "logger=wandb", "round=mo"]
    own = {"HOME": str(tmp_path), "WANDB_HTTP_TIMEOUT": "3", "WANDB_MODE": "online"}
    done = run(tmp_path, str(ROOT / "train.py"), *line, **own, **environment)
    assert done.returncode == 1
    assert "logger.wandb.offline=true" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.nii.gz"))  # the phantom is not even made


@pytest.mark.long
def test_two_processes_log_a_line_an_epoch(tmp_path: Path) -> None:
    line = [*SETTINGS, FEW, f"paths.outputs={tmp_path / 'out'}", "round=mo", "trainer.max_epochs=2"]
    pair = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    done = script("train", *line, *pair, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "out").rglob("train.log")
    for text in (done.stdout, log.read_text()):
        assert [n for n in (1, 2, 3) if f"epoch {n} of 2: loss" in text] == [1, 2]
        assert text.count("epoch 1 of 2") == 1
