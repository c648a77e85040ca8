"""The command that compares the rounds of a run, or the jobs of a sweep: a page here, a report on W&B."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FLAG, FlareError, given_paths
from flare.core.files import read_csv
from flare.core.paths import settle_paths
from flare.evaluation.summary import read_scores
from flare.report.comparison import Comparison, Rows, mean_table, publish, write_comparison
from flare.runs.door import entry
from flare.sweeps.jobs import compare, read_jobs, shown, varied

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Make a dashboard as `conf/dashboard.yaml` and the command line say."""
    settle_paths(cfg)
    (run,) = given_paths(cfg, "run")
    FLAG.require("online", cfg.online)
    make_dashboard(run, output=Path(cfg.output), online=cfg.online, project=cfg.project, entity=cfg.entity)


def make_dashboard(
    run: Path, *, output: Path, online: bool, project: str | None = None, entity: str | None = None
) -> dict[str, Path]:
    """Write the dashboard of a run or sweep as files, and with `online` create it on W&B as well.

    Project and entity there are by default those that the run was logged to. Returns the files by suffix. A
    folder with nothing to show is refused, and so is what W&B refuses.
    """
    found = read_comparison(run)
    found = replace(found, project=project or found.project, entity=entity or found.entity)
    paths = write_comparison(found, output)
    log.info("wrote %s", paths["html"])
    if online and not found.is_trained:
        raise FlareError("online=true: only trainings are logged to W&B, and nothing was trained here")
    if online:
        log.info("created %s", publish(found))
    return paths


def read_comparison(run: Path) -> Comparison:
    """Read a run of rounds (`outputs/<name>`) or a sweep (`outputs/<name>/multirun/<time>`).

    Jobs without a training, as of `infer`, are compared by measures. A folder with neither is refused.
    """
    jobs = read_jobs(run)
    names = {job.folder: job.name(varied(jobs)) for job in jobs}
    folders = [(names[job.folder], run / job.folder) for job in jobs] or [("", run)]
    found = [(name, sorted(folder.glob("rounds/*/training.csv"))) for name, folder in folders]
    trained = [(name, path, len(paths) > 1) for name, paths in found for path in paths]
    configs = [path.with_name("config.yaml") for _, path, _ in trained]
    configs += [path for _, folder in folders if (path := folder / ".hydra" / "config.yaml").is_file()]
    if not trained and not (jobs and configs):
        expected = "expected the folder of a run or of a sweep"
        raise FlareError(f"run={run}: {expected}, found no training in it and no job")
    curves: dict[str, Rows] = {}
    for name, path, is_one_of_many in trained:
        label = f"{name} {path.parent.name}".strip() if is_one_of_many or not name else name
        curves[label] = [{k: float(v) for k, v in row.items() if v} for row in read_csv(path)]
    if not trained:
        curves = {names[job.folder]: [job.measures] for job in jobs if job.measures}
    config: Any = OmegaConf.load(configs[0])
    tables = [compare(jobs)] if jobs else []
    if not jobs and (rows := read_scores(run / "table5.csv", may_lack=True)):
        tables = [mean_table(rows, ClassList.from_config(config.classes), config.data.name)]
    wandb = (config.get("logger") or {}).get("wandb") or {}
    return Comparison(
        name=config.name,
        project=wandb.get("project") or "flare",
        entity=wandb.get("entity"),
        curves=curves,
        tables=tables,
        measures=None if trained else shown(jobs),
    )


if __name__ == "__main__":
    entry("dashboard", "flare.dashboard", "main")
