"""How one case is scored: by the challenge's rules, in HD95 and volumes, and by scores of the user's own.

`evaluation.extra` names the user's own. Each is called as `score(reference, prediction, spacing_mm=,
classes=)` and gives named numbers. The maps are `(Z, Y, X)` uint8 class ids on one grid, `spacing_mm` is
along Z, Y, X, and `classes` is the `ClassList`. A case without a prediction gives a map of zeros. None, or
what is not finite, is not scored.
"""

import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from scipy import ndimage

from flare.core.cases import read_label_map
from flare.core.classes import ClassList, LabelClass
from flare.core.errors import FlareError, build_part, choice, parts
from flare.core.geometry import Box, Spacing
from flare.evaluation.published import shows_published
from flare.evaluation.surfaces import distances_mm, robust_hausdorff_mm, surface, surface_dice
from flare.runs.work import failed_share

MEASURES = ("DSC", "NSD")
PROTOCOLS = ("flare23", "corrected", "present")
LOWEST_DSC = 0.2  # below it the challenge's NSD is 0
EXTRA = "evaluation.extra"
PARTS = parts("scores such as {_target_: my.module.Score}, or with _partial_: true for a function")
Part = Mapping[str, Any]
Maps = tuple[np.ndarray, np.ndarray]  # reference and prediction


@dataclass(frozen=True)
class ScoreSettings:
    """How predictions are scored; plain values."""

    classes: ClassList
    protocol: str = "flare23"  # or `corrected`, or `present`
    label_map: Mapping[Any, int] | None = None  # `data.label_map`, applied to the references
    extra: tuple[Part, ...] = ()  # scores of the user's own, each as its part of the configuration
    details: bool = False  # whether to write `details.csv` and `lesions.csv` and give confidence intervals
    # cases of which a reference without a tumor says, whatever the protocol, that there is none
    answered: tuple[str, ...] = ()
    max_failed: float = 1.0  # share of the cases that may fail by no fault of their files
    has_paper: bool = False  # whether the paper's figures stand beside the scores

    @classmethod
    def from_config(cls, cfg: DictConfig, key: str) -> "ScoreSettings":
        """Read the settings, the protocol at `key`; build each score of the user's own once, before any work.

        A value that is none of the choices, and a score that cannot be built or called, are refused.
        """
        protocol = OmegaConf.select(cfg, key)
        choice(*PROTOCOLS).require(key, protocol)
        classes = ClassList.from_config(cfg.classes)
        label_map = read_label_map(cfg.data.label_map, classes)
        evaluation: Any = OmegaConf.to_container(cfg.evaluation, resolve=True)
        parts = evaluation["extra"]
        PARTS.require(EXTRA, parts)
        for number, part in enumerate(parts):
            if not callable(build_part(OmegaConf.create(part), f"{EXTRA}[{number}]")):
                raise FlareError(f"{EXTRA}[{number}]: {part['_target_']} gives nothing that can be called")
        has_paper = shows_published(cfg, classes, protocol)
        return cls(classes, protocol, label_map, tuple(parts), False, (), failed_share(cfg), has_paper)

    def identity(self) -> dict[str, Any]:
        """What decides the scores, as plain values."""
        own = {"protocol": self.protocol, "label_map": self.label_map, "extra": list(self.extra)}
        tumors = {} if self.classes.tumor is None else {"answered": self.answered}
        return {"classes": self.classes.to_config(), **own, **tumors}


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in one case; None where the protocol does not score it, or what was not asked for.

    DSC and NSD are from 0 to 1, with four digits. `one_slice`: the class is scored between the reference's
    first and last slice, and has only one. Volumes are of the whole mask, HD95 is within the scored slices.
    """

    dsc: float | None
    nsd: float | None
    one_slice: bool = False
    reference_ml: float | None = None
    prediction_ml: float | None = None
    hd95_mm: float | None = None  # None as well if one side is empty

    @property
    def volume_error_ml(self) -> float | None:
        """How much larger the prediction is than the reference."""
        if self.prediction_ml is None or self.reference_ml is None:
            return None
        return self.prediction_ml - self.reference_ml


def score_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: Spacing,
    classes: ClassList,
    protocol: str = "flare23",
    details: bool = False,
    threads: int | None = None,
) -> dict[str, ClassScore]:
    """Score one prediction: short class name -> its scores, in the order of ids.

    Both maps are `(Z, Y, X)` uint8 class ids in stored voxel order, on one grid; other shapes, or protocols,
    are refused. Both empty scores 1, one empty 0, asked of the whole volume. Classes with `slice_range` are
    then cut to the reference's slices along the first array axis, the stored z: `flare23` leaves the last
    slice out, as the official script does to the digit, `corrected` keeps it, `present` does too and scores
    only classes that the reference has. With `details` HD95 and volumes are given, too. `threads` classes are
    scored at once, by default OMP_NUM_THREADS, or all cores.

    Reference: JunMa11/FLARE, FLARE23/FLARE23_DSC_NSD_Eval.py.
    """
    if protocol not in PROTOCOLS:
        raise FlareError(f"protocol: expected one of {list(PROTOCOLS)}, given {protocol!r}")
    if reference.shape != prediction.shape:
        raise FlareError(f"reference and prediction differ in size: {reference.shape} and {prediction.shape}")
    highest = max(classes.ids)
    boxes = [ndimage.find_objects(array, max_label=highest) for array in (reference, prediction)]

    def one(c: LabelClass) -> ClassScore:
        own = [of_side[c.id - 1] for of_side in boxes]
        return _score_class((reference, prediction), own, c, spacing_mm, protocol, details)

    def size(c: LabelClass) -> int:
        found = [box for of_side in boxes if (box := of_side[c.id - 1]) is not None]
        return sum(math.prod(s.stop - s.start for s in box) for box in found)

    # the largest first, so that threads end together
    order = sorted(classes.entries, key=size, reverse=True)
    # OpenMP's variable may list a number for each level of nesting
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    allowed = int(first) if first.isdigit() else 0
    with ThreadPoolExecutor(threads or allowed or os.cpu_count() or 1) as pool:
        scores = dict(zip((c.short for c in order), pool.map(one, order), strict=True))
    return {c.short: scores[c.short] for c in classes.entries}


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None of nothing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def rounded(value: float | None) -> float | None:
    """Four digits, as numpy rounds (by scaling), which the official script's values went through."""
    return None if value is None else float(np.round(value, 4))


