"""What is done to one case: read both maps, bring them to one grid, merge, write. Runs in a worker."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.classes import ClassList
from flare.core.errors import CaseError
from flare.core.files import read_json, remove_partial, sha256, write_json
from flare.core.geometry import Geometry, Volume
from flare.core.volumes import match_grid, read_labels, write_labels
from flare.merging.maps import annotated_classes
from flare.merging.provenance import GROUND_TRUTH, Merged, sidecar, write_provenance
from flare.merging.rules import MergeRules, PseudoSource, merge_labels, taken_alone
from flare.runs.folders import RoundFolder
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor, run_cases


def merge_case(
    case: str,
    ground_truth: Path | None,
    pseudo: Path | None,
    declared: Collection[int] | None,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
    rules: Mapping[str, Any],
    teacher: Mapping[str, Any],
    outputs: Mapping[str, Path],
) -> None:
    """Merge one case and write its labels and sidecar.

    Args:
        case: The case id.
        ground_truth: Annotation, if there is one.
        pseudo: The teacher's prediction, if there is one; with it, the result is on its grid.
        declared: Class ids that the annotation's source declares to annotate; None if it does not say.
        classes: The class list.
        label_map: Renumbering of the annotation's ids; predictions have ours.
        rules: Arguments of `merge_labels`.
        teacher: Round and checkpoint hash that made the pseudo labels.
        outputs: Where `labels` and `provenance` shall lie.

    Raises:
        CaseError: If a file is bad or the grids differ; nothing is written.
    """
    source = PseudoSource(**teacher)
    truth = None if ground_truth is None else read_labels(ground_truth, classes, label_map, case)
    guess = None if pseudo is None else read_labels(pseudo, classes, None, case)
    merged, grid = _merged(case, truth, guess, declared, classes, rules)
    sources = {} if truth is None else {GROUND_TRUTH: {"kind": GROUND_TRUTH}}
    if guess is not None:
        sources[source.name] = source.to_config()
    told = sidecar(case, merged.report, classes, rules=rules, sources=sources, pseudo_name=source.name)
    write_labels(outputs["labels"], merged.labels, grid)
    write_json(outputs["provenance"], told)


def _merged(
    case: str,
    truth: Volume | None,
    guess: Volume | None,
    declared: Collection[int] | None,
    classes: ClassList,
    rules: Mapping[str, Any],
) -> tuple[Merged, Geometry]:
    """Merge what there is: both maps on the pseudo label's grid, or the only one as it is."""
    if guess is None:
        if truth is None:
            raise CaseError(case, "expected ground truth or pseudo labels, given neither")
        return taken_alone(truth.array, GROUND_TRUTH, classes), truth.geometry
    annotated = None
    if truth is not None:
        truth = _on_grid_of(guess, truth, case)
        drawn = annotated_classes(truth.array, None)
        # an empty label file tells nothing, whatever its source declares
        annotated = drawn | set(declared or ()) if drawn else drawn
    merged = merge_labels(
        None if truth is None else truth.array,
        guess.array,
        classes=classes,
        spacing_mm=guess.geometry.spacing_mm,
        annotated=annotated,
        **rules,
    )
    return merged, guess.geometry


def _on_grid_of(guess: Volume, truth: Volume, case: str) -> Volume:
    """Bring the ground truth to the pseudo label's voxel order, or refuse with both grids."""
    try:
        return match_grid(truth, guess, case)
    except CaseError as error:
        reason = error.reason.replace("image and label", "pseudo labels and ground truth")
        raise CaseError(case, reason) from None


log = logging.getLogger(__name__)
FORMAT = 1  # raised when the rules or the sidecar change, so that labels merged before are redone


@dataclass(frozen=True)
class Maps:
    """What there is of one case.

    Args:
        ground_truth: Annotation, if there is one.
        pseudo: Pseudo labels, if there are any.
        declared: Class ids that the annotation's source declares; None if it does not say.
        teacher: Who made the pseudo labels.
        pseudo_is_ours: Whether the pseudo labels are an output of ours, known by its hash.
    """

    ground_truth: Path | None
    pseudo: Path | None
    declared: tuple[int, ...] | None = None
    teacher: PseudoSource = field(default_factory=PseudoSource)
    pseudo_is_ours: bool = False

    def inputs(self) -> dict[str, Path | str]:
        """What a journal compares."""
        found: dict[str, Path | str] = {}
        if self.ground_truth is not None:
            found["ground_truth"] = self.ground_truth
        if self.pseudo is not None:
            found["pseudo"] = sha256(self.pseudo) if self.pseudo_is_ours else self.pseudo
        return found


