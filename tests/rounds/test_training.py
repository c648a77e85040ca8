"""A round trained on a tiny cohort: what it leaves, that it resumes to the bit, and what it refuses."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from flare.core.errors import FlareError
from flare.core.files import read_csv, write_csv
from flare.models.losses import DiceCELoss
from flare.models.zoo import load_network
from flare.prepare.cohort import Cohort
from flare.rounds import label as labelling
from flare.rounds import train as training
from flare.rounds.iterate import run_round, train
from flare.rounds.settings import RoundSettings
from flare.rounds.train import check_configuration
from flare.runs.checkpoints import load_checkpoint
from flare.runs.folders import RoundFolder, run_folder
from flare.runs.locks import lock
from flare.runs.work import build_executor
from tiny_round import TINY, configuration, train_tiny, write_cohort
from tiny_run import changed, times

pytestmark = pytest.mark.slow  # whole programs


Trained = tuple[dict[str, Any], RoundFolder]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def trained(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A round of two epochs, without interruption."""
    return train_tiny(cohort, tmp_path_factory.mktemp("whole"))


def weights_and_momentum(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint that a further step depends on."""
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["optimizer_states"][0]["state"]
    momentum = {f"momentum.{index}": entry["momentum_buffer"] for index, entry in state.items()}
    return {**checkpoint["state_dict"], **momentum}


def assert_same_training(first: RoundFolder, second: RoundFolder) -> None:
    one, other = weights_and_momentum(first.last), weights_and_momentum(second.last)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    tables = [read_csv(folder.training_csv) for folder in (first, second)]
    for row in (row for table in tables for row in table):
        del row["patches_per_s"]
    assert tables[0] == tables[1]


def test_a_round_leaves_checkpoints_table_and_configuration(trained: Trained) -> None:
    result, folder = trained
    assert result["checkpoint"] == str(folder.last)
    assert result["best"] == str(folder.best)
    assert {path.name for path in folder.checkpoints.iterdir()} >= {"last.ckpt", "best.ckpt"}
    assert folder.config.exists()
    rows = read_csv(folder.training_csv)
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "3"), ("1", "6")]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.05 * 0.5**0.9], rel=1e-5)
    for row in rows:
        difference = float(row["train/ce"]) - float(row["train/dice"])
        assert float(row["train/loss"]) == pytest.approx(difference, abs=1e-4)
        assert float(row["patches_per_s"]) > 0
        assert row["val/dsc/aorta"] == ""  # nowhere annotated
        organs = (float(row["val/dsc/liver"]) + float(row["val/dsc/spleen"])) / 2
        assert float(row["val/dsc_mean"]) == pytest.approx(organs, abs=1e-5)
    assert result["metrics"]["train/loss"] == float(rows[-1]["train/loss"])
    assert result["objective"] == float(rows[-1]["val/dsc_mean"])


@pytest.mark.parametrize(("last", "objective"), [(1.5, 1.5), (None, 2.0), (float("nan"), None)])
def test_the_objective_is_the_last_value_unless_it_diverged(
    last: float | None, objective: float | None, tmp_path: Path
) -> None:
    folder = RoundFolder(tmp_path)
    write_csv(folder.training_csv, [{"train/loss": 2.0, "val/dsc_mean": 0.5}, {"train/loss": last}])
    assert training.tell_training(folder, "train/loss")["objective"] == objective


def test_a_checkpoint_loads_safely_and_carries_what_inference_needs(trained: Trained, cohort: Cohort) -> None:
    network, checkpoint = load_network(trained[1].last)
    assert checkpoint.outputs == tuple(range(15))
    assert checkpoint.spacing_mm == (3, 2, 2)
    assert checkpoint.patch_size == (8, 16, 16)
    assert checkpoint.mirror_axes == (0, 1, 2)
    assert cohort.intensity is not None
    assert checkpoint.intensity == cohort.intensity.to_dict()
    assert checkpoint.round is None
    assert "root" not in checkpoint.config["data"]
    assert "paths" not in checkpoint.config
    assert network(torch.zeros(1, 1, 8, 16, 16)).shape == (1, 15, 8, 16, 16)


class StoppedError(Exception):
    """A training ends between two steps."""


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let a training stop after some steps."""
    forward, calls = DiceCELoss.forward, []

    def stopping(self: DiceCELoss, *inputs: Any) -> Any:
        calls.append(1)
        if len(calls) > steps:
            raise StoppedError
        return forward(self, *inputs)

    patch.setattr(DiceCELoss, "forward", stopping)


def test_a_round_stopped_in_an_epoch_ends_with_the_same_bits(
    trained: Trained, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, steps=4)
        with pytest.raises(StoppedError):
            train_tiny(cohort, tmp_path)
    torch.rand(7)  # whatever else global generators were used for
    _, resumed = train_tiny(cohort, tmp_path)  # the same command
    assert_same_training(trained[1], resumed)


def test_a_training_of_more_devices_is_not_resumed_on_one(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps=4)
        with pytest.raises(StoppedError):
            train_tiny(cohort, tmp_path, validate=False)
    (last,) = tmp_path.rglob("checkpoints/*/last.ckpt")
    state = torch.load(last, weights_only=True)
    assert state["devices"] == 1
    torch.save({**state, "devices": 4}, last)
    message = (
        r"^trainer\.devices: .*last\.ckpt was trained on 4, here are 1; expected as many, or .*ckpt_path=last"
    )
    with pytest.raises(FlareError, match=message):
        train_tiny(cohort, tmp_path, validate=False)
    # with other settings it is another training, which may go on from there
    train_tiny(cohort, tmp_path, "ckpt_path=last", "data.batch_size=4", validate=False)


def test_a_round_continued_after_its_first_epoch_ends_with_the_same_bits(
    trained: Trained, cohort: Cohort, tmp_path: Path
) -> None:
    # E of the schedule stays 2: only the end of the training moves
    train_tiny(cohort, tmp_path, "trainer.max_epochs=1", "scheduler.decay_epochs=2")
    _, continued = train_tiny(cohort, tmp_path, "ckpt_path=last")
    assert_same_training(trained[1], continued)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # of three epochs, in the third: 0.05 x (1/3)^0.9, and 0.05 x (1 + cos 120 degrees) / 2
        (("scheduler=poly",), 0.05 * 0.3720410580113015),
        (("scheduler=cosine",), 0.0125),
        (("scheduler=poly", "optimizer.lr=0.5"), 0.5 * 0.3720410580113015),
        (("scheduler=cosine", "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR", "~scheduler.T_max",
          "~scheduler.eta_min", "+scheduler.gamma=0.5"), 0.0125),
    ],
)  # fmt: skip
def test_more_epochs_begin_at_the_rate_of_their_own_schedule(
    trained: Trained, cohort: Cohort, tmp_path: Path, schedule: tuple[str, ...], expected: float
) -> None:
    """The checkpoint is at the end of its schedule, where the rate is 0."""
    given = ("trainer.max_epochs=3", f"ckpt_path={trained[1].last}", *schedule)
    _, folder = train_tiny(cohort, tmp_path, *given, validate=False)
    assert [float(row["lr"]) for row in read_csv(folder.training_csv)][2:] == [
        pytest.approx(expected, rel=1e-5)
    ]
    before, after = (torch.load(f.last, weights_only=True)["state_dict"] for f in (trained[1], folder))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_schedule_that_waits_for_a_plateau_goes_on_with_what_it_knows(
    cohort: Cohort, tmp_path: Path
) -> None:
    target = "torch.optim.lr_scheduler.ReduceLROnPlateau"
    given = ["scheduler=cosine", f"scheduler._target_={target}", "~scheduler.T_max", "~scheduler.eta_min"]
    given += [
        "+scheduler.patience=0",
        "+scheduler.threshold=1e9",
        "+scheduler.factor=0.5",
    ]  # no loss is better
    train_tiny(cohort, tmp_path, *given, "trainer.max_epochs=2", validate=False)
    more = ("trainer.max_epochs=4", "ckpt_path=last")
    _, folder = train_tiny(cohort, tmp_path, *given, *more, validate=False)
    whole = train_tiny(cohort, tmp_path / "whole", *given, "trainer.max_epochs=4", validate=False)[1]
    rates = [[float(row["lr"]) for row in read_csv(f.training_csv)] for f in (folder, whole)]
    assert rates[0] == rates[1]
    assert rates[0][3] < rates[0][0]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_round import prepare_cohort, configuration, train_tiny
