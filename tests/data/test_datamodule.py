"""The data module under Lightning's own loop: epochs, resume in the middle of one, refusals."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from test_loaders import INTENSITY, PATCH, write_cases
from torch import Tensor, nn

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.data.augment import Augmentation, draw_augmentation
from flare.data.loaders import CaseArrays, FlareDataModule, StepLoader, StepSampler
from flare.data.settings import PatchSettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]


class Recorder(pl.LightningModule):
    """A network of one weight that notes which batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv3d(1, 1, 1)
        self.seen: list[tuple[int, int, str, float]] = []
        self.validated: list[Any] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        checksum = float(batch["image"].sum())
        self.seen.append((self.global_step, batch_idx, " ".join(batch["case"]), checksum))
        return self.net(batch["image"]).square().mean()

    def validation_step(self, batch: Case, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CaseArrays]:
    return dict(write_cases(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def cfg(config: Callable[..., DictConfig]) -> DictConfig:
    cfg = config("train", "data.batch_size=2", "data.workers=0", "seed=3")
    OmegaConf.set_readonly(cfg, False)
    cfg.data.patch_size = list(PATCH)
    return cfg


def case(name: str, label: Path | None) -> Case:
    return Case(name, Path(f"{name}.nii.gz"), label, "validation", "partial", (), ())


def settings(cfg: DictConfig) -> PatchSettings:
    return PatchSettings.from_config(cfg, ClassList.from_config(cfg.classes))


def build(cfg: DictConfig, training: dict[str, CaseArrays], **changes: Any) -> FlareDataModule:
    validation = [case("a", Path("a_label.nii.gz")), case("b", None), case("c", Path("c_label.nii.gz"))]
    return FlareDataModule(
        settings(cfg), training, **{"validation": validation, "intensity": INTENSITY, **changes}
    )


def trainer(folder: Path, **changes: Any) -> pl.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "limit_train_batches": 5,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**settings, **changes})


def test_epochs_have_the_steps_of_the_trainer_and_never_repeat(
    cfg: DictConfig, training: dict[str, CaseArrays], tmp_path: Path
) -> None:
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=build(cfg, training))
    assert [(step, index) for step, index, *_ in model.seen] == [(s, s % 5) for s in range(15)]
    assert len({checksum for *_, checksum in model.seen}) == 15


def test_overfitting_is_one_batch_over_and_over_without_augmentation(
    cfg: DictConfig, config: Callable[..., DictConfig], training: dict[str, CaseArrays], tmp_path: Path
) -> None:
    debug = config("train", "+debug=overfit")
    draws = [draw_augmentation(np.random.default_rng(n), debug.data.augmentation) for n in range(100)]
    assert set(draws) == {Augmentation()}
    cfg.data.augmentation = debug.data.augmentation
    model = Recorder()
    trainer(tmp_path, overfit_batches=debug.trainer.overfit_batches).fit(
        model, datamodule=build(cfg, training)
    )
    assert [step for step, *_ in model.seen] == [0, 1, 2]
    assert len({(case, checksum) for *_, case, checksum in model.seen}) == 1


def test_validation_gets_whole_labelled_cases(
    cfg: DictConfig, training: dict[str, CaseArrays], tmp_path: Path
) -> None:
    model = Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=build(cfg, training))
    assert [c.id for c in model.validated] == ["a", "c"]
    assert all(isinstance(c, Case) for c in model.validated)


def test_without_labelled_validation_cases_training_goes_on(
    cfg: DictConfig, training: dict[str, CaseArrays], tmp_path: Path
) -> None:
    model = Recorder()
    data = build(cfg, training, validation=[case("b", None)])
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    assert model.validated == []
    assert len(model.seen) == 5


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_resumed_training_sees_the_batches_that_were_left(
    cfg: DictConfig, training: dict[str, CaseArrays], tmp_path: Path, stop: int, workers: int
) -> None:
    cfg.data.workers = workers
    torch.manual_seed(0)
    straight = Recorder()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)
    trainer(tmp_path, callbacks=[saver], enable_checkpointing=True).fit(
        straight, datamodule=build(cfg, training)
    )
    torch.manual_seed(1)
    resumed = Recorder()
    checkpoint = tmp_path / f"step={stop}.ckpt"
    trainer(tmp_path).fit(resumed, datamodule=build(cfg, training), ckpt_path=checkpoint, weights_only=True)
    assert not multiprocessing.active_children()
    assert resumed.seen == straight.seen[stop:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("how", ["linear", "cubic"])
def test_patches_are_the_same_whether_workers_or_the_training_augment_them(
    cfg: DictConfig, training: dict[str, CaseArrays], dummy_2d: bool, how: str
) -> None:
    """The workers hand boxes over, through their pipe, and the device that trains applies what they drew."""
    sure = {
        key: {"probability": 1.0} for key, part in cfg.data.augmentation.items() if OmegaConf.is_dict(part)
    }
    cfg.data.augmentation = OmegaConf.merge(cfg.data.augmentation, sure)
    cfg.data.augmentation.update(dummy_2d=dummy_2d, image_interpolation=how)
    batches: dict[str, Any] = {}
    for device, workers in (("cpu", 0), ("gpu", 1)):
        cfg.data.augmentation.device = device
        data = build(cfg, training)
        sampler = StepSampler(batch_size=2, epoch_length=2, step=lambda: 0, rank=0)
        loader = StepLoader(data.dataset, sampler, workers=workers, pin_memory=False)
        found = list(loader)
        assert all(("boxes" in batch) == (device == "gpu") for batch in found)
        batches[device] = [data.transfer_batch_to_device(b, torch.device("cpu"), 0) for b in found]
        loader.close()
    for one, other in zip(batches["cpu"], batches["gpu"], strict=True):
        assert one.keys() == other.keys()
        torch.testing.assert_close(other["image"], one["image"], atol=1e-6, rtol=0)
        for key in ("target", "known"):
            assert torch.equal(other[key], one[key])
        assert other["case"] == one["case"]


def test_no_training_case_is_refused(cfg: DictConfig) -> None:
    with pytest.raises(FlareError, match=r"labels\.cases"):
        build(cfg, {})


def test_ranks_divide_the_validation_cases(cfg: DictConfig, training: dict[str, CaseArrays]) -> None:
    module = build(cfg, training, validation=[case(name, Path(f"{name}_label.nii.gz")) for name in "abcde"])
    shares = []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shares.append(module.val_dataloader())
    assert [[c.id for c in share] for share in shares] == [["a", "c", "e"], ["b", "d"]]


class Journal(pl.Callback):
    """Writes what a rank saw to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        lines = [f"{checksum:.6f}" for *_, checksum in pl_module.seen]
        (self.folder / f"rank{trainer.global_rank}.txt").write_text("\n".join(lines))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its second process by fork")
@pytest.mark.parametrize("injects", [True, False])
def test_two_processes_train_on_different_patches(
    cfg: DictConfig, training: dict[str, CaseArrays], tmp_path: Path, injects: bool
) -> None:
    ddp = trainer(
        tmp_path,
        devices=2,
        strategy="ddp_fork",
        callbacks=[Journal(tmp_path)],
        use_distributed_sampler=injects,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process waits forever for threads that its parent had
    try:
        ddp.fit(Recorder(), datamodule=build(cfg, training))
    finally:
        torch.set_num_threads(threads)
    first, second = ((tmp_path / f"rank{rank}.txt").read_text().split() for rank in range(2))
    assert len(first) == len(second) == 15
    assert not set(first) & set(second)
