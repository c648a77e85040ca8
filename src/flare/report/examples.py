"""Cases of the page: pictures beside their references, and volumes for the viewer."""

import base64
import gzip
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import IGNORE, ClassList
from flare.core.geometry import Shape
from flare.core.pictures import WINDOW_HU, class_colours, draw_case, rgb, title
from flare.core.preprocessing import resample, without_ignored
from flare.core.volumes import read_compared
from flare.evaluation.lesions import find_lesions
from flare.inference.predict import segmentation_path
from flare.merging.maps import components
from flare.report.facts import Facts, ReportSettings
from flare.runs.work import Executor, run_cases

log = logging.getLogger(__name__)
Files = tuple[Path, Path, Path]  # of a case: CT, annotation, prediction
VOXELS = 1_500_000  # of a volume in the page; larger ones are made coarser (ours)
ALL_VOXELS = 20 * VOXELS  # of all images in the page: beyond so many cases each is made coarser (ours)
ALL_LARGE = 8  # up to so many cases, each is shown in three planes


@dataclass(frozen=True)
class Shown:
    """A case on the page."""

    case: str
    rank: str  # `best`, `median`, `worst` or nothing
    large: bool  # whether it is shown in three planes
    scores: Mapping[str, Any]  # `<short>_DSC`, ... 0 to 1; None for classes that the round does not learn
    mean: float  # mean DSC over its scored classes
    pictures: Mapping[str, bytes]  # `reference` and `prediction`, WebP
    missed: int = 0  # how many of its tumors no voxel of the prediction's tumor meets
    volumes: Mapping[str, str] = field(default_factory=dict)  # by `pack_case`, with a rank or a missed tumor

    @property
    def told(self) -> str:
        """Rank and missed tumors, as far as there are any."""
        missed = f"{self.missed} missed tumor{'s' if self.missed > 1 else ''}" if self.missed else ""
        return ", ".join(filter(None, (self.rank, missed)))


