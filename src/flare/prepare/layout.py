"""Where a prepared cohort lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from flare.geometry import Spacing
from flare.journal import Journal


@dataclass(frozen=True)
class PreparedFolder:
    """Everything `prepare` leaves of one cohort.

    Args:
        root: `data.cache`.
        spacing_mm: Voxel size of the cached arrays along Z, Y, X.
    """

    root: Path
    spacing_mm: Spacing

    @property
    def index(self) -> Path:
        """The cases that can be used."""
        return self.root / "index.csv"

    @property
    def integrity(self) -> Path:
        """What was found wrong with which file."""
        return self.root / "integrity.csv"

    @property
    def label_analysis(self) -> Path:
        """Volumes of each class in each case, and the case's kind; a plot of it has the suffix .png."""
        return self.root / "label_analysis.csv"

    @property
    def statistics(self) -> Path:
        """Intensity statistics of the training cohort."""
        return self.root / "statistics.json"

    @property
    def arrays(self) -> Path:
        """Folder of the arrays at this spacing."""
        return self.root / ("spacing-" + "x".join(f"{s:g}" for s in self.spacing_mm))

    @property
    def seen(self) -> Path:
        """The paths that the last start saw."""
        return self.root / "journal" / "paths.json"

    def image(self, case_id: str) -> Path:
        """A case's image in the chunked store, int16 HU."""
        return self.arrays / "images" / f"{case_id}.b2nd"

    def labels(self, case_id: str) -> Path:
        """A case's ground truth in the chunked store, uint8 class ids."""
        return self.arrays / "labels" / f"{case_id}.b2nd"

    def histogram(self, case_id: str) -> Path:
        """A case's foreground intensities."""
        return self.arrays / "histograms" / f"{case_id}.npz"

    def journal(self, step: str, *, is_kept: bool = True) -> Journal:
        """What is done of one step: `analysis`, `check`, or `cache` (one a spacing)."""
        name = f"{step}-{self.arrays.name}" if step == "cache" else step
        return Journal(self.root / "journal" / f"{name}.jsonl", is_kept=is_kept)


def prepared_folder(cfg: DictConfig) -> PreparedFolder:
    """The prepared cohort that a configuration names (`data.cache`, `data.spacing_mm`)."""
    z, y, x = (float(size) for size in cfg.data.spacing_mm)
    return PreparedFolder(Path(str(cfg.data.cache)).expanduser().absolute(), (z, y, x))
