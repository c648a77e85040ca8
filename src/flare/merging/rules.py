"""The merging rules: ground truth and pseudo labels of one case to one map.

Reference: method section 4; `paper` is the paper's rule, `gt_first` that of the authors' code.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.core.classes import IGNORE, ClassList
from flare.merging.maps import check_maps, components, dilated, drawn_classes, organ_hull, shell_of, table
from flare.merging.provenance import GROUND_TRUTH, NONE, PSEUDO, TumorComponent, tell_origin
from flare.merging.settings import MergeRules


@dataclass(frozen=True)
class Merged:
    """Merged labels `(Z, Y, X)` uint8, and where they came from, see `tell_origin`."""

    labels: np.ndarray
    origin: dict[str, Any]


@dataclass
class CaseMaps:
    """Ground truth and pseudo labels of one case, `(Z, Y, X)` uint8, and what is asked of them."""

    truth: np.ndarray  # all background where there is no ground truth, `IGNORE` where it is silent
    pseudo: np.ndarray
    has_truth: bool
    teacher: str  # name of the pseudo labels' source
    classes: ClassList
    annotated: frozenset[int]  # class ids that the ground truth annotates
    tumor_is_target: bool

    def __post_init__(self) -> None:
        tumor = -1 if self.classes.tumor is None else self.classes.tumor  # which no voxel has
        self.is_organ = table(self.classes.organs)  # by class id
        self.true_tumor, self.pseudo_tumor = self.truth == tumor, self.pseudo == tumor
        self.is_ignored = self.truth == IGNORE  # where the ground truth says nothing
        # it says where tumors are if it has some, or its source draws them
        self.truth_answers_for_tumors = bool(self.true_tumor.any()) or tumor in self.annotated
        self.may_keep_tumors = self.tumor_is_target and not self.truth_answers_for_tumors


def merge_labels(
    ground_truth: np.ndarray | None,
    pseudo: np.ndarray,
    rules: MergeRules,
    *,
    classes: ClassList,
    spacing_mm: Sequence[float],
    annotated: Collection[int] | None = None,
    teacher: str = PSEUDO,
    organs: np.ndarray | None = None,
) -> Merged:
    """Merge the ground truth and the pseudo labels of one case on one grid. The inputs are left untouched.

    The paper knows no ignored voxels. Ours: where the ground truth has `IGNORE` it is neither for nor against
    a class, so that the voxel is as the pseudo label has it, also of a class that is trusted. Where that is a
    tumor which is not kept it stays ignored, as do all ignored voxels of a case without pseudo labels and of
    a tumor-only round. The provenance counts both. Unknown targets, and maps as of `check_maps`, are refused.

    Maps are `(Z, Y, X)` uint8: the ground truth, if there is one, holds class ids or `IGNORE`; `pseudo` is
    the prediction of the `teacher`, by its name; in `organs`, by default the hull of those that are predicted
    (`organ_hull`), `tumor_inside=voxel` keeps a tumor. `spacing_mm` is along Z, Y, X. Of the class ids that
    are `annotated` one that is absent is absent in the patient; None: only the classes present are annotated.

    Reference: method section 4.
    """
    classes.outputs(rules.targets)  # refuses targets that the class list lacks
    check_maps(ground_truth, pseudo, classes)
    if ground_truth is None and not rules.constrain_unlabeled:
        return taken_alone(pseudo, teacher, classes)
    if ground_truth is not None and rules.targets == "tumor":
        return taken_alone(ground_truth, GROUND_TRUTH, classes)
    has_truth = ground_truth is not None
    truth = np.zeros_like(pseudo) if ground_truth is None else ground_truth
    known = drawn_classes(truth) if annotated is None or not has_truth else frozenset(annotated)
    is_target = rules.targets != "organs"
    case = CaseMaps(truth, pseudo, has_truth, teacher, classes, known, tumor_is_target=is_target)
    if rules.rule == "gt_first" and has_truth:
        return _gt_first(case)
    inside = None
    if rules.tumor_inside == "voxel" and case.may_keep_tumors:
        inside = organ_hull(pseudo, classes.organs) if organs is None else case.is_organ[organs]
    return _paper(case, rules, spacing_mm, inside)


def taken_alone(volume: np.ndarray, source: str, classes: ClassList) -> Merged:
    """Give one map as it is, for a case that has no other, reported as taken from `source`."""
    sources = dict.fromkeys(classes.ids, source)
    return Merged(volume.copy(), tell_origin(volume, {source: volume}, sources, classes))


def _paper(
    case: CaseMaps, rules: MergeRules, spacing_mm: Sequence[float], inside: np.ndarray | None
) -> Merged:
    """Steps 1 to 5 of the paper's rule; a pseudo tumor stays where it is `inside`, or whole by its shell."""
    bearing = _tumor_bearing(case, rules.dilation_mm, spacing_mm)
    trusted = tuple(c for c in case.classes.organs if c in case.annotated and c not in bearing)
    organs = np.where(case.pseudo_tumor, np.uint8(0), case.pseudo)
    merged = _with_trusted(case, organs, trusted)
    kept = np.zeros(merged.shape, dtype=bool)
    found = []
    any_tumor = case.pseudo_tumor | case.true_tumor
    # every component is judged in the same map without tumors, so their order does not matter
    for component in components(case.pseudo_tumor):
        shell = shell_of(component, any_tumor, merged, case.is_organ)
        fits = shell.organ_fraction >= rules.tumor_inside_fraction
        stays = component.mask & case.may_keep_tumors & (fits if inside is None else inside[component.box])
        goes = component.mask & ~stays
        kept[component.box] |= stays
        organs[component.box][goes] = shell.fill
        for fate, part in {"kept": stays, "dropped" if case.may_keep_tumors else "superseded": goes}.items():
            if part.any():  # of one that is cut each part is told
                found.append(TumorComponent(case.teacher, fate, int(np.count_nonzero(part)), shell))
    if found:
        merged = _with_trusted(case, organs, trusted)
    return _finished(case, merged, trusted, kept, bearing, found)


