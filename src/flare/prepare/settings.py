"""What every step of one preparation shares, read from the configuration once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.checking import check_values
from flare.executor import Executor, build_executor, failed_share
from flare.labels import LabelSet
from flare.prepare.layout import PreparedFolder, prepared_folder
from flare.prepare.sources import read_label_map, read_sources

STORE_FORMAT = 1  # raised when what is cached changes, so that old caches are redone


@dataclass(frozen=True)
class Settings:
    """Settings of one preparation.

    Args:
        data: `cfg.data` as plain values.
        labels: The class list.
        label_map: Renumbering of foreign label files.
        folder: Where results go.
        executor: Where the work on cases runs.
        max_failed: Share of a step's cases that may fail by no fault of their files.
    """

    data: dict[str, Any]
    labels: LabelSet
    label_map: dict[str, int] | None
    folder: PreparedFolder
    executor: Executor
    max_failed: float

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Settings:
        """Read the groups `classes`, `data` and `executor`.

        Raises:
            FlareError: Before any work, if any value of the configuration means nothing.
        """
        check_values(cfg)
        data: dict[str, Any] = OmegaConf.to_container(cfg.data, resolve=True)  # type: ignore[assignment]
        labels = LabelSet.from_config(cfg.classes)
        label_map = read_label_map(data.get("label_map"), labels)
        read_sources(data.get("sources"), labels)
        return cls(data, labels, label_map, prepared_folder(cfg), build_executor(cfg), failed_share(cfg))

    @property
    def check_config(self) -> dict[str, Any]:
        """What decides, beside the files, how a check ends."""
        return {"classes": self.labels.ids, "label_map": self.label_map}

    @property
    def cache_config(self) -> dict[str, Any]:
        """What decides, beside the files, what is cached of a case."""
        arrays = {"spacing_mm": self.folder.spacing_mm, "interpolation": self.data["interpolation"]}
        return {**self.check_config, **arrays, "format": STORE_FORMAT}
