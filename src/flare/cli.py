"""Console commands: the scripts of the checkout, composed from the rooms, with `conf/` packaged."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flare.core.classes import ClassList
from flare.core.errors import CONF as CONF
from flare.runs.door import entry

if TYPE_CHECKING:
    from flare.rounds.score import Results, Trained

# script -> module and function that does its work, imported when it runs
WORK = {
    "prepare": ("flare.prepare.cohort", "prepare"),
    "train": ("flare.rounds.iterate", "train"),
    "infer": ("flare.cli", "infer_cases"),
    "merge_labels": ("flare.rounds.label", "merge"),
    "evaluate": ("flare.evaluation.scores", "evaluate"),
    "iterate": ("flare.cli", "iterate_rounds"),
}
# as above, of `python -m flare.<command>`
MODULES = {
    "convert": ("flare.convert.foreign", "main"),
    "dashboard": ("flare.dashboard", "main"),
    "export": ("flare.inference.export", "main"),
    "plan": ("flare.rounds.fit_plan", "main"),
    "plan_data": ("flare.prepare.proposal", "main"),
    "sweeps": ("flare.sweeps.__main__", "main"),
}


def infer_cases(cfg: DictConfig) -> dict[str, Any]:
    """Segment images as `inference.predict.infer`; with `inference.measure=true` write tables 6 and 7."""
    from flare.evaluation.published import shows_published
    from flare.evaluation.tables import write_efficiency
    from flare.inference.predict import infer

    has_paper = shows_published(cfg, ClassList.from_config(cfg.classes))
    return infer(cfg, partial(write_efficiency, has_paper=has_paper))


def iterate_rounds(cfg: DictConfig, overrides: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the rounds, then the baselines; write table and report, publish the table and show it.

    Takes, returns and refuses what `rounds.iterate` does, and an unknown name in `baselines` before any work.
    """
    from flare.baselines import predictors
    from flare.core import class_files, paths
    from flare.evaluation.rendering import show
    from flare.report import comparison, page
    from flare.report.facts import ReportSettings
    from flare.rounds.iterate import iterate
    from flare.rounds.protocol import write_protocol
    from flare.rounds.score import write_ablation

    paths.settle_paths(cfg)
    cfg = class_files.own_classes(cfg)
    predictors.check_baselines(cfg.baselines)

    def finish(trained: "Trained") -> "Results":
        settings = ReportSettings.from_config(cfg)
        baselines = {name: partial(predictors.predict_baseline, name, trained) for name in cfg.baselines}
        write_protocol(trained.rounds, trained.run.root / "table2", has_paper=settings.has_paper)
        results = write_ablation(trained, baselines)
        page.write_report(settings, trained, results)
        comparison.publish_table(cfg, trained.run, results.table)
        if results.table:
            show(comparison.mean_table(results.table, settings.classes, settings.data))
        return results

    def explain(trained: "Trained") -> str:
        as_started = cfg.copy()
        as_started.dry_run = False
        return page.explain_report(ReportSettings.from_config(as_started), trained)

    return iterate(cfg, overrides, finish, explain)


def run(script: str) -> Any:
    """Compose `conf/<script>.yaml` with the command line and do the work of the script or command."""
    return entry(script, *(WORK | MODULES)[script], "objective" if script == "train" else None)


# the console commands, see `[project.scripts]`
prepare, train, infer, merge_labels, evaluate, iterate = (partial(run, script) for script in WORK)
export = partial(run, "export")
