"""The moving average of weights and nnU-Net's second start: formulas, exact resuming, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.inference.predictor import Predictor
from flare.models.losses import DiceCELoss
from flare.models.zoo import load_network
from flare.prepare.cohort import Cohort
from flare.rounds.graph import check_rounds
from flare.rounds.settings import RoundSettings
from flare.runs.checkpoints import load_checkpoint
from flare.runs.folders import RoundFolder
from flare.training.build import build_network, check_optimizer
from flare.training.module import mean_scores, score_case, segment_case
from flare.training.resuming import find_training, made_from, training_key, whole_training
from flare.training.settings import TrainingSettings
from flare.training.weights import Average, Rescue
from tiny_round import configuration, train_tiny, write_cohort

pytestmark = pytest.mark.slow  # whole trainings, a second each

# a network that learns nothing in two epochs, so that it starts anew after the second
ON = ("callbacks.ema.decay=0.7", "callbacks.rescue.epoch=1", "trainer.max_epochs=3", "optimizer.lr=1e-9")
Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def plain(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> RoundFolder:
    """A training without either."""
    return train_tiny(cohort, tmp_path_factory.mktemp("plain"), validate=False)[1]


@pytest.fixture(scope="module")
def averaged(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> RoundFolder:
    """The same training with an average, and a second start that is not needed."""
    given = ("callbacks.ema.decay=0.7", "callbacks.rescue.epoch=0")
    return train_tiny(cohort, tmp_path_factory.mktemp("ema"), *given, validate=False)[1]


def kinds(folder: RoundFolder) -> list[str]:
    return sorted(path.stem for path in folder.checkpoints.glob("*.ckpt"))


def tensors(folder: RoundFolder) -> dict[str, torch.Tensor]:
    """Everything that a further step depends on, and the averaged weights."""
    found = torch.load(folder.last, weights_only=True)
    (optimizer,) = found["optimizer_states"]
    state = {f"momentum.{i}": entry["momentum_buffer"] for i, entry in optimizer["state"].items()}
    state["momentum"] = torch.tensor([group["momentum"] for group in optimizer["param_groups"]])
    if "average" in found:
        state |= {f"average.{name}": tensor for name, tensor in found["average"].items()}
        state |= load_checkpoint(folder.checkpoints / "ema.ckpt").state_dict
    return {**found["state_dict"], **state}


def assert_same(one: RoundFolder, other: RoundFolder) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_it_changes_no_weight_and_leaves_a_checkpoint_that_predicts(
    plain: RoundFolder, averaged: RoundFolder
) -> None:
    assert kinds(plain) == ["last"]
    assert kinds(averaged) == ["ema", "last"]
    one, other = (torch.load(folder.last, weights_only=True) for folder in (plain, averaged))
    assert "average" not in one
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])
    network, found = load_network(averaged.checkpoints / "ema.ckpt")
    assert found.outputs == tuple(range(15))
    assert network(torch.zeros(1, 1, 8, 16, 16)).shape == (1, 15, 8, 16, 16)
    weights = {key.removeprefix("net."): value for key, value in other["state_dict"].items()}
    assert any(not torch.equal(weights[key], value) for key, value in found.state_dict.items())


def test_the_average_is_the_formula_of_all_steps(tmp_path: Path) -> None:
    net, callback = torch.nn.Linear(3, 2), Average(0.9)
    module: Any = SimpleNamespace(net=net, carried={})
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    callback.on_train_start(trainer, module)
    expected = None
    for step in range(5):
        with torch.no_grad():
            net.weight.normal_(generator=torch.Generator().manual_seed(step))
        callback.on_train_batch_end(trainer, module)
        now = net.weight.detach().double()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    content: dict[str, Any] = {}
    callback.on_save_checkpoint(trainer, module, content)
    written = torch.load(tmp_path / "ema.ckpt", weights_only=True)["state_dict"]["net.weight"]
    torch.testing.assert_close(written.double(), expected, rtol=1e-6, atol=1e-7)
    resumed = Average(0.9)
    resumed.on_load_checkpoint(trainer, module, content)
    resumed.on_train_start(trainer, module)
    assert resumed.model is not None
    assert torch.equal(resumed.model.module.weight, written)
    assert resumed.model.n_averaged == 5


def test_off_it_does_nothing(tmp_path: Path) -> None:
    callback, content = Average(None), {}
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path))
    for hook in (callback.on_train_start, callback.on_train_batch_end):
        hook(trainer, SimpleNamespace(net=None))  # type: ignore[operator]
    callback.on_save_checkpoint(trainer, None, content)
    assert content == {}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def rescued(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> RoundFolder:
    """Without interruption."""
    return train_silent(cohort, tmp_path_factory.mktemp("whole"))


def train_silent(cohort: Cohort, outputs: Path, *overrides: str) -> RoundFolder:
    """A training whose network names background alone, whatever it learns, until it is drawn anew."""
    with pytest.MonkeyPatch.context() as patch:
        forward = torch.nn.Module.__call__

        def silent(self: torch.nn.Module, *given: Any) -> Any:
            found = forward(self, *given)
            is_judged = type(self).__name__ == "UNet" and not self.training and torch.is_tensor(found)
            return (
                found - 1e6 * (torch.arange(found.shape[1]) > 0).view(1, -1, 1, 1, 1) if is_judged else found
            )

        patch.setattr(torch.nn.Module, "__call__", silent)
        return train_tiny(cohort, outputs, *ON, *overrides, validate=False)[1]


def test_a_network_at_zero_starts_anew_with_less_momentum(rescued: RoundFolder, cohort: Cohort) -> None:
    found = tensors(rescued)
    assert found["momentum"].tolist() == pytest.approx([0.95])
    # a rate of 1e-9 moves nothing, so that the weights are those drawn anew, by another seed
    training = whole_training(rescued)
    assert training is not None
    assert made_from(training)["rescued"]
    own = TrainingSettings.from_config(_config(cohort, rescued))
    drawn = {}
    for seed in (own.patches.seed, own.patches.seed + 1):
        torch.manual_seed(seed)
        drawn[seed] = build_network(own).state_dict()
    for key, value in drawn[own.patches.seed + 1].items():
        torch.testing.assert_close(found[f"net.{key}"], value, rtol=0, atol=1e-5)
        # the average began again with the third epoch's first step
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    assert int(found["average.n_averaged"]) == 3


def _config(cohort: Cohort, folder: RoundFolder) -> DictConfig:
    return configuration(cohort.folder.root.parent, folder.root.parents[2], *ON)


def test_a_network_that_learns_is_left_alone(averaged: RoundFolder) -> None:
    assert tensors(averaged)["momentum"].tolist() == pytest.approx([0.99])
    training = whole_training(averaged)
    assert training is not None
    assert not made_from(training)["rescued"]
    callbacks = torch.load(averaged.last, weights_only=True)["callbacks"]
    assert callbacks["Rescue"] == {"has_found": True, "is_rescued": False}


class StoppedError(Exception):
    """A training ends between two steps."""


@pytest.mark.parametrize(
    ("steps", "how"), [(4, "signal"), (7, "crash")]
)  # before the second start, and after
def test_stopped_and_resumed_it_ends_with_the_same_bits(
    rescued: RoundFolder,
    cohort: Cohort,
    tmp_path: Path,
    steps: int,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, calls = DiceCELoss.forward, []

    def counting(self: DiceCELoss, *inputs: Any) -> Any:
        calls.append(1)
        if how == "crash" and len(calls) > steps:
            raise StoppedError
        return forward(self, *inputs)

    def stop() -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(DiceCELoss, "forward", counting)
        patch.setattr("flare.training.callbacks.is_asked", lambda: how == "signal" and len(calls) == steps)
        patch.setattr("flare.training.callbacks.stop", stop)
        with pytest.raises(StoppedError):
            train_silent(cohort, tmp_path)
    stopped = torch.load(RoundFolder(tmp_path / "default" / "rounds" / "all").last, weights_only=True)
    assert stopped["global_step"] == (steps if how == "signal" else 6)
    assert stopped["average"]["n_averaged"] == (steps if how == "signal" else 0)
    assert_same(train_silent(cohort, tmp_path), rescued)


@pytest.mark.parametrize("has_found", [True, False])
def test_what_was_found_before_a_stop_counts(has_found: bool) -> None:
    first, resumed = Rescue(0), Rescue(0)
    first.state["has_found"] = has_found
    resumed.load_state_dict(first.state_dict())
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision)
    trainer: Any = SimpleNamespace(current_epoch=0, strategy=strategy)
    if has_found:
        resumed.on_train_epoch_end(trainer, None)
    else:
        with pytest.raises(AttributeError):  # it begins anew, for which there is nothing here
            resumed.on_train_epoch_end(trainer, None)
    assert Rescue(None).state_dict() == {}


def test_the_average_is_validated_beside_the_weights(cohort: Cohort, tmp_path: Path) -> None:
    given = ("callbacks.ema.decay=0.7", "trainer.max_epochs=1", "validation.nsd=false")
    result, folder = train_tiny(cohort, tmp_path, *given, "objective=val/ema_dsc_mean")
    (row,) = read_csv(folder.training_csv)
    settings = RoundSettings.from_config(configuration(cohort.folder.root.parent, tmp_path, *given)).training
    scores = {}
    for kind, measure in (("last", "dsc"), ("ema", "ema_dsc")):
        predictor = Predictor.from_checkpoint(folder.checkpoints / f"{kind}.ckpt", settings.inference)
        (case,) = [case for case in cohort.cases if case.split == "validation"]
        found = segment_case(predictor, case, classes=settings.classes, label_map=None)
        outputs = settings.patches.outputs
        own = score_case(found, classes=settings.classes, outputs=outputs, nsd=False)
        scores[measure] = mean_scores({"a": own}, settings.classes)
        for name in ("liver", "spleen"):
            expected = scores[measure][f"val/dsc/{name}"]
            assert float(row[f"val/{measure}/{name}"]) == pytest.approx(expected, rel=1e-4)
        assert float(row[f"val/{measure}_mean"]) == pytest.approx(scores[measure]["val/dsc_mean"], rel=1e-4)
    assert scores["dsc"] != scores["ema_dsc"]
    assert result["objective"] == float(row["val/ema_dsc_mean"])


def test_both_decide_the_weights_and_off_the_key_is_that_of_before(config: Compose) -> None:
    def key(*overrides: str, without: tuple[str, ...] = ()) -> str:
        cfg = config("train", "data=phantom", *overrides)
        OmegaConf.set_struct(cfg, False)
        for name in without:
            section, _, leaf = name.rpartition(".")
            del OmegaConf.select(cfg, section)[leaf]
        return training_key(TrainingSettings.from_config(cfg), "data")

    assert len({key(), key("callbacks.ema.decay=0.9"), key("callbacks.rescue.epoch=3")}) == 3
    new = ("callbacks.ema", "callbacks.rescue", "classes.ignore", "data.augmentation.device")
    assert key(without=new) == key()
    assert key("classes.ignore=99") != key()
    assert key("data.augmentation.device=gpu") != key()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.ema.decay=1.5", r"callbacks\.ema\.decay=1\.5"),
        ("callbacks.ema.decay=true", r"callbacks\.ema\.decay=True"),
        ("callbacks.rescue.epoch=-1", r"callbacks\.rescue\.epoch=-1"),
    ],
)
def test_what_means_nothing_is_refused(override: str, message: str, config: Compose) -> None:
    with pytest.raises(FlareError, match=message):
        TrainingSettings.from_config(config("train", override))


def test_no_momentum_can_be_lowered_where_there_is_none(config: Compose) -> None:
    cfg = config("train", "model=tiny", "optimizer=adamw", "callbacks.rescue.epoch=100")
    settings = TrainingSettings.from_config(cfg)
    with pytest.raises(FlareError, match=r"callbacks\.rescue\.epoch: expected null"):
        check_optimizer(settings, torch.nn.Linear(2, 2))


def test_a_planned_teacher_that_will_leave_no_average_is_refused_before_any_work(config: Compose) -> None:
    def rounds(*overrides: str) -> list[RoundSettings]:
        common = ("model=tiny", "round.teacher_kind=ema", *overrides)
        return [
            RoundSettings.from_config(config("train", f"round={name}", *common)) for name in ("mo", "mo1")
        ]

    with pytest.raises(
        FlareError, match=r"round=mo1: .*round mo leaves no ema\.ckpt; set callbacks\.ema\.decay"
    ):
        check_rounds(rounds())
    check_rounds(rounds("callbacks.ema.decay=0.999"))


def test_a_complete_training_without_it_is_none_with_it(plain: RoundFolder, cohort: Cohort) -> None:
    cfg = _config(cohort, plain)
    assert find_training(plain, training_key(TrainingSettings.from_config(cfg), "data")) is None
