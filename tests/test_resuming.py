"""Where a training starts, and which trainings are the same."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from flare.errors import FlareError
from flare.resuming import begin, is_trained, mark_trained, previous, starting_point, training_key
from flare.runs import RoundFolder

Compose = Callable[..., DictConfig]


@pytest.fixture
def folder(tmp_path: Path) -> RoundFolder:
    made = RoundFolder(tmp_path / "rounds" / "mo")
    made.checkpoints.mkdir(parents=True)
    return made


def test_by_default_a_training_starts_from_the_beginning(folder: RoundFolder) -> None:
    folder.last.write_text("weights")
    assert starting_point(None, folder, "key") is None


def test_last_needs_a_checkpoint(folder: RoundFolder) -> None:
    with pytest.raises(FlareError, match=r"ckpt_path=last: .*last.ckpt does not exist"):
        starting_point("last", folder, "key")
    folder.last.write_text("weights")
    assert starting_point("last", folder, "key") == folder.last


def test_a_path_is_taken_and_a_wrong_one_refused(folder: RoundFolder, tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    with pytest.raises(FlareError, match=r"other.ckpt does not exist"):
        starting_point(str(other), folder, "key")
    other.write_text("weights")
    assert starting_point(str(other), folder, "key") == other


def test_auto_resumes_the_same_training_only(folder: RoundFolder) -> None:
    assert starting_point("auto", folder, "key") is None
    begin(folder, "key", None)
    assert starting_point("auto", folder, "key") is None  # nothing saved yet
    folder.last.write_text("weights")
    assert starting_point("auto", folder, "key") == folder.last
    assert starting_point("auto", folder, "another") is None


def test_a_new_training_moves_earlier_checkpoints_out_of_its_way(folder: RoundFolder) -> None:
    folder.last.write_text("last")
    folder.best.write_text("best")
    begin(folder, "key", None)
    assert not folder.last.exists()
    assert not folder.best.exists()
    assert folder.last.with_name("last.previous.ckpt").read_text() == "last"
    assert folder.best.with_name("best.previous.ckpt").read_text() == "best"


def train_in(folder: RoundFolder, key: str) -> None:
    """What a training of this key does to the files."""
    start = begin(folder, key, starting_point("auto", folder, key))
    if start is None:
        folder.last.write_text(f"weights of {key}")
        folder.training_csv.write_text(f"epochs of {key}")


def test_a_training_that_was_set_aside_is_brought_back_when_it_is_asked_for_again(
    folder: RoundFolder,
) -> None:
    train_in(folder, "good")
    train_in(folder, "typo")
    assert starting_point("auto", folder, "good") == previous(folder.last)
    assert folder.last.read_text() == "weights of typo"  # deciding touches nothing
    train_in(folder, "good")
    assert folder.last.read_text() == "weights of good"
    assert folder.training_csv.read_text() == "epochs of good"
    assert previous(folder.last).read_text() == "weights of typo"
    train_in(folder, "typo")
    assert folder.last.read_text() == "weights of typo"
    assert starting_point("auto", folder, "third") is None
    assert not list(folder.root.rglob("*.between*"))


def test_a_training_without_a_checkpoint_pushes_none_out(folder: RoundFolder) -> None:
    train_in(folder, "good")
    begin(folder, "diverges", None)  # and ends before its first checkpoint
    folder.best.write_text("best of diverges")
    begin(folder, "diverges too", None)
    assert not folder.best.exists()
    assert starting_point("auto", folder, "good") == previous(folder.last)


def test_killed_while_files_move_no_checkpoint_is_taken_for_anothers(
    folder: RoundFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    train_in(folder, "first")
    train_in(folder, "second")
    for wanted in ("third", "first"):  # set aside, and bring back
        for moment in range(6):
            moves = iter(range(moment + 1))

            def replace(source: Path, target: Path, moves: Iterator[int] = moves) -> None:
                if next(moves, None) is None:
                    raise KilledError
                Path(source).rename(target)

            with monkeypatch.context() as patch:
                patch.setattr("os.replace", replace)
                with contextlib.suppress(KilledError):
                    train_in(folder, wanted)
            for key in ("first", "second", "third"):
                found = starting_point("auto", folder, key)
                assert found is None or found.read_text() == f"weights of {key}"


@pytest.mark.parametrize("ckpt_path", ["last", "other.ckpt"])
def test_weights_of_two_configurations_count_as_a_training_of_neither(
    folder: RoundFolder, ckpt_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train_in(folder, "old")
    mark_trained(folder, "old")
    Path("other.ckpt").write_text("weights of another")
    for _ in range(2):  # also when it is interrupted and resumed
        assert begin(folder, "new", starting_point(ckpt_path, folder, "new")) is not None
        folder.last.write_text("weights of both")
        mark_trained(folder, "new")
        for key in ("old", "new"):
            assert not is_trained(folder, key)
            assert starting_point("auto", folder, key) is None


def test_the_same_training_resumed_by_hand_counts(folder: RoundFolder) -> None:
    train_in(folder, "key")
    assert begin(folder, "key", starting_point("last", folder, "key")) == folder.last
    mark_trained(folder, "key")
    assert is_trained(folder, "key")


def test_a_complete_training_is_known_until_its_checkpoint_or_key_changes(folder: RoundFolder) -> None:
    begin(folder, "key", None)
    folder.last.write_text("weights")
    assert not is_trained(folder, "key")
    mark_trained(folder, "key")
    assert is_trained(folder, "key")
    assert not is_trained(folder, "another")
    folder.last.write_text("other weights")
    assert not is_trained(folder, "key")


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=large",
        "model.optimizer.lr=0.02",
        "trainer.max_epochs=2",
        "data.patch_size=[32,128,160]",
        "data.augmentation.noise.probability=0.2",
        "labels.targets=organs",
        "round.init=teacher",
        "loss.smooth=1",
    ],
)
def test_what_decides_the_weights_changes_the_key(override: str, config: Compose) -> None:
    plain = training_key(config("train", "data=phantom"), "data")
    assert training_key(config("train", "data=phantom", override), "data") != plain


@pytest.mark.parametrize(
    "override",
    [
        "trainer.log_every_n_steps=1",
        "trainer.check_val_every_n_epoch=5",
        "paths.outputs=elsewhere",
        "data.workers=7",
        "logger=tensorboard",
        "tta=none",
        "inference=fast",
        "round.unlabeled_teacher=mot",
    ],
)
def test_what_only_shows_or_predicts_does_not(override: str, config: Compose) -> None:
    plain = training_key(config("train", "data=phantom"), "data")
    assert training_key(config("train", "data=phantom", override), "data") == plain


def test_other_data_changes_the_key(config: Compose) -> None:
    cfg = config("train", "data=phantom")
    assert training_key(cfg, "one") != training_key(cfg, "other")