if __name__ == "__main__":
    root, outputs = map(Path, sys.argv[2:4])
    train_tiny(prepare_cohort(configuration(root, root)), outputs, *sys.argv[4:])
"""


def start_process(cohort: Cohort, outputs: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Train in a process of its own."""
    script = outputs.with_suffix(".py")
    script.write_text(SCRIPT)
    arguments = [Path(__file__).parents[1], cohort.folder.root.parent, outputs, *overrides]
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)])


@pytest.mark.long
def test_a_killed_process_resumes_to_the_same_bits_with_workers(
    trained: Trained, cohort: Cohort, tmp_path: Path
) -> None:
    process = start_process(cohort, tmp_path / "out", "data.workers=2")
    folder = RoundFolder(tmp_path / "out" / "default" / "rounds" / "all")
    deadline = time.monotonic() + 120
    while not folder.last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_lock(folder)
    _, resumed = train_tiny(cohort, tmp_path / "out", "data.workers=2")
    assert_same_training(trained[1], resumed)


def wait_for_lock(folder: RoundFolder) -> None:
    """Workers of a killed process may hold its lock until they notice, within seconds."""
    for _ in range(60):
        try:
            with lock(folder.checkpoints):
                return
        except FlareError:
            time.sleep(0.5)


@pytest.mark.long
def test_two_processes_share_the_global_batch(cohort: Cohort, tmp_path: Path) -> None:
    common = ("data.oversample_foreground=1", "callbacks.ema.decay=0.7")
    _, alone = train_tiny(cohort, tmp_path / "one", *common, "data.batch_size=4")
    pair = (*common, "data.batch_size=2", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert start_process(cohort, tmp_path / "two", *pair, "trainer.strategy=ddp_spawn").wait(240) == 0
    shared = RoundFolder(tmp_path / "two" / "default" / "rounds" / "all")
    one, two = (
        {**weights_and_momentum(folder.last), **load_checkpoint(folder.checkpoints / "ema.ckpt").state_dict}
        for folder in (alone, shared)
    )
    for key, weights in one.items():
        torch.testing.assert_close(two[key], weights, rtol=1e-3, atol=1e-5)
    first, second = read_csv(alone.training_csv), read_csv(shared.training_csv)
    for row, other in zip(first, second, strict=True):
        for name in ("train/loss", "val/dsc_mean"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-2, abs=1e-3)


def test_without_labelled_validation_cases_there_is_no_best(cohort: Cohort, tmp_path: Path) -> None:
    result, folder = train_tiny(cohort, tmp_path, "trainer.max_epochs=1", validate=False)
    assert result["best"] is None
    assert folder.last.exists()
    assert read_csv(folder.training_csv)[0]["val/dsc_mean"] == ""


def test_a_round_starts_from_its_teacher_if_asked(cohort: Cohort, tmp_path: Path) -> None:
    once = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "optimizer.lr=0")
    train_tiny(cohort, tmp_path, *once, "round=mo", "model=tiny", "seed=1", *TINY[3:7], validate=False)
    pupil = ("round=mo1", "model=tiny", *TINY[3:7], "labels.source=ground_truth")
    _, taught = train_tiny(cohort, tmp_path, *once, *pupil, "round.init=teacher", validate=False)
    run = run_folder(configuration(tmp_path, tmp_path))
    teacher, started = (load_checkpoint(run.round(name).last).state_dict for name in ("mo", "mo1"))
    assert all(torch.equal(teacher[key], started[key]) for key in teacher)
    assert taught.root.name == "mo1"


