"""Two processes that Slurm would start, with gloo on the CPU, against one at twice the batch."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.data.loaders import Batch
from flare.rounds.iterate import train
from flare.rounds.settings import RoundSettings
from flare.rounds.train import check_epochs
from flare.runs.folders import RoundFolder, run_folder
from flare.training.module import SegmentationModule
from tiny_round import configuration, write_case, write_cohort

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork"),
]
FIVE = ["trainer.max_epochs=1", "trainer.limit_train_batches=5", "callbacks.ema.decay=0.9"]
PAIR = ["trainer=ddp_slurm", "trainer.accelerator=cpu", "trainer.devices=2"]


def as_slurm_does(rank: int, port: int) -> dict[str, str]:
    """What `srun --nodes=1 --ntasks-per-node=2` tells a process."""
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NNODES": "1", "NODELIST": "localhost", "NODEID": "0"}
    tasks = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "PROCID": f"{rank}", "LOCALID": f"{rank}"}
    found = {f"SLURM_{name}": value for name, value in (job | tasks).items()}
    return found | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}


def train_rank(rank: int, port: int, root: Path, outputs: Path, stop_at: int | None) -> None:
    """Run what `train.py` does in one of the processes; no thread of the parent is there.

    The second process alone is told to stop, in the step `stop_at`.
    """
    os.environ.update(as_slurm_does(rank, port))
    torch.set_num_threads(1)
    step = SegmentationModule.training_step

    def stopping(self: SegmentationModule, batch: Batch, index: int) -> torch.Tensor:
        if (rank, index) == (1, stop_at):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    SegmentationModule.training_step = stopping  # type: ignore[method-assign]  # in this process
    result = train(configuration(root, outputs, *FIVE, *PAIR))
    assert (result["objective"] is None) == (rank > 0)


def start(root: Path, outputs: Path, stop_at: int | None = None) -> list[int | None]:
    """Start both processes; gives their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    given = (port, root, outputs, stop_at)
    ranks = [context.Process(target=train_rank, args=(rank, *given)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    return [rank.exitcode for rank in ranks]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort with two validation cases, one a process."""
    root = tmp_path_factory.mktemp("cohort")
    write_case(root, "held_out_too", 11, split="Val")
    write_cohort(root)
    return root


@pytest.fixture(scope="module")
def pair(root: Path, tmp_path_factory: pytest.TempPathFactory) -> RoundFolder:
    """A round of five steps, trained by two processes with two patches each, and stopped after the third."""
    outputs = tmp_path_factory.mktemp("pair")
    assert start(root, outputs, stop_at=2) == [143, 143]
    (last,) = outputs.rglob("checkpoints/*/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert start(root, outputs) == [0, 0]
    return run_folder(configuration(root, outputs)).round(None)


@pytest.fixture(scope="module")
def alone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> RoundFolder:
    """The same by one process, with four patches a step."""
    cfg = configuration(root, tmp_path_factory.mktemp("alone"), *FIVE, "data.batch_size=4")
    train(cfg)
    return run_folder(cfg).round(None)


@pytest.mark.parametrize("kind", ["last", "ema"])
def test_two_processes_end_with_the_weights_of_one_at_twice_the_batch(
    pair: RoundFolder, alone: RoundFolder, kind: str
) -> None:
    two, one = (
        torch.load(folder.checkpoints / f"{kind}.ckpt", weights_only=True)["state_dict"]
        for folder in (pair, alone)
    )
    assert two.keys() == one.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, atol=1e-5, rtol=0, msg=name)


def test_the_table_tells_of_all_steps_and_of_all_validation_cases(
    pair: RoundFolder, alone: RoundFolder
) -> None:
    (two,), (one,) = (read_csv(folder.training_csv) for folder in (pair, alone))
    for name in ("epoch", "step", "lr", *(name for name in one if name.startswith("val/"))):
        assert two[name] == one[name] or float(two[name]) == pytest.approx(float(one[name]), abs=2e-3), name
    scored = [read_csv(folder.root / "validation" / "metrics.csv") for folder in (pair, alone)]
    assert [[row["Name"] for row in rows] for rows in scored] == [["held_out", "held_out_too"]] * 2


def test_a_resume_on_another_number_of_devices_is_refused(pair: RoundFolder, root: Path) -> None:
    settings = RoundSettings.from_config(configuration(root, root, "trainer.max_epochs=2")).training
    check_epochs(pair.last, settings, is_own=True, devices=2)
    message = r"^trainer.devices: .* was trained on 2, here are 1; expected as many, or .*data.batch_size"
    with pytest.raises(FlareError, match=message):
        check_epochs(pair.last, settings, is_own=True, devices=1)
