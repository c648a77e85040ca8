"""Cases of the page: pictures beside their references, and volumes for the viewer."""

from __future__ import annotations

import base64
import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.geometry import Volume
from flare.core.pictures import WINDOW_HU, class_colours, draw_case, rgb, title
from flare.core.preprocessing import resample
from flare.core.volumes import read_compared
from flare.inference.predict import segmentation_path
from flare.report.facts import Facts
from flare.runs.work import Executor, run_cases

log = logging.getLogger(__name__)
VOXELS = 1_500_000  # of a volume in the page; larger ones are made coarser (ours)
ALL_LARGE = 8  # up to so many cases, each is shown in three planes


@dataclass(frozen=True)
class Shown:
    """A case on the page.

    Args:
        rank: `best`, `median`, `worst` or nothing.
        large: Whether it is shown in three planes.
        scores: `<short>_DSC`, ... from 0 to 1; None for classes that the round does not learn.
        mean: Mean DSC over its scored classes.
        pictures: `reference` and `prediction`, WebP.
        volumes: What `pack_case` gives, of a case with a rank.
    """

    case: str
    rank: str
    large: bool
    scores: Mapping[str, Any]
    mean: float
    pictures: Mapping[str, bytes]
    volumes: Mapping[str, str] = field(default_factory=dict)


def named_ranks(order: Sequence[str]) -> dict[str, str]:
    """Case id -> `best`, `median` or `worst`, from cases in order of their score, the best first."""
    if not order:
        return {}
    last = len(order) - 1
    return {order[last // 2]: "median", order[last]: "worst", order[0]: "best"}


def show_cases(facts: Facts, folder: Path, executor: Executor) -> list[Shown]:
    """Draw every scored case with the prediction in a folder, the best first; pack those with a rank."""
    order = facts.ranked
    ranks = named_ranks(list(order))
    large = {case for case in order if len(order) <= ALL_LARGE or case in ranks}
    jobs = {
        c.id: {
            "case": c.id,
            "files": (c.image, c.label, path),
            "classes": facts.classes,
            "label_map": facts.settings.label_map,
            "is_large": c.id in large,
            "is_packed": c.id in ranks,
        }
        for c in facts.scored
        if c.id in order and (path := segmentation_path(folder, c.id)).exists()
    }
    made = {}
    for outcome in run_cases(show_case, jobs, executor=executor, description="draw cases"):
        if outcome.error is None:
            made[outcome.case_id] = outcome.value
        else:
            log.warning("case %s could not be drawn", outcome.case_id)
    scores = {row["Name"]: row for row in facts.last.scores}
    return [
        Shown(case, ranks.get(case, ""), case in large, scores[case], mean, *made[case])
        for case, mean in order.items()
        if case in made
    ]


def show_case(
    case: str,
    files: tuple[Path, Path, Path],
    classes: ClassList,
    label_map: dict[Any, int] | None,
    is_large: bool,
    is_packed: bool,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Draw one case, and pack it for the viewer, from one reading of CT, annotation and prediction."""
    volumes = read_compared(case, files, classes, label_map)
    return draw_case(volumes, classes, small=not is_large), pack_case(volumes) if is_packed else {}


def pack_case(volumes: tuple[Volume, Volume, Volume]) -> dict[str, str]:
    """Pack image, reference and prediction for the viewer.

    Returns:
        `image`, `reference` and `prediction`: base64 of `.nii.gz`, uint8, in RAS voxel order; the image's
        soft-tissue window is spread over 0 to 255.
    """
    ct = volumes[0]
    coarse = max(1.0, (ct.array.size / VOXELS) ** (1 / 3))
    z, y, x = (max(1, round(n / coarse)) for n in ct.array.shape)
    low, high = WINDOW_HU
    grey = resample(ct.array, (z, y, x), "linear") if coarse > 1 else ct.array
    grey = np.rint(np.clip((grey.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    spacing = [s * n / m for s, n, m in zip(ct.geometry.spacing_mm, ct.array.shape, (z, y, x), strict=True)]
    labels = [resample(v.array, (z, y, x), "nearest") for v in volumes[1:]]
    names = ("image", "reference", "prediction")
    return {name: encode(array, spacing) for name, array in zip(names, (grey, *labels), strict=True)}


def encode(array: np.ndarray, spacing_mm: Sequence[float]) -> str:
    """Write a NIfTI-1 file in memory: uint8, axes along the patient's, the origin in the middle.

    An oblique grid is shown along its nearest axes; nothing else of its place in the scanner is kept.

    Args:
        array: `(Z, Y, X)` uint8 in RAS voxel order.
        spacing_mm: Along Z, Y, X.

    Returns:
        Base64 of the gzipped file.
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
    columns = zip(*entries, strict=True)
    return {
        key: list(column) for key, column in zip(("R", "G", "B", "A", "I", "labels"), columns, strict=True)
    }


def viewer_json(facts: Facts, shown: Sequence[Shown]) -> str | None:
    """What the viewer's script reads, as JSON that can stand inside a `<script>`."""
    cases = [{"name": s.case, "rank": s.rank, **s.volumes} for s in shown if s.volumes]
    if not cases:
        return None
    data = {"lookup": lookup_table(facts.classes), "cases": cases}
    return json.dumps(data).replace("<", "\\u003c")  # no markup whatever a case or a class is called