def test_a_training_starts_from_a_checkpoint_of_another_class_list(cohort: Cohort, tmp_path: Path) -> None:
    """Liver and spleen have each other's ids there: their rows follow the names."""
    once = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "optimizer.lr=0")
    _, first = train_tiny(cohort, tmp_path / "first", *once, validate=False)
    own = [
        "classes.liver.id=3",
        "classes.spleen.id=1",
        f"round.checkpoint={first.last}",
        "round.init=teacher",
    ]
    cfg = configuration(cohort.folder.root.parent, tmp_path / "tuned", *once, *own)
    check_configuration(RoundSettings.from_config(cfg))
    _, tuned = train_tiny(cohort, tmp_path / "tuned", *once, *own, "seed=5", validate=False)
    given, started = (load_checkpoint(folder.last).state_dict for folder in (first, tuned))
    rows = [0, 3, 2, 1, *range(4, 15)]
    for key, weights in given.items():
        assert torch.equal(started[key], weights[rows] if key.startswith("heads.") else weights), key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.patch_size=[8,16,18]"], "data.patch_size: size 18 along x is no multiple of the network's 4"),
        (["round.init=warm"], "round.init=warm: expected one of fresh, teacher"),
        (["+loss.class_weights.lung=2"], "loss.class_weights: no class is named 'lung'"),
        (["round=mo1", "model=tiny"], "python train.py round=mo name=default"),
        (["restore=cubic"], "restore=cubic"),
        (["objective=val/dice"], "objective=val/dice: expected null or one of lr, train/loss"),
        (
            ["optimizer._target_=torch.optim.AdamW"],
            r"^optimizer: torch\.optim\.AdamW does not take momentum, nesterov, "
            r"it takes params, lr, betas.*; "
            r"leave out with ~optimizer\.momentum ~optimizer\.nesterov$",
        ),
        (
            ["optimizer._target_=torch.optim.Nope"],
            r"^optimizer: torch\.optim\.Nope refuses it: [^\n]*$",
        ),
        (
            ["optimizer.momentum=0"],
            r"^optimizer: torch\.optim\.SGD refuses it: Nesterov [^\n]*$",
        ),
        (["optimizer._target_=torch.nn.Identity"], r"^optimizer: .*expected an optimizer"),
        (
            ["scheduler._target_=torch.optim.lr_scheduler.StepLR"],
            r"^scheduler: .*StepLR does not take power, decay_epochs, it takes optimizer, step_size",
        ),
        (["scheduler._target_=torch.nn.Identity"], r"^scheduler: .*expected a schedule of torch"),
        (["+callbacks.throughput.window=3"], r"^callbacks\.throughput: .*Throughput does not take window"),
        (["+callbacks.own={window: 3}"], r"^callbacks\.own: expected a section with a _target_$"),
        (["+logger.csv.window=3"], r"^logger\.csv: .*CSVLogger does not take window"),
        (["logger.csv._target_=nowhere.Logger"], r"^logger\.csv: nowhere\.Logger refuses it: [^\n]*$"),
        (["+loss.window=3"], r"^loss: flare\.models\.losses\.DiceCELoss does not take window"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    overrides: list[str], message: str, cohort: Cohort, tmp_path: Path
) -> None:
    cfg = configuration(cohort.folder.root.parent, tmp_path, *overrides, *TINY[3:7])
    with pytest.raises(FlareError, match=message):
        train(cfg)
    assert not any(tmp_path.iterdir())


