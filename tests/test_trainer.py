"""The precision of a training, by what the hardware can do, and what the trainer is given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from flare import trainer
from flare.callbacks import EpochProgress, Throughput, TrainingTable
from flare.errors import FlareError
from flare.inference import hardware
from flare.runs import RoundFolder
from flare.saving import AtomicCheckpointIO, Checkpoints


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to be a machine without a GPU whose CPU has these flags."""

    def pretend(*flags: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for module in (trainer, hardware):
            monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))

    return pretend


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx2",), "32-true"),
        (("avx512f",), "32-true"),
        (("avx512_bf16",), "bf16-mixed"),
        (("amx_bf16",), "bf16-mixed"),
    ],
)
def test_auto_on_a_cpu(flags: tuple[str, ...], expected: str, cpu: Callable[..., None]) -> None:
    cpu(*flags)
    assert trainer.choose_precision("auto", "auto", lowest_depth=4) == expected
    assert trainer.choose_precision("auto", "cpu", lowest_depth=4) == expected


def test_auto_on_a_gpu(cpu: Callable[..., None]) -> None:
    cpu("avx2")
    assert trainer.choose_precision("auto", "gpu", lowest_depth=4) == "16-mixed"


def test_bfloat16_without_hardware_is_refused(cpu: Callable[..., None]) -> None:
    cpu("avx2")
    with pytest.raises(FlareError, match=r"trainer.precision=bf16-mixed: this CPU has no bfloat16"):
        trainer.choose_precision("bf16-mixed", "cpu", lowest_depth=4)
    assert trainer.choose_precision("32", "cpu", lowest_depth=4) == "32"
    cpu("avx512_bf16")
    assert trainer.choose_precision("bf16-mixed", "cpu", lowest_depth=4) == "bf16-mixed"


def test_bfloat16_over_two_slices_is_refused(cpu: Callable[..., None]) -> None:
    cpu("avx512_bf16")
    assert trainer.choose_precision("auto", "cpu", lowest_depth=2) == "32-true"
    assert trainer.choose_precision("auto", "gpu", lowest_depth=2) == "16-mixed"
    with pytest.raises(FlareError, match="bfloat16 is wrong where 2 slices are left"):
        trainer.choose_precision("bf16-mixed", "cpu", lowest_depth=2)


def test_slices_at_the_lowest_resolution(config: Callable[..., DictConfig]) -> None:
    assert trainer.lowest_depth(config("train", "model=medium")) == 4  # 32 slices, halved three times
    assert trainer.lowest_depth(config("train", "experiment=demo")) == 4


def test_the_trainer_is_the_configurations(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = config("train", "trainer=cpu", "trainer.precision=32", "trainer.max_epochs=3")
    built = trainer.build_trainer(cfg, RoundFolder(tmp_path), has_validation=False)
    assert (built.max_epochs, built.limit_train_batches, built.gradient_clip_val) == (3, 250, 12)
    assert built.limit_val_batches == 0
    assert built.default_root_dir == str(tmp_path)
    kinds = {type(callback) for callback in built.callbacks}
    assert {Checkpoints, EpochProgress, Throughput, TrainingTable} <= kinds
    assert sum(kind.__name__.endswith("Checkpoint") for kind in kinds) == 0  # none of Lightning's own
    assert isinstance(built.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer=gpu", r"^trainer\.accelerator=gpu: this machine has none; expected auto or cpu$"),
        ("trainer.accelerator=mps", r"^trainer\.accelerator=mps: this machine has none"),
        ("trainer.devices=0", r"^trainer: Lightning refuses it: .*devices.*0"),
        ("+trainer.strategy=foo", r"^trainer: Lightning refuses it: .*foo"),
    ],
)
def test_a_trainer_that_this_machine_cannot_have_is_refused_in_one_line(
    override: str, message: str, config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (trainer.CUDAAccelerator, trainer.MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    trainer.check_trainer(config("train", "trainer=cpu"))
    with pytest.raises(FlareError, match=message) as refused:
        trainer.check_trainer(config("train", "trainer=cpu", override))
    assert "\n" not in str(refused.value)
