"""Rounds with parts of others: a network and losses of MONAI's, torch's optimizers, TorchIO's transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from flare.core.classes import IGNORE
from flare.core.files import read_csv
from flare.data.cache import Stored, sample_foreground, store_array
from flare.models.losses import AnyLoss
from flare.models.zoo import load_network
from flare.prepare.cohort import Cohort
from flare.runs.checkpoints import load_checkpoint
from tiny_round import SMALL_DYNUNET, TUMOR, train_tiny, write_cohort
from tiny_run import FEW, NETWORK, SETTINGS, changed, script, times

pytestmark = pytest.mark.slow  # whole programs

OTHERS = [
    "model=dynunet",
    *SMALL_DYNUNET,
    "loss=dice_focal",
    "optimizer=adamw",
    "optimizer.lr=0.003",
    "scheduler=cosine",
    "data.augmentation.extra=[{_target_: torchio.RandomGhosting, p: 0.5}]",
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


class Net(nn.Module):
    """A network from outside: two convolutions, no deep supervision, and no word about classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, channels, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Loss(nn.Module):
    """A loss from outside: cross entropy over the voxels and classes that are known."""

    seen: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def forward(self, logits: Tensor, target: Tensor, known: Tensor, counted: Tensor) -> Tensor:
        self.seen.append((known, counted))
        hidden = logits.masked_fill(~known[:, :, None, None, None], -1e4)
        return nn.functional.cross_entropy(hidden, target, reduction="none")[counted].mean()


OUTSIDE = [
    "model=adapted",
    "model.name=outside",
    f"model.net.network._target_={__name__}.Net",
    "model.net.outputs_as=channels",
    "~loss",
    f"+loss={{_target_: {__name__}.Loss}}",
]


def test_a_network_and_a_loss_from_outside_train_resume_teach_and_predict(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    for case in (c for c in cohort.cases if c.split == "train"):
        stored = Stored(cohort.folder.labels(case.id))
        array, meta = stored[:, :, :].copy(), stored.meta
        array[array == TUMOR] = IGNORE
        store_array(stored.path, array, meta, sample_foreground(array, 100))
    whole = [*OUTSIDE, "round=mo", *OUTSIDE[:2], "labels.targets=organs_tumor"]
    _, straight = train_tiny(cohort, tmp_path / "whole", *whole)
    known, counted = zip(*Loss.seen, strict=True)
    assert all(part.shape == (2, 15) and part.all() for part in known)
    assert not all(part.all() for part in counted)
    assert any(part.any() for part in counted)
    train_tiny(cohort, tmp_path / "parts", *whole, "trainer.max_epochs=1", "scheduler.decay_epochs=2")
    _, resumed = train_tiny(cohort, tmp_path / "parts", *whole, "ckpt_path=last")
    one, other = everything(straight.last), everything(resumed.last)
    assert all(torch.equal(one[key], other[key]) for key in one)
    network, checkpoint = load_network(straight.last, [f"{__name__}.Net"])
    assert network(torch.zeros(1, 1, 8, 16, 16)).shape == (1, 15, 8, 16, 16)
    assert float(read_csv(straight.training_csv)[-1]["val/dsc_mean"]) >= 0
    pupil = [*OUTSIDE, "round=mo1", *OUTSIDE[:2], "round.init=teacher", "labels.source=ground_truth"]
    still = [*pupil, "optimizer.lr=0", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    _, taught = train_tiny(cohort, tmp_path / "whole", *still, validate=False)
    state = load_checkpoint(taught.last).state_dict
    assert all(
        torch.equal(state[key], value[: len(state[key])]) for key, value in checkpoint.state_dict.items()
    )


def everything(path: Path) -> dict[str, torch.Tensor]:
    """Weights, moments and learning rate of a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    (optimizer,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    moments = {f"{i}.{k}": v for i, entry in optimizer["state"].items() for k, v in entry.items()}
    return {**checkpoint["state_dict"], **moments, "lr": torch.tensor(schedule["_last_lr"])}


def test_a_round_stopped_in_an_epoch_ends_with_the_same_bits(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    forward, calls = AnyLoss.forward, []

    def until_the_fifth_of_six(self: AnyLoss, *inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise StoppedError
        return forward(self, *inputs)

    _, whole = train_tiny(cohort, tmp_path / "whole", *OTHERS, validate=False)
    with monkeypatch.context() as patch:
        patch.setattr(AnyLoss, "forward", until_the_fifth_of_six)
        with pytest.raises(StoppedError):
            train_tiny(cohort, tmp_path / "stopped", *OTHERS, validate=False)
    torch.rand(7)  # whatever else global generators were used for
    again = (*OTHERS, "ckpt_path=auto", "data.workers=1")
    _, resumed = train_tiny(cohort, tmp_path / "stopped", *again, validate=False)
    one, other = everything(whole.last), everything(resumed.last)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    rows = read_csv(resumed.training_csv)
    # half a cosine over two epochs
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.003, 0.0015])
    assert [row["train/dice"] for row in rows] == ["", ""]


def test_a_schedule_that_waits_for_a_plateau_is_given_the_loss(cohort: Cohort, tmp_path: Path) -> None:
    plateau = (
        "{_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true, patience: 0, "
        "threshold_mode: abs, threshold: 9}"
    )
    once = ("trainer.max_epochs=3", "trainer.limit_train_batches=1", "optimizer.lr=0.01")
    _, folder = train_tiny(cohort, tmp_path, *once, "~scheduler", f"+scheduler={plateau}", validate=False)
    rates = [float(row["lr"]) for row in read_csv(folder.training_csv)]
    assert rates == pytest.approx([0.01, 0.01, 0.001])  # nothing is better by so much


@pytest.mark.long
def test_monais_network_goes_through_the_scripts(tmp_path: Path) -> None:
    ours = [o for o in SETTINGS if o not in NETWORK]
    line = [*ours, *OTHERS, FEW, "baselines=[]", f"paths.outputs={tmp_path}", "trainer.max_epochs=2"]
    rounds = [*line, "rounds=[mo,mo1]"]
    done = script("iterate", *rounds, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "demo"
    assert [row["round"] for row in read_csv(run / "table5.csv")] == ["mo", "mo1"]
    report = (run / "report.html").read_text()
    for part in ("DynUNet 4 6 8", "lr 0.003", "RandomGhosting"):
        assert part in report
    before = times(tmp_path, "*.ckpt", "*.nii.gz")
    again = script("iterate", *rounds, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert changed(before, times(tmp_path, "*.ckpt", "*.nii.gz")) == set()
    image = next((tmp_path / "data").rglob("imagesTs/*.nii.gz"))
    checkpoint = run / "rounds" / "mo1" / "checkpoints" / "last.ckpt"
    found = script(
        "infer",
        f"checkpoint={checkpoint}",
        f"input={image}",
        f"output={tmp_path / 'out.nii.gz'}",
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out.nii.gz").exists()
