"""Carry a cohort through the graph of rounds: label, train, score; then the ablation table."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flare.core.errors import FLAG
from flare.core.files import remove_partial
from flare.prepare.cohort import Cohort, analyse, prepare_cohort
from flare.prepare.settings import PrepareSettings
from flare.rounds.ablation import Results, Trained, write_ablation
from flare.rounds.graph import check_rounds, compose_rounds, plan_rounds, print_plan, write_plan
from flare.rounds.label import build_training_set
from flare.rounds.score import finish_round
from flare.rounds.settings import RoundSettings
from flare.rounds.teachers import present_teachers
from flare.runs.folders import RunFolder, lock, run_folder
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome, report_failures
from flare.runs.records import plain_config, record_environment
from flare.runs.work import Executor, build_executor
from flare.training.resuming import find_training, is_trained, make_current, training_key

log = logging.getLogger(__name__)


def iterate(
    cfg: DictConfig,
    overrides: Sequence[str] | None = None,
    finish: Callable[[Trained], Results] = write_ablation,
) -> dict[str, Any]:
    """Run the rounds, each resumed where it stopped; unchanged steps are not done again.

    Args:
        cfg: Configuration of `iterate`.
        overrides: The command line, forwarded to each round; by default Hydra's.
        finish: What to do once all rounds are trained, the run still locked; writes the ablation table.

    Returns:
        `plan`, one row a round, and unless `dry_run` `table`, one row a name of the ablation table.

    Raises:
        FlareError: Before any work if a round cannot be run; before a training if a step failed in
            general, see `outcomes.stop_on_faults`; at the end if cases failed, with their reasons.
    """
    given = HydraConfig.get().overrides.task if overrides is None else overrides
    rounds = compose_rounds(cfg.rounds or [], list(given))
    run = run_folder(cfg)
    FLAG.require("dry_run", cfg.dry_run)
    check_rounds(rounds)
    PrepareSettings.from_config(cfg)
    if cfg.dry_run:
        plan = plan_rounds(rounds, analyse(cfg))
        print_plan(plan)
        with lock(run.root):  # another start's plan stays while that start runs
            write_plan(run.root, plan)
        return {"plan": plan}
    note_sound = _check(rounds, run)
    with lock(run.root):
        note_sound()
        remove_partial(run.root)
        remove_partial(run.root / "baselines", below=True)
        record_environment(run.root, cfg)
        return _run(cfg, rounds, run, finish)


def _check(rounds: Sequence[RoundSettings], run: RunFolder) -> Callable[[], None]:
    """Refuse, before any work, rounds that cannot be trained; returns what notes that they can.

    What was found sound once is not looked into again.
    """
    journal = Journal(run.root / "journal" / "configurations.jsonl")
    sound = []
    for number, item in enumerate(rounds):
        planned = {str(r.name): r for r in rounds[:number]}
        inputs = {t.key: t.checkpoint for t in present_teachers(item, list(planned))}
        models = {name: plain_config(r.config.model) for name, r in planned.items()}
        known = str(item.name), inputs, {**plain_config(item.config), "planned": models}
        if not journal.is_current(*known):
            from flare.rounds.train import (
                check_configuration,  # torch: only where there is something to check
            )

            check_configuration(item, planned)
            sound.append(known)

    def note() -> None:
        for known in sound:
            journal.record(*known, {})

    return note


def _run(
    cfg: DictConfig, rounds: Sequence[RoundSettings], run: RunFolder, finish: Callable[[Trained], Results]
) -> dict[str, Any]:
    """Prepare once, then round after round, then the table."""
    cohort = prepare_cohort(cfg)
    plan = plan_rounds(rounds, cohort.cases)
    print_plan(plan)
    write_plan(run.root, plan)
    failures = list(cohort.failures)
    executor = build_executor(cfg)
    started = time.monotonic()
    try:
        for number, item in enumerate(rounds):
            spent = time.monotonic() - started
            left = f", about {spent / number * (len(rounds) - number) / 60:.0f} min left" if number else ""
            log.info("round %s, %d of %d%s", item.name, number + 1, len(rounds), left)
            failures += run_round(item, cohort, executor)
        results = finish(Trained(rounds, cohort, run, executor))
    finally:
        executor.close()
    failures += results.failures
    report_failures(list({f.case_id: f for f in failures}.values()), "iterate")
    return {"plan": plan, "table": results.table}


def run_round(settings: RoundSettings, cohort: Cohort, executor: Executor) -> list[Outcome]:
    """Label, train and validate one round; what is done and unchanged is left alone.

    Args:
        settings: The round.
        cohort: The prepared cohort.
        executor: Where cases are worked on.

    Returns:
        Cases that failed in some step, and why.

    Raises:
        FlareError: If a step failed in general, see `outcomes.stop_on_faults`.
    """
    intensity = cohort.require_intensity()
    folder = settings.folder
    with lock(folder.root):
        remove_partial(folder.root, below=True)
        training = build_training_set(settings, cohort.cases, executor)
        known = find_training(folder, training_key(settings.training, training.key))
        if known is not None and is_trained(known):
            make_current(known)
        else:
            from flare.rounds.train import (
                train_round,  # torch, Lightning: only where there is something to train
            )

            executor.close()  # its processes would wait through the whole training, with their memory
            train_round(settings, training, cohort.cases, intensity)
        return [*training.failures, *finish_round(settings, cohort.cases, executor)]
