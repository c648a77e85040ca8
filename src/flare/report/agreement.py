"""Pseudo-label quality: agreement of predictions with what their teacher learned from, and with the truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.cases import Case, select_cases
from flare.core.classes import ClassList
from flare.core.volumes import case_id, find_images, match_grid, read_labels
from flare.report.facts import ReportSettings
from flare.rounds.ablation import Trained
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RunFolder
from flare.runs.work import run_cases

log = logging.getLogger(__name__)
SAMPLE = 60  # cases a round, evenly over the index: a mean does not need 4000
COMPARISONS = ("previous", "pseudo", "merged")


@dataclass(frozen=True)
class Quality:
    """Pseudo-label quality of one round.

    Args:
        round: The round that is labelled.
        teacher: Who made its pseudo labels, one round or two.
        of: Training cases of the round; `SAMPLE` of them at most are compared.
        cases: Comparison -> number of cases that could be compared.
        dice: Comparison -> class id -> mean Dice over the cases whose reference has the class.
    """

    round: str
    teacher: str
    of: int
    cases: dict[str, int]
    dice: dict[str, dict[int, float]]

    def percent(self, comparison: str, ids: Sequence[int]) -> float | None:
        """Mean over classes in percent; None where none was compared."""
        values = [100 * self.dice[comparison][i] for i in ids if i in self.dice[comparison]]
        return float(np.mean(values)) if values else None


def pseudo_label_quality(settings: ReportSettings, trained: Trained) -> list[Quality]:
    """Compare the pseudo labels of every round that has a teacher.

    `previous`: what the teacher predicts against the labels that it was trained on. `pseudo` and `merged`:
    what it predicts, and what the round trains on after merging, against the truth where there is one.
    """
    truths = {} if settings.truth is None else {case_id(p): p for p in find_images(settings.truth)}
    rounds, run = trained.rounds, trained.run
    teachers = {r.name: r for r in rounds}
    found = []
    for item in rounds:
        if not item.is_hybrid or item.teacher is None:
            continue
        chosen = select_cases(trained.cohort.cases, item.labels.cases)
        sample = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, SAMPLE).astype(int))]
        jobs = {}
        for case in sample:
            teacher = teachers.get(str(item.teacher_of(case)))
            references = _references(case, item, teacher, run, truths.get(case.id))
            prediction = run.round(item.name).predictions / f"{case.id}.nii.gz"
            if references and prediction.exists():
                jobs[case.id] = {
                    "case": case.id,
                    "prediction": prediction,
                    **references,
                    "label_map": settings.label_map if references["previous"] == case.label else None,
                    "classes": settings.classes,
                    "targets": item.labels.targets,
                    "taught": (teacher or item).labels.targets,
                }
        description = f"compare labels of {item.name}"
        values = []
        for outcome in run_cases(compare_case, jobs, executor=trained.executor, description=description):
            if outcome.error is None:
                values.append(outcome.value)
            else:
                log.warning("case %s is left out of the comparison of labels", outcome.case_id)
        found.append(_summarise(str(item.name), ", ".join(item.teachers), len(chosen), values))
    return found


def _references(
    case: Case, item: RoundSettings, teacher: RoundSettings | None, run: RunFolder, truth: Path | None
) -> dict[str, Path | None]:
    """What there is to compare a case's pseudo label with; empty if that is nothing."""
    previous: Path | None = None
    if teacher is not None and teacher.is_hybrid:
        previous = run.round(teacher.name).labels / f"{case.id}.nii.gz"
    elif teacher is not None and case in select_cases([case], teacher.labels.cases):
        previous = case.label
    merged = run.round(item.name).labels / f"{case.id}.nii.gz"
    found = {"previous": previous, "merged": merged, "truth": truth}
    found = {name: path if path is not None and path.exists() else None for name, path in found.items()}
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
) -> dict[str, dict[int, float]]:
    """Dice by class of one case, for each of `COMPARISONS` that can be made.

    A prediction is asked about what its teacher learned (`taught`), a merged label about what the round
    learns (`targets`). Where that is organs alone a tumor belongs to its organ, which the truth does not
    tell: its voxels are left out of the comparison.
    """
    pseudo = read_labels(prediction, classes, case=case)
    found: dict[str, dict[int, float]] = {}
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


def _compare(ours: np.ndarray, reference: np.ndarray, classes: ClassList, targets: str) -> dict[int, float]:
    """Dice of the classes of `targets`; without the tumor among them its voxels do not count."""
    wanted = [i for i in classes.outputs(targets) if i]
    if classes.tumor is not None and classes.tumor not in wanted:
        asked = reference != classes.tumor
        ours, reference = ours[asked], reference[asked]
    return dice(ours, reference, wanted)


def dice(ours: np.ndarray, reference: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
    """Dice of each class that the reference has, from 0 to 1; both maps uint8 of one shape."""
    both = np.bincount(reference[ours == reference], minlength=256)
    total = np.bincount(ours.ravel(), minlength=256) + np.bincount(reference.ravel(), minlength=256)
    there = np.bincount(reference.ravel(), minlength=256)
    return {i: float(2 * both[i] / total[i]) for i in ids if there[i]}


def _summarise(name: str, teacher: str, of: int, values: Sequence[dict[str, dict[int, float]]]) -> Quality:
    scores: dict[str, dict[int, list[float]]] = {k: {} for k in COMPARISONS}
    for value in values:
        for comparison, classes in value.items():
            for class_id, score in classes.items():
                scores[comparison].setdefault(class_id, []).append(score)
    return Quality(
        round=name,
        teacher=teacher,
        of=of,
        cases={k: sum(bool(v.get(k)) for v in values) for k in COMPARISONS},
        dice={k: {i: float(np.mean(s)) for i, s in classes.items()} for k, classes in scores.items()},
    )
