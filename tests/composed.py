"""Configurations for tests: a choice of groups is composed once, and values are set into copies of it."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from flare.core.errors import CONF

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}


def composed(script: str, *overrides: str) -> DictConfig:
    """Compose a script's configuration: `composed("train", "round=mo", "optimizer.lr=0.1")`.

    Composing takes longer than most tests; what Hydra does with a single value does not.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = tuple(
        o.input_line
        for o in parsed
        if o.key_or_group.split("/")[0] in GROUPS or o.key_or_group.startswith("hydra")
    )
    cfg = deepcopy(_choose(script, groups))
    ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o.input_line not in groups], cfg)
    return cfg


@cache
def _choose(script: str, groups: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, list(groups))