def named_ranks(order: Sequence[str]) -> dict[str, str]:
    """Case id -> `best`, `median` or `worst`, from cases in order of their score, the best first."""
    last = len(order) - 1
    return {order[last // 2]: "median", order[last]: "worst", order[0]: "best"} if order else {}


def show_cases(facts: Facts, folder: Path, executor: Executor) -> list[Shown]:
    """Draw all scored cases, the best first; pack those with a rank or a missed tumor for the viewer."""
    files = {c.id: (c.image, c.label, segmentation_path(folder, c.id)) for c in facts.scored}
    order = {case: dsc for case, dsc in facts.ranked.items() if files[case][2].exists()}
    ranks = named_ranks(list(order))
    large = {case for case in order if len(order) <= ALL_LARGE or case in ranks}
    scores = {row["Name"]: row for row in facts.last.scores}
    seeking = {case for case in order if scores[case].get(facts.tumor_column) is not None}

    def job(case: str, **own: Any) -> dict[str, Any]:
        return {"case": case, "files": files[case], "settings": facts.settings, **own}

    jobs = {case: job(case, is_large=case in large, seeks_tumor=case in seeking) for case in order}
    drawn = _done(show_case, jobs, executor, "draw cases")
    chosen = [case for case, (_, missed) in drawn.items() if missed or case in ranks]
    voxels = min(VOXELS, ALL_VOXELS // max(1, len(chosen)))
    jobs = {case: job(case, voxels=voxels) for case in chosen}
    packed = _done(pack_case, jobs, executor, "pack cases")
    found = []
    for case in filter(drawn.__contains__, order):
        pictures, missed = drawn[case]
        known = scores[case], order[case], pictures, missed, packed.get(case, {})
        found.append(Shown(case, ranks.get(case, ""), case in large, *known))
    return found


def _done(
    function: Callable[..., Any], jobs: dict[str, Any], executor: Executor, told: str
) -> dict[str, Any]:
    """What became of each case's job, of those that did not fail."""
    made = {}
    for outcome in run_cases(function, jobs, executor=executor, description=told):
        if outcome.error is None:
            made[outcome.case_id] = outcome.value
        else:
            log.warning("case %s could not be shown", outcome.case_id)
    return made


def show_case(
    case: str, files: Files, settings: ReportSettings, is_large: bool, seeks_tumor: bool
) -> tuple[dict[str, bytes], int]:
    """Draw one case, and count its missed tumors where the round learns tumors."""
    classes = settings.classes
    volumes = read_compared(case, files, classes, settings.label_map)
    pictures = draw_case(volumes, classes, small=not is_large)
    if not seeks_tumor:
        return pictures, 0
    pair = without_ignored(volumes[1].array, volumes[2].array)
    lesions = find_lesions(*pair, spacing_mm=volumes[1].geometry.spacing_mm, classes=classes)
    return pictures, sum(lesion.side == "reference" and not lesion.matched for lesion in lesions)


def pack_case(case: str, files: Files, settings: ReportSettings, voxels: int) -> dict[str, str]:
    """Pack image, reference and prediction for the viewer, each in about so many voxels at most.

    Gives `image` (soft-tissue window, 0 to 255), `reference`, `prediction`: base64 of `.nii.gz`, uint8, RAS.
    """
    volumes = read_compared(case, files, settings.classes, settings.label_map)
    ct = volumes[0]
    coarse = max(1.0, (ct.array.size / voxels) ** (1 / 3))
    z, y, x = (max(1, round(n / coarse)) for n in ct.array.shape)
    low, high = WINDOW_HU
    grey = resample(ct.array, (z, y, x), "linear") if coarse > 1 else ct.array
    grey = np.rint(np.clip((grey.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    spacing = [s * n / m for s, n, m in zip(ct.geometry.spacing_mm, ct.array.shape, (z, y, x), strict=True)]
    labels = [coarsen(v.array, (z, y, x), settings.classes.tumor) for v in volumes[1:]]
    names = ("image", "reference", "prediction")
    return {name: encode(array, spacing) for name, array in zip(names, (grey, *labels), strict=True)}


def coarsen(labels: np.ndarray, shape: Shape, tumor: int | None) -> np.ndarray:
    """A label map on a coarser grid, nearest voxel; a tumor that would fall between its voxels stays."""
    found = resample(labels, shape, "nearest")
    for lesion in components(labels == tumor) if tumor is not None and found.shape != labels.shape else ():
        fine = np.argwhere(lesion.mask) + [part.start for part in lesion.box]
        place = tuple(((fine + 0.5) * np.divide(shape, labels.shape)).astype(int).T)
        if not (found[place] == tumor).any():
            found[place] = tumor
    return found


def encode(array: np.ndarray, spacing_mm: Sequence[float]) -> str:
    """Write `(Z, Y, X)` uint8 in RAS voxel order as NIfTI-1: base64 of the gzipped file.

    Its axes run along the patient's and its origin is in the middle. An oblique grid is shown along its
    nearest axes; nothing else of its place in the scanner is kept.
    """
    import nibabel

    spacing = np.asarray(spacing_mm[::-1])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.asarray(array.shape[::-1]) - 1) / 2
    image = nibabel.Nifti1Image(array.T, affine)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 9, mtime=0)).decode()


def lookup_table(classes: ClassList) -> dict[str, list[Any]]:
    """Colours and names by class id, as niivue takes them; the background is clear."""
    colours = class_colours(classes)
    entries = [(0, 0, 0, 0, 0, ""), *((*rgb(colours[c.id]), 255, c.id, title(c)) for c in classes.entries)]
    if classes.ignore is not None:
        entries.append((255, 255, 255, 80, IGNORE, "ignored"))
    names = ("R", "G", "B", "A", "I", "labels")
    return {name: list(column) for name, column in zip(names, zip(*entries, strict=True), strict=True)}


def viewer_json(facts: Facts, shown: Sequence[Shown]) -> str | None:
    """What the viewer's script reads, as JSON that can stand inside a `<script>`."""
    cases = [{"name": s.case, "told": s.told, **s.volumes} for s in shown if s.volumes]
    if not cases:
        return None
    data = {"lookup": lookup_table(facts.settings.classes), "cases": cases}
    return json.dumps(data).replace("<", "\\u003c")  # no markup whatever a case or a class is called