@dataclass(frozen=True)
class MergedCohort:
    """What merging a cohort gave.

    Args:
        labels: Case id -> merged label file, for every case that has one now.
        hashes: Case id -> SHA-256 of that file.
        processed: Cases that were merged in this call; the others were unchanged.
        failures: Cases that could not be merged, and why.
        summary: The provenance in short, Markdown.
    """

    labels: dict[str, Path]
    hashes: dict[str, str]
    processed: list[str]
    failures: list[Outcome]
    summary: str


def merge_round(
    cases: Sequence[Case],
    folder: RoundFolder,
    *,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
    rules: MergeRules,
    teachers: Mapping[str, PseudoSource],
    executor: Executor,
) -> MergedCohort:
    """Merge the ground truth of a round's cases with their teachers' predictions in the round's folder.

    Args:
        cases: The round's training cases.
        folder: Has `predictions/<case>.nii.gz`; gets `labels/`.
        classes: The class list.
        label_map: Renumbering of the annotations' ids.
        rules: How to merge.
        teachers: Case id -> who made its prediction.
        executor: Where the cases are worked on.

    Returns:
        The merged cohort; a case without prediction is among its failures.
    """
    maps, missing = {}, []
    for case in cases:
        prediction = folder.predictions / f"{case.id}.nii.gz"
        if prediction.is_file():
            teacher = teachers[case.id]
            maps[case.id] = Maps(case.label, prediction, case.annotated, teacher, pseudo_is_ours=True)
        else:
            reason = f"its teacher's prediction {prediction} does not exist"
            missing.append(Outcome(case.id, error=reason, is_fault=True, kind="no prediction"))
    return merge_cohort(
        maps,
        folder.labels,
        journal=folder.journal("merge"),
        classes=classes,
        label_map=label_map,
        rules=rules,
        executor=executor,
        refused=missing,
    )


def merge_cohort(
    maps: Mapping[str, Maps],
    output: Path,
    *,
    journal: Journal,
    classes: ClassList,
    label_map: Mapping[str, int] | None,
    rules: MergeRules,
    executor: Executor,
    refused: Sequence[Outcome] = (),
) -> MergedCohort:
    """Merge the cases that are new or changed, and write the provenance of all.

    Args:
        maps: Case id -> its maps.
        output: Folder of `<case>.nii.gz`, `<case>.json`, `provenance.csv` and `provenance.md`.
        journal: What was merged before.
        classes: The class list.
        label_map: Renumbering of the annotations' ids.
        rules: How to merge.
        executor: Where the cases are worked on.
        refused: Cases that are known to fail; what was merged before for those refused is removed.
    """
    remove_partial(output)
    inputs = {case: given.inputs() for case, given in maps.items()}
    common = {
        "classes": classes.to_config(),
        "label_map": None if label_map is None else dict(label_map),
        "rules": rules.to_config(),
    }
    own = {
        case: {"declared": given.declared, "teacher": asdict(given.teacher)} for case, given in maps.items()
    }
    configs = {case: {**common, **own[case], "format": FORMAT} for case in maps}
    jobs: dict[str, dict[str, Any]] = {
        case: {
            "case": case,
            "ground_truth": given.ground_truth,
            "pseudo": given.pseudo,
            "outputs": _outputs(output, case),
            **common,
            **own[case],
            "classes": classes,
        }
        for case, given in maps.items()
        if not journal.is_current(case, inputs[case], configs[case])
    }
    failures = list(refused)
    for outcome in run_cases(merge_case, jobs, executor=executor, description="merging labels"):
        if outcome.error is None:
            case = outcome.case_id
            journal.record(case, inputs[case], configs[case], _outputs(output, case))
        else:
            failures.append(outcome)
    failed = {f.case_id for f in failures}
    for failure in failures:
        if not failure.is_fault:  # else what was merged before may be as good as ever
            for path in _outputs(output, failure.case_id).values():
                path.unlink(missing_ok=True)
    done = [case for case in maps if case not in failed]
    log.info("labels: %d merged, %d unchanged, %d failed", len(jobs), len(maps) - len(jobs), len(failures))
    told = [read_json(_outputs(output, case)["provenance"]) for case in done]
    return MergedCohort(
        labels={case: _outputs(output, case)["labels"] for case in done},
        hashes={case: journal.output_hash(case, "labels") for case in done},
        processed=[case for case in jobs if case not in failed],
        failures=failures,
        summary=write_provenance(output, told, classes),
    )


def _outputs(folder: Path, case: str) -> dict[str, Path]:
    return {"labels": folder / f"{case}.nii.gz", "provenance": folder / f"{case}.json"}
