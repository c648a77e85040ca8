"""Pseudo-label quality: agreement of predictions with what their teacher learned from, and with the truth."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.cases import Case, select_cases
from flare.core.classes import IGNORE, ClassList
from flare.core.volumes import case_id, find_images, match_grid, read_labels
from flare.evaluation.metrics import mean
from flare.report import figures
from flare.report.facts import ReportSettings
from flare.rounds.score import Trained
from flare.rounds.settings import RoundSettings
from flare.runs.work import run_cases

log = logging.getLogger(__name__)
SAMPLE = 60  # cases a round, evenly over the index: a mean does not need 4000
Dice = dict[int, float]  # by class id
# mark, colour and name of each comparison
COMPARISONS = {
    "previous": ("D:", figures.GREY, "prediction and the labels its teacher was trained on"),
    "pseudo": ("o-", figures.ACCENT, "prediction and truth"),
    "merged": ("s-", figures.PAPER, "merged label and truth"),
}


@dataclass(frozen=True)
class Quality:
    """Pseudo-label quality of one round."""

    round: str
    teacher: str  # who made its pseudo labels, one round or two
    of: int  # training cases of the round; `SAMPLE` of them at most are compared
    # comparison -> Dice of each case that could be compared, of classes that its reference has
    compared: dict[str, list[Dice]]

    def percent(self, comparison: str, ids: Iterable[int]) -> float | None:
        """Mean over classes of the mean over cases, in percent; None where none was compared."""
        dice = [mean(case.get(i) for case in self.compared[comparison]) for i in ids]
        return mean(None if value is None else 100 * value for value in dice)


def pseudo_label_quality(settings: ReportSettings, trained: Trained) -> list[Quality]:
    """Compare the pseudo labels of every round that has a teacher.

    `previous`: what the teacher predicts against the labels that it was trained on. `pseudo` and `merged`:
    what it predicts, and what the round trains on after merging, against the truth where there is one.
    """
    truths = {} if settings.truth is None else {case_id(p): p for p in find_images(settings.truth)}
    teachers = {r.name: r for r in trained.rounds}
    found = []
    for item in trained.rounds:
        if not item.is_hybrid or item.teacher is None:
            continue
        chosen = item.train_cases(trained.cohort.cases)
        sample = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, SAMPLE).astype(int))]
        jobs = {}
        for case in sample:
            teacher = teachers.get(str(item.teacher_of(case)))
            references = _references(case, item, teacher, truths.get(case.id))
            prediction = item.folder.predictions / f"{case.id}.nii.gz"
            if references and prediction.exists():
                label_map = settings.label_map if references["previous"] == case.label else None
                learned = {"targets": item.labels.targets, "taught": (teacher or item).labels.targets}
                own = {"case": case.id, "prediction": prediction, "classes": settings.classes}
                jobs[case.id] = own | references | learned | {"label_map": label_map}
        compared: dict[str, list[Dice]] = {k: [] for k in COMPARISONS}
        told = f"compare labels of {item.name}"
        for outcome in run_cases(compare_case, jobs, executor=trained.executor, description=told):
            if outcome.error is not None:
                log.warning("case %s is left out of the comparison of labels", outcome.case_id)
            for comparison, scores in (outcome.value or {}).items():
                compared[comparison] += [scores] if scores else []
        found.append(Quality(str(item.name), ", ".join(item.teachers), len(chosen), compared))
    return found


def _references(
    case: Case, item: RoundSettings, teacher: RoundSettings | None, truth: Path | None
) -> dict[str, Path | None]:
    """What there is to compare a case's pseudo label with; empty if that is nothing."""
    paths = {"previous": None, "merged": item.folder.labels / f"{case.id}.nii.gz", "truth": truth}
    if teacher is not None and teacher.is_hybrid:
        paths["previous"] = teacher.folder.labels / f"{case.id}.nii.gz"
    elif teacher is not None and case in select_cases([case], teacher.labels.cases):
        paths["previous"] = case.label
    found = {name: path if path is not None and path.exists() else None for name, path in paths.items()}
    return found if found["previous"] or truth else {}


