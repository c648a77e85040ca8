"""How label maps are merged, and by whom pseudo labels were made; read without what merging needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import read_label_map
from flare.core.classes import TARGETS, ClassList
from flare.core.errors import FLAG, NOT_NEGATIVE, SHARE, choice
from flare.runs.folders import plain_config

FORMAT = 1  # raised when the rules or the sidecar change, so that labels merged before are redone
CHOICES = {
    "targets": choice(*TARGETS),
    "rule": choice("paper", "gt_first"),
    "dilation_mm": NOT_NEGATIVE,
    "tumor_inside_fraction": SHARE,
    "constrain_unlabeled": FLAG,
}


@dataclass(frozen=True)
class MergeRules:
    """The choices of a merge, named as their keys in `labels`.

    Args:
        targets: `organs`, `tumor` or `organs_tumor`; a tumor-only round takes the ground truth alone.
        rule: `paper` or `gt_first`.
        dilation_mm: Radius of the ball by which a tumor is dilated to find the organs that bear it.
        tumor_inside_fraction: Share of a pseudo tumor's shell that must be organ for it to be kept.
        constrain_unlabeled: Whether pseudo tumors are constrained in cases without ground truth too.

    Raises:
        FlareError: For a value that cannot be, with its key.
    """

    targets: str
    rule: str
    dilation_mm: float
    tumor_inside_fraction: float
    constrain_unlabeled: bool

    def __post_init__(self) -> None:
        for key, rule in CHOICES.items():
            rule.require(f"labels.{key}", getattr(self, key))


@dataclass(frozen=True)
class PseudoSource:
    """Who made the pseudo labels: the round and the checkpoint of a teacher, as far as they are known."""

    round: str | None = None
    checkpoint_sha256: str | None = None

    @property
    def name(self) -> str:
        """How tables call it: `mo@1a2b3c4d5e6f`, or `pseudo`; sidecars hold the whole hash."""
        if self.checkpoint_sha256 is None:
            return self.round or "pseudo"
        return f"{self.round or 'checkpoint'}@{self.checkpoint_sha256[:12]}"

    def to_config(self) -> dict[str, Any]:
        """Plain values, as sidecars hold them."""
        return {"kind": "teacher", **asdict(self)}


@dataclass(frozen=True)
class MergeSettings:
    """How the maps of a cohort are read and merged; plain values, for jobs as well.

    Args:
        classes: The class list.
        label_map: Renumbering of the annotations' ids; predictions have ours.
        rules: How to merge.
    """

    classes: ClassList
    label_map: dict[str, int] | None
    rules: MergeRules

    @classmethod
    def from_config(cls, cfg: DictConfig, labels: DictConfig) -> MergeSettings:
        """Read `classes` and `data.label_map`, and the rules: `cfg.labels`, or `cfg` of `merge_labels.py`."""
        classes = ClassList.from_config(cfg.classes)
        rules = MergeRules(**{key: labels[key] for key in CHOICES})
        return cls(classes, read_label_map(plain_config(cfg.data.label_map), classes), rules)

    def identity(self) -> dict[str, Any]:
        """What decides, beside the maps, what a merge gives."""
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, Any]:  # asked for each of thousands of cases
        return {
            "classes": self.classes.to_config(),
            "label_map": self.label_map,
            "format": FORMAT,
            "rules": asdict(self.rules),
        }
