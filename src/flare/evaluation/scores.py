"""Scores of a cohort: one row a case in `metrics.csv`, means in `summary.json`; the body of `evaluate.py`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flare.core.cases import read_label_map
from flare.core.classes import ClassList
from flare.core.errors import FlareError, choice
from flare.core.files import write_csv, write_json
from flare.core.volumes import find_images, match_grid, read_labels, strip_extension, unique_cases
from flare.evaluation.extra import CSV, Part, checked_parts, extra_scores, write_extra_scores
from flare.evaluation.lesions import find_lesions
from flare.evaluation.metrics import PROTOCOLS, score_case
from flare.evaluation.statistics import compare_runs, intervals, metrics_file
from flare.evaluation.summary import CaseScores, metrics_columns, metrics_row, summarise, write_details
from flare.runs.outcomes import Outcome, report_failures, stop_on_faults
from flare.runs.work import Executor, build_executor, failed_share, run_cases

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreSettings:
    """How predictions are scored; plain values.

    Attributes:
        classes: The classes to score.
        protocol: `flare23`, `corrected` or `present`.
        label_map: `data.label_map`, applied to the references.
        extra: Scores of the user's own, see `extra`.
        details: Whether to write `details.csv` and `lesions.csv` and give confidence intervals, too.
        max_failed: Share of the cases that may fail by no fault of their files; by default all are named.
    """

    classes: ClassList
    protocol: str = "flare23"
    label_map: Mapping[Any, int] | None = None
    extra: tuple[Part, ...] = ()
    details: bool = False
    max_failed: float = 1.0

    @classmethod
    def from_config(cls, cfg: DictConfig, key: str) -> ScoreSettings:
        """Read `classes`, `data.label_map`, `evaluation.extra`, `executor.max_failed` and the protocol's key.

        Raises:
            FlareError: If a value is none of the choices, or a score cannot be built, naming the key.
        """
        protocol = OmegaConf.select(cfg, key)
        choice(*PROTOCOLS).require(key, protocol)
        classes = ClassList.from_config(cfg.classes)
        return cls(
            classes,
            protocol,
            read_label_map(cfg.data.label_map, classes),
            checked_parts(cfg.evaluation.extra),
            max_failed=failed_share(cfg),
        )

    def identity(self) -> dict[str, Any]:
        """What decides the scores, as plain values."""
        own = {"protocol": self.protocol, "label_map": self.label_map, "extra": list(self.extra)}
        return {"classes": self.classes.to_config(), **own}


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score a folder of predictions against a folder of references.

    Writes `metrics.csv`, `details.csv`, `lesions.csv` and `summary.json` to `cfg.output`, by default the
    predictions folder. Scores of the user's own go to `extra_scores.csv`, and a comparison with another run
    to `comparison.csv`.

    Args:
        cfg: Reads `classes`, `predictions`, `references`, `output`, `protocol`, `data.label_map` (applied to
            the references), `evaluation.extra`, `executor` and `compare` (another run's `metrics.csv` or its
            folder).

    Returns:
        What `summary.json` holds. Its `missing` cases have no prediction: they score zero, which is no error.

    Raises:
        FlareError: Before any work if a path is missing or empty; after all is written if a case failed, or
            none is left to compare.
    """
    settings = replace(ScoreSettings.from_config(cfg, "protocol"), details=True, max_failed=1.0)
    predictions, references = Path(cfg.predictions), Path(cfg.references)
    for key, folder in (("predictions", predictions), ("references", references)):
        if not folder.is_dir():
            raise FlareError(f"{key}: expected a folder, given {folder}")
    names = {strip_extension(path.name) for path in find_images(predictions)}
    found, twice = unique_cases(find_images(references), known=names)
    if not found and not twice:
        raise FlareError(f"references: no label map below {folder}")
    output = Path(cfg.output or predictions)
    other = metrics_file(Path(cfg.compare)) if cfg.get("compare") else None
    refused = {case: f"references: {reason}" for case, reason in twice.items()}
    with closing(build_executor(cfg)) as executor:
        summary = score_folder(
            predictions, found, output=output, settings=settings, executor=executor, refused=refused
        )
    failures = failed_cases(summary)
    if other is not None:
        try:
            comparison = compare_runs(output / "metrics.csv", other, settings.classes)
        except FlareError:
            report_failures(failures, "evaluate")  # they may be why there is nothing to compare
            raise
        write_csv(output / "comparison.csv", comparison)
        summary["comparison"] = comparison
        write_json(output / "summary.json", summary)
    organs, tumor = summary["organ_mean"], summary["tumor"] or {}
    log.info("%d cases, %s: organ mean %s, tumor %s", summary["cases"], settings.protocol, organs, tumor)
    if summary["missing"]:
        log.warning("without a prediction, scored zero: %s", ", ".join(summary["missing"]))
    report_failures(failures, "evaluate")
    return summary


