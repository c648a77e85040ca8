"""Rules that select pseudo labels: which are masked, weighed or dropped.

A score from 0 to 255 says how far the label of a voxel, or of a class in a case, is to be trusted: the
teacher's confidence, or its agreement with another map. No rule touches what came from the ground truth.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from flare.core.errors import SHARE, build_part, choice
from flare.merging.maps import table
from flare.merging.provenance import GROUND_TRUTH, from_teacher

SIZE = 256  # of class ids, and of scores
OTHERS = {"confidence": "confidence", "round_disagreement": "previous", "flip_disagreement": "unflipped"}
Counts = list[list[int]]  # class id, score, how many pseudo labels have it, how many of those are right


def histogram(labels: np.ndarray, scores: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Count voxels of a mask by class id and score, both uint8, `(256, 256)`; plane by plane, for memory."""
    total = np.zeros(SIZE * SIZE, dtype=np.int64)
    for ids, values, chosen in zip(labels, scores, where, strict=True):
        total += np.bincount(ids[chosen].astype(np.uint16) * SIZE + values[chosen], minlength=SIZE * SIZE)
    return total.reshape(SIZE, SIZE)


def fit(counts: Sequence[Counts], right: float) -> dict[int, int]:
    """Choose for each class the score from which on its pseudo labels are right often enough.

    It is the lowest that maximises, over the labels from it on, right ones - `right` x all (ours). So of the
    labels in any range of scores that ends below it at most that share is right, and in any that begins with
    it at least that share. 256, which no label has, is the threshold of a class that is never right enough.
    """
    gains: dict[int, np.ndarray] = {}
    for c, score, number, good in (entry for case in counts for entry in case):
        gains.setdefault(c, np.zeros(SIZE + 1))[score] += good - right * number
    return {c: int(np.cumsum(gain[::-1])[::-1].round(6).argmax()) for c, gain in sorted(gains.items())}


class Judged:
    """Selects by a score and a threshold a class; a value that cannot be is refused, with its key.

    Args:
        by: `confidence`, or the agreement with the previous round's teacher (`round_disagreement`) or with
            the same network without mirroring (`flip_disagreement`).
        action: `ignore` masks voxels below the threshold. `weight` and `drop` judge the classes of a case, by
            mean confidence or Dice: its weight is the share of them that reach their threshold, or it is
            dropped if that is below `least`. In a case with ground truth, which is never left out, both mask
            the classes that do not.
        right: Share of pseudo labels above a threshold that must be right on validation cases, see `fit`.
        least: As above.
        threshold: From 0 to 1, for every class, instead of a fit.
    """

    def __init__(self, by: str, action: str, right: float, least: float, threshold: float | None) -> None:
        choice(*OTHERS).require("labels.select.by", by)
        choice("ignore", "weight", "drop").require("labels.select.action", action)
        for key, value in {"right": right, "least": least, "threshold": threshold or 0}.items():
            SHARE.require(f"labels.select.{key}", value)
        self.other, self.action, self.right, self.least = OTHERS[by], action, right, least
        self.fixed = None if threshold is None else math.ceil(threshold * 255)
        self.needs = ("pseudo", self.other, *(["thresholds"] if threshold is None else []))

    def __call__(
        self, case: str, labels: np.ndarray, provenance: Mapping[str, Any], **given: Any
    ) -> tuple[float, np.ndarray | None]:
        """Judge a case, see `Selection`; without the other map, as in a first round, everything stays."""
        pseudo, other = given["pseudo"], given[self.other]
        if pseudo is None or other is None:
            return 1.0, None
        limits = np.full(SIZE, self.fixed or 0)
        for c, limit in (given.get("thresholds") or {}).items():
            limits[int(c)] = limit
        own = from_teacher(labels, pseudo, provenance)
        mask = own & (self.scores(pseudo, other) < limits[labels])
        if self.action == "ignore" or GROUND_TRUTH in provenance["sources"]:
            return 1.0, mask
        present, failed = (table(labels[voxels])[1:].sum() for voxels in (own, mask))
        share = 1 - failed / max(present, 1)
        return float(share if self.action == "weight" else share >= self.least), None

    def scores(self, pseudo: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The score of each voxel, or for `weight` and `drop` that of its class in the case."""
        is_sure = self.other == "confidence"
        scores = other if is_sure else 255 * (pseudo == other).astype(np.uint8)
        if self.action == "ignore":
            return scores
        whole = np.ones_like(pseudo, dtype=bool)
        counts = histogram(pseudo, scores, whole)
        size = counts.sum(1)
        beside = size if is_sure else histogram(other, scores, whole).sum(1)
        return (2 * counts @ np.arange(SIZE) / np.maximum(size + beside, 1)).round().astype(np.uint8)[pseudo]

    def count(self, truth: np.ndarray, where: np.ndarray, **given: Any) -> Counts:
        """Tell for `fit` how right the pseudo labels of an annotated case are, where that can be told."""
        pseudo, other = given["pseudo"], given[self.other]
        if other is None:
            return []
        scores = self.scores(pseudo, other)
        number, good = (histogram(pseudo, scores, mask) for mask in (where, where & (pseudo == truth)))
        return [[int(c), int(s), int(number[c, s]), int(good[c, s])] for c, s in np.argwhere(number)]


class Flare22:
    """The rule of FLARE22's winner: pure pseudo labels that changed most over the last rounds are dropped.

    A case's uncertainty is the number of voxels in which a round's map differs from the one before, divided
    by the foreground of the later: the mean over the last two such steps, or one where there is no more. Of
    the round's cases without ground truth the share `drop` with the highest is dropped (theirs: 76 of 2000).

    Reference: Huang et al., "Revisiting nnU-Net for iterative pseudo labeling and efficient sliding window
    inference"; github.com/Ziyan-Huang/FLARE22, `select.ipynb` and section 2 of the README.
    """

    needs = ("pseudo", "previous", "earlier")

    def __init__(self, drop: float) -> None:
        SHARE.require("labels.select.drop", drop)
        self.drop = drop

    def __call__(self, case: str, labels: np.ndarray, provenance: Mapping[str, Any], **given: Any) -> float:
        """Keep the case until all are ranked."""
        return 1.0

    def uncertainty(self, provenance: Mapping[str, Any], **given: Any) -> float | None:
        """By how much a case is to be distrusted; None for one that is not to be ranked."""
        maps: list[np.ndarray] = [given[name] for name in self.needs if given[name] is not None]
        if GROUND_TRUTH in provenance["sources"] or len(maps) < 2:
            return None
        steps = [(new != old).sum() / max(int((new > 0).sum()), 1) for new, old in pairwise(maps)]
        return float(np.mean(steps))

    def dropped(self, uncertainty: Mapping[str, float]) -> set[str]:
        """The cases to drop, of all that were ranked."""
        ranked = sorted(uncertainty, key=lambda case: (-uncertainty[case], case))
        return set(ranked[: round(self.drop * len(ranked))])


def built(settings: Mapping[str, Any] | None) -> Any:
    """The selection of `labels.select`, built once a process."""
    return _built(json.dumps(settings))


@lru_cache(maxsize=1)
def _built(text: str) -> Any:
    return build_part(json.loads(text), "labels.select")
