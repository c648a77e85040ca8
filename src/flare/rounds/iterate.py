"""Carry a cohort through one round, or the graph of rounds: label, train, score; then the ablation table."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flare.core.class_files import own_classes
from flare.core.errors import FLAG
from flare.core.files import remove_partial, write_csv
from flare.core.paths import settle_paths
from flare.prepare.cohort import Cohort, analyse, prepare_cohort
from flare.prepare.settings import PrepareSettings
from flare.rounds import graph
from flare.rounds.explain import explain_run, print_steps
from flare.rounds.freeze import freeze_rounds
from flare.rounds.label import build_training_set
from flare.rounds.protocol import foresee
from flare.rounds.score import Results, Trained, finish_round, write_ablation
from flare.rounds.settings import RoundSettings
from flare.runs.door import place
from flare.runs.folders import RunFolder, plain_config, record_environment, run_folder
from flare.runs.journal import Journal, tell_again
from flare.runs.locks import lock
from flare.runs.work import Executor, Outcome, build_executor, console, naming, report_failures
from flare.training import resuming

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Prepare what is missing and train the round that the configuration of `train` names.

    Gives what `tell_training` does. A configuration that cannot be trained is refused before any work; a step
    that failed in general stops before it (`stop_on_faults`); refused cases are told after it, with reasons.
    """
    settle_paths(cfg)
    cfg = own_classes(cfg)
    settings = RoundSettings.from_config(cfg)
    PrepareSettings.from_config(cfg)
    # torch and Lightning take seconds: a wrong value is told before
    from flare.rounds.train import check_configuration, tell_training

    with _leading([settings]) as leads:
        if not leads:
            return {"objective": None}
        check_configuration(settings)
        cohort = prepare_cohort(cfg)
        with closing(build_executor(cfg)) as executor, naming(cohort.failures):
            failures = run_round(settings, cohort, executor, is_alone=True)
    report_failures([*cohort.failures, *failures], "train")
    return tell_training(settings.folder, settings.training.objective)


def _leading(rounds: Sequence[RoundSettings]) -> AbstractContextManager[bool]:
    """Whether this process leads, see `Team.of`; where nobody shares the start it does."""
    trained = [item for item in rounds if not item.is_frozen]
    if not any(item.training.is_shared for item in trained):
        return nullcontext(True)
    from flare.rounds.train import Team  # torch: only where processes train together

    return Team.of(trained)


def iterate(
    cfg: DictConfig,
    overrides: Sequence[str] | None = None,
    finish: Callable[[Trained], Results] = write_ablation,
    explain_finish: Callable[[Trained], str] = lambda _: "",
) -> dict[str, Any]:
    """Run the rounds of a configuration of `iterate`, each resumed where it stopped.

    The command line, by default Hydra's, is forwarded to each round as `overrides`. `finish` is done once all
    rounds are trained, the run still locked; `explain_finish` says of a run whose rounds all stand why it is
    done again. Rounds of `freeze` are kept as they were trained. A round that cannot be run is refused before
    any work; a step that failed in general stops (`stop_on_faults`); failed cases are told at the end.

    Returns:
        `plan`, one row a round, and `table`, one row a name of the ablation table; of a `dry_run` instead
        `steps`, see `explain_run`, and `costs`, see `foresee`.
    """
    given = HydraConfig.get().overrides.task if overrides is None else overrides
    settle_paths(cfg)
    cfg = own_classes(cfg)
    composed = graph.compose_rounds(cfg.rounds or [], list(given))
    run = run_folder(cfg)
    FLAG.require("dry_run", cfg.dry_run)
    kept = freeze_rounds(cfg.freeze or [], composed, run)
    rounds = [kept.get(str(r.name), r) for r in composed]
    graph.check_rounds(rounds)
    PrepareSettings.from_config(cfg)
    if cfg.dry_run:
        foreseen = analyse(cfg)
        with lock(run.root):  # another start's plan stays while that start runs
            plan = graph.plan_rounds(rounds, foreseen.cases)
            graph.print_plan(plan)
            write_csv(run.root / "plan.csv", plan)
            cohort = Cohort(rounds[0].prepared, foreseen.cases, [], None, [])
            trained = Trained(rounds, cohort, run, build_executor(cfg))
            steps = explain_run(composed, foreseen, kept, partial(explain_finish, trained))
        print_steps(steps)
        costs = foresee(rounds, foreseen, trained.executor.workers)
        console.print("\n".join(costs), markup=False)
        return {"plan": plan, "steps": steps, "costs": costs}
    with _leading(rounds) as leads:
        if not leads:
            return {"plan": [], "table": []}
        journal = Journal(run.root / "journal" / "configurations.jsonl")
        sound = _check(rounds, journal)
        with lock(run.root):
            for known in sound:
                journal.record(*known)
            remove_partial(run.root)
            remove_partial(run.root / "baselines", below=True)
            record_environment(run.root, cfg)
            return _run(cfg, rounds, run, finish)


