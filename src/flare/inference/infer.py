"""Segment files and folders: the body of `infer.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.classes import ClassList
from flare.core.errors import POSITIVE, FlareError, check_values, given_paths, several
from flare.core.files import write_csv
from flare.core.geometry import Spacing
from flare.core.volumes import find_images, unique_cases
from flare.inference.predict import Row, predict_cases
from flare.inference.settings import InferenceSettings
from flare.runs.folders import lock, named_run
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome, report_failures
from flare.runs.work import build_executor

log = logging.getLogger(__name__)
JOURNAL = Path("journal") / "inference.jsonl"
CSV = "inference.csv"


@dataclass(frozen=True)
class Request:
    """What `infer.py` is asked for.

    Attributes:
        source: One file, a DICOM folder, or a folder to search.
        output: Folder of the segmentations.
        checkpoint: The network.
        classes: The class list, which has to be the checkpoint's.
        settings: How to predict.
        round: The round that the checkpoint has to be of, if one is chosen.
        spacing_mm: The spacing that it then has to have.
    """

    source: Path
    output: Path
    checkpoint: Path
    classes: ClassList
    settings: InferenceSettings
    round: str | None
    spacing_mm: Spacing

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Request:
        """Read the configuration of `infer`.

        Raises:
            FlareError: If a value means nothing, a path is missing, the output would overwrite the input, or
                the checkpoint does not fit.
        """
        check_values(cfg, {"data.spacing_mm": several(3, POSITIVE)})
        settings = InferenceSettings.from_config(cfg)
        source, output = (path.resolve() for path in given_paths(cfg, "input", "output"))
        if not source.exists():
            raise FlareError(f"input={cfg.input}: no such file or folder")
        if output.exists() and not output.is_dir():
            raise FlareError(f"output={cfg.output}: is a file; expected a folder")
        if output in (source, source.parent if source.is_file() else source):
            raise FlareError(f"output={cfg.output}: is where the input lies; expected another folder")
        if cfg.checkpoint is None and cfg.round.name is None:
            raise FlareError(
                "checkpoint: not given; expected checkpoint=<file.ckpt>, or round=<name> of this run"
            )
        checkpoint = Path(cfg.checkpoint or named_run(cfg).round(cfg.round.name).last)
        if cfg.checkpoint is None and not checkpoint.exists():
            raise FlareError(
                f"round={cfg.round.name}: {checkpoint} is not there; "
                f"run `python train.py name={cfg.name} round={cfg.round.name}` first"
            )
        spacing = tuple(float(size) for size in cfg.data.spacing_mm)
        classes = ClassList.from_config(cfg.classes)
        found = cls(source, output, checkpoint, classes, settings, cfg.round.name, spacing)  # type: ignore[arg-type]
        found.check_checkpoint()
        return found

    def check_checkpoint(self) -> None:
        """Refuse a checkpoint that does not fit.

        The class list always has to agree; round and spacing only where a round is chosen, since a checkpoint
        otherwise brings its own.

        Raises:
            FlareError: Naming the key, what the checkpoint has and what was expected.
        """
        from flare.runs.checkpoints import load_checkpoint  # torch: only once there is work

        checkpoint = load_checkpoint(self.checkpoint)
        theirs, ours = _told(checkpoint.class_list), _told(self.classes)
        if theirs != ours:
            raise FlareError(
                f"checkpoint={self.checkpoint}: its classes are {theirs}; "
                f"the configuration (classes=) has {ours}"
            )
        for key, found, wanted in (
            ("round", checkpoint.round, self.round),
            ("data.spacing_mm", checkpoint.spacing_mm, self.spacing_mm),
        ):
            if self.round is not None and found != wanted:
                raise FlareError(f"checkpoint={self.checkpoint}: has {key}={found}; expected {wanted}")


def infer(cfg: DictConfig, tabulate: Callable[[Sequence[Row], Path], object] | None = None) -> dict[str, Any]:
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
    request = Request.from_config(cfg)
    output = request.output
    images, refused = unique_cases(
        [path for path in find_images(request.source) if output not in path.resolve().parents]
    )
    if not images and not refused:
        raise FlareError(
            f"input={request.source}: holds no image (.nii, .nii.gz, .nrrd, .mha) and no DICOM series"
        )
    log.info("%d cases to segment", len(images))
    with lock(output):
        done = predict_cases(
            request.checkpoint,
            images,
            output,
            settings=request.settings,
            executor=build_executor(cfg),
            journal=Journal(output / JOURNAL),
        )
        if done.rows:
            # measured cases have columns of their own
            write_csv(output / CSV, done.rows, list(dict.fromkeys(key for row in done.rows for key in row)))
        if request.settings.measure and tabulate is not None:
            tabulate(done.rows, output)
    twice = [Outcome(case, error=reason) for case, reason in refused.items()]
    report_failures([*twice, *done.failures], "infer")
    return {"output": str(output), "cases": done.rows}


def _told(classes: ClassList) -> str:
    """List ids and names."""
    return ", ".join(f"{entry.id} {entry.name}" for entry in classes.entries)
