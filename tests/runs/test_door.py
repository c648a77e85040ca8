"""How a command ends that is told to stop, and how it refuses: through the scripts themselves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import bad_cohort
import warm
from bad_cohort import image, put
from flare.core.files import read_csv
from flare.runs import door
from flare.sweeps.jobs import COMPLETED, PLANNED, RUNNING, read_jobs
from tiny_run import FEW, ROOT, SETTINGS, script

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT"}
SLOW = "executor._target_=slow_executor.Slow", "executor.workers=1"

pytestmark = pytest.mark.slow  # whole programs


READS = """
import os, sys
from flare.core.itk import itk_errors
from flare.runs.door import own_streams
own_streams()
os.write(1, b"C before\\n")
with itk_errors():
    os.write(1, b"C 1\\n"), os.write(2, b"C 2\\n")
    print("Python 1"), print("Python 2", file=sys.stderr)
os.write(2, b"C after\\n")
"""


def test_while_a_file_is_read_c_says_nothing_and_python_all() -> None:
    done = warm.run([sys.executable, "-c", READS])
    assert (done.stdout, done.stderr) == ("C before\nPython 1\n", "Python 2\nC after\n")


def begin(line: list[str], cwd: Path) -> warm.Command:
    """Start a command in a group of its own, with the tests' modules at hand."""
    return warm.start(line, cwd, PYTHONPATH=f"{ROOT / 'src'}:{ROOT / 'tests'}")


def run(name: str, *overrides: str, cwd: Path) -> warm.Command:
    return begin([sys.executable, str(ROOT / f"{name}.py"), *overrides], cwd)


def wait_until(process: warm.Command | subprocess.Popen[str], holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(process: warm.Command, number: int) -> tuple[int, str, list[str]]:
    """Signal the process alone; its exit code, the line about the stop, and what else it printed."""
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    lines = [line for line in (stdout + stderr).splitlines() if line.startswith("stopped by ")]
    assert len(lines) == 1, stdout + stderr
    assert "Traceback" not in stdout + stderr
    return process.returncode, lines[0], (stdout + stderr).splitlines()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    for number in range(3):
        put(root / "images" / f"case{number}_0000.nii.gz", image(number))
        put(root / "labels" / f"case{number}.nii.gz", np.ones(bad_cohort.SHAPE, np.uint8))
        put(root / "pseudo" / f"case{number}.nii.gz", np.ones(bad_cohort.SHAPE, np.uint8))
    (root / "unlabeled").mkdir()
    return root


def overrides(name: str, root: Path, outputs: Path) -> list[str]:
    labels, pseudo = root / "labels", root / "pseudo"
    if name == "evaluate":
        return [f"predictions={pseudo}", f"references={labels}", f"output={outputs}"]
    if name == "infer":
        checkpoint = ROOT / "tests" / "data" / "checkpoint_0_1.ckpt"
        return [f"checkpoint={checkpoint}", f"input={root / 'images'}", f"output={outputs}", "tta=none"]
    if name == "merge_labels":
        return [f"ground_truth={labels}", f"pseudo={pseudo}", f"output={outputs}"]
    own = [o for o in bad_cohort.overrides(root, outputs) if not o.startswith("executor")]
    return [*own, *(["rounds=[mo]"] if name == "iterate" else [])]


@pytest.mark.parametrize("number", list(CODES), ids=NAMES.get)
@pytest.mark.parametrize("name", ["prepare", "train", "iterate", "infer", "evaluate", "merge_labels"])
def test_a_stopped_script_says_where_and_how_to_go_on(
    cohort: Path, tmp_path: Path, name: str, number: int
) -> None:
    begun = tmp_path / "begun"
    line = overrides(name, cohort, tmp_path / "out out")
    line = [o.replace(f"{tmp_path}/out out", f"'{tmp_path}/out out'") for o in line]
    process = run(name, *line, *SLOW, f"+executor.begun={begun}", cwd=tmp_path)
    wait_until(process, begun.exists)
    code, told, _ = stop(process, number)
    assert code == CODES[number]
    assert told.startswith(f"stopped by {NAMES[number]} in ")
    assert " 0 of 3 done; go on with: python " in told
    again = told.partition("go on with: ")[2]
    assert subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {again}"], capture_output=True, text=True, check=True
    ).stdout.splitlines() == ["python", str(ROOT / f"{name}.py"), *line, *SLOW, f"+executor.begun={begun}"]


