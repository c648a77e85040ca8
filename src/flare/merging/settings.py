"""What a cohort is merged with: the choices of `labels` (or of `merge_labels.py`), and who made the maps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flare.errors import FlareError
from flare.labels import TARGETS
from flare.merging.rules import RULES

SHORT_HASH = 12  # hex digits of a checkpoint's hash that name it in tables; sidecars hold all


@dataclass(frozen=True)
class MergeRules:
    """The choices of a merge, named as the arguments of `merge_labels`.

    Raises:
        FlareError: For a value that cannot be, with its key.
    """

    targets: str
    rule: str
    dilation_mm: float
    tumor_inside_fraction: float
    constrain_unlabeled: bool

    def __post_init__(self) -> None:
        for key, value, known in (("targets", self.targets, TARGETS), ("rule", self.rule, RULES)):
            if value not in known:
                raise FlareError(f"labels.{key}: expected one of {list(known)}, given {value!r}")
        if not 0 <= self.dilation_mm < float("inf"):
            raise FlareError(f"labels.dilation_mm: expected millimetres, 0 or more, given {self.dilation_mm}")
        if not 0 <= self.tumor_inside_fraction <= 1:
            given = self.tumor_inside_fraction
            raise FlareError(f"labels.tumor_inside_fraction: expected 0 to 1, given {given}")

    @classmethod
    def from_config(cls, cfg: Any) -> MergeRules:
        """Read `cfg.labels`, or the configuration of `merge_labels.py`, which has the same keys."""
        return cls(
            targets=str(cfg.targets),
            rule=str(cfg.rule),
            dilation_mm=float(cfg.dilation_mm),
            tumor_inside_fraction=float(cfg.tumor_inside_fraction),
            constrain_unlabeled=bool(cfg.constrain_unlabeled),
        )

    def to_config(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class PseudoSource:
    """Who made the pseudo labels.

    Args:
        round: The teacher's round; None where it is not known, as for plain folders.
        checkpoint_sha256: Hash of the teacher's checkpoint, or None.
    """

    round: str | None = None
    checkpoint_sha256: str | None = None

    @property
    def name(self) -> str:
        """How tables call it: `mo@1a2b3c4d5e6f`, or `pseudo`."""
        if self.checkpoint_sha256 is None:
            return self.round or "pseudo"
        return f"{self.round or 'checkpoint'}@{self.checkpoint_sha256[:SHORT_HASH]}"

    def to_config(self) -> dict[str, Any]:
        """Plain values, as sidecars hold them."""
        return {"kind": "teacher", **asdict(self)}
