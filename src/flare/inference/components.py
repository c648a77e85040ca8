"""Learn from labelled cases of which organs the largest component alone is to be kept."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.cases import by_hash
from flare.core.classes import ClassList
from flare.core.files import read_json, write_json
from flare.core.preprocessing import without_ignored
from flare.core.volumes import match_grid, read_labels
from flare.inference.largest import keep_largest
from flare.runs.work import Executor, Outcome, run_cases

log = logging.getLogger(__name__)
Fit = dict[str, dict[str, Any]]
LabelMap = dict[Any, int] | None
Scores = dict[str, tuple[float, float]]  # by name of organ, Dice before and after


def dice(segmentation: np.ndarray, reference: np.ndarray) -> float:
    """Give the Dice coefficient of two masks of which the reference is not empty."""
    overlap = np.count_nonzero(segmentation & reference)
    return 2 * overlap / (np.count_nonzero(segmentation) + np.count_nonzero(reference))


def compare_case(
    case: str, prediction: Path, reference: Path, classes: ClassList, label_map: LabelMap
) -> Scores:
    """Score one case: Dice of each organ that it has with all components, and with the largest alone.

    The prediction is one without post-processing; `label_map` renumbers the reference.
    """
    predicted = read_labels(prediction, classes, case=case)
    truth = match_grid(read_labels(reference, classes, label_map, case=case), predicted, case).array
    cleaned = keep_largest(predicted.array, classes.organs)
    sides = [without_ignored(truth, side)[1] for side in (predicted.array, cleaned)]
    scores = {}
    for organ in classes.organs:
        mask = truth == organ
        if mask.any():
            before, after = (dice(side == organ, mask) for side in sides)
            scores[classes.name_of(organ)] = before, after
    return scores


def fit_components(
    pairs: Mapping[str, tuple[Path, Path]], *, classes: ClassList, label_map: LabelMap, executor: Executor
) -> tuple[Fit, list[Outcome]]:
    """Decide for each organ whether its largest component alone scores better.

    `pairs` are case id to prediction, without post-processing, and reference. Gives what `decide` says by
    name of organ, and the cases that could not be scored, which it leaves out.
    """
    shared = {"classes": classes, "label_map": label_map}
    jobs = {case: {"case": case, "prediction": p, "reference": r, **shared} for case, (p, r) in pairs.items()}
    found = run_cases(compare_case, jobs, executor=executor, description="fit components")
    outcomes = sorted(found, key=lambda o: o.case_id)  # means do not depend on which case finished first
    failures = [outcome for outcome in outcomes if outcome.error is not None]
    return decide({o.case_id: o.value for o in outcomes if o.error is None}, classes), failures


def decide(scores: Mapping[str, Scores], classes: ClassList) -> Fit:
    """Average the Dice of each organ over the cases that have it, before and after, and decide.

    `scores` are what `compare_case` gives, by case. An organ that no case has is left as it is. In the mean
    `dice_judged` each case follows what the half of the cases chooses that it is not in, by a hash of its id.
    """
    order = by_hash(scores)
    fit: Fit = {}
    for organ in classes.organs:
        name = classes.name_of(organ)
        halves = [[scores[c][name] for c in order[n::2] if name in scores[c]] for n in (0, 1)]
        found = [case[name] for case in scores.values() if name in case]
        before, after = np.mean(found, axis=0).tolist() if found else (0.0, 0.0)
        helps = [bool(half and np.diff(np.mean(half, axis=0))[0] > 0) for half in halves]
        judged = [pair[helps[1 - n]] for n, half in enumerate(halves) for pair in half]
        means = {"dice_before": before, "dice_after": after}
        means["dice_judged"] = float(np.mean(judged)) if judged else 0.0
        fit[name] = {"keep_largest": after > before, **means, "cases": len(found)}
    return fit


def write_fit(path: Path, fit: Fit, checkpoint: str, cases: str = "") -> None:
    """Store a fit with the hash of the checkpoint whose predictions it was made on, and on which cases."""
    write_json(path, {"checkpoint": checkpoint, "cases": cases, "organs": fit})


def fitted_classes(path: Path, checkpoint: str, classes: ClassList) -> tuple[int, ...]:
    """List the ids of the organs of which a fit, where there is one, keeps the largest component.

    `checkpoint` is the hash of the one that predicts; another one's fit says nothing about it.
    """
    if not path.exists():
        return ()
    found = read_json(path)
    if found.get("checkpoint") != checkpoint:
        log.warning("%s was fitted on another checkpoint than the teacher's and is not applied", path.name)
        return ()
    return tuple(classes.id_of(name) for name, entry in found["organs"].items() if entry["keep_largest"])
