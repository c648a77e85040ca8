"""Which jobs a sweep is going to run, known before the first of them."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from flare.sweeps.jobs import PLANNED, Job

BY_NUMBER = {"subdir": "${hydra.job.num}"}


def plan(config: DictConfig) -> list[Job]:
    """List the jobs of a sweep as it starts.

    Args:
        config: The sweep's, as Hydra gives it to callbacks.

    Returns:
        In the order of their numbers. None if the jobs' folders are not these (`hydra.sweep.subdir`), or if
        the sweeper is neither Hydra's own nor one with a number of trials.
    """
    if OmegaConf.to_container(OmegaConf.masked_copy(config.hydra.sweep, "subdir")) != BY_NUMBER:
        return []
    script = config.hydra.job.config_name
    return [Job(str(n), script, overrides, PLANNED) for n, overrides in enumerate(_overrides(config))]


def _overrides(config: DictConfig) -> Sequence[list[str] | None]:
    """Each job's command line; None where the sweeper chooses it later."""
    sweeper = config.hydra.sweeper
    if sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
        return [None] * sweeper.get("n_trials", 0)
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*given, *config.hydra.overrides.task])
    return BasicSweeper.split_arguments(parsed, None)[0]