def _check(rounds: Sequence[RoundSettings], journal: Journal) -> list[tuple]:
    """Refuse rounds that cannot be trained; returns what to note of those that can, each looked into once."""
    sound: list[tuple] = []
    for number, item in enumerate(rounds):
        if item.is_frozen:
            continue
        planned = graph.planned_before(rounds, number)
        inputs = {t.key: t.checkpoint for t in graph.present_teachers(item, list(planned))}
        models = {name: plain_config(r.config.model) for name, r in planned.items()}
        known = str(item.name), inputs, {**plain_config(item.config), "planned": models}
        if not journal.is_current(*known):
            from flare.rounds.train import check_configuration  # torch: only where it has to be

            check_configuration(item, planned)
            sound.append((*known, {}))
    return sound


def _run(
    cfg: DictConfig, rounds: Sequence[RoundSettings], run: RunFolder, finish: Callable[[Trained], Results]
) -> dict[str, Any]:
    """Prepare once, then round after round, then the table."""
    cohort = prepare_cohort(cfg)
    plan = graph.plan_rounds(rounds, cohort.cases)
    graph.print_plan(plan)
    write_csv(run.root / "plan.csv", plan)
    failures = list(cohort.failures)
    started = time.monotonic()
    with closing(build_executor(cfg)) as executor, naming(failures):
        for number, item in enumerate(rounds):
            spent = time.monotonic() - started
            left = f", about {spent / number * (len(rounds) - number) / 60:.0f} min left" if number else ""
            log.info("round %s, %d of %d%s", item.name, number + 1, len(rounds), left)
            failures += run_round(item, cohort, executor)
        results = finish(Trained(rounds, cohort, run, executor))
    report_failures([*failures, *results.failures], "iterate")
    return {"plan": plan, "table": results.table}


def run_round(
    settings: RoundSettings, cohort: Cohort, executor: Executor, *, is_alone: bool = False
) -> list[Outcome]:
    """Label, train and validate one round; what is done and unchanged is left alone.

    A round that `is_alone` is trained by itself, from where `ckpt_path` says. Returns the cases that failed;
    stops as `stop_on_faults` does.
    """
    intensity = cohort.require_intensity()
    folder = settings.folder
    with lock(folder.root), place(lambda: f"round {settings.name or 'all'}"):
        remove_partial(folder.root, below=True)
        whole = resuming.whole_training(folder)
        if settings.is_frozen and whole is not None:
            log.info("round %s is frozen: it stays as it was trained", settings.name)
            resuming.make_current(whole)
            return finish_round(settings, cohort.cases, executor)
        training = build_training_set(settings, cohort.cases, executor)
        key = resuming.training_key(settings.training, training.key)
        known = None if is_alone else resuming.find_training(folder, key)
        if known is not None and resuming.is_trained(known):
            resuming.make_current(known)
        else:
            from flare.rounds.train import train_round  # torch, Lightning: only where there is work

            if whole is not None:
                tell_again("train", resuming.why_again(whole, settings.training, training.parts))
            executor.close()  # its processes would wait through the whole training, with their memory
            train_round(settings, training, cohort.cases, intensity)
        return [*training.failures, *finish_round(settings, cohort.cases, executor)]
