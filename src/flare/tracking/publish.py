"""The ablation table of a run for W&B, as an artifact; once, and again only when it has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flare.files import sha256
from flare.journal import Journal
from flare.runs import RunFolder

STEP = "table5"


def publish_table(cfg: DictConfig, run: RunFolder, table: Sequence[Mapping[str, Any]]) -> None:
    """Send `table5.csv`, `.md` and `.tex` to W&B, if that is a logger of the run.

    It goes into a run of its own, of job type `ablation` in the experiment's group, always the same.

    Args:
        cfg: Configuration of `iterate`; does nothing without `logger.wandb`.
        run: The run's folder.
        table: Rows of the table.
    """
    settings = (cfg.logger or {}).get("wandb")
    if settings is None or not table:
        return
    journal = Journal(run.root / "journal" / "tracking.jsonl")
    files = [run.root / f"table5{suffix}" for suffix in (".csv", ".md", ".tex")]
    inputs = {path.name: sha256(path) for path in files}
    config = {"project": settings.project, "entity": settings.entity, "group": settings.group}
    if journal.is_current(STEP, inputs, config):
        return
    run_id = journal.values(STEP)["run_id"] if STEP in journal else None
    chosen = OmegaConf.to_container(settings, resolve=True) | {"job_type": "ablation", "run_id": run_id}  # type: ignore[operator]
    logger = instantiate(chosen, save_dir=str(run.root / "logs"))
    with logger.running():
        logger.log_files(f"{cfg.name}-table5", "table", files, table)
        run_id = logger.run_id
    journal.record(STEP, inputs, config, {}, {"run_id": run_id})
