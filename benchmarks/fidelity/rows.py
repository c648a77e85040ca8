"""One row of the table: what was compared with whom, how much it differs, and how much it may."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FLARE_DATA", ROOT.parent / "shared" / "data"))
ABDOMEN = DATA / "abdomen_3mm" / "abdomen_0000.nii.gz"
ABDOMEN_LABELS = DATA / "abdomen_3mm" / "abdomen_totalsegmentator.nii.gz"

NNUNET1, NNUNET2 = "nnunet", "nnunetv2"
BATCHGENERATORS, BATCHGENERATORS2 = "batchgenerators", "batchgeneratorsv2"
SURFACE_DISTANCE = "surface-distance-based-measures"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what: What was compared.
        peer: A package, or the rule that was typed by hand.
        measured: The difference, in words where a number would mislead.
        allowed: What it may be; empty where the difference is only stated.
        passed: Whether it is within that; None where it is only stated.
    """

    what: str
    peer: str
    measured: str
    allowed: str = ""
    passed: bool | None = None

    @property
    def with_version(self) -> str:
        """The peer with its version."""
        try:
            return f"{self.peer} {importlib.metadata.version(self.peer)}"
        except importlib.metadata.PackageNotFoundError:
            return self.peer


def limited(what: str, peer: str, difference: float, limit: float) -> Row:
    """A row that passes up to a limit; a difference that is no number does not."""
    return Row(what, peer, f"{difference:.2g}", f"<= {limit:g}", bool(difference <= limit))


def stated(what: str, peer: str, measured: str) -> Row:
    """A row that states a difference."""
    return Row(what, peer, measured)


def counted(what: str, peer: str, wrong: int, total: int) -> Row:
    """A row that passes if nothing differs."""
    return Row(what, peer, f"{wrong} of {total} differ", "0", wrong == 0)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm of the peer's."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
