"""The page about parts of one's own does what it says: its files and its commands, as printed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import pages
from flare.core.classes import ClassList
from flare.core.errors import CONF
from flare.core.files import read_csv
from flare.models.zoo import load_network
from flare.runs.checkpoints import load_checkpoint
from tiny_round import train_tiny, write_cohort

PAGE = "docs/extending.md"
MODULES = ("my_network", "my_loss", "my_transform", "my_tracker")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, from which modules are found."""
    pages.write_files(PAGE, tmp_path / "own")
    monkeypatch.syspath_prepend(tmp_path / "own")
    return tmp_path / "own"


def commands() -> dict[str, list[str]]:
    """The words of each command behind the script, by the part that it is about."""
    sections = re.split(
        r"^## (?:A|An) ", (pages.ROOT / PAGE).read_text(encoding="utf-8"), flags=re.MULTILINE
    )[1:]
    found = {}
    for section in sections:
        (line,) = re.findall(r"^python \w+\.py (.*)$", section, re.MULTILINE)
        found[section.splitlines()[0]] = shlex.split(line)
    return found


def test_every_example_is_short() -> None:
    assert list(commands()) == ["network", "loss", "transform", "tracker", "class list"]
    names = pages.files(PAGE)
    assert {name.removesuffix(".py") for name in names if name.endswith(".py")} == set(MODULES)
    for name, content in names.items():
        assert len([line for line in content.splitlines() if line.strip()]) < 20, name


@pytest.mark.slow
def test_the_parts_train_as_the_page_says(written: Path, tmp_path: Path) -> None:
    given = commands()
    own = [o for part in ("network", "transform") for o in given[part]]
    assert given["loss"] == ["--config-dir", "mine", "loss=known_ce"]
    assert given["tracker"] == ["--config-dir", "mine", "logger=[csv,lines]"]
    # what `--config-dir` finds, in words for a configuration that is composed without it
    loss, logger = (
        (written / "mine" / name).read_text() for name in ("loss/known_ce.yaml", "logger/lines.yaml")
    )
    (target,) = re.findall(r"_target_: (\S+)$", loss, re.MULTILINE)
    (entry,) = re.findall(r"^lines: (.*)$", logger, re.MULTILINE)
    own += ["~loss", f"+loss={{_target_: {target}}}", f"+logger.lines={entry}"]
    own = [o.replace("p: 0.3", "p: 1") for o in own]
    once = ("trainer.max_epochs=2", "trainer.limit_train_batches=1")
    _, folder = train_tiny(write_cohort(tmp_path / "cohort"), tmp_path, *own, *once)
    (lines,) = folder.checkpoints.glob("*/logs/lines.jsonl")
    logged = [json.loads(line) for line in lines.read_text().splitlines()]
    losses = [float(row["train/loss"]) for row in read_csv(folder.training_csv)]
    assert [row["train/loss"] for row in logged if "train/loss" in row] == pytest.approx(losses, rel=1e-4)
    assert len(losses) == 2
    network, checkpoint = load_network(folder.last, ["my_network.Net"])
    assert network(torch.zeros(1, 1, 8, 16, 16)).shape == (1, 15, 8, 16, 16)
    assert checkpoint.state_dict["network.layers.0.weight"].shape[0] == 16
    extra = load_checkpoint(folder.last).config["data"]["augmentation"]["extra"]
    assert extra == [{"_target_": "my_transform.Stripes", "p": 1}]


def test_the_transform_changes_a_patch_slice_by_slice(written: Path) -> None:
    import torchio as tio

    (override,) = commands()["transform"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        (part,) = compose("train", [override.replace("p: 0.3", "p: 1")]).data.augmentation.extra
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.zeros(1, 4, 5, 6)))
    changed = instantiate(part)(subject)["image"].data[0]
    assert len(changed.unique()) == 6
    assert torch.equal(changed, changed[:1, :1].expand(4, 5, 6))


def test_the_class_list_counts_a_networks_outputs(written: Path) -> None:
    dashed, folder, *overrides = commands()["class list"]
    assert dashed == "--config-dir"
    path = f"hydra.searchpath=[file://{written / folder}]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [path, *overrides, *commands()["network"], "loss=dice_ce"])
    classes = ClassList.from_config(cfg.classes)
    assert classes.told == "1 kidneys, 2 cyst, 3 tumor"
    assert (classes.organs, classes.tumor) == ((1, 2), 3)
    network = instantiate(cfg.model.net)
    assert network.train()(torch.zeros(1, 1, 4, 4, 4))[0].shape == (1, 4, 4, 4, 4)
