"""Which run of a tracker a training is: kept in its checkpoints, so that it goes on in the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.errors import build_part
from flare.core.geometry import Volume, reorient_to_ras
from flare.core.pictures import WINDOW_HU, find_view
from flare.runs.checkpoints import read_weights_file
from flare.training.module import Segmented

KEY = "run_ids"  # entry of a Lightning checkpoint: name in `logger` -> id


class RunIds(Callback):
    """Adds the ids of the trackers' runs to every checkpoint.

    Args:
        loggers: By their names in the configuration; those with a `run_id` have one.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self.loggers = dict(loggers)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the ids."""
        ids = {name: getattr(logger, "run_id", None) for name, logger in self.loggers.items()}
        checkpoint[KEY] = {name: str(run_id) for name, run_id in ids.items() if run_id is not None}


def build_loggers(
    parts: Mapping[str, Mapping[str, Any]], folder: Path, ckpt_path: Path | None
) -> dict[str, Logger]:
    """Build the loggers of a training.

    Args:
        parts: Configuration of each, by name.
        folder: Where they write.
        ckpt_path: What the training resumes from; its runs are continued.

    Raises:
        FlareError: If one cannot be built, with its key.
    """
    known = {} if ckpt_path is None else read_weights_file(ckpt_path).get(KEY, {})
    ids = {name: {"run_id": known[name]} if name in known else {} for name in parts}
    return {
        name: build_part(part, f"logger.{name}", save_dir=str(folder), **ids[name])
        for name, part in parts.items()
    }


@dataclass(frozen=True)
class Slice:
    """A picture and its labels, the patient's right on the left.

    Args:
        case: The case id.
        grey: `(rows, columns)` uint8, soft-tissue window.
        reference: `(rows, columns)` uint8 class ids.
        segmentation: `(rows, columns)` uint8 class ids.
    """

    case: str
    grey: np.ndarray
    reference: np.ndarray
    segmentation: np.ndarray


@runtime_checkable
class ShowsCases(Protocol):
    """A logger that shows more than numbers."""

    def log_slices(self, key: str, slices: Sequence[Slice], classes: ClassList, step: int) -> None:
        """Show slices with their labels over them."""
        ...

    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""
        ...


def cut_slice(case: str, segmented: Segmented, classes: ClassList) -> Slice:
    """Cut a case where its tumor is largest, or else where most is labelled.

    Args:
        case: The case id.
        segmented: The case on its original grid.
        classes: The class list.
    """
    image = segmented["image"]
    ct, truth, ours = (
        reorient_to_ras(Volume(array, image.geometry))[0]
        for array in (image.array, segmented["reference"], segmented["segmentation"])
    )
    centre, box = find_view(truth, ours.array, classes)
    low, high = WINDOW_HU
    hu, reference, segmentation = (
        np.ascontiguousarray(np.flip(v.array[centre[0], box[1], box[2]])) for v in (ct, truth, ours)
    )
    grey = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1) * 255
    return Slice(case, np.rint(grey).astype(np.uint8), reference, segmentation)


OVERLAYS, CASES = "val/overlays", "val/cases"


def showing(trainer: pl.Trainer) -> list[ShowsCases]:
    """The trainer's loggers that show more than numbers, in the process that logs."""
    if not trainer.is_global_zero or trainer.sanity_checking:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, ShowsCases)]


def last_validation(trainer: pl.Trainer) -> int:
    """The epoch, from 0, whose end has the last validation; below 0 where there is none."""
    every = trainer.check_val_every_n_epoch or 1  # None: by steps, and so in any epoch
    return (trainer.max_epochs or 0) // every * every - 1


class Overlays(Callback):
    """Shows validation cases with masks, at the first validation, the last, and every few epochs between.

    Args:
        every_n_epochs: Epochs between two shows; there has to be a validation, see
            `trainer.check_val_every_n_epoch`.
        cases: How many cases are shown, always the same.
    """

    def __init__(self, every_n_epochs: int, cases: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.cases = cases
        self.shown: int | None = None
        self.slices: list[Slice] = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Case,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a slice of a case that is to be shown."""
        if len(self.slices) < self.cases and self._is_due(trainer) and showing(trainer):
            self.slices.append(cut_slice(batch.id, outputs, pl_module.classes))  # type: ignore[arg-type]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was kept."""
        if not self.slices:
            return
        for logger in showing(trainer):
            logger.log_slices(OVERLAYS, self.slices, pl_module.classes, trainer.global_step)  # type: ignore[arg-type]
        self.slices = []
        self.shown = trainer.current_epoch

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this validation is to be shown."""
        if self.shown is None or trainer.current_epoch == last_validation(trainer):
            return True
        return trainer.current_epoch - self.shown >= self.every_n_epochs

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must remember."""
        return {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the saved training was."""
        self.shown = state_dict["shown"]


class CaseTable(Callback):
    """Shows the scores of every validation case, class by class, after each validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the table."""
        scores: dict[str, dict[str, float]] = pl_module.scores  # type: ignore[assignment]
        keys = sorted({key for row in scores.values() for key in row})
        rows = [{"case": case} | {k: scores[case].get(k) for k in keys} for case in sorted(scores)]
        for logger in showing(trainer) if rows else []:
            logger.log_cases(CASES, rows, trainer.global_step)
