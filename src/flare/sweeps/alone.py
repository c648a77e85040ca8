"""One job of a sweep, run by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.utils import run_and_report
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext

from flare.cli import CONF, task


def run_alone(script: str, overrides: Sequence[str]) -> Any:
    """Launch a job as its sweep would, but without a sweeper.

    The settings of one sweeper do not fit another, so an experiment that has chosen Optuna could not be run
    with Hydra's own; and a sweeper would write its files over those of the sweep.

    Args:
        script: `train`, `infer`, ...
        overrides: The job's, and with `hydra.sweep.dir` and `hydra.sweep.subdir` where its folder is.

    Returns:
        What the script returns.
    """
    with initialize_config_dir(str(CONF), version_base="1.3", job_name=script):
        config = compose(script, [*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task(script), config=config
        )
        (job,) = launcher.launch([list(config.hydra.overrides.task)], initial_job_idx=0)
    return run_and_report(lambda: job.return_value)  # as the scripts do: a refusal is one line
