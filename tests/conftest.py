"""Shared fixtures: the class list, composed configs, and the real CT scans where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

from composed import composed
from flare.core.classes import ClassList
from flare.core.heap import keep_heap

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

keep_heap()  # as the scripts do
# a busy machine is no failure
settings.register_profile("flare", deadline=None)
settings.load_profile("flare")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="many more random cases and kills: make test-all"
    )


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether a test may take minutes."""
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture(scope="session")
def labels() -> ClassList:
    return ClassList.from_config(OmegaConf.load(CONF / "classes" / "flare23.yaml"))


@pytest.fixture(scope="session")
def config() -> Callable[..., DictConfig]:
    """Compose a script's configuration: `config("train", "round=mo", "model=tiny")`."""
    return composed


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real CT scans; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("FLARE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real CT scans: set FLARE_DATA to their folder")
    return folder