def _score_class(
    sides: Maps, boxes: list[Box | None], c: LabelClass, spacing_mm: Spacing, protocol: str, details: bool
) -> ClassScore:
    """Score a class, given reference and prediction and the box of each, None where it is absent."""
    ml = float(np.prod(spacing_mm)) / 1000
    volumes: dict[str, Any] = {}
    if details:
        for key, array, box in zip(("reference_ml", "prediction_ml"), sides, boxes, strict=True):
            volumes[key] = 0.0 if box is None else float(np.count_nonzero(array[box] == c.id) * ml)
    box_r, box_p = boxes
    if box_r is None and protocol == "present":
        return ClassScore(None, None, **volumes)
    if box_r is None or box_p is None:
        both = float(box_r is box_p)
        return ClassScore(both, both, **volumes)
    z, y, x = (slice(min(r.start, p.start), max(r.stop, p.stop)) for r, p in zip(box_r, box_p, strict=True))
    first, last = box_r[0].start, box_r[0].stop - 1
    if c.slice_range:
        z = slice(first, last if protocol == "flare23" else last + 1)
    r, p = (array[z, y, x] == c.id for array in sides)
    dsc, nsd, hd95 = _compare(r, p, c.tolerance_mm, spacing_mm, details)
    return ClassScore(rounded(dsc), rounded(nsd), c.slice_range and first == last, hd95_mm=hd95, **volumes)


def _compare(
    r: np.ndarray, p: np.ndarray, tolerance_mm: float, spacing_mm: Spacing, details: bool
) -> tuple[float, float, float | None]:
    """DSC, NSD and, if asked, HD95 of two masks of one box."""
    in_r, in_p = np.count_nonzero(r), np.count_nonzero(p)
    if not in_r or not in_p:
        both = float(in_r == in_p)
        return both, both, None
    dsc = 2 * np.count_nonzero(r & p) / (in_r + in_p)
    if dsc < LOWEST_DSC and not details:
        return dsc, 0.0, None
    start, end = surface(r, spacing_mm), surface(p, spacing_mm)
    to_p, to_r = (
        distances_mm(a, b, spacing_mm=spacing_mm, threshold_mm=tolerance_mm, beyond=details)
        for a, b in ((start, end), (end, start))
    )
    nsd = 0.0 if dsc < LOWEST_DSC else surface_dice(to_p, to_r, start, end, tolerance_mm)
    return dsc, nsd, robust_hausdorff_mm(to_p, to_r, start, end) if details else None


def extra_scores(
    reference: np.ndarray, prediction: np.ndarray, *, spacing_mm: Spacing, settings: ScoreSettings
) -> dict[str, float | None]:
    """Score one case by every score of the user's own; two of one name are refused."""
    found: dict[str, float | None] = {}
    for number, part in enumerate(settings.extra):
        values = instantiate(part)(reference, prediction, spacing_mm=spacing_mm, classes=settings.classes)
        twice = sorted({"Name", *found} & values.keys())
        if twice:
            names = ", ".join(twice)
            raise FlareError(f"{EXTRA}[{number}]: gives {names}, which is taken; expected other names")
        found |= {k: None if v is None or not math.isfinite(v) else float(v) for k, v in values.items()}
    return found
