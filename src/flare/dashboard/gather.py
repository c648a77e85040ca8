"""What an ablation has left on disk: the curve of every training, and the table that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flare.errors import FlareError
from flare.evaluation.rendering import Cell, Column, Table, beside
from flare.files import read_csv
from flare.sweeps.jobs import Job, read_jobs
from flare.sweeps.table import compare, shown, varied

Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Ablation:
    """Trainings to compare, or jobs that trained nothing.

    Args:
        name: The experiment, which is the group of its runs on W&B.
        project: The W&B project that its configuration names, `flare` if none.
        entity: As `project`, or None.
        curves: Training -> its rows of `training.csv`, without empty cells; or job -> a row of its measures.
        tables: What compares them; empty if there is none yet.
        measures: What is shown of jobs that trained nothing; None for trainings.
    """

    name: str
    project: str
    entity: str | None
    curves: dict[str, Rows]
    tables: list[Table]
    measures: list[str] | None = None

    @property
    def is_trained(self) -> bool:
        """Whether these are trainings."""
        return self.measures is None

    @property
    def keys(self) -> list[str]:
        """Every key that some training has."""
        return list(dict.fromkeys(key for rows in self.curves.values() for row in rows for key in row))


def gather(run: Path) -> Ablation:
    """Read a run of rounds (`outputs/<name>`) or a sweep (`outputs/<name>/multirun/<time>`).

    Raises:
        FlareError: If nothing was trained there and no job has begun.
    """
    jobs = read_jobs(run)
    curves: dict[str, Rows] = {}
    names = {job.folder: " ".join(f"{k}={job.choices.get(k)}" for k in varied(jobs)) for job in jobs}
    folders = [(names[job.folder], run / job.folder) for job in jobs] or [("", run)]
    found = [(name, sorted(folder.glob("rounds/*/training.csv"))) for name, folder in folders]
    trained = [(name, path, len(paths) > 1) for name, paths in found for path in paths]
    if not trained:
        return _measured(run, jobs, names)
    for name, path, is_one_of_many in trained:
        label = f"{name} {path.parent.name}".strip() if is_one_of_many or not name else name
        curves[label] = [{k: float(v) for k, v in row.items() if v} for row in read_csv(path)]
    tables = [compare(jobs)] if jobs else _rounds(run / "table5.csv")
    return Ablation(*_group(trained[0][1].with_name("config.yaml")), curves, tables)


def _measured(run: Path, jobs: Sequence[Job], names: Mapping[str, str]) -> Ablation:
    """The jobs of a sweep of `infer` or `evaluate`, by what came out of them."""
    configs = [path for job in jobs if (path := run / job.folder / ".hydra" / "config.yaml").is_file()]
    if not configs:
        raise FlareError(
            f"run={run}: expected the folder of a run or of a sweep, found no training in it and no job"
        )
    curves = {names[job.folder]: [job.measures] for job in jobs if job.measures}
    return Ablation(*_group(configs[0]), curves, [compare(jobs)], shown(jobs))


def _group(path: Path) -> tuple[str, str, str | None]:
    """Name, project and entity that a configuration gives its runs."""
    config: Any = OmegaConf.load(path)
    wandb = (config.logger or {}).get("wandb") or {}
    return config.name, wandb.get("project") or "flare", wandb.get("entity")


def _rounds(path: Path) -> list[Table]:
    """Means of the ablation table, the paper's in brackets."""
    rows = read_csv(path) if path.exists() else []
    if not rows:
        return []
    keys = [key for key in rows[0] if key.startswith(("organ_mean_", "Lesion_", "Tumor_"))]
    columns = [Column("round"), Column("cases"), *(Column(k.replace("_", " "), "max") for k in keys)]
    body = [
        [
            Cell(row["round"]),
            Cell(row["cases"] or "-"),
            *(beside(_number(row[k]), _number(row.get(f"paper_{k}"))) for k in keys),
        ]
        for row in rows
    ]
    return [Table("Rounds, in percent, the paper's in brackets; best in bold", columns, body)]


def _number(text: str | None) -> float | None:
    return float(text) if text else None
