"""Detection of tumors: which lesions were found, which found ones are none, and which patients bear any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.files import write_csv
from flare.core.geometry import Spacing, bounding_box
from flare.evaluation.metrics import mean
from flare.evaluation.rendering import Column, Table, cell, write_table
from flare.merging.maps import components, shell_of

SIZES_MM = (10.0, 20.0)  # limits between small, middle and large (ours)
OUTSIDE = "none"
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives a scan that FROC averages over (LUNA16's)
LOWEST = "false_positives_per_scan"
COUNTS = ("patients_with_tumor", "controls", "lesions")
OF_PATIENTS = (*COUNTS[:2], "patient_sensitivity", "specificity", "auc")
OF_LESIONS = (COUNTS[2], "sensitivity", "mean_dsc", LOWEST, "froc")
OF_CURVE = tuple(f"at_{rate:g}" for rate in RATES)
Cases = Mapping[str, Sequence["Lesion"]]
Row = dict[str, Any]
Map = np.ndarray


@dataclass(frozen=True)
class Lesion:
    """One 26-connected tumor of the reference or of the prediction."""

    side: str  # `reference` or `prediction`
    volume_ml: float  # its volume
    diameter_mm: float  # of the ball of this volume
    organ: str  # short name of the organ that surrounds most of it, or `none`
    # whether it overlaps a tumor of the other side; one that does not is missed, or a false positive
    matched: bool
    dsc: float | None = None  # for a reference lesion, against all predicted ones that overlap it
    # how sure a predicted one is: the mean confidence of its voxels, or without a map its volume in ml. For a
    # reference lesion, the highest score of those that overlap it; None if none does
    score: float | None = None


def find_lesions(
    reference: Map, prediction: Map, *, spacing_mm: Spacing, classes: ClassList, confidence: Map | None = None
) -> list[Lesion]:
    """List the tumors of both sides, matched by overlap (one voxel suffices), those of the reference first.

    Maps are `(Z, Y, X)` uint8 class ids; `confidence`, of their shape, how sure each predicted voxel is.
    Without a tumor class the list is empty. The prediction's organs count where the reference has none.
    """
    if classes.tumor is None:
        return []
    box = bounding_box((reference == classes.tumor) | (prediction == classes.tumor), margin=(1, 1, 1))
    if box is None:
        return []
    sides = reference[box], prediction[box]
    tumors = [side == classes.tumor for side in sides]
    is_organ = np.isin(np.arange(256), classes.organs)
    organs = np.where(is_organ[sides[0]], *sides)
    predicted = list(components(tumors[1]))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    scores = np.array([0.0, *(lesion.voxels * voxel_ml for lesion in predicted)])
    if confidence is not None:
        scores[1:] = [confidence[box][lesion.box][lesion.mask].mean() for lesion in predicted]
    numbers = np.zeros(organs.shape, dtype=np.int64)
    for number, lesion in enumerate(predicted, start=1):
        numbers[lesion.box][lesion.mask] = number
    sizes = np.array([0, *(lesion.voxels for lesion in predicted)])
    found = []
    for side, own, lesions in (("reference", 0, components(tumors[0])), ("prediction", 1, predicted)):
        for lesion in lesions:
            volume_ml = lesion.voxels * voxel_ml
            shared = lesion.mask & tumors[1 - own][lesion.box]
            dsc = None
            partners = np.unique(numbers[lesion.box][lesion.mask if own else shared])
            if not own:
                dsc = float(2 * np.count_nonzero(shared) / (lesion.voxels + sizes[partners].sum()))
            score = float(scores[partners].max()) if partners.size else None
            organ = shell_of(lesion, tumors[own], organs, is_organ).organ
            diameter_mm = float(np.cbrt(6 * volume_ml * 1000 / np.pi))
            around = classes.by_id(organ).short if organ else OUTSIDE
            found.append(Lesion(side, volume_ml, diameter_mm, around, bool(shared.any()), dsc, score))
    return found


def size_class(diameter_mm: float) -> str:
    """Name of the size class, as `<10 mm`."""
    small, large = SIZES_MM
    if small <= diameter_mm < large:
        return f"{small:g}-{large:g} mm"
    return f"<{small:g} mm" if diameter_mm < small else f">={large:g} mm"


def detection(cases: Cases) -> Row:
    """Sum up a cohort: patients, and lesions found and false positives per scan, also by size and organ.

    Cases without lesions are scans. `froc` is the mean sensitivity `at_` the `RATES`, by all false positives.
    """
    lesions, scans = [lesion for found in cases.values() for lesion in found], len(cases)
    false = [x for x in lesions if x.side == "prediction" and not x.matched]
    sizes = dict.fromkeys(size_class(x.diameter_mm) for x in sorted(lesions, key=lambda x: x.diameter_mm))
    organs = sorted({x.organ for x in lesions})

    def counts(group: Sequence[Lesion]) -> Row:
        real, own = ([x for x in group if x.side == side] for side in ("reference", "prediction"))
        curve = froc([*real, *false], scans)
        best = [curve[curve[:, 0] <= rate, 1].max() if len(curve) else None for rate in RATES]
        detected, missed = sum(x.matched for x in real), sum(not x.matched for x in own)
        return {
            "lesions": len(real),
            "detected": detected,
            "sensitivity": detected / len(real) if real else None,
            "mean_dsc": mean(x.dsc for x in real),
            "predicted": len(own),
            "false_positives": missed,
            LOWEST: missed / scans if scans else None,
            "froc": mean(best),
            **dict(zip(OF_CURVE, best, strict=True)),
        }

    return {
        "scans": scans,
        **_by_patient(cases),
        **counts(lesions),
        "by_size": {s: counts([x for x in lesions if size_class(x.diameter_mm) == s]) for s in sizes},
        "by_organ": {organ: counts([x for x in lesions if x.organ == organ]) for organ in organs},
    }


def _by_patient(cases: Cases) -> Row:
    """Sum up by patient: who has a predicted tumor, wherever it lies, is called positive.

    Controls have no tumor in the reference. A patient's score is the highest of the predicted lesions, or 0;
    `auc` is the area under its ROC curve, ties by half.
    """
    bearing: dict[str, float] = {}
    free: dict[str, float] = {}
    for case, found in cases.items():
        group = bearing if any(x.side == "reference" for x in found) else free
        group[case] = max((x.score or 0.0 for x in found if x.side == "prediction"), default=0)
    auc = None
    if bearing and free:
        from scipy.stats import mannwhitneyu

        pairs = len(bearing) * len(free)
        auc = float(mannwhitneyu([*bearing.values()], [*free.values()]).statistic) / pairs
    missed, called = [c for c in bearing if not bearing[c]], [c for c in free if free[c]]
    return {
        "patients_with_tumor": len(bearing),
        "patient_sensitivity": 1 - len(missed) / len(bearing) if bearing else None,
        "controls": len(free),
        "specificity": 1 - len(called) / len(free) if free else None,
        "auc": auc,
        "missed_patients": missed,
        "false_alarms": called,
    }


def froc(lesions: Sequence[Lesion], scans: int) -> np.ndarray:
    """The curve `(points, 2)` of false positives per scan and sensitivity, from no lesion kept to all."""
    real = np.array([x.score or 0.0 for x in lesions if x.side == "reference"])
    false = np.array([x.score or 0.0 for x in lesions if x.side == "prediction" and not x.matched])
    if not real.size:
        return np.empty((0, 2))
    scores = np.unique([*real[real > 0], *false, np.inf])[::-1]
    found, called = (of.size - np.searchsorted(np.sort(of), scores) for of in (real, false))
    return np.column_stack([called / scans, found / real.size])


def detection_tables(rows: Mapping[str, Row], last: str, note: str = "") -> list[Table]:
    """What `detection` gives by name, in bold the best; of the row `last` also lesions by size and organ."""

    def table(title: str, rows: Mapping[str, Row], keys: Sequence[str], best: str = "") -> Table:
        marked = {k: "min" if k == LOWEST else best for k in keys if best and k not in COUNTS}
        cells = [[cell(n), *(cell(of[k], 0 if k in COUNTS else 3) for k in keys)] for n, of in rows.items()]
        heads = [Column("name"), *(Column(k.replace("_", " "), marked.get(k, "")) for k in keys)]
        return Table(title.strip(), heads, cells)

    last = last if last in rows else list(rows)[-1]  # the last round may learn no tumor
    groups = {told: rows[last][f"by_{told}"] for told in ("size", "organ") if rows[last][f"by_{told}"]}
    return [
        table(f"By patient. {note}", rows, OF_PATIENTS, "max"),
        table("By lesion", rows, OF_LESIONS, "max"),
        table("Sensitivity for lesions at false positives per scan (FROC)", rows, OF_CURVE, "max"),
        *(table(f"Lesions of {last} by {told}", of, OF_LESIONS) for told, of in groups.items()),
    ]


def write_detection(stem: Path, rows: Mapping[str, Row], last: str, note: str) -> None:
    """Write `<stem>.csv`, a row a name, and `detection_tables` as `.md` and `.tex`; no row leaves no file."""
    for stale in () if rows else stem.parent.glob(f"{stem.name}.*"):
        stale.unlink()
    if rows:
        lines = [{"Name": name, **found} for name, found in rows.items()]
        write_csv(stem.with_suffix(".csv"), lines, ["Name", *OF_PATIENTS, *OF_LESIONS, *OF_CURVE])
        write_table(stem, detection_tables(rows, last, note))