def _gt_first(case: CaseMaps) -> Merged:
    """The authors' rule: ground truth wins, pseudo organs fill absent classes, pseudo tumor comes last."""
    known = case.annotated | drawn_classes(case.truth)
    absent = table([c for c in case.classes.organs if c not in known])
    merged = case.truth.copy()
    np.copyto(merged, case.pseudo, where=(merged == 0) & absent[case.pseudo])
    pseudo_organs = np.where(case.is_organ[case.pseudo], case.pseudo, np.uint8(0))
    np.copyto(merged, pseudo_organs, where=case.is_ignored)
    if not case.tumor_is_target:
        np.copyto(merged, pseudo_organs, where=case.true_tumor)
    trusted = tuple(c for c in case.classes.organs if c in known)
    inside = (merged != 0) | case.is_ignored
    return _finished(case, merged, trusted, case.pseudo_tumor & inside & case.may_keep_tumors)


def _tumor_bearing(case: CaseMaps, dilation_mm: float, spacing_mm: Sequence[float]) -> tuple[int, ...]:
    """Organs of either map that the dilated ground-truth tumor overlaps (step 1)."""
    reach = dilated(case.true_tumor, dilation_mm, spacing_mm)
    if reach is None:
        return ()
    box, mask = reach
    overlapped = table(case.pseudo[box][mask]) | table(case.truth[box][mask])
    return tuple(c for c in case.classes.organs if overlapped[c])


def _with_trusted(case: CaseMaps, organs: np.ndarray, trusted: Sequence[int]) -> np.ndarray:
    """Pseudo organs with the trusted classes replaced by the ground truth, both ways (step 2)."""
    is_trusted = table(trusted)
    merged = np.where(is_trusted[organs] & ~case.is_ignored, np.uint8(0), organs)
    np.copyto(merged, case.truth, where=is_trusted[case.truth])
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
        found.append(TumorComponent(GROUND_TRUTH, "absorbed", component.voxels, shell))
    return found


def _finished(
    case: CaseMaps,
    merged: np.ndarray,
    trusted: tuple[int, ...],
    kept: np.ndarray,
    bearing: tuple[int, ...] = (),
    found: Sequence[TumorComponent] = (),
) -> Merged:
    """Set the tumors, those of the teacher that are kept and those of the ground truth, and report."""
    np.copyto(merged, case.pseudo, where=kept)
    judged = [*found, *_set_true_tumor(case, merged)]
    merged[case.is_ignored & case.pseudo_tumor & ~kept] = IGNORE
    source = {c: GROUND_TRUTH if c in trusted else case.teacher for c in case.classes.organs}
    if case.classes.tumor is not None:
        answered = GROUND_TRUTH if case.truth_answers_for_tumors else case.teacher
        source[case.classes.tumor] = answered if case.tumor_is_target else NONE
    lost = np.bincount(case.truth[kept], minlength=256)
    maps = {GROUND_TRUTH: case.truth} if case.has_truth else {}
    origin = tell_origin(
        merged,
        maps | {case.teacher: case.pseudo},
        source,
        case.classes,
        trusted=trusted,
        bearing=bearing,
        overwritten={c: int(lost[c]) for c in trusted},
        tumors=judged,
    )
    return Merged(merged, origin)
