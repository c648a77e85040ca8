"""On a real Slurm, begun by cluster.sh: jobs that are cancelled and requeued end as undisturbed runs do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flare.core.files import read_csv
from flare.core.volumes import read_image
from tiny_round import TINY, write_case
from tiny_run import ROOT, given, run_iterate

pytestmark = [pytest.mark.slow, pytest.mark.long]

SCRIPT = Path(__file__).with_name("cluster.sh")
ROUNDS = ["rounds=[mo,mo1]", "trainer.max_epochs=2", "trainer.limit_train_batches=40"]
TRACKED = ["logger=[csv,wandb]", "logger.wandb.offline=true"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, thorough: bool) -> Iterator[Callable[..., str]]:
    """Runs a command of Slurm's, such as `slurm("squeue", "-h")`, on a cluster of this machine."""
    if not thorough:
        pytest.skip("only in make test-all (--thorough)")
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"no Slurm can be started: not root, or no {', '.join(missing)} (Debian: slurm-wlm, munge)"
        )
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
    if started.returncode:
        subprocess.run([SCRIPT, "stop", folder])
        pytest.skip(f"Slurm does not start here: {started.stderr[-500:]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        # jobs have the environment of their start
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT / 'tests'}")
        yield lambda *line: subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run([SCRIPT, "stop", folder])


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300) -> object:
    """Wait until something holds while a command runs, and give it."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the time is over"
        time.sleep(0.05)
    return found


def begin(script: str, *line: str, cwd: Path) -> subprocess.Popen[str]:
    whole = [sys.executable, str(ROOT / f"{script}.py"), *line]
    return subprocess.Popen(whole, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stdout + stderr
    return stdout + stderr


def running(slurm: Callable[..., str]) -> list[str]:
    return slurm("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()


def test_a_cohort_is_prepared_over_jobs_that_are_all_cancelled(
    slurm: Callable[..., str], tmp_path: Path
) -> None:
    for seed in range(60):
        write_case(tmp_path, f"case{seed:02d}", seed)
    own = [f"data.root={tmp_path}", f"paths.outputs={tmp_path}", *(o for o in TINY if "executor" not in o)]
    own += ["data.spacing_mm=[0.4,0.4,0.4]"]  # so that a case takes its time
    end(begin("prepare", *own, f"paths.cache={tmp_path / 'alone'}", "executor.workers=0", cwd=tmp_path))
    jobs = (
        "executor.cluster={_target_: dask_jobqueue.SLURMCluster, queue: main, cores: 2, processes: 2, "
        "memory: 1GB, interface: lo, walltime: '01:00:00', local_directory: /tmp}"
    )
    over = ["executor=dask", "executor.workers=2", jobs, f"paths.cache={tmp_path / 'over'}"]
    process = begin("prepare", *own, *over, cwd=tmp_path)

    def done() -> int:
        return sum(len(p.read_text().splitlines()) for p in (tmp_path / "over").rglob("cache-*.jsonl"))

    wait_for(lambda: done() >= 3, process)
    jobs_before = running(slurm)
    slurm("scancel", *jobs_before)  # all that there are: others must be asked for
    before = done()
    end(process)
    assert before < 60
    assert len(jobs_before) == 1  # of two processes
    assert slurm("squeue", "-h") == ""  # the jobs end with the start

    def is_kept(path: Path) -> bool:  # what a cancelled job left half the next start removes
        return path.suffix in (".b2nd", ".npz", ".csv") and ".partial-" not in str(path)

    files = {
        name: {p.relative_to(root): p for p in root.rglob("*") if is_kept(p)}
        for name in ("alone", "over")
        for root in [tmp_path / name]
    }
    assert len(files["alone"]) > 60
    assert files["alone"].keys() == files["over"].keys()
    for name, path in files["alone"].items():
        assert path.read_bytes() == files["over"][name].read_bytes(), name


def test_rounds_that_are_requeued_end_as_undisturbed_ones(slurm: Callable[..., str], tmp_path: Path) -> None:
    whole, outputs, sweep = tmp_path / "whole", tmp_path / "outputs", tmp_path / "sweep"
    run_iterate(whole, *ROUNDS)
    launcher = [
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=main",
        "hydra.launcher.timeout_min=60",
    ]
    line = ["-m", *launcher, f"hydra.sweep.dir={sweep}", *given(outputs, *ROUNDS, *TRACKED)]
    process = begin("iterate", *line, cwd=tmp_path)
    run = sweep / "0"

    def told() -> str:
        return "".join(path.read_text() for path in sorted(sweep.rglob("*_log.*")))

    wait_for((run / "rounds" / "mo" / "training.csv").exists, process)
    (job,) = running(slurm)
    slurm("scancel", "--signal=USR2", job)  # as Slurm does before the job's time is over
    wait_for(lambda: "Requeued job" in told(), process)
    assert len(re.findall(r"saved a checkpoint of step \d+", told())) == 1
    wait_for((run / "rounds" / "mo1" / "training.csv").exists, process)
    assert running(slurm) == [job]
    slurm("scontrol", "requeue", job)  # as an administrator, a preemption or a lost node does
    end(process)
    until = time.monotonic() + 60
    while running(slurm) and time.monotonic() < until:  # its result is there before its process has ended
        time.sleep(0.1)
    assert re.findall(r"JobState=(COMPLETED|COMPLETING)", slurm("scontrol", "show", "job", job))
    assert "Restarts=2" in slurm("scontrol", "show", "job", job)

    assert_same(run, whole / "demo")
    for name in ("mo", "mo1"):  # each training is one run of W&B's
        ids = {p.name.rpartition("-")[2] for p in (run / "rounds" / name).rglob("offline-run-*")}
        assert len(ids) == 1
        assert len(list((run / "rounds" / name).rglob("offline-run-*"))) == 2  # begun and resumed


def assert_same(run: Path, other: Path) -> None:
    """Same labels to the voxel, same weights to the bit, same scores to the digit."""
    names = {str(path.relative_to(other)) for path in other.rglob("*.nii.gz")}
    assert {str(path.relative_to(run)) for path in run.rglob("*.nii.gz")} == names
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(read_image(run / name).array, read_image(other / name).array)
    for name in ("mo", "mo1"):
        one, two = (
            torch.load(root / "rounds" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for root in (run, other)
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    for name in ("table5.csv", "rounds/mo1/validation/metrics.csv"):
        assert read_csv(run / name) == read_csv(other / name)
