"""Scores of a cohort: one row a case in `metrics.csv`, means in `summary.json`; the body of `evaluate.py`."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flare.core.cases import case_rule
from flare.core.class_files import agreed_classes
from flare.core.errors import FlareError
from flare.core.files import read_json, write_csv, write_json
from flare.core.paths import settle_paths
from flare.core.preprocessing import without_ignored
from flare.core.volumes import find_images, match_grid, read_image, read_labels, strip_extension, unique_cases
from flare.evaluation import summary as cohort
from flare.evaluation.lesions import Lesion, detection, detection_tables, find_lesions, size_class
from flare.evaluation.metrics import ClassScore, ScoreSettings, extra_scores, mean, score_case
from flare.evaluation.rendering import show
from flare.runs.work import Executor, Outcome, build_executor, report_failures, run_cases, stop_on_faults

log = logging.getLogger(__name__)
EXTRA_CSV, LESIONS_JSON = "extra_scores.csv", "lesions.json"
DETAILS = ("DSC", "NSD", "HD95_mm", "reference_ml", "prediction_ml", "volume_error_ml")
LESIONS = ("case", "side", "volume_ml", "diameter_mm", "size", "organ", "matched", "DSC", "score")


@dataclass(frozen=True)
class CaseScores:
    """All that is known of one case; `lesions` is None where nothing says whether it bears a tumor."""

    classes: Mapping[str, ClassScore]
    lesions: Sequence[Lesion] | None = None
    extra: Mapping[str, float | None] = field(default_factory=dict)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score a folder of predictions against a folder of references; gives what `summary.json` holds.

    Writes `metrics.csv`, `details.csv`, `lesions.csv` and `summary.json` to `output`, by default the
    predictions folder. Scores of the user's own go to `extra_scores.csv`, and a comparison with another run
    (`compare`: its `metrics.csv` or folder) to `comparison.csv`. A `missing` case has no prediction: it
    scores zero, which is no error. A path that is missing or empty is refused before any work. A case that
    failed, and a comparison without a case, are refused after all is written.
    """
    settle_paths(cfg)
    predictions, references = Path(cfg.predictions), Path(cfg.references)
    folders = {"predictions": predictions, "references": references}
    for key, folder in folders.items():
        if not folder.is_dir():
            raise FlareError(f"{key}: expected a folder, given {folder}")
    cfg = agreed_classes(cfg, folders, renumbered=["references"])
    settings = replace(ScoreSettings.from_config(cfg, "protocol"), details=True, max_failed=1.0)
    names = {strip_extension(path.name) for path in find_images(predictions)}
    rule = case_rule(cfg.data.case_id)
    found, twice = unique_cases(find_images(references), known=names, rule=rule, root=references)
    if not found and not twice:
        raise FlareError(f"references: no label map below {folder}")
    output = Path(cfg.output or predictions)
    other = cohort.metrics_file(Path(cfg.compare)) if cfg.get("compare") else None
    refused = {case: f"references: {reason}" for case, reason in twice.items()}
    given: dict[str, Any] = {"output": output, "settings": settings, "refused": refused, "rule": rule}
    with closing(build_executor(cfg)) as executor:
        summary = score_folder(predictions, found, executor=executor, **given)
    failures = failed_cases(summary)
    if other is not None:
        try:
            comparison = cohort.compare_runs(output / "metrics.csv", other, settings.classes)
        except FlareError:
            report_failures(failures, "evaluate")  # they may be why there is nothing to compare
            raise
        write_csv(output / "comparison.csv", comparison)
        summary["comparison"] = comparison
        write_json(output / "summary.json", summary)
    show(cohort.class_table(summary))
    if summary["lesions"]["scans"]:
        for table in detection_tables({"all": summary["lesions"]}, "all"):
            show(table)
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
    rule: str = "leaf",
) -> dict[str, Any]:
    """Score every reference's prediction and give the summary; a missing prediction scores zero and is named.

    The folder of predictions is searched recursively for `<case>.nii.gz`; lesions are scored by maps of the
    folder `confidence` beside it (0 to 255), if each case has one. `references` are case id -> label map,
    `refused` the cases that are known to fail, and why. Predictions are named by `rule` (`case_id`). In the
    summary cases that could not be scored are under `failed` with the reason, and have no row; `faults` names
    those of them that failed by no fault of their files.
    """
    paths = find_images(predictions)
    given, twice = unique_cases(paths, known=references.keys(), rule=rule, root=predictions)
    failed = {case: f"predictions: {reason}" for case, reason in twice.items()} | dict(refused or {})
    missing = sorted(references.keys() - given.keys() - failed.keys())
    extra = sorted(given.keys() - references.keys() - failed.keys())
    for what, cases in (("has no prediction and scores zero", missing), ("has no reference", extra)):
        for case in cases:
            log.warning("case %s %s", case, what)
    maps = {case: predictions.with_name("confidence") / given[case].name for case in given.keys() - extra}
    known = maps if all(path.exists() for path in maps.values()) else {}
    answered = frozenset(settings.answered)  # a job is told of its own case alone
    jobs = {
        case: {"case": case, "reference": references[case], "prediction": given.get(case)}
        | {"confidence": known.get(case), "settings": replace(settings, answered=tuple(answered & {case}))}
        for case in sorted(references.keys() - failed.keys())
    }
    done = run_cases(score_files, jobs, executor=executor, description="score")
    outcomes = sorted(done, key=lambda o: o.case_id)
    scored: dict[str, CaseScores] = {o.case_id: o.value for o in outcomes if o.error is None}
    unscored = [o for o in outcomes if o.error is not None]
    stop_on_faults(unscored, "scoring", jobs, settings.max_failed)
    rows: list[dict[str, Any]] = []
    for case, found in scored.items():
        dsc = {f"{short}_DSC": s.dsc for short, s in found.classes.items()}
        rows.append({"Name": case, **dsc, **{f"{short}_NSD": s.nsd for short, s in found.classes.items()}})
    write_csv(output / "metrics.csv", rows, cohort.metrics_columns(settings.classes))
    one_slice = {case: [k for k, s in found.classes.items() if s.one_slice] for case, found in scored.items()}
    summary = {
        "protocol": settings.protocol,
        **cohort.summarise(rows, settings.classes),
        "one_slice": {case: shorts for case, shorts in one_slice.items() if shorts},
        "missing": missing,
        "extra": extra,
        "failed": dict(sorted((failed | {o.case_id: str(o.error) for o in unscored}).items())),
        "faults": [o.case_id for o in unscored if o.is_fault],
    }
    if settings.extra:
        summary["extra_scores"] = write_extra_scores(scored, output / EXTRA_CSV)
    else:
        (output / EXTRA_CSV).unlink(missing_ok=True)
    lesions = {case: found.lesions for case, found in scored.items() if found.lesions is not None}
    write_json(output / LESIONS_JSON, {case: [asdict(x) for x in found] for case, found in lesions.items()})
    summary["lesions"] = detection(lesions)
    if settings.details:
        summary["intervals"] = cohort.intervals(rows, settings.classes)
        summary |= write_details(scored, output)
    write_json(output / "summary.json", summary)
    return summary


