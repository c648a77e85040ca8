"""The precision of a training, by what the hardware can do, and what the trainer is given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional

from flare.core.errors import FlareError
from flare.inference import engines
from flare.models.zoo import depths_under_kernel
from flare.runs.folders import TrainingFolder
from flare.training import build
from flare.training.callbacks import AtomicCheckpointIO, Checkpoints, EpochProgress, Throughput, TrainingTable
from flare.training.settings import TrainingSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to be a machine without a GPU whose CPU has these flags."""

    def pretend(*flags: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset(flags))

    return pretend


DEEP = ["model=medium", "data.patch_size=[32,16,16]"]  # 32 32 16 8 4 slices
TWO = ["model=medium", "data.patch_size=[8,32,32]"]  # 8 8 4 2 1 slices


@pytest.fixture
def choose(config: Callable[..., DictConfig]) -> Callable[..., str]:
    """Choose a precision for a training."""

    def chosen(precision: str, accelerator: str, *overrides: str) -> str:
        line = [f"trainer.precision={precision}", f"trainer.accelerator={accelerator}"]
        cfg = config("train", *(overrides or DEEP), *line)
        return build.choose_precision(TrainingSettings.from_config(cfg))

    return chosen


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx2",), "32-true"),
        (("avx512f",), "32-true"),
        (("avx512_bf16",), "bf16-mixed"),
        (("amx_bf16",), "bf16-mixed"),
    ],
)
def test_auto_on_a_cpu(
    flags: tuple[str, ...], expected: str, cpu: Callable[..., None], choose: Callable[..., str]
) -> None:
    cpu(*flags)
    assert choose("auto", "auto") == expected
    assert choose("auto", "cpu") == expected


def test_auto_on_a_gpu(cpu: Callable[..., None], choose: Callable[..., str]) -> None:
    cpu("avx2")
    assert choose("auto", "gpu") == "16-mixed"
    assert choose("auto", "gpu", *TWO) == "16-mixed"


def test_bfloat16_without_hardware_is_refused(cpu: Callable[..., None], choose: Callable[..., str]) -> None:
    cpu("avx2")
    with pytest.raises(FlareError, match=r"trainer.precision=bf16-mixed: this CPU has no bfloat16"):
        choose("bf16-mixed", "cpu")
    assert choose("32", "cpu") == "32"
    cpu("avx512_bf16")
    assert choose("bf16-mixed", "cpu") == "bf16-mixed"


@pytest.mark.parametrize(
    "patch",
    ["[8,32,32]", "[16,32,32]"],  # 2 slices in the last stage but one, and in the last
)
def test_bfloat16_over_two_slices_at_any_resolution_is_refused(
    patch: str, cpu: Callable[..., None], choose: Callable[..., str]
) -> None:
    cpu("avx512_bf16")
    line = ["model=medium", f"data.patch_size={patch}"]
    assert choose("auto", "cpu", *line) == "32-true"
    with pytest.raises(FlareError, match=r"wrong where a convolution of 3 slices reads 2 .*data\.patch_size"):
        choose("bf16-mixed", "cpu", *line)


def test_float16_on_a_cpu_is_refused(cpu: Callable[..., None], choose: Callable[..., str]) -> None:
    """Lightning would take bfloat16 instead, broken or emulated as it may be."""
    cpu("avx512_bf16")
    with pytest.raises(FlareError, match=r"^trainer.precision=16-mixed: float16 is for GPUs.*; expected 32"):
        choose("16-mixed", "cpu")
    assert choose("16-mixed", "gpu") == "16-mixed"


