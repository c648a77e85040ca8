"""TensorBoard: the same numbers, slices and tables, in a folder of the round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flare.labels import LabelSet
from flare.report.overlays import paint
from flare.tracking.slices import Slice


class TensorBoardRun(TensorBoardLogger):
    """Lightning's logger of TensorBoard that shows cases as well."""

    @rank_zero_only
    def log_slices(self, key: str, slices: Sequence[Slice], labels: LabelSet, step: int) -> None:
        """Show slices with the reference (left) and the segmentation (right) painted over."""
        for s in slices:
            hu = s.grey.astype(np.float32) / 255 * 400 - 160
            sides = [paint(hu, classes, (1.0, 1.0), labels) for classes in (s.reference, s.segmentation)]
            picture = np.concatenate(sides, axis=1)
            self.experiment.add_image(f"{key}/{s.case}", picture, step, dataformats="HWC")

    @rank_zero_only
    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        text = "\n".join(
            "| " + " | ".join("" if c is None else str(c) for c in line) + " |" for line in lines
        )
        self.experiment.add_text(key, text, step)
