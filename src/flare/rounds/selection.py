"""The step between merging and training: a callable of anybody's weighs, drops or masks a case's labels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from flare.core.errors import FlareError, build_part


class Selection(Protocol):
    """What `labels.select` builds.

    It is built once in each process that makes labels, so it must decide by what it is given alone.
    """

    def __call__(
        self, case: str, labels: np.ndarray, provenance: Mapping[str, Any]
    ) -> float | tuple[float, np.ndarray | None]:
        """Judge the labels of one case.

        Args:
            case: The case id.
            labels: `(Z, Y, X)` uint8 class ids, merged, on the case's own grid.
            provenance: Where they came from, as `labels/<case>.json` says.

        Returns:
            How often training draws the case, relative to 1; 0 drops it. Or that and a mask, boolean and of
            the labels' shape, of the voxels that the loss leaves out.
        """
        ...


def select(
    settings: Mapping[str, Any] | None, case: str, labels: np.ndarray, provenance: Mapping[str, Any]
) -> tuple[float, np.ndarray | None]:
    """Let a selection judge one case.

    Args:
        settings: `labels.select`; None keeps every case as it is.
        case: As the arguments that follow, see `Selection`.
        labels: The merged labels.
        provenance: Where they came from.

    Returns:
        Weight, and mask or None.

    Raises:
        FlareError: If the selection gives anything else.
    """
    if settings is None:
        return 1.0, None
    found = _built(json.dumps(settings))(case, labels.copy(), provenance)
    weight, mask = found if isinstance(found, tuple) else (found, None)
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise FlareError(f"labels.select: expected a weight of 0 or more, given {weight!r} for {case}")
    if mask is not None and (mask.dtype != bool or mask.shape != labels.shape):
        given = f"{mask.dtype} {mask.shape}"
        raise FlareError(f"labels.select: expected a boolean mask {labels.shape}, given {given} for {case}")
    return float(weight), mask


@lru_cache(maxsize=1)
def _built(text: str) -> Selection:
    return build_part(json.loads(text), "labels.select")
