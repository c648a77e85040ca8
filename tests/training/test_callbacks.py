"""The table of epochs goes on after a resume; speed is measured without validation."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flare.core.classes import ClassList
from flare.core.files import read_csv
from flare.training.callbacks import EpochProgress, Throughput, TrainingTable


def trainer_at(folder: Path, epoch: int, **metrics: float) -> Any:
    """As much of a trainer as the callbacks look at."""
    return SimpleNamespace(
        default_root_dir=str(folder),
        is_global_zero=True,
        current_epoch=epoch,
        max_epochs=4,
        num_training_batches=10,
        global_step=10 * epoch,
        world_size=2,
        callback_metrics=metrics,
    )


def validated(**means: float) -> Any:
    """As much of a module: the mean scores of this epoch's validation, if there was one."""
    return SimpleNamespace(means=means)


def test_a_row_an_epoch_with_scores_only_where_there_was_a_validation(
    tmp_path: Path, labels: ClassList
) -> None:
    table = TrainingTable(labels)
    means = {"val/dsc/liver": 0.25, "val/dsc_mean": 0.25}
    metrics = {"train/loss": 1.5, **means}  # Lightning keeps old ones
    table.on_train_start(trainer_at(tmp_path, 0), validated())
    table.on_train_epoch_end(trainer_at(tmp_path, 0, **metrics), validated(**means))
    table.on_train_epoch_end(trainer_at(tmp_path, 1, **metrics), validated())
    first, second = read_csv(tmp_path / "training.csv")
    assert (first["epoch"], first["train/loss"], first["val/dsc/liver"]) == ("0", "1.5", "0.25")
    assert (second["epoch"], second["train/loss"], second["val/dsc/liver"]) == ("1", "1.5", "")


def test_a_resumed_training_replaces_the_rows_of_epochs_it_does_again(
    tmp_path: Path, labels: ClassList
) -> None:
    first = TrainingTable(labels)
    first.on_train_start(trainer_at(tmp_path, 0), validated())
    for epoch in range(3):
        first.on_train_epoch_end(trainer_at(tmp_path, epoch, **{"train/loss": float(epoch)}), validated())
    second = TrainingTable(labels)
    second.on_train_start(trainer_at(tmp_path, 1), validated())
    second.on_train_epoch_end(trainer_at(tmp_path, 1, **{"train/loss": 9.0}), validated())
    rows = read_csv(tmp_path / "training.csv")
    assert [(row["epoch"], row["train/loss"]) for row in rows] == [("0", "0"), ("1", "9")]


def test_throughput_counts_the_patches_of_all_devices_and_no_validation(tmp_path: Path) -> None:
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(
        device=torch.device("cpu"), log=lambda name, value, **_: logged.update({name: value})
    )
    callback, trainer = Throughput(), trainer_at(tmp_path, 0)
    callback.on_train_epoch_start(trainer, module)
    time.sleep(0.05)
    callback.on_train_batch_end(trainer, module, None, {"image": torch.zeros(3, 1)}, 0)
    time.sleep(0.2)  # a validation
    callback.on_train_epoch_end(trainer, module)
    assert logged["patches_per_s"] == pytest.approx(6 / 0.05, rel=0.5)


def test_progress_starts_where_a_resumed_training_stands(tmp_path: Path) -> None:
    callback, module = EpochProgress(), None
    callback.on_train_start(trainer_at(tmp_path, 2), module)
    assert callback.bar is not None
    task = callback.bar.tasks[0]
    assert (task.completed, task.total) == (20, 40)
    callback.on_train_batch_end(trainer_at(tmp_path, 2), module, None, None, 0)
    assert task.completed == 21
    callback.on_train_epoch_end(trainer_at(tmp_path, 2, **{"train/loss": 0.5}), module)
    assert "loss 0.500" in task.description
    callback.teardown(trainer_at(tmp_path, 2), module, "fit")
    assert callback.bar is None
