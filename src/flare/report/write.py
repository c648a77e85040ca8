"""The step that makes `report.html`, left out when nothing that it shows has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flare.executor import Executor
from flare.files import config_hash, sha256, stat_key
from flare.journal import Journal
from flare.prepare.cohort import Cohort
from flare.records import public_config
from flare.rounds import Round
from flare.runs import RunFolder

if TYPE_CHECKING:
    from flare.ablation import Results

FORMAT = 5  # raised when the page changes, so that pages made before are made again


def write_report(
    cfg: DictConfig,
    rounds: Sequence[Round],
    cohort: Cohort,
    run: RunFolder,
    results: Results,
    executor: Executor,
) -> Path:
    """Make the page of a run, or find it made.

    Args:
        cfg: Configuration of `iterate`.
        rounds: The rounds, trained, in the order in which they ran.
        cohort: The prepared cohort.
        run: The run's folder; gets `report.html` and `figures/`.
        results: The ablation table and the cases that failed.
        executor: Where cases are compared and drawn.

    Returns:
        The page.
    """
    truth = _truth_folder(cfg)
    outputs = {"page": run.root / "report.html", "overview": run.root / "figures" / "overview.png"}
    journal = Journal(run.root / "journal" / "report.jsonl")
    inputs: dict[str, Path | str] = {"run": config_hash(_state(cfg, rounds, cohort, run, truth))}
    config = {
        "format": FORMAT,
        "config": public_config(cfg),
        "rounds": [public_config(r.cfg) for r in rounds],
        "failed": sorted((f.case_id, str(f.error)) for f in results.failures),
    }
    if not journal.is_current("report", inputs, config):
        from flare.report.build import (
            build_report,
        )  # matplotlib and jinja2: only where there is a page to make

        build_report(cfg, rounds, cohort, run, results, executor, truth=truth, **outputs)
        journal.record("report", inputs, config, outputs)
    return outputs["page"]


def _state(
    cfg: DictConfig, rounds: Sequence[Round], cohort: Cohort, run: RunFolder, truth: Path | None
) -> dict[str, Any]:
    """What the page is made from: small files by their content, volumes by the journals that made them."""
    split = cfg.data.scoring.split
    patterns = (
        "training.csv",
        "environment.json",
        "labels/provenance.csv",
        "journal/*.jsonl",
        f"{split}/journal.jsonl",
        f"{split}/metrics.csv",
    )
    paths = [run.root / name for name in ("environment.json", "plan.csv", "table5.csv")]
    paths += [p for r in rounds for name in patterns for p in sorted(run.round(r.name).root.glob(name))]
    paths.append(cohort.folder.index)
    found: dict[str, Any] = {str(p): sha256(p) for p in paths if p.exists()}
    return found | ({} if truth is None else {str(truth): stat_key(truth)})


def _truth_folder(cfg: DictConfig) -> Path | None:
    """Complete labels of the training cases, which only a made-up cohort has; never trained on."""
    folder = None if cfg.data.root is None else Path(str(cfg.data.root)).expanduser() / "truth"
    return folder if folder is not None and folder.is_dir() else None
