"""Carry a cohort through the graph of rounds: label, train, score; then the ablation table and the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from flare.ablation import Results, write_ablation
from flare.errors import FlareError
from flare.executor import Executor, Outcome, report_failures
from flare.labelling import build_training_set
from flare.plan import plan_rounds, print_plan, write_plan
from flare.prepare.cohort import Cohort, analyse, prepare_cohort
from flare.report import write_report
from flare.resuming import is_trained, training_key
from flare.rounds import Round, check_rounds, compose_rounds
from flare.runs import RunFolder, lock, record_environment, run_folder
from flare.scoring import finish_round

log = logging.getLogger(__name__)


def iterate(cfg: DictConfig, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the rounds, each resumed where it stopped; unchanged steps are not done again.

    Args:
        cfg: Configuration of `iterate`.
        overrides: The command line, forwarded to each round; by default Hydra's.

    Returns:
        `plan`, one row a round, and unless `dry_run` `table`, one row a name of the ablation table.

    Raises:
        FlareError: Before any work if a round cannot be run; at the end if cases failed, with their reasons.
    """
    given = HydraConfig.get().overrides.task if overrides is None else overrides
    rounds = compose_rounds(list(cfg.rounds), list(given))
    run = run_folder(cfg)
    check_rounds(rounds, run)
    if cfg.dry_run:
        plan = plan_rounds(rounds, analyse(cfg))
        print_plan(plan)
        write_plan(run.root, plan)
        return {"plan": plan}
    with lock(run.root):
        record_environment(run.root, cfg)
        return _run(cfg, rounds, run)


def _run(cfg: DictConfig, rounds: Sequence[Round], run: RunFolder) -> dict[str, Any]:
    """Prepare once, then round after round, then the table and the report."""
    cohort = prepare_cohort(cfg)
    plan = plan_rounds(rounds, cohort.cases)
    print_plan(plan)
    write_plan(run.root, plan)
    failures = list(cohort.failures)
    executor: Executor = instantiate(cfg.executor)
    started = time.monotonic()
    try:
        for number, item in enumerate(rounds):
            spent = time.monotonic() - started
            left = f", about {spent / number * (len(rounds) - number) / 60:.0f} min left" if number else ""
            log.info("round %s, %d of %d%s", item.name, number + 1, len(rounds), left)
            failures += run_round(item.cfg, cohort, run, executor)
        results = write_ablation(cfg, rounds, cohort, run, executor)
        write_report(cfg, rounds, cohort, run, results, executor)
    finally:
        executor.close()
    failures += results.failures
    report_failures(list({f.case_id: f for f in failures}.values()), "iterate")
    return {"plan": plan, "table": results.table}


def run_round(cfg: DictConfig, cohort: Cohort, run: RunFolder, executor: Executor) -> list[Outcome]:
    """Label, train and validate one round; what is done and unchanged is left alone.

    Args:
        cfg: The round's configuration.
        cohort: The prepared cohort.
        run: The run's folder.
        executor: Where cases are worked on.

    Returns:
        Cases that failed in some step, and why.
    """
    if cohort.intensity is None:
        raise FlareError("data.labels: no labelled training case, so there are no intensity statistics")
    folder = run.round(cfg.round.name)
    training = build_training_set(cfg, cohort.cases, run, executor)
    if not is_trained(folder, training_key(cfg, training.key)):
        from flare.training import train_round  # torch and Lightning: only where there is something to train

        train_round(cfg, run, training=training, cases=cohort.cases, intensity=cohort.intensity)
    return [*training.failures, *finish_round(cfg, cohort.cases, folder, executor)]


__all__ = ["Results", "iterate", "run_round"]
