"""Scores of the user's own, beside the challenge's: `evaluation.extra` names them.

A score is called as `score(reference, prediction, spacing_mm=, classes=)` and gives named numbers. The maps
are `(Z, Y, X)` uint8 class ids on one grid, `spacing_mm` is along Z, Y, X, and `classes` is the `ClassList`.
A case without a prediction gives a map of zeros. None, or what is not finite, is not scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError, Rule, build_part
from flare.core.files import write_csv
from flare.core.geometry import Spacing
from flare.evaluation.metrics import mean

KEY, CSV = "evaluation.extra", "extra_scores.csv"
Part = Mapping[str, Any]
Found = Mapping[str, "float | None"]
PARTS = Rule(
    lambda value: isinstance(value, list) and all(isinstance(x, dict) and "_target_" in x for x in value),
    "a list of scores such as {_target_: my.module.Score}, or with _partial_: true for a function",
)


def checked_parts(given: Any) -> tuple[Part, ...]:
    """Read `evaluation.extra`, building each score once, before any work.

    Raises:
        FlareError: If one cannot be built or called.
    """
    parts: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    PARTS.require(KEY, parts)
    for number, part in enumerate(parts):
        if not callable(build_part(OmegaConf.create(part), f"{KEY}[{number}]")):
            raise FlareError(f"{KEY}[{number}]: {part['_target_']} gives nothing that can be called")
    return tuple(parts)


def extra_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: Spacing,
    classes: ClassList,
    parts: Sequence[Part],
) -> dict[str, float | None]:
    """Score one case by every score of the user's own.

    Raises:
        FlareError: If two scores give the same name.
    """
    found: dict[str, float | None] = {}
    for number, part in enumerate(parts):
        values = instantiate(part)(reference, prediction, spacing_mm=spacing_mm, classes=classes)
        twice = sorted({"Name", *found} & values.keys())
        if twice:
            raise FlareError(
                f"{KEY}[{number}]: gives {', '.join(twice)}, which is taken; expected other names"
            )
        found |= {k: None if v is None or not math.isfinite(v) else float(v) for k, v in values.items()}
    return found


def write_extra_scores(scored: Mapping[str, Found], output: Path) -> dict[str, float | None]:
    """Write `extra_scores.csv`, one row a case, and give the means over the cases that are scored."""
    names = list(dict.fromkeys(name for found in scored.values() for name in found))
    write_csv(output / CSV, [{"Name": case, **found} for case, found in scored.items()], ["Name", *names])
    return {name: mean(found.get(name) for found in scored.values()) for name in names}
