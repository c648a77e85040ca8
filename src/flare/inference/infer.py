"""Segment files and folders: the body of `infer.py`, and how a round's teacher predicts its cases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.checks import given_paths
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import write_csv
from flare.core.limits import check_values
from flare.core.volumes import find_images, unique_cases
from flare.inference.predict import predict_cases
from flare.inference.settings import InferenceSettings
from flare.runs.folders import lock, named_run
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome, report_failures
from flare.runs.work import build_executor

log = logging.getLogger(__name__)
JOURNAL = Path("journal") / "inference.jsonl"
CSV = "inference.csv"


def infer(
    cfg: DictConfig, tabulate: Callable[[Sequence[dict[str, Any]], Path], object] | None = None
) -> dict[str, Any]:
    """Segment what `input` names into the folder `output`.

    Cases already done with the same input, checkpoint and settings are left alone. `inference.csv` beside the
    segmentations says how each came about; with `inference.measure=true` also what it cost.

    Args:
        cfg: Configuration of the script `infer`.
        tabulate: With `inference.measure=true` gets the rows and the folder, which is still locked.

    Returns:
        `output` and one row per case as in `inference.csv`.

    Raises:
        FlareError: If the configuration is refused, before any work; or, after the other cases are done, if
            some case failed.
    """
    check_values(cfg)
    settings = InferenceSettings.from_config(cfg)
    source, output = _folders(cfg)
    checkpoint = _checkpoint_path(cfg)
    check_checkpoint(cfg, checkpoint)
    images, refused = unique_cases(
        [path for path in find_images(source) if output not in path.resolve().parents]
    )
    if not images and not refused:
        raise FlareError(f"input={source}: holds no image (.nii, .nii.gz, .nrrd, .mha) and no DICOM series")
    log.info("%d cases to segment", len(images))
    with lock(output):
        done = predict_cases(
            checkpoint,
            images,
            output,
            settings=settings,
            executor=build_executor(cfg),
            journal=Journal(output / JOURNAL),
        )
        if done.rows:
            # measured cases have columns of their own
            write_csv(output / CSV, done.rows, list(dict.fromkeys(key for row in done.rows for key in row)))
        if settings.measure and tabulate is not None:
            tabulate(done.rows, output)
    twice = [Outcome(case, error=reason) for case, reason in refused.items()]
    report_failures([*twice, *done.failures], "infer")
    return {"output": str(output), "cases": done.rows}


def _folders(cfg: DictConfig) -> tuple[Path, Path]:
    """Read `input` and `output`; refuse what cannot be, or would overwrite its own input."""
    source, output = (path.resolve() for path in given_paths(cfg, "input", "output"))
    if not source.exists():
        raise FlareError(f"input={cfg.input}: no such file or folder")
    if output.exists() and not output.is_dir():
        raise FlareError(f"output={cfg.output}: is a file; expected a folder")
    if output in (source, source.parent if source.is_file() else source):
        raise FlareError(f"output={cfg.output}: is where the input lies; expected another folder")
    return source, output


def _checkpoint_path(cfg: DictConfig) -> Path:
    """Take the named checkpoint, or the last one of the named round in this run."""
    if cfg.checkpoint is not None:
        return Path(cfg.checkpoint)
    if cfg.round.name is None:
        raise FlareError(
            "checkpoint: not given; expected checkpoint=<file.ckpt>, or round=<name> of this run"
        )
    path = named_run(cfg).round(cfg.round.name).last
    if not path.exists():
        raise FlareError(
            f"round={cfg.round.name}: {path} is not there; "
            f"run `python train.py name={cfg.name} round={cfg.round.name}` first"
        )
    return path


def check_checkpoint(cfg: DictConfig, path: Path) -> None:
    """Refuse a checkpoint that does not fit the configuration.

    The class list always has to agree; round and spacing only where a round is chosen, since a checkpoint
    otherwise brings its own.

    Args:
        cfg: Composed configuration.
        path: The checkpoint.

    Raises:
        FlareError: Naming the key, what the checkpoint has and what was expected.
    """
    from flare.runs.checkpoints import load_checkpoint  # torch: only once there is work

    checkpoint = load_checkpoint(path)
    theirs, ours = _classes(checkpoint.class_list), _classes(ClassList.from_config(cfg.classes))
    if theirs != ours:
        raise FlareError(
            f"checkpoint={path}: its classes are {theirs}; the configuration (classes=) has {ours}"
        )
    if cfg.round.name is None:
        return
    for key, found, wanted in (
        ("round", checkpoint.round, cfg.round.name),
        ("data.spacing_mm", tuple(checkpoint.spacing_mm), tuple(float(size) for size in cfg.data.spacing_mm)),
    ):
        if found != wanted:
            raise FlareError(f"checkpoint={path}: has {key}={found}; expected {wanted}")


def _classes(classes: ClassList) -> str:
    """List ids and names."""
    return ", ".join(f"{entry.id} {entry.name}" for entry in classes.entries)
