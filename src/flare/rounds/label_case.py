"""The labels of one case in one go: predict, merge, select, cache. Runs in a worker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flare.core.cases import Case
from flare.core.errors import AwayError, CaseError, FlareError, build_part
from flare.core.geometry import Volume
from flare.core.volumes import read_labels
from flare.inference.predict import Row, load_predictor, made_from, segment_case, segmentation_path
from flare.merging.merge import merge_maps, merged_files, write_merged
from flare.merging.settings import PseudoSource
from flare.rounds.settings import LabelSettings
from flare.runs.folders import RoundFolder
from flare.runs.journal import Inputs, Journal, touch

FORMAT = 2  # raised when what is made of a case changes, so that labels made before are redone


@dataclass(frozen=True)
class Labeller:
    """What makes the pseudo labels of a case: a network, its hash, and its round, if that is known.

    Of the classes with the ids `components` only the largest component is kept, as was fitted on it.
    """

    checkpoint: Path
    digest: str
    round: str | None
    components: tuple[int, ...]

    @property
    def source(self) -> PseudoSource:
        """How provenance names it."""
        return PseudoSource(self.round, self.digest)


@dataclass(frozen=True)
class LabelJob:
    """All that labelling one case takes; plain values.

    Args:
        cached: Its image in the cache; None where that is not made from the image as it is now.
        cached_sha256: Its hash; empty without one.
        labeller: Who predicts it; None if the ground truth is taken alone.
        folder: Of the round.
    """

    case: Case
    cached: Path | None
    cached_sha256: str
    labeller: Labeller | None
    settings: LabelSettings
    folder: RoundFolder

    @property
    def files(self) -> dict[str, Path | str]:
        """What the user gave of the case."""
        found: dict[str, Path | str] = {"image": self.case.image}
        return found if self.case.label is None else {**found, "label": self.case.label}

    @property
    def inputs(self) -> Inputs:
        """What the labels are made from; where cached images change, their labels follow them."""
        return {**self.files, "cached": self.cached_sha256}

    @property
    def outputs(self) -> dict[str, Path]:
        """What is left beside the prediction, which outlives a merge that is refused."""
        found = merged_files(self.folder.labels, self.case.id)
        return found if self.cached is None else {**found, "cached": self.folder.cached(self.case.id)}

    @property
    def config(self) -> dict[str, Any]:
        """What else decides the labels."""
        own: dict[str, Any] = {"select": self.settings.select, "declared": self.case.annotated}
        own |= {"label_format": FORMAT, "label_interpolation": self.settings.interpolation}
        if self.labeller is not None:
            own |= {**self.known[1], "teacher": self.labeller.source.to_config()}
        return {**self.settings.merge.identity(), **own}

    @property
    def note(self) -> Journal:
        """The journal of its prediction alone: its worker writes it, and a merge that fails leaves it."""
        return Journal(self.folder.journal(f"predictions/{self.case.id}"))

    @property
    def known(self) -> tuple[Inputs, dict[str, Any]]:
        """What a prediction is made from, and what else decides it."""
        assert self.labeller is not None
        own = self.labeller
        return made_from(self.case.image, own.digest, self.settings.inference, own.components)

    @property
    def prediction(self) -> Path:
        """Where its prediction lies."""
        return segmentation_path(self.folder.predictions, self.case.id)

    def why_predict(self) -> str:
        """Say why its prediction must be made: it is not there, or not current; empty if it is."""
        return self.note.why(self.case.id, *self.known)


def label_case(job: LabelJob) -> dict[str, Any]:
    """Label one case: predict, merge with the ground truth, select, and cache what training reads.

    Maps are handed on in memory; the files of each step are left on the side.

    Returns:
        Plain values: `weight`, number of `ignored` voxels, the `prediction` as `inference.csv` has it, and
        whether training's labels were `cached`.

    Raises:
        CaseError: If a file is bad or the grids differ.
    """
    case, merge = job.case.id, job.settings.merge
    pseudo, row = (None, None) if job.labeller is None else _pseudo_labels(job, job.labeller)
    drawn = job.case.label
    truth = None if drawn is None else read_labels(drawn, merge.classes, merge.label_map, case)
    source = PseudoSource() if job.labeller is None else job.labeller.source
    labels, told = merge_maps(case, truth, pseudo, merge, declared=job.case.annotated, source=source)
    weight, ignore = select(job.settings.select, case, labels.array, told)
    write_merged(job.outputs, labels, told, merge.classes)
    if job.cached is not None:
        from flare.data.cache import cache_labels  # the store: only where there is work

        how = job.settings.interpolation
        place = job.outputs["cached"]
        cache_labels(labels, place, image=job.cached, case_id=case, interpolation=how, ignore=ignore)
    ignored = 0 if ignore is None else int(ignore.sum())
    return {"weight": weight, "ignored": ignored, "prediction": row, "cached": job.cached is not None}


def _pseudo_labels(job: LabelJob, labeller: Labeller) -> tuple[Volume, Row]:
    """A teacher's prediction: from its file where that is current, else made and noted."""
    case, journal, (inputs, config) = job.case.id, job.note, job.known
    path = job.prediction
    if not job.why_predict():
        return read_labels(path, job.settings.merge.classes, None, case), journal.values(case)
    predictor = load_predictor(labeller.checkpoint, labeller.digest, job.settings.inference)
    touch(journal.mark(case))
    try:
        found, row = segment_case(case, job.case.image, path, predictor, labeller.components, job.cached)
    except CaseError as error:
        if not isinstance(error, AwayError):  # else an earlier one may be as good as ever
            path.unlink(missing_ok=True)
            journal.mark(case).unlink(missing_ok=True)
        raise
    journal.record(case, inputs, config, {"segmentation": path}, row)
    return found, row


class Selection(Protocol):
    """What `labels.select` builds: weighs, drops or masks the labels of a case between merging and training.

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
    """Let the selection of `labels.select` judge one case, see `Selection`; None keeps it as it is.

    Raises:
        FlareError: If the selection gives anything else than a weight, or that and a mask.
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
