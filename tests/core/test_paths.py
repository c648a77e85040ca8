"""Paths of a configuration: what each may be, `~`, where relative ones start, and how they are quoted."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.paths import expand_home, require_writable, settle_paths, tell_quoting

Config = Callable[..., DictConfig]
KEYS = {
    "infer": [
        "input",
        "output",
        "checkpoint",
        "round.checkpoint",
        "paths.outputs",
        "data.root",
        "data.cache",
    ],
    "evaluate": ["predictions", "references", "output", "compare"],
    "merge_labels": ["ground_truth", "pseudo", "output", "data.labels", "data.test_images"],
    "train": ["ckpt_path", "paths.run", "paths.cache", "data.labeled_images"],
    "convert": ["source", "output"],
    "dashboard": ["run", "output"],
    "sweeps": ["sweep"],
}


@pytest.mark.parametrize("value", ["20231107", "[a,b]", "{a:1}", "true", "1e5"])
@pytest.mark.parametrize(("script", "key"), [(s, k) for s, keys in KEYS.items() for k in keys])
def test_what_is_no_path_is_refused_with_the_way_to_quote_it(
    config: Config, script: str, key: str, value: str
) -> None:
    if value == "[a,b]" and key.startswith("data.") and key not in ("data.root", "data.cache"):
        return  # a list of folders
    cfg = config(script, f"{key}={value}")
    with pytest.raises(FlareError) as refused:
        settle_paths(cfg)
    assert str(refused.value).startswith(f"{key}=")
    again = shlex.split(str(refused.value).partition("within quotes: ")[2])
    assert OverridesParser.create().parse_overrides(again)[0].key_or_group == key
    settle_paths(config(script, *again))


@pytest.mark.parametrize(("script", "key"), [(s, k) for s, keys in KEYS.items() for k in keys])
def test_home_is_expanded(config: Config, script: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    cfg = config(script, f"{key}='~/seg'")
    settle_paths(cfg)
    node = cfg
    for part in key.split("."):
        node = node[part]
    assert node == "/home/me/seg"


def test_words_are_no_paths(config: Config) -> None:
    for value in ("auto", "last"):
        cfg = config("train", f"ckpt_path={value}")
        settle_paths(cfg)
        assert cfg.ckpt_path == value


def test_an_interpolation_to_nothing_names_the_key(config: Config) -> None:
    with pytest.raises(FlareError, match=r"^input: .*nowhere"):
        settle_paths(config("infer", "input=/data/${nowhere}"))


@pytest.mark.parametrize(
    "path",
    [
        *("/data/CT (1)", "/d/a=b", "/d/#1", "/d/Münster", "/d/a,b", "/d/{x}", "/d/[1]/c.nii.gz", "/d/it's"),
        *('/d/"x"', "/d/a b (c)", "/d/x;y", "/d/a&b", "/d/漢字", "/d/x!"),
    ],
)
def test_hydra_reads_a_path_that_is_quoted_as_told(path: str) -> None:
    (told,) = tell_quoting(["--config-dir", "-m", "round=mo,mt", f"input={path}", "tta=none"])
    key, _, line = told.partition(": ")
    (argument,) = shlex.split(line.partition(": ")[2])
    assert key == "input"
    assert OverridesParser.create().parse_override(argument).value() == path
    assert list(tell_quoting([argument])) == []


def test_home_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("output=~/seg") == "output=/home/me/seg"
    assert expand_home("paths.outputs='~/seg'") == "paths.outputs='/home/me/seg'"
    for other in ("~callbacks", "output=a~/b", "name=~x", "output=/~/a"):
        assert expand_home(other) == other


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FlareError, match="is a file; expected a folder"):
        require_writable("output", tmp_path / "file" / "a" / "b")
    require_writable("output", tmp_path / "a" / "b")