def test_a_teacher_of_another_round_or_spacing_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    root = cohort.folder.root.parent
    once = ("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    _, folder = train_tiny(cohort, tmp_path, *once, validate=False)  # round=null
    pupil = ("round=mo1", "model=tiny", *TINY[3:7], "round.init=teacher", f"paths.outputs={tmp_path}")
    named = run_folder(configuration(tmp_path, tmp_path)).round("mo")
    named.checkpoints.mkdir(parents=True)
    shutil.copy(folder.last, named.last)

    def check(*overrides: str) -> None:
        check_configuration(RoundSettings.from_config(configuration(root, tmp_path, *overrides)))

    with pytest.raises(FlareError, match=r"round.teacher=mo: .* is a checkpoint of round None"):
        check(*pupil)
    chosen = (*pupil, f"round.checkpoint={folder.last}")
    check(*chosen)
    with pytest.raises(FlareError, match=r"data.spacing_mm"):
        check(*chosen, "data.spacing_mm=[4,2,2]")
    check(*chosen, "data.spacing_mm=[4,2,2]", "round.init=fresh")
    with pytest.raises(FlareError, match="another architecture"):
        check(*chosen, "model.net.convolutions_per_stage=3")


def test_a_checkpoint_that_nothing_can_go_on_from_is_refused(
    trained: Trained, cohort: Cohort, tmp_path: Path
) -> None:
    given = f"ckpt_path={trained[1].last}"

    def check(*overrides: str) -> None:
        cfg = configuration(cohort.folder.root.parent, tmp_path, given, *overrides)
        check_configuration(RoundSettings.from_config(cfg))

    check()
    check("trainer.max_epochs=3")
    with pytest.raises(FlareError, match=r"^ckpt_path: .* has done 2 epochs; expected trainer.max_epochs"):
        check("trainer.max_epochs=1")
    with pytest.raises(FlareError, match=r"^ckpt_path=.* another architecture"):
        check("model.net.convolutions_per_stage=3")
    with pytest.raises(FlareError, match=r"^ckpt_path=.*: its classes are 1 liver"):
        check("classes.liver.id=20")
    with pytest.raises(FlareError, match=r"^ckpt_path=.*: its classes are .*\(organs_tumor\)"):
        check("labels.targets=organs")
    weights = torch.load(trained[1].last, weights_only=True)
    del weights["loops"]
    torch.save(weights, tmp_path / "weights.ckpt")
    given = f"ckpt_path={tmp_path / 'weights.ckpt'}"
    with pytest.raises(FlareError, match="holds weights and no training"):
        check()
    with pytest.raises(FlareError, match="has done 2 epochs"):  # no epoch is left to a training of its own
        train_tiny(cohort, tmp_path, f"ckpt_path={trained[1].last}", "optimizer.lr=0.01")


def test_what_refuses_late_leaves_a_finished_round_as_it_is(
    trained: Trained, cohort: Cohort, tmp_path: Path
) -> None:
    shutil.copytree(trained[1].root.parents[2], tmp_path / "out")
    before = times(tmp_path, "*")
    for override in ("data.oversample_foreground=33", "seed=-1", "round.checkpoint=no.ckpt"):
        with pytest.raises((FlareError, ValueError)):
            # the values are not checked here: whatever refuses must do so before a file is touched
            train_tiny(cohort, tmp_path / "out", override, "round.init=teacher")
    assert {name for name in changed(before, times(tmp_path, "*")) if not name.endswith(".lock")} == set()


def test_a_finished_training_is_found_again_after_another_and_not_done_again(
    trained: Trained, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained[1].root.parents[2], tmp_path / "out")
    folder = RoundFolder(tmp_path / "out" / trained[1].root.relative_to(trained[1].root.parents[2]))
    whole = folder.last.read_bytes()
    for once in ((), ("ckpt_path=null",)):
        once += ("optimizer.lr=0.01", "trainer.limit_train_batches=1")
        train_tiny(cohort, tmp_path / "out", *once, validate=False)
        assert folder.last.read_bytes() != whole
    monkeypatch.setattr(DiceCELoss, "forward", None)  # no step is done
    result, _ = train_tiny(cohort, tmp_path / "out")
    assert result["objective"] == trained[0]["objective"]
    assert folder.last.read_bytes() == whole
    assert_same_training(trained[1], folder)
    assert len(list(folder.checkpoints.glob("*/last.ckpt"))) == 3


def test_restarts_of_two_settings_resume_each_at_its_own_step(cohort: Cohort, tmp_path: Path) -> None:
    """Each start is stopped in its second epoch further on."""
    for restart in range(6):
        settings = (f"optimizer.lr={(0.05, 0.01)[restart % 2]}", "trainer.max_epochs=9")
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, steps=4)
            with pytest.raises(StoppedError):
                train_tiny(cohort, tmp_path, *settings, validate=False)
        folder = run_folder(configuration(tmp_path, tmp_path)).round(None)
        done = torch.load(folder.last, weights_only=True)["global_step"]
        assert (done, len(read_csv(folder.training_csv))) == (3 * (restart // 2 + 1), restart // 2 + 1)
    assert len(list(folder.checkpoints.glob("*/last.ckpt"))) == 2


def test_no_training_starts_on_what_a_general_fault_left(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_nifti(path: Path, case: str) -> None:
        raise MemoryError(f"no {len(case)} GiB")

    monkeypatch.setattr("flare.core.volumes.read_nifti", read_nifti)
    cfg = configuration(cohort.folder.root.parent, tmp_path, f"paths.cache={tmp_path / 'new'}")
    with pytest.raises(FlareError, match=r"^prepare, caching: 3 of 3 cases .* 3 x MemoryError: no "):
        train(cfg)
    assert not list(tmp_path.rglob("checkpoints"))


def test_two_trainings_of_one_round_refuse_each_other(cohort: Cohort, tmp_path: Path) -> None:
    folder = run_folder(configuration(tmp_path, tmp_path)).round(None)
    with lock(folder.checkpoints), pytest.raises(FlareError, match="in use"):
        train_tiny(cohort, tmp_path)


def test_a_training_that_goes_wrong_ends_before_its_weights_are_kept(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"the loss of epoch \d is nan.*optimizer.lr"):
        train_tiny(cohort, tmp_path, "optimizer.lr=1e30", "trainer.gradient_clip_val=null")
    assert not list(tmp_path.rglob("last.ckpt"))


@pytest.mark.parametrize("by", ["train", "iterate"])
def test_no_worker_process_waits_through_a_training(
    by: str, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: dict[str, int] = {}
    make_labels, fit = labelling.build_training_set, pl.Trainer.fit

    def make_labels_in_a_process(*arguments: Any) -> labelling.TrainingSet:
        (outcome,) = arguments[2].run(os.getpid, {"case": {}})
        assert outcome.value not in (None, os.getpid())
        alive["before"] = len(multiprocessing.active_children())
        return make_labels(*arguments)

    def watched(self: pl.Trainer, *arguments: Any, **keywords: Any) -> None:
        alive["while"] = len(multiprocessing.active_children())
        fit(self, *arguments, **keywords)

    cfg = configuration(cohort.folder.root.parent, tmp_path, "trainer.max_epochs=1", "executor.workers=1")
    monkeypatch.setattr(pl.Trainer, "fit", watched)
    monkeypatch.setattr("flare.rounds.iterate.build_training_set", make_labels_in_a_process)
    folder = run_folder(cfg).round(None)
    if by == "train":
        train(cfg)
    else:
        with closing(build_executor(cfg)) as executor:
            assert run_round(RoundSettings.from_config(cfg), cohort, executor) == []
    assert alive == {"before": 1, "while": 0}
    assert (folder.root / "validation" / "summary.json").is_file()  # for which it has workers again