def test_nothing_that_follows_a_stopped_command_runs(cohort: Path, tmp_path: Path) -> None:
    begun, after = tmp_path / "begun", tmp_path / "after"
    line = [sys.executable, f"{ROOT}/prepare.py", *overrides("prepare", cohort, tmp_path / "out")]
    text = " ".join(f"'{word}'" for word in [*line, *SLOW, f"+executor.begun={begun}"])
    search = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    process = subprocess.Popen(
        ["bash", "-c", f"{text} && touch '{after}'"], cwd=tmp_path, env=search, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_until(process, begun.exists)
    (child,) = psutil.Process(process.pid).children()
    child.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not after.exists()


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(number, is_whole) for number in CODES for is_whole in (True, False)] + [(signal.SIGUSR2, True)],
)
def test_workers_end_with_a_stopped_command(tmp_path: Path, number: int, whole_group: bool) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "from flare.runs.door import command\n"
        "from flare.runs.work import LocalExecutor, run_cases\n"
        "from slow_executor import wait\n"
        "@command\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n"
        f"    jobs = {{str(n): {{'begun': {str(tmp_path / 'x')!r}, 'number': n}} for n in range(4)}}\n"
        "    list(run_cases(wait, jobs, executor=LocalExecutor(2, 1), description='wait'))\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    process = begin([sys.executable, "app.py"], tmp_path)
    wait_until(process, lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    if whole_group:  # as a terminal, Slurm and `timeout` do
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert process.returncode == 128 + number, stdout + stderr
    assert "Traceback" not in stdout + stderr
    assert len([line for line in stderr.splitlines() if "stopped by" in line]) == 1
    assert len(list(tmp_path.glob("*.begun"))) == 2  # no case was begun again
    assert psutil.wait_procs(workers, timeout=5)[1] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_of_submitit_is_handed_back_after_its_signal(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler of SIGUSR2 is called once, after all else; SIGTERM ends a job."""
    queued: list[int] = []
    at_end: list[Callable[[], None]] = []
    before = {each: signal.getsignal(each) for each in door.SIGNALS}
    monkeypatch.setattr(door, "_watch", door._Watch())
    monkeypatch.setattr(door, "PATIENCE_S", 0)
    monkeypatch.setattr(door.atexit, "register", lambda call, *given: at_end.append(partial(call, *given)))

    def submitit(number: int, _: object) -> None:
        queued.append(number)
        sys.exit(-1)

    signal.signal(signal.SIGUSR2, submitit)
    try:
        for _ in range(2):  # a training listens once more, against Lightning
            door.listen()
        with pytest.raises(door.Stopped) as stopped:
            signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert stopped.value.code == 128 + number
    assert not queued
    assert len(at_end) == 1
    with pytest.raises(SystemExit) if number == signal.SIGUSR2 else nullcontext():
        at_end[0]()
    assert queued == ([number] if number == signal.SIGUSR2 else [])


def training(outputs: Path, *own: str) -> list[str]:
    return [*SETTINGS, FEW, "round=mo", f"paths.outputs={outputs}", "trainer.limit_train_batches=30", *own]


def last(outputs: Path) -> dict:
    (path,) = outputs.rglob("mo/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


@pytest.mark.long
def test_a_training_stops_after_a_step_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    own = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "data.workers=1"]
    done = script("train", *training(whole, *own), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    process = run("train", *training(stopped, *own), cwd=tmp_path)
    wait_until(process, (stopped / "demo" / "rounds" / "mo" / "training.csv").exists)
    code, told, output = stop(process, signal.SIGINT)
    assert code == 130
    assert "stopped by SIGINT in round mo, " in told
    assert re.search(r"train, \d+ of 60 done, epoch [12] of 2; go on with: python ", told)
    saved = last(stopped)["global_step"]
    assert 30 < saved < 60
    assert any(f"saved a checkpoint of step {saved}" in line for line in output)
    done = script("train", *training(stopped, *own), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert last(stopped)["global_step"] == last(whole)["global_step"] == 60
    one, other = last(stopped)["state_dict"], last(whole)["state_dict"]
    assert all(torch.equal(one[key], other[key]) for key in other)
    tables = [read_csv(next(outputs.rglob("mo/training.csv"))) for outputs in (stopped, whole)]
    assert [(r["epoch"], r["lr"], r["val/dsc_mean"]) for r in tables[0]] == [
        (r["epoch"], r["lr"], r["val/dsc_mean"]) for r in tables[1]
    ]


@pytest.mark.long
def test_a_sweep_stops_with_its_job(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    line = [*training(outputs, "trainer.max_epochs=2"), "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    process = run("train", "-m", *line, cwd=tmp_path)
    wait_until(process, (tmp_path / "sweep" / "0" / "rounds" / "mo" / "training.csv").exists)
    code, told, _ = stop(process, signal.SIGTERM)
    assert code == 143
    assert told.endswith(f"go on with: python -m flare.sweeps sweep={tmp_path / 'sweep'} rerun=true")
    assert [job.status for job in read_jobs(tmp_path / "sweep")] == [RUNNING, PLANNED]
    assert len(list(tmp_path.rglob("last.ckpt"))) <= 2  # and its name in the round
    again = [sys.executable, "-m", "flare.sweeps", f"sweep={tmp_path / 'sweep'}", "rerun=true"]
    process = begin(again, tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stdout + stderr
    assert [job.status for job in read_jobs(tmp_path / "sweep")] == [COMPLETED, COMPLETED]


@pytest.mark.parametrize("launcher", [[], ["-m"]], ids=["run", "multirun"])
def test_a_refusal_is_not_wrapped_in_the_command_line(tmp_path: Path, launcher: list[str]) -> None:
    own = [f"paths.outputs={tmp_path / 'o'}", "tta=tta5", f"hydra.sweep.dir={tmp_path / 's'}"]
    done = script("train", *launcher, *own, cwd=tmp_path)
    assert done.returncode == 1
    told = "tta=tta5: expected one of none, tta4, tta8"
    assert told in done.stderr
    assert "Error executing job" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    if not launcher:
        assert done.stderr == f"{told}\n"
