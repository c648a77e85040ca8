"""The labels of one case in one go: predict, merge, select, cache. Runs in a worker."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flare.core.cases import Case
from flare.core.errors import AwayError, CaseError, FlareError
from flare.core.geometry import Volume
from flare.core.volumes import match_grid, read_image, read_labels
from flare.inference.predict import Row, load_predictor, made_from, segment_case, segmentation_path
from flare.merging.maps import table
from flare.merging.merge import merge_maps, merged_files, write_merged
from flare.merging.provenance import GROUND_TRUTH, from_teacher
from flare.merging.settings import PseudoSource
from flare.rounds.selection import built, histogram
from flare.rounds.settings import Labeller, LabelSettings
from flare.runs.folders import RoundFolder
from flare.runs.journal import Inputs, Journal, touch

load_several = lru_cache(maxsize=3)(load_predictor.__wrapped__)  # further maps take turns with the teacher's
Told = Mapping[str, Any]  # plain values
FORMAT = 2  # raised when what is made of a case changes, so that labels made before are redone


@dataclass(frozen=True)
class LabelJob:
    """All that labelling one case takes; plain values."""

    case: Case
    cached: Path | None  # its image in the cache; None where that is not made from the image as it is now
    cached_sha256: str  # its hash; empty without one
    labeller: Labeller | None  # who predicts it; None if the ground truth is taken alone
    settings: LabelSettings
    folder: RoundFolder
    # what makes further maps of the case, by what a selection calls them; `organs` to merge
    others: "Mapping[str, LabelJob]" = field(default_factory=dict)
    thresholds: Mapping[str, int] | None = None  # what the selection fitted on validation cases, by class id

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
        if self.others:
            further = {name: other.known for name, other in self.others.items()}
            own["further_maps"] = {name: [made["checkpoint"], how] for name, (made, how) in further.items()}
        if self.thresholds is not None:
            own["thresholds"] = self.thresholds
        return {**self.settings.merge.identity, **own}

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

    @property
    def confidence(self) -> Path:
        """Where its prediction's confidence lies, if that is kept."""
        return segmentation_path(self.folder.confidence, self.case.id)

    def why_predict(self) -> str:
        """Say why its prediction must be made: it is not there, or not current; empty if it is."""
        is_there = not self.settings.inference.confidence or self.confidence.exists()
        return self.note.why(self.case.id, *self.known) or ("" if is_there else "its confidence was not kept")

    def why_network(self) -> str:
        """Say why its prediction or a further one must be made; empty if none must."""
        return next(filter(None, (job.why_predict() for job in (self, *self.others.values()))), "")


def label_case(job: LabelJob) -> dict[str, Any]:
    """Label one case: predict, merge with the ground truth, select, and cache what training reads.

    Maps are handed on in memory; the files of each step are left on the side. Gives plain values: `weight`,
    number of `ignored` voxels, the `prediction` as `inference.csv` has it, and whether training's labels were
    `cached`. A bad file and grids that differ refuse the case.
    """
    case, merge = job.case.id, job.settings.merge
    pseudo, row = (None, None) if job.labeller is None else pseudo_labels(job)
    drawn = job.case.label
    truth = None if drawn is None else read_labels(drawn, merge.classes, merge.label_map, case)
    source = PseudoSource() if job.labeller is None else job.labeller.source
    organs = pseudo_labels(job.others["organs"])[0].array if "organs" in job.others else None
    known: dict[str, Any] = {"declared": job.case.annotated, "source": source, "organs": organs}
    labels, told = merge_maps(case, truth, pseudo, merge, **known)
    given = evidence(job, pseudo)
    weight, ignore = select(job.settings.select, case, labels.array, told, **given)
    if given.get("pseudo") is not None:
        mask = np.zeros(labels.array.shape, bool) if ignore is None else ignore
        told["selection"] = {"weight": weight, **_account(job, labels.array, told, given, mask)}
    write_merged(job.outputs, labels, told, merge.classes)
    if job.cached is not None:
        from flare.data.cache import cache_labels  # the store: only where there is work

        how = job.settings.interpolation
        place = job.outputs["cached"]
        cache_labels(labels, place, image=job.cached, case_id=case, interpolation=how, ignore=ignore)
    ignored = 0 if ignore is None else int(ignore.sum())
    found = {"weight": weight, "ignored": ignored, "prediction": row, "cached": job.cached is not None}
    return found | {key: told[key] for key in ("selection",) if key in told}


