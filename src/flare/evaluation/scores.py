"""Scores of a cohort: one row a case in `metrics.csv`, means in `summary.json`; the body of `evaluate.py`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from flare.errors import FlareError
from flare.evaluation.metrics import PROTOCOLS, ClassScore, rounded, score_case
from flare.executor import Executor, Outcome, report_failures, run_cases
from flare.files import write_csv, write_json
from flare.images import case_id, find_images, match_grid, read_labels
from flare.labels import LabelSet
from flare.prepare.sources import read_label_map

log = logging.getLogger(__name__)

MEASURES = ("DSC", "NSD")
Row = dict[str, Any]


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score a folder of predictions against a folder of references.

    Writes `metrics.csv` and `summary.json` to `cfg.output`, by default the predictions folder.

    Args:
        cfg: Reads `classes`, `predictions`, `references`, `output`, `protocol`, `data.label_map` (applied to
            the references) and `executor`.

    Returns:
        What `summary.json` holds.

    Raises:
        FlareError: If a folder is missing or empty; or, after all else is written, if a case failed.
    """
    predictions, references = Path(cfg.predictions), Path(cfg.references)
    for key, folder in (("predictions", predictions), ("references", references)):
        if not folder.is_dir():
            raise FlareError(f"{key}: expected a folder, given {folder}")
    found = by_case(find_images(references), "references")
    if not found:
        raise FlareError(f"references: no label map below {folder}")
    labels = LabelSet.from_config(cfg.classes)
    with closing(instantiate(cfg.executor)) as executor:
        summary = score_folder(
            predictions,
            found,
            output=Path(cfg.output or predictions),
            labels=labels,
            protocol=cfg.protocol,
            executor=executor,
            label_map=read_label_map(cfg.data.label_map, labels),
        )
    report_failures([Outcome(c, error=reason) for c, reason in summary["failed"].items()], "evaluate")
    return summary


def score_folder(
    predictions: Path,
    references: Mapping[str, Path],
    *,
    output: Path,
    labels: LabelSet,
    protocol: str,
    executor: Executor,
    label_map: Mapping[Any, int] | None = None,
) -> dict[str, Any]:
    """Score every reference's prediction; a missing prediction scores zero and is named.

    Args:
        predictions: Folder searched recursively for `<case>.nii.gz`.
        references: Case id -> label map.
        output: Folder for `metrics.csv` and `summary.json`.
        labels: The classes to score.
        protocol: `flare23`, `corrected` or `present`.
        executor: Runs the cases.
        label_map: `data.label_map`, applied to the references.

    Returns:
        The summary; cases that could not be scored are under `failed` with the reason, and have no row.
    """
    if protocol not in PROTOCOLS:
        raise FlareError(f"protocol: expected one of {list(PROTOCOLS)}, given {protocol!r}")
    given = by_case(find_images(predictions), "predictions")
    missing, extra = sorted(references.keys() - given.keys()), sorted(given.keys() - references.keys())
    for what, cases in (("has no prediction and scores zero", missing), ("has no reference", extra)):
        for case in cases:
            log.warning("case %s %s", case, what)
    shared = {"classes": labels.to_config(), "label_map": label_map, "protocol": protocol}
    jobs = {
        case: {"case": case, "reference": path, "prediction": given.get(case), **shared}
        for case, path in sorted(references.items())
    }
    outcomes = list(run_cases(score_files, jobs, executor=executor, description="score"))
    scored = {o.case_id: o.value for o in sorted(outcomes, key=lambda o: o.case_id) if o.error is None}
    rows = [metrics_row(case, scores) for case, scores in scored.items()]
    write_csv(output / "metrics.csv", rows, metrics_columns(labels))
    one_slice = {
        case: [short for short, s in scores.items() if s.one_slice] for case, scores in scored.items()
    }
    summary = {
        "protocol": protocol,
        **summarise(rows, labels),
        "one_slice": {case: shorts for case, shorts in one_slice.items() if shorts},
        "missing": missing,
        "extra": extra,
        "failed": {
            o.case_id: o.error for o in sorted(outcomes, key=lambda o: o.case_id) if o.error is not None
        },
    }
    write_json(output / "summary.json", summary)
    return summary


def score_files(
    case: str,
    reference: Path,
    prediction: Path | None,
    classes: Mapping[str, Mapping[str, Any]],
    label_map: Mapping[Any, int] | None,
    protocol: str,
) -> dict[str, ClassScore]:
    """Score one case from its files; without a prediction every scored class is zero.

    Raises:
        CaseError: If a file is bad or the grids differ.
    """
    labels = LabelSet.from_config(classes)
    truth = read_labels(reference, labels, label_map, case)
    if prediction is None:
        present = set(np.unique(truth.array).tolist()) if protocol == "present" else set(labels.ids)
        return {
            c.short: ClassScore(0.0, 0.0) if c.id in present else ClassScore(None, None)
            for c in labels.classes
        }
    ours = match_grid(read_labels(prediction, labels, case=case), truth, case)
    return score_case(
        truth.array, ours.array, spacing_mm=truth.geometry.spacing_mm, labels=labels, protocol=protocol
    )


def by_case(paths: Iterable[Path], key: str) -> dict[str, Path]:
    """Case id -> path.

    Raises:
        FlareError: If two paths have one id, with both named.
    """
    grouped = defaultdict(list)
    for path in paths:
        grouped[case_id(path)].append(path)
    for case, same in grouped.items():
        if len(same) > 1:
            raise FlareError(f"{key}: case {case} is there more than once: {', '.join(map(str, same))}")
    return {case: same[0] for case, same in grouped.items()}


def metrics_columns(labels: LabelSet) -> list[str]:
    """Columns of `metrics.csv`, in the official script's order."""
    return ["Name", *(f"{c.short}_{m}" for m in MEASURES for c in labels.classes)]


def metrics_row(case: str, scores: Mapping[str, ClassScore]) -> Row:
    """One case's row of `metrics.csv`; None where the protocol does not score the class."""
    row: Row = {"Name": case}
    for short, score in scores.items():
        row |= {f"{short}_DSC": score.dsc, f"{short}_NSD": score.nsd}
    return row


def summarise(rows: Sequence[Row], labels: LabelSet) -> dict[str, Any]:
    """Means over cases, as the official script takes them.

    Each class's mean over the cases that score it is rounded to four digits; the organ mean is taken over
    these rounded means, without the tumor, and rounded again.

    Returns:
        `cases`, `classes` (short -> DSC, NSD), `organ_mean` and `tumor`; None where nothing is scored.
    """

    def class_mean(column: str) -> float | None:
        return _mean([row[column] for row in rows if row[column] is not None])

    classes = {c.short: {m: class_mean(f"{c.short}_{m}") for m in MEASURES} for c in labels.classes}
    organs = [classes[labels.by_id(i).short] for i in labels.organs]
    tumor = None if labels.tumor is None else classes[labels.by_id(labels.tumor).short]
    organ_mean = {m: _mean([c[m] for c in organs if c[m] is not None]) for m in MEASURES}
    return {"cases": len(rows), "classes": classes, "organ_mean": organ_mean, "tumor": tumor}


def _mean(values: Sequence[float | None]) -> float | None:
    return rounded(float(np.mean(values))) if values else None  # type: ignore[arg-type]
