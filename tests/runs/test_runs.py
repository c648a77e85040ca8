"""Folders of a run, the lock between two starts, and what is recorded of a run."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import flare
from flare.cli import CONF
from flare.core.errors import FlareError
from flare.core.files import read_json
from flare.runs.folders import (
    RunFolder,
    git_revision,
    is_public,
    public_config,
    record_environment,
    run_folder,
)
from flare.runs.locks import lock

HOLD = (
    "import sys; from pathlib import Path; from flare.runs.locks import lock\n"
    "with lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_the_folders_of_a_round(config: Callable[..., DictConfig]) -> None:
    run = run_folder(config("train", "name=trial", "paths.outputs=/out"))
    assert run.root == Path("/out/trial")
    mo = run.round("mo")
    assert mo.root == Path("/out/trial/rounds/mo")
    assert mo.last == mo.root / "checkpoints" / "last.ckpt"
    assert mo.best == mo.root / "checkpoints" / "best.ckpt"
    assert (mo.labels, mo.predictions) == (mo.root / "labels", mo.root / "predictions")
    assert (mo.config.name, mo.training_csv.name) == ("config.yaml", "training.csv")
    assert run.round(None).root.name == "all"
    assert mo.journal("merge").parent.parent == mo.root


@pytest.mark.parametrize("script", ["train", "merge_labels", "iterate"])
def test_scripts_share_the_folder_of_a_run(config: Callable[..., DictConfig], script: str) -> None:
    assert run_folder(config(script, "name=trial")).root == Path("outputs/trial")


def test_a_second_start_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "demo"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(FlareError, match=rf"in use by process {first.pid}.*name="), lock(folder):
            pass
        with lock(folder.parent):  # another folder is free
            pass
    finally:
        first.kill()
        first.wait()
        first.stdin.close()
        first.stdout.close()
    with lock(folder):  # a killed holder holds no more
        pass


def test_a_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with lock(tmp_path):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with lock(tmp_path):
        pass


def test_one_that_waits_is_told_and_goes_on_when_the_other_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        threading.Timer(0.5, holder.stdin.close).start()
        with lock(tmp_path, wait=True):
            assert holder.wait(timeout=10) == 0
    assert caplog.messages == [f"process {holder.pid} is at work in the same folder: waiting for it"]


def test_within_one_process_as_well(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(FlareError, match="in use"), lock(tmp_path):
        pass


def without_locks(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
def test_a_share_without_locks_is_not_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr("fcntl.flock", without_locks(number))
    with lock(tmp_path), lock(tmp_path / "another"):
        assert os.strerror(number) in caplog.text
        assert str(tmp_path) not in caplog.text  # log files hold no folder
        held = (tmp_path / ".lock.held").read_text()
        assert held == f"process {os.getpid()} on {socket.gethostname()}"
        for waits in (False, True):  # one that waits for itself would wait forever
            with pytest.raises(FlareError, match=rf"in use by {held}"), lock(tmp_path, wait=waits):
                pass
    with lock(tmp_path), pytest.raises(KeyError), lock(tmp_path / "failed"):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*.held")] == []


def test_the_file_of_a_dead_holder_counts_on_its_own_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    monkeypatch.setattr("fcntl.flock", without_locks(errno.ENOLCK))
    held = tmp_path / ".lock.held"
    held.write_text(f"process {dead.pid} on {socket.gethostname()}")
    with lock(tmp_path):
        pass
    assert not held.exists()
    held.write_text(f"process {dead.pid} on elsewhere")
    told = rf"in use by process {dead.pid} on elsewhere; .*delete {held} if it has ended"
    with pytest.raises(FlareError, match=told), lock(tmp_path):
        pass
    assert held.exists()


def test_the_lock_of_another_host_is_no_dead_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock(tmp_path):
        (tmp_path / ".lock").write_text("process 999999999 on elsewhere")  # none of ours has this number
        monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits for a dead process"))
        with pytest.raises(FlareError, match="in use by process 999999999 on elsewhere"), lock(tmp_path):
            pass


def test_the_record_of_a_run(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = config("train", "round=mo", "name=trial", f"paths.outputs={tmp_path}")
    record_environment(tmp_path / "new", cfg)
    stored = OmegaConf.load(tmp_path / "new" / "config.yaml")
    assert stored.paths.run == f"{tmp_path}/trial"
    assert stored.round.name == "mo"
    assert stored.scheduler.decay_epochs == 1500  # resolved
    environment = read_json(tmp_path / "new" / "environment.json")
    assert environment["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["git_revision"] == git_revision()


def test_a_record_with_keys_still_missing(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    record_environment(tmp_path, config("infer"))
    assert OmegaConf.is_missing(OmegaConf.load(tmp_path / "config.yaml"), "input")


def test_the_revision_of_the_code() -> None:
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", git_revision())


def test_a_package_installed_in_another_project_has_no_revision(tmp_path: Path) -> None:
    shutil.copytree(Path(flare.__file__).parent, tmp_path / "site" / "flare")
    (tmp_path / ".gitignore").write_text("site/\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (["init", "-q"], ["add", ".gitignore"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-c", "from flare.runs.folders import git_revision; print(git_revision())"],
        cwd=tmp_path / "site", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "unknown\n"


def test_no_path_is_in_a_public_config(config: Callable[..., DictConfig]) -> None:
    secret = "/home/dr-who/patients"
    cfg = config(
        "train", "round=mot2", "data=flare23", f"data.root={secret}", f"paths.outputs={secret}",
        f"data.sources=[{{match: {secret}/*, annotates: [liver]}}]", f"round.checkpoint={secret}/last.ckpt",
        f"ckpt_path={secret}/last.ckpt", f"+trainer.default_root_dir={secret}", "logger=wandb",
    )  # fmt: skip
    public = public_config(cfg)
    assert "dr-who" not in str(public)
    assert "imagesTr2200" not in str(public)
    assert "paths" not in public
    # what a method is made of stays
    assert public["model"]["net"]["features"] == [32, 64, 128, 256, 512]
    assert public["data"]["spacing_mm"] == [4.0, 1.2, 1.2]
    assert public["data"]["augmentation"]["rotation"]["degrees"] == 30
    assert public["round"]["teacher"] == "mot1"
    assert public["classes"]["liver"]["id"] == 1
    assert cfg.round.checkpoint == f"{secret}/last.ckpt"  # the run's own is untouched


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round.checkpoint", "smith_john.ckpt"),
        ("round.checkpoint", "smith_john"),
        ("trainer.default_root_dir", "smith"),
        ("logger.mlflow.tracking_uri", "file:smith"),
        ("input", "smith"),
        ("data.root", "smith"),
        ("data.label_map.smith", 1),
        ("paths.outputs", "smith"),
        ("trainer.profiler", "~smith"),
        ("trainer.profiler", "smith.json"),
        ("trainer.profiler", "wards/smith"),
        ("trainer.profiler", "C:\\smith"),
        ("objective", "/data/smith"),
        ("rounds", "[mo,/data/smith]"),
    ],
)
def test_files_are_private_by_key_or_by_value(key: str, value: Any) -> None:
    assert not is_public(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", "val/dsc_mean"),
        ("round.teacher", "mot1"),
        ("callbacks.checkpoint._target_", "flare.training.callbacks.Checkpoints"),
        ("optimizer.lr", "0.01"),
        ("data", "flare23"),
        ("data.spacing_mm", "[4,1.2,1.2]"),
        ("labels.source", "ground_truth"),
        ("loss.class_weights", "[1,2]"),
        ("trainer.profiler", None),
    ],
)
def test_choices_and_numbers_are_public(key: str, value: Any) -> None:
    assert is_public(key, value)


def test_what_is_optimised_stays_and_a_bare_file_name_does_not(config: Callable[..., DictConfig]) -> None:
    public = public_config(config("train", "round=mo1", "round.checkpoint=smith_john.ckpt"))
    assert public["objective"] == "val/dsc_mean"
    assert public["round"]["checkpoint"] is None


def test_a_public_config_holds_plain_values_only(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    torch.save(public_config(config("train", "round=mo")), tmp_path / "config.pt")
    assert torch.load(tmp_path / "config.pt", weights_only=True)["round"]["name"] == "mo"


@pytest.mark.slow
def test_a_job_of_a_sweep_has_a_folder_of_its_own(tmp_path: Path) -> None:
    code = (
        "import hydra; from flare.runs.folders import named_run, run_folder\n"
        f"@hydra.main(version_base='1.3', config_path={str(CONF)!r}, config_name='train')\n"
        "def main(cfg): print('folder', run_folder(cfg).root); print('named', named_run(cfg).root)\n"
        "main()\n"
    )
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py", "--multirun", "seed=1,2"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folders = re.findall(r"^folder (.+)$", done.stdout, re.M)
    assert [Path(f).name for f in folders] == ["0", "1"]
    assert len({Path(f).parent for f in folders}) == 1
    assert RunFolder(Path(folders[0])).round("mo").root.parts[-3:] == ("0", "rounds", "mo")
    assert re.findall(r"^named (.+)$", done.stdout, re.M) == ["outputs/default"] * 2
