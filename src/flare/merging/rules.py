"""The merging rules: ground truth and pseudo labels of one case to one map.

Reference: method section 4; `paper` is the paper's rule, `gt_first` that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple

import numpy as np

from flare.core.classes import ClassList
from flare.merging.components import components, dilated, shell_of
from flare.merging.maps import CaseMaps, annotated_classes, check_maps, present, table, tally
from flare.merging.provenance import (
    GROUND_TRUTH,
    NONE,
    PSEUDO,
    Merged,
    MergeReport,
    TumorComponent,
    count_voxels,
    describe,
)
from flare.merging.settings import MergeRules


def merge_labels(
    ground_truth: np.ndarray | None,
    pseudo: np.ndarray,
    rules: MergeRules,
    *,
    classes: ClassList,
    spacing_mm: Sequence[float],
    annotated: Collection[int] | None = None,
) -> Merged:
    """Merge the ground truth and the pseudo labels of one case on one grid. The inputs are left untouched.

    Args:
        ground_truth: `(Z, Y, X)` uint8, or None for a case without one.
        pseudo: `(Z, Y, X)` uint8, the teacher's prediction.
        rules: How to merge.
        classes: The class list.
        spacing_mm: Voxel size along Z, Y, X.
        annotated: Class ids that the ground truth annotates; one of them that is absent is absent in the
            patient. None: the classes present, for absent then means not annotated.

    Returns:
        The merged map and the report on it.

    Raises:
        FlareError: If the maps differ in shape, are not uint8 or hold values outside the class list, or if
            the class list lacks the targets.

    Reference: method section 4.
    """
    classes.outputs(rules.targets)  # refuses targets that the class list lacks
    check_maps(ground_truth, pseudo, classes)
    if ground_truth is None and not rules.constrain_unlabeled:
        return taken_alone(pseudo, PSEUDO, classes)
    if ground_truth is not None and rules.targets == "tumor":
        return taken_alone(ground_truth, GROUND_TRUTH, classes)
    case = CaseMaps(
        truth=np.zeros_like(pseudo) if ground_truth is None else ground_truth,
        pseudo=pseudo,
        classes=classes,
        spacing_mm=spacing_mm,
        annotated=annotated_classes(ground_truth, annotated),
        tumor_is_target=rules.targets != "organs",
    )
    if rules.rule == "gt_first" and ground_truth is not None:
        return _gt_first(case)
    return _paper(case, rules, has_truth=ground_truth is not None)


def taken_alone(volume: np.ndarray, source: str, classes: ClassList) -> Merged:
    """Give one map as it is, for a case that has no other, reported as taken from `source`."""
    class_source = dict.fromkeys(classes.ids, source)
    counts = count_voxels({source: volume}, volume, class_source, classes, {})
    return Merged(volume.copy(), MergeReport(class_source, counts=counts))


def _paper(case: CaseMaps, rules: MergeRules, *, has_truth: bool) -> Merged:
    """Steps 1 to 5 of the paper's rule."""
    bearing = _tumor_bearing(case, rules.dilation_mm)
    trusted = tuple(c for c in case.classes.organs if c in case.annotated and c not in bearing)
    organs = np.where(case.pseudo_tumor, np.uint8(0), case.pseudo)
    merged = _with_trusted(organs, case.truth, trusted)
    stays_possible = case.tumor_is_target and not case.truth_answers_for_tumors
    kept = np.zeros(merged.shape, dtype=bool)
    found = []
    any_tumor = case.pseudo_tumor | case.true_tumor
    # every component is judged in the same map without tumors, so their order does not matter
    for component in components(case.pseudo_tumor):
        shell = shell_of(component, any_tumor, merged, case.is_organ)
        fits = shell.organ_fraction >= rules.tumor_inside_fraction
        if stays_possible and fits:
            kept[component.box] |= component.mask
        else:
            organs[component.box][component.mask] = shell.fill
        fate = ("kept" if fits else "dropped") if stays_possible else "superseded"
        found.append(describe(PSEUDO, fate, component, shell))
    if found:
        merged = _with_trusted(organs, case.truth, trusted)
    overwritten = tally(case.truth[kept], trusted)
    np.copyto(merged, case.pseudo, where=kept)
    found += _set_true_tumor(case, merged)
    return _reported(case, merged, trusted, bearing, found, overwritten, has_truth=has_truth)


