"""Which checkpoint `infer.py` takes: a file, a kind in a round's folder, or a kind of a round of this run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.inference.predict import find_checkpoint

Compose = Callable[..., DictConfig]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A round's folder of checkpoints, with two kinds."""
    folder = tmp_path / "outputs" / "trial" / "rounds" / "mo" / "checkpoints"
    folder.mkdir(parents=True)
    for kind in ("last", "ema"):
        (folder / f"{kind}.ckpt").write_bytes(b"weights")
    return folder


@pytest.fixture
def find(config: Compose, tmp_path: Path) -> Callable[..., Path]:
    def found(*overrides: str) -> Path:
        common = (f"paths.outputs={tmp_path / 'outputs'}", "name=trial", "input=a", "output=b")
        return find_checkpoint(config("infer", *common, *overrides))

    return found


@pytest.mark.parametrize("kind", ["last", "ema"])
def test_a_kind_is_found_in_each_way(find: Callable[..., Path], place: Path, kind: str) -> None:
    for given in ("round=mo", f"checkpoint={place.parent}", f"checkpoint={place}"):
        assert find(given, f"kind={kind}") == place / f"{kind}.ckpt"


def test_the_last_one_is_meant_where_no_kind_is_said_and_a_file_is_a_file(
    find: Callable[..., Path], place: Path
) -> None:
    assert find("round=mo") == place / "last.ckpt"
    assert find(f"checkpoint={place / 'ema.ckpt'}") == place / "ema.ckpt"
    with pytest.raises(FlareError, match=r"kind=ema: checkpoint=.*last\.ckpt is no folder"):
        find(f"checkpoint={place / 'last.ckpt'}", "kind=ema")


def test_a_missing_kind_is_refused_with_what_there_is_and_what_makes_it(
    find: Callable[..., Path], place: Path
) -> None:
    with pytest.raises(
        FlareError, match=r"round=mo: .*kind=best; ema, last there, a labelled validation case"
    ):
        find("round=mo", "kind=best")
    (place / "ema.ckpt").unlink()
    with pytest.raises(FlareError, match=r"kind=ema; last there, callbacks\.ema\.decay=0\.999 makes it"):
        find(f"checkpoint={place.parent}", "kind=ema")
    with pytest.raises(FlareError, match=r"none there.*run `python train\.py name=trial round=mo1` first"):
        find("round=mo1")
