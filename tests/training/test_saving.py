"""Checkpoints are whole or absent, and `best.ckpt` has the best validation score."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch

from cohort_files import little_room
from flare.core.errors import FlareError, NoRoomError
from flare.training.callbacks import AtomicCheckpointIO, Checkpoints


def test_a_failed_save_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(3)}, path)

    def half_written(_: Any, stream: IO[bytes]) -> None:
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(3)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weights"], torch.ones(3))


def test_a_full_disk_is_said_in_one_line_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(3)}, path)
    with (
        little_room(100_000),
        pytest.raises(NoRoomError, match=r"^last\.ckpt cannot be written.*make room.*$"),
    ):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(300_000)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weights"], torch.ones(3))


def test_a_file_that_holds_objects_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"weights": SimpleNamespace()}, path)
    with pytest.raises(FlareError, match="not a checkpoint of plain tensors"):
        AtomicCheckpointIO().load_checkpoint(path)


class Recorder:
    """As much of a trainer as the callback looks at."""

    def __init__(self, folder: Path, max_epochs: int) -> None:
        self.default_root_dir = str(folder)
        self.max_epochs = max_epochs
        self.current_epoch = 0
        self.is_global_zero = True
        self.saved: list[tuple[int, str]] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append((self.current_epoch, path.name))


def follow(scores: list[float | None], tmp_path: Path, callback: Checkpoints) -> list[tuple[int, str]]:
    """Run the callback over epochs, validated where there is a score."""
    trainer: Any = Recorder(tmp_path / "rounds" / "mo" / "checkpoints" / "key", len(scores))
    for epoch, score in enumerate(scores):
        trainer.current_epoch = epoch
        module: Any = SimpleNamespace(means={} if score is None else {"val/dsc_mean": score})
        callback.on_train_epoch_end(trainer, module)
    return trainer.saved


def test_best_is_saved_first_and_only_when_a_fresh_score_is_higher(tmp_path: Path) -> None:
    saved = follow([0.5, None, 0.4, 0.6], tmp_path, Checkpoints(every_n_epochs=1))
    assert saved == [
        (0, "best.ckpt"),
        (0, "last.ckpt"),
        (1, "last.ckpt"),
        (2, "last.ckpt"),
        (3, "best.ckpt"),
        (3, "last.ckpt"),
    ]


def test_last_is_saved_every_n_epochs_and_at_the_end(tmp_path: Path) -> None:
    saved = follow([None] * 5, tmp_path, Checkpoints(every_n_epochs=2))
    assert saved == [(1, "last.ckpt"), (3, "last.ckpt"), (4, "last.ckpt")]


def test_the_best_score_survives_a_resume(tmp_path: Path) -> None:
    first, second = Checkpoints(every_n_epochs=1), Checkpoints(every_n_epochs=1)
    assert first.state_dict() == {"best": -math.inf}
    follow([0.5], tmp_path, first)
    second.load_state_dict(first.state_dict())
    assert follow([0.4], tmp_path, second) == [(0, "last.ckpt")]
