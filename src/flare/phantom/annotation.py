"""Label files as annotators leave them: complete, or a part of what is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flare.phantom.classes import CLASS_IDS, ORGANS, TUMOR

COMPLETE = "complete"  # all that is there
TUMOR_ONLY = "tumor_only"
HOLE = "tumor_with_host"  # tumor, its organ without the tumor's voxels, a few other organs
OTHERS = "tumor_with_others"  # tumor and organs that bear none
ORGANS_ONLY = "some_organs"  # a few organs; the tumor, if any, is in no class
ORGANS_FILLED = "some_organs_filled"  # a few organs drawn whole, over the tumor; no tumor class
STYLES = (COMPLETE, TUMOR_ONLY, HOLE, OTHERS, ORGANS_ONLY, ORGANS_FILLED)


def annotate(
    truth: np.ndarray,
    whole: np.ndarray,
    *,
    style: str,
    hosts: Sequence[str],
    order: Sequence[str],
    count: int,
) -> np.ndarray:
    """Make the label file of a case.

    Args:
        truth: `(Z, Y, X)` uint8, all classes.
        whole: The same before tumors were put in.
        style: One of `STYLES`.
        hosts: Organs that bear a tumor.
        order: All organs, those preferred first.
        count: How many organs the annotators drew, where the style leaves a choice.

    Returns:
        `(Z, Y, X)` uint8.
    """
    if style == COMPLETE:
        return truth
    others = [name for name in order if name not in hosts]
    bearing = [name for name in ORGANS if name in hosts]
    if style == TUMOR_ONLY:
        organs: list[str] = []
    elif style == HOLE:
        organs = [*bearing, *others[:count]]
    elif style == OTHERS:
        organs = others[:count]
    else:
        organs = [*bearing, *others][:count]
    source = whole if style == ORGANS_FILLED else truth
    drawn = [CLASS_IDS[name] for name in organs]
    if style in (TUMOR_ONLY, HOLE, OTHERS):
        drawn.append(CLASS_IDS[TUMOR])
    return np.where(np.isin(source, drawn), source, 0).astype(np.uint8)
