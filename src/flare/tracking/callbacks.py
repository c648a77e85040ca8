"""What trackers are shown of a validation: slices with masks, and a table of the cases."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from flare.cases import Case
from flare.tracking.slices import ShowsCases, Slice, cut_slice

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
            self.slices.append(cut_slice(batch.id, outputs, pl_module.labels))  # type: ignore[arg-type]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was kept."""
        if not self.slices:
            return
        for logger in showing(trainer):
            logger.log_slices(OVERLAYS, self.slices, pl_module.labels, trainer.global_step)  # type: ignore[arg-type]
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