def _gt_first(case: CaseMaps) -> Merged:
    """The authors' rule: ground truth wins, pseudo organs fill absent classes, pseudo tumor comes last."""
    known = case.annotated | set(np.flatnonzero(present(case.truth)).tolist())
    absent = table(c for c in case.classes.organs if c not in known)
    merged = case.truth.copy()
    np.copyto(merged, case.pseudo, where=(merged == 0) & absent[case.pseudo])
    if not case.tumor_is_target:
        pseudo_organs = np.where(case.is_organ[case.pseudo], case.pseudo, np.uint8(0))
        np.copyto(merged, pseudo_organs, where=case.true_tumor)
    trusted = tuple(c for c in case.classes.organs if c in known)
    overwritten = {}
    if case.tumor_is_target and not case.truth_answers_for_tumors:
        kept = case.pseudo_tumor & (merged != 0)
        overwritten = tally(case.truth[kept], trusted)
        np.copyto(merged, case.pseudo, where=kept)
    found = _set_true_tumor(case, merged)
    return _reported(case, merged, trusted, (), found, overwritten, has_truth=True)


def _tumor_bearing(case: CaseMaps, dilation_mm: float) -> tuple[int, ...]:
    """Organs of either map that the dilated ground-truth tumor overlaps (step 1)."""
    reach = dilated(case.true_tumor, dilation_mm, case.spacing_mm)
    if reach is None:
        return ()
    box, mask = reach
    overlapped = present(case.pseudo[box][mask]) | present(case.truth[box][mask])
    return tuple(c for c in case.classes.organs if overlapped[c])


def _with_trusted(organs: np.ndarray, truth: np.ndarray, trusted: Iterable[int]) -> np.ndarray:
    """Pseudo organs with the trusted classes replaced by the ground truth, both ways (step 2)."""
    is_trusted = table(trusted)
    merged = np.where(is_trusted[organs], np.uint8(0), organs)
    np.copyto(merged, truth, where=is_trusted[truth])
    return merged


def _set_true_tumor(case: CaseMaps, merged: np.ndarray) -> list[TumorComponent]:
    """Set the ground-truth tumor, in place and last; in an organ-only round turn it into organ (step 4)."""
    if case.tumor_is_target:
        np.copyto(merged, case.truth, where=case.true_tumor)
        return []
    found = []
    # no shell holds a voxel that this loop writes, so the order of components does not matter
    for component in components(case.true_tumor):
        shell = shell_of(component, case.true_tumor, merged, case.is_organ)
        inside = merged[component.box]
        inside[component.mask & (inside == 0)] = shell.fill
        found.append(describe(GROUND_TRUTH, "absorbed", component, shell))
    return found


def _reported(
    case: CaseMaps,
    merged: np.ndarray,
    trusted: tuple[int, ...],
    bearing: tuple[int, ...],
    found: list[TumorComponent],
    overwritten: dict[int, int],
    *,
    has_truth: bool,
) -> Merged:
    """Join the map with its report."""
    source = {c: GROUND_TRUTH if c in trusted else PSEUDO for c in case.classes.organs}
    if case.classes.tumor is not None:
        answered = GROUND_TRUTH if case.truth_answers_for_tumors else PSEUDO
        source[case.classes.tumor] = answered if case.tumor_is_target else NONE
    maps = {GROUND_TRUTH: case.truth, PSEUDO: case.pseudo} if has_truth else {PSEUDO: case.pseudo}
    found = sorted(found, key=lambda c: (-c.voxels, astuple(c)))
    counts = count_voxels(maps, merged, source, case.classes, overwritten)
    return Merged(merged, MergeReport(source, trusted, bearing, tuple(found), counts))
