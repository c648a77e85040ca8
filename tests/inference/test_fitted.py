"""The plan fitted to a checkpoint: which one `inference=fast` uses, and what wins over it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from flare.core.errors import CONF, FlareError
from flare.inference.exported import carried_by
from flare.inference.fitted import given_keys, plan_path, with_plan
from flare.inference.settings import InferenceSettings
from flare.runs.checkpoints import Checkpoint, checkpoint_of

FAST = InferenceSettings(name="fast", centre="body", extend=True)
CHOSEN = {
    "name": "fast", "window": [1.5, 1, 1], "overlap": 0.25, "plane_overlap": 0.1, "adaptive": True,
    "flips_where": "open", "open_margin": 0.4, "open_share": 0.02, "tta": "tta4",
}  # fmt: skip
AT_PATCH = {**CHOSEN, "window": None, "overlap": 0.4}
PLAN = {
    "checkpoint_sha256": "abc",
    "plan": {"name": "the larger", "settings": CHOSEN},
    "plan_at_patch": {"name": "the smaller", "settings": AT_PATCH},
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    values: dict[str, Any] = dict.fromkeys(("targets", "interpolation", "git_revision"), "organs_tumor")
    entry = {
        "id": 1,
        "name": "liver",
        "short": "Liver",
        "role": "organ",
        "tolerance_mm": 5,
        "slice_range": False,
    }
    values |= {"classes": {"liver": entry}, "config": {}, "round": "mo", "intensity": {}, "sha256": "abc"}
    shapes = dict.fromkeys(("spacing_mm", "patch_size", "mirror_axes"), (1, 2, 3))
    return Checkpoint(path=tmp_path / "last.ckpt", state_dict={}, **values, **shapes)


def store(checkpoint: Checkpoint, content: Any) -> Path:
    path = checkpoint.path.with_name("last.plan.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_fast_uses_the_plan_and_says_so(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    assert store(checkpoint, PLAN) == plan_path(checkpoint.path)
    with caplog.at_level(logging.INFO):
        found = with_plan(FAST, checkpoint, ())
    expected = replace(FAST, **CHOSEN, plan="the larger")
    assert found == expected
    assert found.window == (1.5, 1, 1)
    assert [r.getMessage() for r in caplog.records] == [
        f"inference=fast: by the plan fitted to {checkpoint.path}: the larger"
    ]
    assert found.identity()["overlap"] == 0.25


def test_without_a_plan_and_in_other_modes_all_stays(checkpoint: Checkpoint) -> None:
    assert with_plan(FAST, checkpoint, ()) is FAST
    store(checkpoint, PLAN)
    for name in ("dense", "paper", "flare22"):
        other = replace(FAST, name=name)
        assert with_plan(other, checkpoint, ()) is other


def test_what_is_given_wins(checkpoint: Checkpoint) -> None:
    store(checkpoint, PLAN)
    given = {"tta", "inference.overlap", "inference.memory_mb", "input"}
    found = with_plan(replace(FAST, tta="none", overlap=0.3), checkpoint, given)
    assert (found.tta, found.overlap) == ("none", 0.3)
    rest = {key: value for key, value in CHOSEN.items() if key not in ("tta", "overlap")}
    assert found == replace(FAST, tta="none", overlap=0.3, **rest, plan=found.plan)
    assert found.plan == "the larger, tta as given, inference.overlap as given"


@pytest.fixture
def command_line() -> Iterator[list[str]]:
    """Overrides of a command that Hydra has started."""
    line = ["inference=fast", "tta=none", "+inference.overlap=0.3", "++a.b={c: d=e}", "~only"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("infer", ["inference=fast"], return_hydra_config=True)
    cfg.hydra.overrides.task = line
    HydraConfig.instance().set_config(cfg)
    yield line
    HydraConfig.instance().cfg = None


def test_the_command_line_tells_what_is_given(command_line: list[str]) -> None:
    assert given_keys() == {"inference", "tta", "inference.overlap", "a.b", "only"}


def test_without_a_command_line_nothing_is_given() -> None:
    assert given_keys() == set()


def test_the_plan_of_other_weights_is_left_out(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    path = store(checkpoint, {**PLAN, "checkpoint_sha256": "other"})
    assert with_plan(FAST, checkpoint, ()) is FAST
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{path} is the plan of other weights")
    assert "plan" not in carried_by(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        {},
        {**PLAN, "plan": None},
        {**PLAN, "plan": {"settings": 3}},
        {**PLAN, "plan": "text"},
        {**PLAN, "plan": {"name": "x", "settings": [["tta", "none"]]}},
        {**PLAN, "plan": {"name": "x", "settings": {}}},
        {**PLAN, "plan": {"name": "x", "settings": {**CHOSEN, "overlap": 2}}},
        {**PLAN, "plan": {"name": "x", "settings": {**CHOSEN, "window": "[9,9,9]"}}},
    ],
)
def test_what_is_no_plan_is_refused(checkpoint: Checkpoint, content: Any) -> None:
    path = store(checkpoint, content)
    with pytest.raises(FlareError) as refused:
        with_plan(FAST, checkpoint, ())
    assert str(refused.value).startswith(f"{path}: is no plan of inference (")
    assert "\n" not in str(refused.value)


def test_an_exported_file_carries_the_plan_for_its_patch(checkpoint: Checkpoint) -> None:
    store(checkpoint, PLAN)
    carried = json.loads(json.dumps(carried_by(checkpoint)))
    assert carried["plan"] == PLAN
    exported = checkpoint.path.with_name("net.xml")
    exported.write_text("weights")
    found = with_plan(FAST, checkpoint_of(exported, carried, {}), ())
    assert found == replace(FAST, **AT_PATCH, plan="the smaller")
