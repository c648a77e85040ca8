"""Small volumes for the interactive viewer: image, reference and prediction, as NIfTI inside the page."""

from __future__ import annotations

import base64
import gzip
import io
import logging
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flare.core.cases import read_label_map
from flare.core.classes import ClassList
from flare.core.files import atomic
from flare.core.geometry import Volume
from flare.core.pictures import WINDOW_HU, class_colours, draw_case, read_case, rgb, title
from flare.core.preprocessing import resample
from flare.inference.predict import segmentation_path
from flare.report.facts import Facts
from flare.report.figures import bare, data_address, draw_trend, new_figure, style, trends
from flare.report.tables import ranked
from flare.runs.work import Executor, run_cases

VOXELS = 1_500_000  # of a volume in the page; larger ones are made coarser (ours)


def pack_case(
    case: str,
    image: Path,
    reference: Path,
    prediction: Path,
    classes: ClassList,
    label_map: dict[Any, int] | None,
) -> dict[str, str]:
    """Pack one case for the page.

    Args:
        case: The case id.
        image: The CT.
        reference: Its annotation.
        prediction: What a round predicts.
        classes: The class list.
        label_map: Renumbering of the annotation's ids.

    Returns:
        `image`, `reference` and `prediction`: base64 of `.nii.gz`, uint8, in RAS voxel order; the image's
        soft-tissue window is spread over 0 to 255.
    """
    ct, truth, ours = read_case(case, image, reference, prediction, classes=classes, label_map=label_map)
    coarse = max(1.0, (ct.array.size / VOXELS) ** (1 / 3))
    shape = tuple(max(1, round(n / coarse)) for n in ct.array.shape)
    low, high = WINDOW_HU
    grey = ct.array if shape == ct.array.shape else resample(ct.array, shape, "linear")
    grey = np.rint(np.clip((grey.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    spacing = [s * n / m for s, n, m in zip(ct.geometry.spacing_mm, ct.array.shape, shape, strict=True)]
    return {
        "image": encode(grey, spacing),
        "reference": encode(_coarse(truth, shape), spacing),
        "prediction": encode(_coarse(ours, shape), spacing),
    }


def _coarse(volume: Volume, shape: tuple[int, ...]) -> np.ndarray:
    return resample(volume.array, shape, "nearest")  # type: ignore[arg-type]


def encode(array: np.ndarray, spacing_mm: list[float]) -> str:
    """Write a NIfTI-1 file in memory: uint8, axes along the patient's, the origin in the middle.

    An oblique grid is shown along its nearest axes; nothing else of its place in the scanner is kept.

    Args:
        array: `(Z, Y, X)` uint8 in RAS voxel order.
        spacing_mm: Along Z, Y, X.

    Returns:
        Base64 of the gzipped file.
    """
    header = bytearray(352)
    sizes = array.shape[::-1]
    mm = spacing_mm[::-1]
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *sizes, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # uint8
    struct.pack_into("<8f", header, 76, 1, *mm, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)  # where voxels begin; their scale
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # position by the affine below
    for row in range(3):
        values = [0.0, 0.0, 0.0, -mm[row] * (sizes[row] - 1) / 2]
        values[row] = mm[row]
        struct.pack_into("<4f", header, 280 + 16 * row, *values)
    header[344:348] = b"n+1\0"
    content = bytes(header) + np.ascontiguousarray(array).tobytes()
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def lookup_table(classes: ClassList) -> dict[str, list[Any]]:
    """Colours and names by class id, as niivue takes them; the background is clear."""
    colours = class_colours(classes)
    table: dict[str, list[Any]] = {"R": [0], "G": [0], "B": [0], "A": [0], "I": [0], "labels": [""]}
    for c in classes.entries:
        for key, value in zip("RGB", rgb(colours[c.id]), strict=True):
            table[key].append(value)
        table["A"].append(255)
        table["I"].append(c.id)
        table["labels"].append(title(c))
    return table


log = logging.getLogger(__name__)
ALL_LARGE = 8  # up to so many cases, each is shown in three planes


@dataclass(frozen=True)
class Shown:
    """A case on the page.

    Args:
        case: Its id.
        rank: `best`, `median`, `worst` or nothing.
        large: Whether it is shown in three planes.
        scores: `<short>_DSC`, ... from 0 to 1; None for classes that the round does not learn.
        mean: Mean DSC over its scored classes.
        pictures: `reference` and `prediction`, WebP.
    """

    case: str
    rank: str
    large: bool
    scores: Mapping[str, Any]
    mean: float
    pictures: Mapping[str, bytes]

    def address(self, name: str) -> str:
        """One of its pictures, as a data address."""
        return data_address(self.pictures[name], "image/webp")


def named_ranks(order: Sequence[tuple[str, float]]) -> dict[str, str]:
    """Case id -> `best`, `median` or `worst`, from cases in order of their score, the best first."""
    if not order:
        return {}
    last = len(order) - 1
    return {order[last // 2][0]: "median", order[last][0]: "worst", order[0][0]: "best"}


def draw_cases(facts: Facts, cfg: DictConfig, folder: Path, executor: Executor) -> list[Shown]:
    """Draw every scored case with the last round's prediction, the best first.

    Args:
        facts: What is known of the run.
        cfg: Configuration of `iterate`.
        folder: The last round's predictions.
        executor: Where the cases are drawn.
    """
    order = ranked(facts)
    ranks = named_ranks(order)
    jobs = _jobs(facts, cfg, folder)
    large = {case: len(order) <= ALL_LARGE or case in ranks for case, _ in order}
    wanted = {case: jobs[case] | {"small": not large[case]} for case, _ in order if case in jobs}
    drawn = _collect(draw_case, wanted, executor, "draw cases")
    scores = {row["Name"]: row for row in facts.last.scores}
    return [
        Shown(case, ranks.get(case, ""), large[case], scores[case], mean, drawn[case])
        for case, mean in order
        if case in drawn
    ]


def pack_cases(facts: Facts, cfg: DictConfig, folder: Path, executor: Executor) -> dict[str, dict[str, str]]:
    """Pack the best, the median and the worst case for the viewer; the best first."""
    order = ranked(facts)
    ranks = named_ranks(order)
    jobs = _jobs(facts, cfg, folder)
    wanted = {case: jobs[case] for case, _ in order if case in ranks and case in jobs}
    packed = _collect(pack_case, wanted, executor, "pack volumes")
    return {case: packed[case] for case in wanted if case in packed}


def _jobs(facts: Facts, cfg: DictConfig, folder: Path) -> dict[str, dict[str, Any]]:
    found = read_label_map(cfg.data.label_map, facts.classes)
    label_map = None if found is None else dict(found)
    return {
        c.id: {
            "case": c.id,
            "image": c.image,
            "reference": c.label,
            "prediction": path,
            "classes": facts.classes,
            "label_map": label_map,
        }
        for c in facts.scored
        if (path := segmentation_path(folder, c.id)).exists()
    }


def _collect(
    function: Any, jobs: Mapping[str, dict[str, Any]], executor: Executor, description: str
) -> dict[str, Any]:
    found = {}
    for outcome in run_cases(function, jobs, executor=executor, description=description):
        if outcome.error is None:
            found[outcome.case_id] = outcome.value
        else:
            log.warning("case %s could not be drawn", outcome.case_id)
    return found


def write_overview(path: Path, facts: Facts, shown: Sequence[Shown]) -> None:
    """Draw one picture of the run: the median case, and DSC over the rounds."""
    from matplotlib.patches import Patch
    from PIL import Image

    with style():
        figure = new_figure(11.5, 5.8)
        left, right = figure.subfigures(1, 2, width_ratios=[1.45, 1], squeeze=False).flat
        chosen = next((s for s in shown if s.rank == "median"), shown[0] if shown else None)
        if chosen is not None:
            names = {"reference": "reference", "prediction": f"prediction of {facts.last.name.upper()}"}
            for axes, (name, told) in zip(left.subplots(2, 1), names.items(), strict=True):
                axes.imshow(np.asarray(Image.open(io.BytesIO(chosen.pictures[name]))))
                axes.set_title(f"{chosen.case}, {told}")
                bare(axes)
        drawn = trends(facts)
        if drawn:
            grid = right.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
            for axes, (key, name) in zip(grid, drawn.items(), strict=True):
                draw_trend(axes, facts, key, name)
            grid[0].legend(fontsize=8, loc="lower right")
        colours = class_colours(facts.classes)
        patches = [Patch(color=colours[c.id], label=title(c)) for c in facts.classes.entries]
        left.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=150)
