"""What decides a training patch, as plain values that were checked: size, batch, sampling, augmentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import Rule, check_values, parts, rules_of
from flare.core.geometry import AXES, Shape, Spacing

RULES = rules_of("data") | {
    "data.augmentation.mirror.axes": Rule(
        lambda axes: isinstance(axes, list) and all(a in AXES for a in axes), "a list of some of z, y, x"
    ),
    "data.augmentation.extra": parts("transforms such as {_target_: torchio.RandomGhosting}"),
}


class CaseArrays(NamedTuple):
    """Where a training case lies in the cache: int16 HU, and uint8 class ids of any round, or `IGNORE`.

    `weight` is its share of the patches, relative to the other cases' weights; `known` are the ids of the
    classes whose place its labels tell, None if they tell all.
    """

    image: Path
    label: Path
    weight: float = 1.0
    known: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PatchSettings:
    """How the training patches of a round are chosen and augmented; sizes are along Z, Y, X."""

    patch_size: Shape
    spacing_mm: Spacing
    batch_size: int  # patches of a batch, in each process that trains
    oversample_foreground: float  # share of a batch centred on foreground; nnU-Net 0.33
    # share of those centred on the tumor where the case has one (ours; with 0 it is one class among others)
    tumor_fraction: float
    workers: int  # processes that prepare patches; with 0 the training does it itself
    augmentation: Mapping[str, Any]
    # class id of each output of the network, 0 first; other classes become background
    outputs: tuple[int, ...]
    tumor: int | None
    seed: int

    @classmethod
    def from_config(cls, cfg: DictConfig, classes: ClassList) -> "PatchSettings":
        """Read `data`, `labels.targets` and `seed`; refuse a value out of range, naming the key."""
        check_values(cfg, RULES)
        data: Any = OmegaConf.to_container(cfg.data, resolve=True)
        return cls(
            patch_size=tuple(data["patch_size"]),
            spacing_mm=tuple(map(float, data["spacing_mm"])),  # type: ignore[arg-type]
            **{name: data[name] for name in ("batch_size", "oversample_foreground", "tumor_fraction")},
            **{name: data[name] for name in ("workers", "augmentation")},
            outputs=classes.outputs(cfg.labels.targets),
            tumor=classes.tumor,
            seed=cfg.seed,
        )

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes along which the network sees flipped patches, 0 is z."""
        mirror = self.augmentation["mirror"]
        return tuple(AXES.index(axis) for axis in mirror["axes"]) if mirror["probability"] > 0 else ()
