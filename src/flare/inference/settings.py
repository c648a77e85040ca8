"""Everything that can be chosen about inference, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import DictConfig

from flare.core.limits import check_values
from flare.models.names import chosen_networks

GROUPS = ("inference", "tta", "restore", "engine")


@dataclass(frozen=True)
class BodyRule:
    """Thresholds of the body mask.

    Attributes:
        threshold_hu: What lies above may be body.
        opening_mm: Radius of the in-plane opening; sheets thinner than twice that, as a table's, come off.
        minimum_ml: A smaller body counts as none.
    """

    threshold_hu: float
    opening_mm: float
    minimum_ml: float


@dataclass(frozen=True)
class InferenceSettings:
    """How a case is predicted; plain values, hashable, the same in every process.

    Attributes:
        name: Window schedule: `paper`, `flare22`, `dense` or `fast`.
        overlap: Fraction by which windows overlap along z (`dense`: every axis).
        average: What is averaged over flips and windows: `probabilities` or `logits`.
        centre: What in-plane windows are centred on: `image` or `body`.
        extend: Whether in-plane windows are added until the body is covered.
        tta: Flips: `none`, `tta4` or `tta8`.
        restore: Way back to the original grid: `trilinear`, `nnunet` or `nearest`.
        memory_mb: Bound on the working memory of the way back.
        precision: `32`, `bf16`, `16`, or `auto`: half precision only where the hardware computes in it.
        body: Thresholds of the body mask.
        components: Whose largest component alone is kept: `fitted`, of the organs that a round's fit names,
            and only in pseudo labels, or `organs`, of every organ always.
        measure: Whether the efficiency of each case is measured, one case at a time.
        device: `cpu`, `cuda`, or `auto`: a GPU if this process sees one.
        networks: Dotted names that a checkpoint may build beside our networks and MONAI's.
    """

    name: str
    overlap: float
    average: str
    centre: str
    extend: bool
    tta: str
    restore: str
    memory_mb: float
    precision: str
    body: BodyRule
    components: str = "fitted"
    measure: bool = False
    device: str = "auto"
    networks: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, cfg: DictConfig | Mapping[str, Any]) -> InferenceSettings:
        """Read `inference.*`, `tta`, `restore`, `engine` and whose networks to trust from a configuration.

        Raises:
            FlareError: If a value is none of the choices or out of range, naming the key.
        """
        check_values(cfg, GROUPS)
        inference = cfg["inference"]
        return cls(
            name=inference["name"],
            overlap=float(inference["overlap"]),
            average=inference["average"],
            centre=inference["centre"],
            extend=bool(inference["extend"]),
            tta=cfg["tta"],
            restore=cfg["restore"],
            memory_mb=float(inference["memory_mb"]),
            precision=str(inference["precision"]),
            components=str(inference["components"]),
            measure=bool(inference["measure"]),
            networks=chosen_networks(cfg),
            body=BodyRule(**{key: float(value) for key, value in inference["body"].items()}),
        )

    def identity(self) -> dict[str, Any]:
        """Give what decides the result, as plain values: all but place, memory, costs and trust."""
        outside = ("memory_mb", "device", "measure", "networks")
        return {key: value for key, value in asdict(self).items() if key not in outside}
