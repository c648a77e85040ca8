"""Which cases are shown and how, each drawn behind the executor; and the run's picture for a README."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flare.executor import Executor, run_cases
from flare.files import atomic
from flare.inference.cohort import segmentation_path
from flare.prepare.sources import read_label_map
from flare.report.drawing import bare, data_address, new_figure, style
from flare.report.gather import Facts
from flare.report.overlays import draw_case
from flare.report.palette import class_colours, title
from flare.report.tables import ranked
from flare.report.trends import draw_trend, trends
from flare.report.viewer import pack_case

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
    found = read_label_map(cfg.data.label_map, facts.labels)
    label_map = None if found is None else dict(found)
    classes = facts.labels.to_config()
    return {
        c.id: {
            "case": c.id,
            "image": c.image,
            "reference": c.label,
            "prediction": path,
            "classes": classes,
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
        colours = class_colours(facts.labels)
        patches = [Patch(color=colours[c.id], label=title(c)) for c in facts.labels.classes]
        left.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=150)