def score_folder(
    predictions: Path,
    references: Mapping[str, Path],
    *,
    output: Path,
    settings: ScoreSettings,
    executor: Executor,
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score every reference's prediction; a missing prediction scores zero and is named.

    Args:
        predictions: Folder searched recursively for `<case>.nii.gz`.
        references: Case id -> label map.
        output: Folder for `metrics.csv` and `summary.json`.
        settings: How to score.
        executor: Runs the cases.
        refused: Cases that are known to fail, and why.

    Returns:
        The summary; cases that could not be scored are under `failed` with the reason, and have no row;
        `faults` names those of them that failed by no fault of their files.
    """
    given, twice = unique_cases(find_images(predictions), known=references.keys())
    failed = {case: f"predictions: {reason}" for case, reason in twice.items()} | dict(refused or {})
    missing = sorted(references.keys() - given.keys() - failed.keys())
    extra = sorted(given.keys() - references.keys() - failed.keys())
    for what, cases in (("has no prediction and scores zero", missing), ("has no reference", extra)):
        for case in cases:
            log.warning("case %s %s", case, what)
    jobs = {
        case: {"case": case, "reference": path, "prediction": given.get(case), "settings": settings}
        for case, path in sorted(references.items())
        if case not in failed
    }
    scored, unscored = _score_all(jobs, executor)
    stop_on_faults(unscored, "scoring", jobs, settings.max_failed)
    rows = [metrics_row(case, found.classes) for case, found in scored.items()]
    write_csv(output / "metrics.csv", rows, metrics_columns(settings.classes))
    summary = {
        "protocol": settings.protocol,
        **summarise(rows, settings.classes),
        "one_slice": _one_slice(scored),
        "missing": missing,
        "extra": extra,
        "failed": dict(sorted((failed | {o.case_id: str(o.error) for o in unscored}).items())),
        "faults": [o.case_id for o in unscored if o.is_fault],
    }
    if settings.extra:
        summary["extra_scores"] = write_extra_scores({k: found.extra for k, found in scored.items()}, output)
    else:
        (output / CSV).unlink(missing_ok=True)
    if settings.details:
        summary |= {"intervals": intervals(rows, settings.classes), **write_details(scored, output)}
    write_json(output / "summary.json", summary)
    return summary


def _score_all(
    jobs: Mapping[str, dict[str, Any]], executor: Executor
) -> tuple[dict[str, CaseScores], list[Outcome]]:
    """Scores of the cases that could be scored, and what became of the others, both in order of ids."""
    outcomes = run_cases(score_files, jobs, executor=executor, description="score")
    ordered = sorted(outcomes, key=lambda o: o.case_id)
    scored = {o.case_id: o.value for o in ordered if o.error is None}
    return scored, [o for o in ordered if o.error is not None]


def failed_cases(summary: Mapping[str, Any]) -> list[Outcome]:
    """The cases that a summary says could not be scored."""
    faults = summary.get("faults", ())
    return [Outcome(case, None, reason, case in faults) for case, reason in summary["failed"].items()]


def _one_slice(scored: Mapping[str, CaseScores]) -> dict[str, list[str]]:
    """Case id -> classes whose slice range is a single slice, where there are any."""
    found = {case: [k for k, s in scores.classes.items() if s.one_slice] for case, scores in scored.items()}
    return {case: shorts for case, shorts in found.items() if shorts}


def score_files(case: str, reference: Path, prediction: Path | None, settings: ScoreSettings) -> CaseScores:
    """Score one case from its files; without a prediction every scored class is zero.

    Raises:
        CaseError: If a file is bad or the grids differ.
    """
    classes, details = settings.classes, settings.details
    truth = read_labels(reference, classes, settings.label_map, case)
    spacing_mm = truth.geometry.spacing_mm
    if prediction is None:
        array = np.zeros_like(truth.array)
    else:
        array = match_grid(read_labels(prediction, classes, case=case), truth, case).array
    pair = truth.array, array
    scores = score_case(
        *pair, spacing_mm=spacing_mm, classes=classes, protocol=settings.protocol, details=details
    )
    if prediction is None:
        scores = {k: s if s.dsc is None else replace(s, dsc=0.0, nsd=0.0) for k, s in scores.items()}
    extra = extra_scores(*pair, spacing_mm=spacing_mm, classes=classes, parts=settings.extra)
    tumor = classes.tumor
    if not details or tumor is None or scores[classes.by_id(tumor).short].dsc is None:
        return CaseScores(scores, extra=extra)
    return CaseScores(scores, find_lesions(*pair, spacing_mm=spacing_mm, classes=classes), extra)