def read_lesions(folder: Path) -> dict[str, list[Lesion]]:
    """The lesions of each scan that `score_folder` has scored into a folder and whose reference tells."""
    found = read_json(folder / LESIONS_JSON)
    return {case: [Lesion(**x) for x in lesions] for case, lesions in found.items()}


def failed_cases(summary: Mapping[str, Any]) -> list[Outcome]:
    """The cases that a summary says could not be scored."""
    faults = set(summary.get("faults", ()))
    return [Outcome(case, None, reason, case in faults) for case, reason in summary["failed"].items()]


def score_files(
    case: str, reference: Path, prediction: Path | None, confidence: Path | None, settings: ScoreSettings
) -> CaseScores:
    """Score one case from its files; without a prediction every scored class is zero.

    Voxels that the reference ignores are in no score, volume or lesion, see `without_ignored`; a prediction
    that has `classes.ignore` claims no class there. A bad file and grids that differ are a `CaseError`.
    """
    classes = settings.classes
    truth = read_labels(reference, classes, settings.label_map, case)
    spacing_mm = truth.geometry.spacing_mm
    if prediction is None:
        array = np.zeros_like(truth.array)
    else:
        array = match_grid(read_labels(prediction, classes, case=case), truth, case).array
    pair = without_ignored(truth.array, array)
    how: Any = {"spacing_mm": spacing_mm, "protocol": settings.protocol, "details": settings.details}
    scores = score_case(*pair, classes=classes, **how)
    if prediction is None:
        scores = {k: s if s.dsc is None else replace(s, dsc=0.0, nsd=0.0) for k, s in scores.items()}
    extra = extra_scores(*pair, spacing_mm=spacing_mm, settings=settings)
    tumor = classes.tumor
    if tumor is None or (scores[classes.by_id(tumor).short].dsc is None and case not in settings.answered):
        return CaseScores(scores, extra=extra)
    sure = None if confidence is None else match_grid(read_image(confidence, case), truth, case).array / 255
    lesions = find_lesions(*pair, spacing_mm=spacing_mm, classes=classes, confidence=sure)
    return CaseScores(scores, lesions, extra)


def write_extra_scores(scored: Mapping[str, CaseScores], path: Path) -> dict[str, float | None]:
    """Write `extra_scores.csv`, one row a case, and give the means over the cases that are scored."""
    names = list(dict.fromkeys(name for found in scored.values() for name in found.extra))
    write_csv(path, [{"Name": case, **found.extra} for case, found in scored.items()], ["Name", *names])
    return {name: mean(found.extra.get(name) for found in scored.values()) for name in names}


def write_details(scored: Mapping[str, CaseScores], output: Path) -> dict[str, Any]:
    """Write `details.csv` (one row a case and class) and `lesions.csv` (one row a lesion).

    Gives `distances` by short name: mean HD95 and over how many cases, mean and absolute volume error (ml).
    """
    rows = [
        {"case": case, "class": short, **{k: getattr(s, k.lower()) for k in DETAILS}}
        for case, found in scored.items()
        for short, s in found.classes.items()
    ]
    write_csv(output / "details.csv", rows, ["case", "class", *DETAILS])
    cases = {case: found.lesions for case, found in scored.items() if found.lesions is not None}
    lesions = [
        {"case": case, "size": size_class(x.diameter_mm), **asdict(x), "DSC": x.dsc}
        for case, of_case in cases.items()
        for x in of_case
    ]
    write_csv(output / "lesions.csv", lesions, LESIONS)
    distances = {}
    for short in dict.fromkeys(k for found in scored.values() for k in found.classes):
        known = [s for found in scored.values() if (s := found.classes[short]).dsc is not None]
        hd95 = [s.hd95_mm for s in known if s.hd95_mm is not None]
        errors = [s.volume_error_ml for s in known if s.volume_error_ml is not None]
        distances[short] = {
            "HD95_mm": mean(hd95),
            "HD95_cases": len(hd95),
            "volume_error_ml": mean(errors),
            "absolute_volume_error_ml": mean(map(abs, errors)),
        }
    return {"distances": distances}
