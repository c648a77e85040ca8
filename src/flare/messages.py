"""Lightning's messages that a user of a training cannot act upon."""

from __future__ import annotations

import logging
import warnings

HIDDEN_WARNINGS = (
    # patches are prepared by `data.workers`; on a machine of few cores the training needs the rest
    ".*does not have many workers.*",
    # its csv is overwritten when a round resumes; the table that lasts is training.csv
    ".*Experiment logs directory .* exists and is not empty.*",
    # the folder of a round exists before its training does
    ".*Checkpoint directory .* exists and is not empty.*",
    # a CPU was asked for
    ".*GPU available but not used.*",
    # then a step is logged by no logger; the epoch is
    ".*is smaller than the logging interval.*",
    # validation scores are gathered from all processes before they are logged
    ".*It is recommended to use `self.log.*sync_dist=True.*",
    # raised within Lightning by its own use of torch
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


def hide_messages() -> None:
    """Hide warnings that a user cannot act upon, and Lightning's notes on hardware and services."""
    for message in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
