"""How label maps are merged, and by whom pseudo labels were made; read without what merging needs."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import read_label_map
from flare.core.classes import ClassList
from flare.core.errors import check_values, rules_of
from flare.runs.folders import plain_config

FORMAT = 1  # raised when the rules or the sidecar change, so that labels merged before are redone
RULES = rules_of("merging")


@dataclass(frozen=True)
class MergeRules:
    """The choices of a merge, named as their keys in `labels`; a value that cannot be is refused."""

    targets: str  # `organs`, `tumor` or `organs_tumor`; a tumor-only round takes the ground truth alone
    rule: str  # `paper` or `gt_first`
    dilation_mm: float  # radius of the ball by which a tumor is dilated to find the organs that bear it
    tumor_inside_fraction: float  # share of a pseudo tumor's shell that must be organ for it to be kept
    constrain_unlabeled: bool  # whether pseudo tumors are constrained in cases without ground truth too
    # what of a pseudo tumor is judged: a `component` stays or goes whole, by its shell; of it each `voxel`
    # stays that lies inside an organ of an earlier organ round's map, or of the hull
    tumor_inside: str = "component"

    def __post_init__(self) -> None:
        check_values({"labels": asdict(self)}, RULES)

    def to_config(self) -> dict[str, Any]:
        """Plain values; a key that came later is there where it is chosen, so that older journals hold."""
        later = {"tumor_inside": "component"}
        return {key: value for key, value in asdict(self).items() if later.get(key) != value}


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
    """How the maps of a cohort are read and merged; plain values, for jobs as well."""

    classes: ClassList
    label_map: dict[str, int] | None  # renumbering of the annotations' ids; predictions have ours
    rules: MergeRules

    @classmethod
    def from_config(cls, cfg: DictConfig, labels: DictConfig) -> "MergeSettings":
        """Read `classes` and `data.label_map`, and the rules: `cfg.labels`, or `cfg` of `merge_labels.py`."""
        classes = ClassList.from_config(cfg.classes)
        rules = MergeRules(**{f.name: labels[f.name] for f in fields(MergeRules)})
        return cls(classes, read_label_map(plain_config(cfg.data.label_map), classes), rules)

    @cached_property
    def identity(self) -> dict[str, Any]:  # asked for each of thousands of cases
        """What decides, beside the maps, what a merge gives."""
        rules = {"format": FORMAT, "rules": self.rules.to_config()}
        return {"classes": self.classes.to_config(), "label_map": self.label_map, **rules}
