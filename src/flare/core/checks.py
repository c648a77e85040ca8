"""What is doubtful in a file, though it can be read: refused or warned of, as `data.checks` says."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from flare.core.errors import BadFileError, CaseError, Rule, check_values, rules_of

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
VOXEL_MM, EXTENT_MM = (0.05, 20), (10, 3000)  # of a CT of a human (ours)
ROUNDING = 1e-6  # of a size that a header holds in single precision
NEAR_INTEGER = 1e-3  # a label value further from a whole number is none (ours)
SAMPLES = 2**20  # voxels that percentiles are taken of
SOFT_HU = (-100, 200)
INTENSITY = "data.intensity_check"
RULES = rules_of("checks") | {
    # YAML reads a bare `off` as false
    INTENSITY: Rule(lambda value: value is False or value in ("warn", "refuse", "off"), "warn, refuse or off")
}


class DoubtfulFileError(BadFileError):
    """A file that one of the checks refuses."""

    def __init__(self, check: str, problem: str) -> None:
        super().__init__(problem)
        self.check = check


@dataclass(frozen=True)
class Checks:
    """What becomes of a file that is doubtful: `refuse`, or `warn` and go on (all of it ours)."""

    forms: str = "refuse"  # a NIfTI header whose sform, qform and pixdim differ; with `warn` the sform counts
    direction: str = "refuse"  # a header silent on how its axes lie in the body; with `warn` they are ITK's
    size: str = "refuse"  # voxels or extents of no human CT; with `warn` a wrong unit is taken as millimetres
    labels: str = "warn"  # label values within 1e-3 of whole numbers; with `warn` they are rounded
    tolerance_mm: float = 1e-3  # how far corner voxels of two grids that count as equal may be apart
    intensity: str = "warn"  # values that are no HU; `off` as well

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Checks":
        """Read `data.checks` and `data.intensity_check`; refuse a value that means nothing."""
        check_values(cfg, RULES)
        given: Mapping[str, Any] = OmegaConf.select(cfg, "data.checks") or {}
        intensity = OmegaConf.select(cfg, INTENSITY, default="warn") or "off"
        return cls(**{str(key): value for key, value in given.items()}, intensity=intensity)

    def judge(self, check: str, case: str, problem: str, counts: str) -> None:
        """Refuse a file for a problem by a `DoubtfulFileError`, or warn of it and say what counts."""
        if getattr(self, check) == "refuse":
            raise DoubtfulFileError(check, f"{problem}; data.checks.{check}=warn goes on: {counts}")
        log.warning("case %s: %s; %s (data.checks.%s=warn)", case, problem, counts, check)

    def require_size(self, size: Sequence[int], spacing: Sequence[float], case: str) -> None:
        """Judge voxels of a size (mm) and their number along x, y, z."""
        if is_unlikely(size, spacing):
            self.judge("size", case, f"has {_sizes(size, spacing)}", "they are taken as they are")

    def tell_more(self, case: str) -> None:
        """Judge a file that holds at least a plane of voxels more than its header claims."""
        problem = "holds more voxels than its header claims: its size or type may be wrong"
        self.judge("size", case, problem, "the rest is passed over")

    def unit_mm(
        self, unit: float, name: str, size: Sequence[int], spacing: Sequence[float], case: str
    ) -> float:
        """Millimetres in the unit of a header, or 1 where the sizes say that the unit was written wrongly."""
        scaled = [unit * s for s in spacing]
        if unit == 1 or not is_unlikely(size, scaled) or is_unlikely(size, spacing):
            return unit
        problem = (
            f"has the unit {name}, by which it has {_sizes(size, scaled)}, while {list(spacing)} mm may be"
        )
        self.judge("size", case, problem, "they are taken as millimetres")
        return 1.0

    def doubt(self, array: "np.ndarray", case: str) -> str:
        """Say what is doubtful about values of a CT, if asked; what is refused is a `CaseError`."""
        cause = None if self.intensity == "off" else unlikely_cause(array)
        if cause is None:
            return ""
        import numpy as np

        low, middle, high = array.min(), np.median(_sample(array)), array.max()
        told = f"doubtful intensities, {low:g} to {high:g} with a median of {middle:g}: {cause}"
        if self.intensity == "refuse":
            raise CaseError(case, f"{told}; expected HU ({INTENSITY}=warn goes on)")
        return told


def is_unlikely(size: Sequence[int], spacing: Sequence[float]) -> bool:
    """Whether no CT of a human has so many voxels of such sizes (mm)."""
    extents = [count * step for count, step in zip(size, spacing, strict=True)]
    pairs = ((spacing, VOXEL_MM), (extents, EXTENT_MM))
    return not all(
        low * (1 - ROUNDING) <= mm <= high * (1 + ROUNDING) for values, (low, high) in pairs for mm in values
    )


def _sizes(size: Sequence[int], spacing: Sequence[float]) -> str:
    """Voxels and extents in words, with what is expected."""
    voxels = " x ".join(f"{s:.4g}" for s in spacing)
    extents = " x ".join(f"{n * s:.4g}" for n, s in zip(size, spacing, strict=True))
    return (
        f"voxels of {voxels} mm and extents of {extents} mm (x, y, z); expected "
        f"{VOXEL_MM[0]} to {VOXEL_MM[1]} mm and {EXTENT_MM[0]} to {EXTENT_MM[1]} mm"
    )


def _sample(array: "np.ndarray") -> "np.ndarray":
    """Evenly spread values of an array."""
    return array.reshape(-1)[:: max(1, array.size // SAMPLES)]


def unlikely_cause(array: "np.ndarray") -> str | None:
    """Say what values `(Z, Y, X)` likely are that are no HU of a patient; None if they may be HU (ours).

    A crop without air, a narrow window and padding far below air are HU as well.
    """
    import numpy as np  # here: a cohort that is complete is recognised without arrays

    sample, lowest, highest = _sample(array), float(array.min()), float(array.max())
    if lowest == highest:
        return "one value everywhere"
    is_padding = sample == lowest
    if lowest <= -1000 and 0.2 < is_padding.mean() < 1:
        sample = sample[~is_padding]
    low, middle, high = np.percentile(sample, [0.5, 50, 99.5])

    def share(first: float, last: float) -> float:
        return float(np.mean((sample >= first) & (sample <= last)))

    if any(share(2**bits - 1124, 2**bits) > 0.03 for bits in (12, 16, 32)) and low >= 0:
        return "likely negative HU that were wrapped in an unsigned type"
    if high < -300:
        is_twice = share(-2148, -1900) > 0.01 and share(SOFT_HU[0] - 1024, SOFT_HU[1] - 1024) > 0.01
        return "likely HU - 1024, the rescale intercept was applied twice" if is_twice else "air, no tissue"
    if highest - lowest <= 50:
        return "likely scaled to a small range, as 0 to 1 or by a standard deviation"
    if lowest >= 0 and highest <= 255:
        return "likely an export of a grey window in 8 bits"
    if lowest >= -128 and highest <= 127 and share(lowest, lowest) + share(highest, highest) > 0.2:
        return "likely an export of a grey window in 8 bits"
    if lowest >= 0 or middle > 400 or (low > -50 and high > 500) or high > 4500:
        is_offset = share(SOFT_HU[0] + 1000, SOFT_HU[1] + 1024) > 0.05
        offset = "likely HU + 1024, the rescale intercept was left out"
        return offset if is_offset else "likely another modality, as MR, or other values than HU"
    return None


DEFAULTS = Checks()
_CHOSEN: ContextVar[Checks] = ContextVar("checks", default=DEFAULTS)


def current_checks() -> Checks:
    """Give the checks that readers follow where they are called."""
    return _CHOSEN.get()


@contextmanager
def reading(checks: Checks) -> Iterator[None]:
    """Let all files that are read in the block be judged by these checks.

    They are no argument of the readers: every room reads, and all of them must follow one choice.
    """
    token = _CHOSEN.set(checks)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