def pseudo_labels(job: LabelJob) -> tuple[Volume, Row]:
    """A teacher's prediction: from its file where that is current, else made and noted."""
    case, journal, (inputs, config) = job.case.id, job.note, job.known
    path, labeller = job.prediction, job.labeller
    assert labeller is not None
    if not job.why_predict():
        return read_labels(path, job.settings.merge.classes, None, case), journal.values(case)
    load = load_several if job.settings.views else load_predictor
    predictor = load(labeller.checkpoint, labeller.digest, job.settings.inference)
    touch(journal.mark(case))
    job.confidence.unlink(missing_ok=True)
    try:
        more = (job.cached, job.confidence)
        found, row = segment_case(case, job.case.image, path, predictor, labeller.components, *more)
    except CaseError as error:
        if not isinstance(error, AwayError):  # else an earlier one may be as good as ever
            path.unlink(missing_ok=True)
            journal.mark(case).unlink(missing_ok=True)
        raise
    left = {"segmentation": path, **({"confidence": job.confidence} if job.confidence.exists() else {})}
    journal.record(case, inputs, config, left, row)
    return found, row


def evidence(job: LabelJob, pseudo: Volume | None) -> dict[str, Any]:
    """What a case's selection asks for, see `Selection`; None for what there is not."""
    found: dict[str, Any] = dict.fromkeys(job.settings.needs)
    if pseudo is None or job.labeller is None:
        return found
    known: dict[str, Any] = {"pseudo": pseudo.array, "thresholds": job.thresholds}
    if "confidence" in found:
        known["confidence"] = read_image(job.confidence, job.case.id).array.astype(np.uint8)
    for name in found.keys() & job.others.keys():
        further = job.others[name]
        other, knows = pseudo_labels(further)[0].array, further.labeller.knows if further.labeller else ()
        shared = table(sorted({*job.labeller.knows} & {*knows}))
        known[name] = np.where(shared[other] & shared[pseudo.array], other, pseudo.array)
    return found | {name: value for name, value in known.items() if name in found}


def _account(job: LabelJob, labels: np.ndarray, told: Told, given: Told, mask: np.ndarray) -> dict[str, Any]:
    """What a selection did to a teacher's labels: of each class the threshold, the voxels, and those kept."""
    counts = histogram(labels, mask.astype(np.uint8), from_teacher(labels, given["pseudo"], told))
    found, names = {}, {0: "background"} | {c.id: c.name for c in job.settings.merge.classes.entries}
    for c in np.flatnonzero(counts.sum(1)).tolist():
        limit = (job.thresholds or {}).get(str(c))
        share = None if limit is None else round(limit / 255, 3)
        found[names[c]] = [share, int(counts[c].sum()), int(counts[c, 0])]
    rank = getattr(built(job.settings.select), "uncertainty", None)
    more = {"uncertainty": rank(told, **given)} if rank else {}
    teacher = next(source for source in told["sources"] if source != GROUND_TRUTH)
    return {"rule": job.settings.select, "teacher": teacher, "classes": found, **more}


class Selection(Protocol):
    """What `labels.select` builds: weighs, drops or masks the labels of a case between merging and training.

    It is built once in each process that makes labels, so it must decide by what it is given alone.
    """

    def __call__(
        self, case: str, labels: np.ndarray, provenance: Mapping[str, Any]
    ) -> float | tuple[float, np.ndarray | None]:
        """Judge the labels of one case.

        What further arguments, or an attribute `needs`, name of the following is given by name. Maps are
        `(Z, Y, X)` uint8; None where there is none. `pseudo`: the teacher's; `confidence`: 255 times the
        probability of its classes; `previous`, `earlier`: of the teacher's teacher, and of that one's;
        `unflipped`: the teacher's without mirroring; where only one of two networks knows a class that
        either gives, the teacher's stands. `thresholds`: by class id, as `Judged` has them fitted.

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
    settings: Told | None, case: str, labels: np.ndarray, provenance: Told, **evidence: Any
) -> tuple[float, np.ndarray | None]:
    """Let `labels.select` judge a case, see `Selection`; refuse what is no weight, or that and a mask."""
    if settings is None:
        return 1.0, None
    found = built(settings)(case, labels.copy(), provenance, **evidence)
    weight, mask = found if isinstance(found, tuple) else (found, None)
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise FlareError(f"labels.select: expected a weight of 0 or more, given {weight!r} for {case}")
    if mask is not None and (mask.dtype != bool or mask.shape != labels.shape):
        given = f"{mask.dtype} {mask.shape}"
        raise FlareError(f"labels.select: expected a boolean mask {labels.shape}, given {given} for {case}")
    return float(weight), mask


def judge_case(job: LabelJob) -> dict[str, Any]:
    """Predict a labelled validation case and count how right it is, see `Judged.count`.

    Of the teacher's classes those count that the annotation covers, and the background if it covers all;
    nothing counts where the truth has another.
    """
    case, merge, knows = job.case, job.settings.merge, job.labeller.knows if job.labeller else ()
    pseudo = pseudo_labels(job)[0]
    truth = read_labels(Path(str(case.label)), merge.classes, merge.label_map, case.id)
    truth = match_grid(truth, pseudo, case.id)
    judged = knows if set(knows) <= {0, *case.annotated} else case.annotated
    where = table(knows)[truth.array] & table(judged)[pseudo.array]
    return {"counts": built(job.settings.select).count(truth.array, where, **evidence(job, pseudo))}
