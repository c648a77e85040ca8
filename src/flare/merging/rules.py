"""The merging rules: ground truth and pseudo labels of one case to one map.

Reference: method section 4; `paper` is the paper's rule, `gt_first` that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np

from flare.core.classes import TARGETS, ClassList
from flare.core.errors import FlareError
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

RULES = ("paper", "gt_first")


def merge_labels(
    ground_truth: np.ndarray | None,
    pseudo: np.ndarray,
    *,
    classes: ClassList,
    spacing_mm: Sequence[float],
    annotated: Collection[int] | None = None,
    targets: str,
    rule: str,
    dilation_mm: float,
    tumor_inside_fraction: float,
    constrain_unlabeled: bool,
) -> Merged:
    """Merge the ground truth and the pseudo labels of one case on one grid. The inputs are left untouched.

    Args:
        ground_truth: `(Z, Y, X)` uint8, or None for a case without one.
        pseudo: `(Z, Y, X)` uint8, the teacher's prediction.
        classes: The class list.
        spacing_mm: Voxel size along Z, Y, X.
        annotated: Class ids that the ground truth annotates; one of them that is absent is absent in the
            patient. None: the classes present, for absent then means not annotated.
        targets: `organs`, `tumor` or `organs_tumor`; a tumor-only round takes the ground truth alone.
        rule: `paper` or `gt_first`.
        dilation_mm: Radius of the ball by which a tumor is dilated to find the organs that bear it.
        tumor_inside_fraction: Share of a pseudo tumor's shell that must be organ for it to be kept.
        constrain_unlabeled: Whether pseudo tumors are constrained in cases without ground truth too.

    Returns:
        The merged map and the report on it.

    Raises:
        FlareError: If the maps differ in shape, are not uint8, hold values outside the class list, or if
            `targets` or `rule` is unknown.

    Reference: method section 4.
    """
    classes.outputs(targets)  # refuses targets that the class list lacks
    if rule not in RULES:
        raise FlareError(f"labels.rule: expected one of {list(RULES)}, given {rule!r}")
    check_maps(ground_truth, pseudo, classes)
    if ground_truth is None and not constrain_unlabeled:
        return taken_alone(pseudo, PSEUDO, classes)
    if ground_truth is not None and targets == "tumor":
        return taken_alone(ground_truth, GROUND_TRUTH, classes)
    case = CaseMaps(
        truth=np.zeros_like(pseudo) if ground_truth is None else ground_truth,
        pseudo=pseudo,
        classes=classes,
        spacing_mm=spacing_mm,
        annotated=annotated_classes(ground_truth, annotated),
        tumor_is_target=targets != "organs",
    )
    if rule == "gt_first" and ground_truth is not None:
        return _gt_first(case)
    return _paper(case, dilation_mm, tumor_inside_fraction, has_truth=ground_truth is not None)


def taken_alone(volume: np.ndarray, source: str, classes: ClassList) -> Merged:
    """Give one map as it is, for a case that has no other, reported as taken from `source`."""
    class_source = dict.fromkeys(classes.ids, source)
    counts = count_voxels({source: volume}, volume, class_source, classes, {})
    return Merged(volume.copy(), MergeReport(class_source, counts=counts))


def _paper(case: CaseMaps, dilation_mm: float, inside_fraction: float, *, has_truth: bool) -> Merged:
    """Steps 1 to 5 of the paper's rule."""
    bearing = _tumor_bearing(case, dilation_mm)
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
        fits = shell.organ_fraction >= inside_fraction
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


SHORT_HASH = 12  # hex digits of a checkpoint's hash that name it in tables; sidecars hold all


@dataclass(frozen=True)
class MergeRules:
    """The choices of a merge, named as the arguments of `merge_labels`.

    Raises:
        FlareError: For a value that cannot be, with its key.
    """

    targets: str
    rule: str
    dilation_mm: float
    tumor_inside_fraction: float
    constrain_unlabeled: bool

    def __post_init__(self) -> None:
        for key, value, known in (("targets", self.targets, TARGETS), ("rule", self.rule, RULES)):
            if value not in known:
                raise FlareError(f"labels.{key}: expected one of {list(known)}, given {value!r}")
        if not 0 <= self.dilation_mm < float("inf"):
            raise FlareError(f"labels.dilation_mm: expected millimetres, 0 or more, given {self.dilation_mm}")
        if not 0 <= self.tumor_inside_fraction <= 1:
            given = self.tumor_inside_fraction
            raise FlareError(f"labels.tumor_inside_fraction: expected 0 to 1, given {given}")

    @classmethod
    def from_config(cls, cfg: Any) -> MergeRules:
        """Read `cfg.labels`, or the configuration of `merge_labels.py`, which has the same keys."""
        return cls(
            targets=str(cfg.targets),
            rule=str(cfg.rule),
            dilation_mm=float(cfg.dilation_mm),
            tumor_inside_fraction=float(cfg.tumor_inside_fraction),
            constrain_unlabeled=bool(cfg.constrain_unlabeled),
        )

    def to_config(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class PseudoSource:
    """Who made the pseudo labels.

    Args:
        round: The teacher's round; None where it is not known, as for plain folders.
        checkpoint_sha256: Hash of the teacher's checkpoint, or None.
    """

    round: str | None = None
    checkpoint_sha256: str | None = None

    @property
    def name(self) -> str:
        """How tables call it: `mo@1a2b3c4d5e6f`, or `pseudo`."""
        if self.checkpoint_sha256 is None:
            return self.round or "pseudo"
        return f"{self.round or 'checkpoint'}@{self.checkpoint_sha256[:SHORT_HASH]}"

    def to_config(self) -> dict[str, Any]:
        """Plain values, as sidecars hold them."""
        return {"kind": "teacher", **asdict(self)}
