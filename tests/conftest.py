"""Shared fixtures: the class list, composed configs, and the real CT scans where they are at hand."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

# a busy machine is no failure
settings.register_profile("flare", deadline=None)
settings.load_profile("flare")


@pytest.fixture(scope="session")
def labels() -> ClassList:
    return ClassList.from_config(OmegaConf.load(CONF / "classes" / "flare23.yaml"))


@pytest.fixture(scope="session")
def config() -> Callable[..., DictConfig]:
    """Compose a script's configuration: `config("train", "round=mo", "model=tiny")`."""
    return lambda script, *overrides: _composed(script, overrides).copy()


@cache
def _composed(script: str, overrides: tuple[str, ...]) -> DictConfig:
    """Composing takes longer than most tests, and many ask for the same."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, list(overrides))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real CT scans; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FLARE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real CT scans: set FLARE_DATA to their folder")
    return folder