def test_a_validation_that_this_training_would_emulate_is_refused(
    cpu: Callable[..., None], choose: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU beside it makes the setting sound for `infer`, not for a training on the CPU."""
    cpu("avx2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    line = [*DEEP, "inference.precision=16"]
    assert choose("32", "auto", *line) == "32"
    with pytest.raises(FlareError, match=r"^inference.precision=16: float16 is for GPUs"):
        choose("32", "cpu", *line)


class Functional(nn.Module):
    """A network of others': its 3-kernel is no module, and reads 2 slices only on its way back up."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 1, kernel, 3, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Halve the depth, convolve, and go back."""
        half = functional.avg_pool3d(image, (2, 1, 1))
        features = functional.conv3d(half, self.weight, padding="same")
        return functional.interpolate(features, scale_factor=(2.0, 1.0, 1.0))


class Untraceable(nn.Module):
    """A network that looks at values, which the meta device has none of."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Depend on a voxel."""
        return image if image[0, 0, 0, 0, 0].item() > 0 else -image


@pytest.mark.parametrize(
    ("network", "depth", "expected"),
    [
        (Functional(3), 4, "32-true"),
        (Functional(3), 8, "bf16-mixed"),
        (Functional(1), 4, "bf16-mixed"),
        (Untraceable(), 8, "32-true"),
    ],
)
def test_a_network_of_others_is_followed_or_taken_as_unfit(
    network: nn.Module,
    depth: int,
    expected: str,
    cpu: Callable[..., None],
    choose: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu("avx512_bf16")
    monkeypatch.setattr(build, "build_network", lambda settings: network.to("meta"))
    assert choose("auto", "cpu", f"data.patch_size=[{depth},8,8]") == expected


def test_depths_are_those_of_encoder_and_decoder(config: Callable[..., DictConfig]) -> None:
    with torch.device("meta"):
        network = instantiate(config("train", "model=medium").model.net).eval()
    # (1,3,3) kernels read 8 slices as well, but (3,3,3) ones do so on the way up
    assert depths_under_kernel(network, (8, 32, 32), kernel=3) == {8, 4, 2, 1}
    assert depths_under_kernel(network, (8, 32, 32), kernel=5) == set()
    assert not network.training


def test_the_trainer_is_the_configurations(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = config("train", "trainer=cpu", "trainer.precision=32", "trainer.max_epochs=3")
    settings = TrainingSettings.from_config(cfg)
    built = build.build_trainer(settings, TrainingFolder(tmp_path), has_validation=False)
    assert (built.max_epochs, built.limit_train_batches, built.gradient_clip_val) == (3, 250, 12)
    assert built.limit_val_batches == 0
    assert built.default_root_dir == str(tmp_path)
    kinds = {type(callback) for callback in built.callbacks}
    assert {Checkpoints, EpochProgress, Throughput, TrainingTable} <= kinds
    assert sum(kind.__name__.endswith("Checkpoint") for kind in kinds) == 0  # none of Lightning's own
    assert isinstance(built.strategy.checkpoint_io, AtomicCheckpointIO)


def batch_job(patch: pytest.MonkeyPatch, tasks: int, **more: str) -> None:
    """Set what Slurm tells a process of a job with so many tasks a node."""
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": f"{tasks}", "NTASKS_PER_NODE": f"{tasks}"}
    own = {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "node[1-2]", "CPUS_PER_TASK": "4"}
    for name, value in {**job, **own, **more}.items():
        patch.setenv(f"SLURM_{name}", value)


CPUS = ["trainer.accelerator=cpu", "trainer.precision=32"]


@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize(("trainer", "devices"), [("cpu", 1), ("ddp", 2)])
def test_a_training_in_a_batch_job_is_a_training(
    tasks: int,
    trainer: str,
    devices: int,
    config: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Slurm's variables, which Lightning reads, make no other ranks out of one process and what it starts."""
    batch_job(monkeypatch, tasks)
    cfg = config("train", f"trainer={trainer}", f"trainer.devices={devices}", *CPUS)
    built = build.build_trainer(
        TrainingSettings.from_config(cfg), TrainingFolder(tmp_path), has_validation=False
    )
    assert (built.world_size, built.global_rank, built.num_devices) == (devices, 0, devices)


def test_the_tasks_of_a_batch_job_are_the_ranks_of_one_training_where_it_asks_for_that(
    config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batch_job(monkeypatch, 2, NTASKS="4", PROCID="3", LOCALID="1", NODEID="1", NNODES="2")

    def built(devices: int) -> pl.Trainer:
        cfg = config("train", "trainer=ddp_slurm", f"trainer.devices={devices}", *CPUS)
        settings = TrainingSettings.from_config(cfg)
        return build.build_trainer(settings, TrainingFolder(tmp_path), has_validation=False)

    found = built(2)
    assert (found.world_size, found.global_rank, found.local_rank, found.num_nodes) == (4, 3, 1, 2)
    with pytest.raises(FlareError, match=r"^trainer: .*devices=3.*ntasks-per-node=2"):
        built(3)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(FlareError, match=r"^trainer.strategy=ddp: expected processes that srun"):
        built(2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer=gpu", r"^trainer\.accelerator=gpu: this machine has none; expected auto or cpu$"),
        ("trainer.accelerator=mps", r"^trainer\.accelerator=mps: this machine has none"),
        ("trainer.devices=0", r"^trainer: pytorch_lightning.Trainer refuses it: .*devices.*0"),
        ("+trainer.strategy=foo", r"^trainer: pytorch_lightning.Trainer refuses it: .*foo"),
    ],
)
def test_a_trainer_that_this_machine_cannot_have_is_refused_in_one_line(
    override: str,
    message: str,
    config: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for kind in (build.CUDAAccelerator, build.MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", lambda: False)
    folder = TrainingFolder(tmp_path)
    sound = TrainingSettings.from_config(config("train", "trainer=cpu"))
    build.build_trainer(sound, folder, has_validation=True)
    settings = TrainingSettings.from_config(config("train", "trainer=cpu", override))
    with pytest.raises(FlareError, match=message) as refused:
        build.build_trainer(settings, folder, has_validation=True)
    assert "\n" not in str(refused.value)
    assert not any(tmp_path.iterdir())
