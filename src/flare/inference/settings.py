"""Everything that can be chosen about inference, checked before any work."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from flare.core.checks import DEFAULTS, Checks
from flare.core.errors import SHARE, FlareError, Rule, check_values, optional, rules_of
from flare.models.names import chosen_networks

log = logging.getLogger(__name__)
ENGINES = ("torch", "auto", "openvino", "onnxruntime", "tensorrt")
PLAIN = [("torch", "auto"), ("torch", "32")]  # what runs everywhere


@cache
def say_once(text: str) -> None:
    """Warn once a process."""
    log.warning(text)


def _builds_an_engine(name: Any) -> bool:
    """Whether a name is one of ours, or that of something that can be imported and called."""
    try:
        return name in ENGINES or callable(get_method(str(name)))
    except Exception:  # whatever an import may raise
        log.debug("engine=%s", name, exc_info=True)
        return False


# the last part of a key is the field's name
BODY_RULES = rules_of("inference.body")
OVERLAP = Rule(lambda value: SHARE.holds(value) and value < 1, "a fraction from 0 to below 1")
RULES = rules_of("inference") | {
    "inference.overlap": OVERLAP,
    "inference.plane_overlap": optional(OVERLAP),
    "inference.device": Rule(
        lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)) is not None, "auto, cpu or cuda"
    ),
    "engine": Rule(_builds_an_engine, f"{', '.join(ENGINES)}, or the dotted name of a factory"),
}
SECTION = Rule(lambda value: isinstance(value, Mapping), "a section")
NAMES = Rule(
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "a list of dotted names",
)


@dataclass(frozen=True)
class BodyRule:
    """Thresholds of the body mask: what lies above may be body, and a smaller body counts as none.

    Sheets thinner than twice the radius of the in-plane opening, as a table's, come off.
    """

    threshold_hu: float = -500
    opening_mm: float = 6
    minimum_ml: float = 100

    def __post_init__(self) -> None:
        for key, rule in BODY_RULES.items():
            rule.require(key, getattr(self, key.rpartition(".")[2]))


@dataclass(frozen=True)
class InferenceSettings:
    """How a case is predicted, by default as the paper does; plain values, the same in every process.

    A value that is none of the choices or out of range is refused, with its key.
    """

    name: str = "paper"  # window schedule: `paper`, `flare22`, `dense` or `fast`
    # size of the windows along Z, Y, X as factors of the patch, rounded up to what the network takes; None: 1
    window: tuple[float, float, float] | None = None
    overlap: float = 0.5  # fraction by which windows overlap along z (`dense`: every axis)
    plane_overlap: float | None = None  # of evenly spread windows in plane; None: as the schedule places them
    adaptive: bool = False  # whether most windows are looked at only where a decision is open
    flips_where: str = "all"  # windows that are flipped, too: `all`, or those with `open` decisions
    # a decision is open where the two best classes are as near as this, or two windows disagree
    open_margin: float = 0.5
    open_share: float = 0.01  # share of a window's voxels, of those that it sees best, that must be open
    average: str = "probabilities"  # what is averaged over flips and windows: `probabilities` or `logits`
    centre: str = "image"  # what in-plane windows are centred on: `image` or `body`
    extend: bool = False  # whether in-plane windows are added until the body is covered
    tta: str = "tta4"  # flips: `none`, `tta4` or `tta8`
    restore: str = "trilinear"  # way back to the original grid: `trilinear`, `nnunet` or `nearest`
    engine: str = "torch"  # what runs the network: one of `ENGINES`, or the dotted name of a factory
    memory_mb: float = 3000  # bound on the memory of the process that segments, see `expected_bytes`
    precision: str = "auto"  # `32`, `bf16`, `16`, or `auto`: half precision where hardware computes in it
    body: BodyRule = BodyRule()  # thresholds of the body mask
    interpolation: str | None = None  # of images: `linear`, `cubic` or `nnunet`; None as for the training
    # whose largest component alone is kept: `fitted`, of the organs that a round's fit names, and only in
    # pseudo labels, `organs`, of every organ always, or `none`, of none ever
    components: str = "fitted"
    measure: bool = False  # whether the efficiency of each case is measured, one case at a time
    device: str = "auto"  # `cpu`, `cuda`, or `auto`: a GPU if this process sees one
    networks: tuple[str, ...] = ()  # dotted names that a checkpoint may build beside our networks and MONAI's
    checks: Checks = DEFAULTS  # what becomes of doubtful files
    confidence: bool = False  # whether the probability of each voxel's label is kept; for steps that use it
    plan: str = ""  # the stored plan that these settings were taken from, as `inference.csv` names it

    def __post_init__(self) -> None:
        for key, rule in RULES.items():
            rule.require(key, getattr(self, key.rpartition(".")[2]))
        object.__setattr__(self, "precision", str(self.precision))  # YAML reads 32 as a number
        object.__setattr__(self, "window", self.window and tuple(self.window))
        if self.adaptive and self.name == "flare22":
            raise FlareError("inference.adaptive=true: inference=flare22 has its own rule; expected false")

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "InferenceSettings":
        """Read `inference.*`, `tta`, `restore`, `engine` and whose networks to trust from a configuration."""
        check_values(cfg, {"allow": NAMES})
        inference = cfg["inference"]
        SECTION.require("inference.body", inference["body"])
        given = [f"inference.{key}" for key in (*inference, *(f"body.{k}" for k in inference["body"]))]
        for key in given:
            if key not in (*RULES, *BODY_RULES, "inference.body"):
                raise FlareError(f"{key}: no such key, nothing would read it; expected one of conf/inference")
        values = {key.rpartition(".")[2]: OmegaConf.select(cfg, key) for key in RULES}
        own = dict[str, Any](networks=chosen_networks(cfg), checks=Checks.from_config(cfg))
        found = cls(**values, body=BodyRule(**inference["body"]), **own)
        is_asked = found.engine in ENGINES and (found.engine, found.precision) not in PLAIN
        if found.device.startswith("cuda") or is_asked:
            # torch: only where the machine is to be asked
            from flare.inference.engines import choose_device
            from flare.inference.runtimes import choose_engine, require_engine

            device = choose_device(found.device)
            if is_asked:
                require_engine(choose_engine(found.engine, device), found.precision, device)
        return found

    def tell_flips(self, mirror_axes: Sequence[int]) -> None:
        """Say, once a process, that flips are left out along which a network's training mirrors nothing."""
        left, most = len(mirror_axes), 3
        if self.tta == "none" or left == most:
            return
        maps, asked = (1 + n if self.tta == "tta4" else 2**n for n in (left, most))
        told = "without mirroring, so nothing is flipped, as with tta=none"
        if mirror_axes:
            axes = ", ".join("zyx"[axis] for axis in sorted(mirror_axes))
            told = f"with mirroring along {axes} alone, so {maps} maps are averaged instead of {asked}"
        say_once(f"tta={self.tta}: the network is trained {told}")

    def identity(self) -> dict[str, Any]:
        """Give what decides the result, as plain values: all but place, memory, costs and trust."""
        return dict(self._identity)

    @property
    def asks_what_is_open(self) -> bool:
        """Whether open decisions say which windows are looked at, or flipped."""
        return self.adaptive or (self.flips_where == "open" and self.tta != "none")

    @cached_property
    def _identity(self) -> dict[str, Any]:  # asked for each of thousands of cases
        outside = ["memory_mb", "device", "measure", "networks", "confidence", "plan"]
        # what came later: where it decides nothing, what was done without it stands
        later = ("window", "plane_overlap", "adaptive", "flips_where")
        outside += [key for key in later if getattr(self, key) == getattr(InferenceSettings, key)]
        outside += [] if self.asks_what_is_open else ["open_margin", "open_share"]
        return {key: value for key, value in asdict(self).items() if key not in outside}