def compare_case(
    case: str,
    prediction: Path,
    previous: Path | None,
    merged: Path | None,
    truth: Path | None,
    label_map: dict[Any, int] | None,
    classes: ClassList,
    targets: str,
    taught: str,
) -> dict[str, Dice]:
    """Dice of one case, for each of `COMPARISONS` that can be made.

    A prediction is asked about what its teacher learned (`taught`), a merged label about what the round
    learns (`targets`). Where that is organs alone a tumor belongs to its organ, which the truth does not
    tell: its voxels are left out of the comparison.
    """
    pseudo = read_labels(prediction, classes, case=case)
    found: dict[str, Dice] = {}
    if previous is not None:
        reference = match_grid(read_labels(previous, classes, label_map, case), pseudo, case)
        found["previous"] = _compare(pseudo.array, reference.array, classes, taught)
    if truth is None:
        return found
    reference = match_grid(read_labels(truth, classes, case=case), pseudo, case)
    found["pseudo"] = _compare(pseudo.array, reference.array, classes, taught)
    if merged is not None:
        ours = match_grid(read_labels(merged, classes, case=case), pseudo, case)
        found["merged"] = _compare(ours.array, reference.array, classes, targets)
    return found


def _compare(ours: np.ndarray, reference: np.ndarray, classes: ClassList, targets: str) -> Dice:
    """Dice of the classes of `targets`; what either ignores and a tumor that is none of them left out."""
    asked = (ours != IGNORE) & (reference != IGNORE)
    wanted = [i for i in classes.outputs(targets) if i]
    if classes.tumor is not None and classes.tumor not in wanted:
        asked &= reference != classes.tumor
    return dice(ours[asked], reference[asked], wanted)


def dice(ours: np.ndarray, reference: np.ndarray, ids: Sequence[int]) -> Dice:
    """Dice of each class that the reference has, from 0 to 1; both maps uint8 of one shape."""
    both = np.bincount(reference[ours == reference], minlength=256)
    total = np.bincount(ours.ravel(), minlength=256) + np.bincount(reference.ravel(), minlength=256)
    there = np.bincount(reference.ravel(), minlength=256)
    return {i: float(2 * both[i] / total[i]) for i in ids if there[i]}


def label_quality(found: Sequence[Quality], classes: ClassList) -> "figures.Figure | None":
    """Dice of pseudo labels by round, with their teacher's training labels and with the truth, if any."""
    there = {}
    for part, ids in parts(classes).items():
        means = {comparison: [q.percent(comparison, ids) for q in found] for comparison in COMPARISONS}
        if any(value is not None for value in chain(*means.values())):
            there[part] = means
    if not there:
        return None
    with figures.new_figure(9.2, 3.3) as figure:
        grid = figure.subplots(1, len(there), sharey=True, squeeze=False)[0]
        for axes, (part, values) in zip(grid, there.items(), strict=True):
            for comparison, look in COMPARISONS.items():
                figures.draw_series(axes, values[comparison], *look)
            axes.set_xticks(range(len(found)), [f"{q.round.upper()}\nby {q.teacher.upper()}" for q in found])
            axes.set(title=part, xlim=(-0.4, len(found) - 0.6), ylim=(0, 102))
        grid[0].set_ylabel("Dice (%)")
        figures.legend_below(figure, grid[0])
    return figure


def kept_labels(rows: Sequence[Mapping[str, str]]) -> "figures.Figure | None":
    """Share of the teachers' voxels that selections kept, by class and round, from their `selection.csv`."""
    names, rounds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("class", "round"))
    if not rows:
        return None
    with figures.new_figure(9.2, 3.0) as figure:
        axes = figure.subplots()
        for number, item in enumerate(rounds):
            share = {r["class"]: 100 * int(r["kept"]) / int(r["voxels"]) for r in rows if r["round"] == item}
            look = "os^vDPX<"[number % 8], f"C{number}", item
            figures.draw_series(axes, [share.get(name) for name in names], *look)
        told = [name.replace("_", " ") for name in names]
        axes.set_xticks(range(len(names)), told, rotation=40, ha="right")
        axes.set(ylim=(0, 102), ylabel="kept (%)")
        figures.legend_below(figure, axes)
    return figure


def parts(classes: ClassList) -> dict[str, tuple[int, ...]]:
    """Class ids of what means are taken over, by what they are called."""
    return {"organs, mean": classes.organs, "tumor": () if classes.tumor is None else (classes.tumor,)}
