"""Shared by the tests of whole preparations: a configuration for a cohort written in the test."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig, OmegaConf

from flare.prepare import analysis as analysis_report


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot has tests of its own, and takes longer than all the rest."""
    drawn = SimpleNamespace(savefig=lambda path, **_: path.write_bytes(b""))
    monkeypatch.setattr(analysis_report, "draw_label_analysis", lambda *_: drawn)


@pytest.fixture
def build(tmp_path: Path, config: Callable[..., DictConfig], no_drawing: None) -> Callable[..., DictConfig]:
    """A configuration for the cohort below `tmp_path`, worked on in this process."""
    composed = config("prepare", "data=default", "data.name=test", "executor.workers=0")
    OmegaConf.set_struct(composed, False)

    def override(*overrides: str) -> DictConfig:
        lines = [f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}", "data.spacing_mm=[5,2,2]"]
        lines += ["data.labeled_images=images", "data.labels=labels", *overrides]
        return OmegaConf.unsafe_merge(composed.copy(), OmegaConf.from_dotlist(lines))

    return override
