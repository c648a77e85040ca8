"""Where a training starts, and which trainings are the same."""

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.files import write_text
from flare.runs.folders import RoundFolder
from flare.training.resuming import (
    Start,
    begin,
    find_start,
    find_training,
    is_trained,
    make_current,
    mark_trained,
    training_key,
)
from flare.training.settings import TrainingSettings

Compose = Callable[..., DictConfig]


@pytest.fixture(params=["symbolic", "hard", "copy"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoundFolder:
    """The folder of a round, on file systems with links of both kinds, with hard ones alone, with none."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    if request.param != "symbolic":
        monkeypatch.setattr("os.symlink", refuse)
    if request.param == "copy":
        monkeypatch.setattr("os.link", refuse)
    return RoundFolder(tmp_path / "rounds" / "mo")


def run(folder: RoundFolder, key: str, ckpt_path: str | None = "auto", *, epochs: int = 1) -> Start:
    """What a training of this key does to the files, killed after some epochs."""
    start = find_start(ckpt_path, folder, key)
    begin(start)
    done = epoch(start.checkpoint) if start.checkpoint else 0
    for now in range(done + 1, done + epochs + 1):
        write_text(start.training.training_csv, f"{key}: {now} epochs")
        for path in (start.training.best, start.training.last):
            write_text(path, f"{path.stem} weights of {start.training.root.name}, epoch {now}")
        make_current(start.training)
    return start


def epoch(path: Path) -> int:
    """The epoch after which weights of `run` were saved."""
    return int(path.read_text().split()[-1])


def contents(folder: RoundFolder) -> dict[Path, str]:
    """Every training's own files and what is in them."""
    files = [path for path in folder.checkpoints.glob("[!.]*/[!.]*") if not path.is_symlink()]
    return {path: path.read_text() for path in files}


def test_a_training_resumes_unless_asked_to_start_afresh(config: Compose) -> None:
    assert config("train").ckpt_path == "auto"


def test_ten_restarts_of_two_settings_leave_two_trainings_each_at_its_own_step(folder: RoundFolder) -> None:
    for restart in range(10):
        key = ("good", "typo")[restart % 2]
        start = run(folder, key)
        assert epoch(start.training.last) == restart // 2 + 1
        for name, file in start.training.names.items():
            assert name.read_text() == file.read_text()
    assert [epoch(path) for path in sorted(folder.checkpoints.glob("*/last.ckpt"))] == [5, 5]


@pytest.mark.parametrize("ckpt_path", ["auto", None, "last", "best of another", "elsewhere"])
def test_no_start_changes_what_another_training_left(
    folder: RoundFolder, ckpt_path: str | None, tmp_path: Path
) -> None:
    first, other = run(folder, "first", epochs=2).training, run(folder, "second").training
    mark_trained(first)
    write_text(tmp_path / "elsewhere.ckpt", "weights of a friend, epoch 7")
    paths = {"best of another": str(other.best), "elsewhere": str(tmp_path / "elsewhere.ckpt")}
    before = contents(folder)
    for key in ("third", "first", "second", "third"):
        start = find_start(paths.get(str(ckpt_path), ckpt_path), folder, key)
        kept = {path: text for path, text in before.items() if path.parent != start.training.root}
        assert start.checkpoint == start.training.last or not start.training.last.exists()
        run(folder, key, paths.get(str(ckpt_path), ckpt_path))
        assert kept.items() <= contents(folder).items()
        before = contents(folder)


def test_what_starts_afresh_lies_beside_and_the_latest_is_resumed(folder: RoundFolder) -> None:
    first, second, third = (run(folder, "key", None).training for _ in range(3))
    assert len({first.root, second.root, third.root}) == 3
    assert find_training(folder, "key") == third
    begin(find_start(None, folder, "key"))  # and ends before its first checkpoint
    assert find_start("auto", folder, "key") == Start(third, third.last)
    assert folder.last.read_text() == third.last.read_text()
    unborn = find_start(None, folder, "key").training
    assert unborn == find_start(None, folder, "key").training  # which takes no room
    write_text(unborn.best, "killed before its first last one")
    assert find_start(None, folder, "key").training != unborn


def test_last_and_a_path_need_a_file(folder: RoundFolder, tmp_path: Path) -> None:
    with pytest.raises(FlareError, match=r"ckpt_path=last: .*last.ckpt does not exist"):
        find_start("last", folder, "key")
    with pytest.raises(FlareError, match=r"other.ckpt does not exist"):
        find_start(str(tmp_path / "other.ckpt"), folder, "key")


@pytest.mark.parametrize("by_path", [False, True])
def test_what_goes_on_from_anothers_weights_is_a_training_of_its_own(
    folder: RoundFolder, by_path: bool
) -> None:
    old = run(folder, "old", epochs=3).training
    ckpt_path = str(old.last) if by_path else "last"
    start = run(folder, "new", ckpt_path)
    assert start.checkpoint == old.last
    assert epoch(start.training.last) == 4
    assert start.training.training_csv.read_text() == "new: 4 epochs"
    assert epoch(run(folder, "new", ckpt_path).training.last) == 5  # the same command resumes
    assert epoch(old.last) == 3
    mark_trained(start.training)
    assert find_training(folder, "new") is None  # its weights are of two configurations
    assert epoch(run(folder, "old").training.last) == 4


def test_a_continued_training_keeps_table_and_best_of_its_beginning(folder: RoundFolder) -> None:
    old = run(folder, "old").training
    start = find_start("last", folder, "new")
    begin(start)
    assert start.training.training_csv.read_text() == "old: 1 epochs"
    assert start.training.best.read_text() == old.best.read_text()


def test_the_same_training_resumed_by_hand_counts(folder: RoundFolder) -> None:
    training = run(folder, "key").training
    for ckpt_path in ("last", str(folder.last), str(training.last)):
        assert find_start(ckpt_path, folder, "key") == Start(training, training.last)


def test_files_put_there_by_hand_are_kept(folder: RoundFolder) -> None:
    for number in range(2):
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        folder.last.unlink(missing_ok=True)
        folder.last.write_text(f"weights of a friend {number}")
        assert run(folder, "key").training.last.read_text().startswith("last weights of key")
        assert folder.last.read_text().startswith("last weights of key")
    found = [path.read_text() for path in sorted(folder.checkpoints.glob("unknown*/last.ckpt"))]
    assert found == ["weights of a friend 0", "weights of a friend 1"]


class KilledError(BaseException):
    """The process ends."""


@pytest.mark.parametrize("wanted", ["third", "first"])
@pytest.mark.parametrize("ckpt_path", ["auto", "last", None])
def test_killed_at_any_moment_every_checkpoint_is_found_under_its_training(
    folder: RoundFolder, wanted: str, ckpt_path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = run(folder, "first", epochs=2).training, run(folder, "second").training
    folder.last.unlink()
    folder.last.write_text("weights of a friend, epoch 7")
    reached = 0
    for moment in range(12):
        steps = iter(range(moment))
        before = contents(folder)

        def killed(original: Callable[..., None], steps: Iterator[int] = steps) -> Callable[..., None]:
            def step(*arguments: Any, **keywords: Any) -> None:
                if next(steps, None) is None:
                    raise KilledError
                original(*arguments, **keywords)

            return step

        with monkeypatch.context() as patch:
            for name in ("os.replace", "os.symlink", "os.link", "shutil.copy2", "pathlib.Path.unlink"):
                patch.setattr(name, killed(resolve_name(name)))
            try:
                begin(find_start(ckpt_path, folder, wanted))
            except KilledError:
                reached += 1
        assert before.items() <= contents(folder).items()
        for training in (first, second):
            assert find_start("auto", folder, training.root.name) == Start(training, training.last)
        friends = [folder.last, *folder.checkpoints.glob("unknown*/last.ckpt")]
        assert any(path.exists() and "friend" in path.read_text() for path in friends)
    assert 2 <= reached < 12


def test_a_further_kind_of_checkpoint_is_named_with_its_training(folder: RoundFolder) -> None:
    """A callback that keeps averaged weights writes its file and nothing else."""
    good = run(folder, "good").training
    (good.root / "ema.ckpt").write_text("averaged")
    (folder.checkpoints / "mine.ckpt").write_text("put there by hand")
    make_current(good)
    assert (folder.checkpoints / "ema.ckpt").read_text() == "averaged"
    run(folder, "typo")  # which averages nothing: its round must not teach with another training's average
    assert not (folder.checkpoints / "ema.ckpt").exists()
    run(folder, "good")
    assert (folder.checkpoints / "ema.ckpt").read_text() == "averaged"
    assert (folder.checkpoints / "mine.ckpt").read_text() == "put there by hand"


def test_half_written_files_of_a_killed_process_are_removed(folder: RoundFolder) -> None:
    training = run(folder, "key").training
    places = (folder.root, folder.checkpoints, training.root)
    for place in places:
        (place / ".partial-abc").mkdir()
        (place / ".partial-abc" / "last.ckpt").write_bytes(b"half")
    assert find_start("auto", folder, "key") == Start(training, training.last)
    begin(find_start("auto", folder, "key"))
    assert not list(folder.root.rglob(".partial-*"))


def test_a_moved_or_copied_round_is_the_same(folder: RoundFolder, tmp_path: Path) -> None:
    training = run(folder, "key").training
    mark_trained(training)
    for number, move in enumerate((shutil.move, shutil.copytree)):
        place = tmp_path / f"place{number}"
        move(folder.root, place / "rounds" / "mo")
        folder = RoundFolder(place / "rounds" / "mo")
        found = find_training(folder, "key")
        assert found is not None
        assert is_trained(found)
        assert folder.last.read_text() == found.last.read_text()
        assert folder.last.resolve().is_relative_to(place.resolve())
        run(folder, "other")
        assert not list(folder.checkpoints.glob("unknown*"))
        make_current(found)


def test_a_complete_training_is_known_until_its_checkpoint_changes(folder: RoundFolder) -> None:
    training = run(folder, "key").training
    assert not is_trained(training)
    mark_trained(training)
    assert is_trained(training)
    assert not is_trained(run(folder, "another").training)
    training.last.write_text("other weights")
    assert not is_trained(training)


def key(cfg: DictConfig, data: str = "data") -> str:
    return training_key(TrainingSettings.from_config(cfg), data)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=large",
        "optimizer.lr=0.02",
        "trainer.max_epochs=2",
        "data.patch_size=[32,128,160]",
        "data.augmentation.noise.probability=0.2",
        "labels.targets=organs",
        "round.init=teacher",
        "loss.smooth=1",
        "loss.partial=marginal",
    ],
)
def test_what_decides_the_weights_changes_the_key(override: str, config: Compose) -> None:
    plain, other = (key(config("train", "data=phantom", *changes)) for changes in ((), (override,)))
    assert other != plain


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
        "round.teacher_kind=best",
        "~loss.partial",  # as before there was such a key
    ],
)
def test_what_only_shows_or_predicts_does_not(override: str, config: Compose) -> None:
    plain, other = (key(config("train", "data=phantom", *changes)) for changes in ((), (override,)))
    assert other == plain


def test_other_data_changes_the_key(config: Compose) -> None:
    cfg = config("train", "data=phantom")
    assert key(cfg) != key(cfg, "other")
