"""What merging one case gave: the map, and where each of its voxels came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.files import write_csv, write_text
from flare.merging.components import Component, Shell

GROUND_TRUTH = "ground_truth"
PSEUDO = "pseudo"
NONE = "none"  # source of a class that the round does not have


@dataclass(frozen=True)
class TumorComponent:
    """What became of one component of a tumor.

    Args:
        origin: The map it was found in, `ground_truth` or `pseudo`.
        fate: `kept`; `dropped` (a pseudo tumor outside the organs); `superseded` (a pseudo tumor where the
            ground truth answers for tumors, or where tumors are no target); `absorbed` (a ground-truth tumor
            in an organ-only round).
        voxels: Size of the component.
        shell_voxels: Size of its shell.
        organ_fraction: Share of organ in the shell.
        filled_with: Class that its voxels took where nothing else did; 0 is background.
    """

    origin: str
    fate: str
    voxels: int
    shell_voxels: int
    organ_fraction: float
    filled_with: int


def describe(origin: str, fate: str, component: Component, shell: Shell) -> TumorComponent:
    """Note what became of a component."""
    filled = 0 if fate == "kept" else shell.fill
    return TumorComponent(origin, fate, component.voxels, shell.voxels, shell.organ_fraction, filled)


@dataclass(frozen=True)
class VoxelCounts:
    """Voxels of one class, before and after.

    Args:
        before: In each source's map, by source.
        merged: In the result.
        taken: Of these, how many are the class in the source that the class was taken from; the others were
            filled in where a tumor was.
        overwritten: Trusted ground-truth voxels that a kept pseudo tumor took.
    """

    before: Mapping[str, int]
    merged: int
    taken: int
    overwritten: int = 0


@dataclass(frozen=True)
class MergeReport:
    """Where the merged labels of one case came from.

    Args:
        class_source: Class id -> the source that it was taken from; any number of sources may be named.
        trusted: Organs whose ground truth was taken, ascending.
        tumor_bearing: Organs that a dilated ground-truth tumor overlaps, ascending.
        components: Every tumor component that was judged, the largest first.
        counts: Class id -> voxel counts.
    """

    class_source: Mapping[int, str]
    trusted: tuple[int, ...] = ()
    tumor_bearing: tuple[int, ...] = ()
    components: tuple[TumorComponent, ...] = ()
    counts: Mapping[int, VoxelCounts] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """Merged labels `(Z, Y, X)` uint8 and their report."""

    labels: np.ndarray
    report: MergeReport


def _joint(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(256, 256)` counts of voxels by their values in two uint8 maps, in slabs to bound memory."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for a, b in zip(np.array_split(first, 16), np.array_split(second, 16), strict=True):
        counts += np.bincount(((a.astype(np.uint16) << 8) | b).ravel(), minlength=1 << 16)
    return counts.reshape(256, 256)


def count_voxels(
    sources: Mapping[str, np.ndarray],
    merged: np.ndarray,
    class_source: Mapping[int, str],
    classes: ClassList,
    overwritten: Mapping[int, int],
) -> dict[int, VoxelCounts]:
    """Count voxels per class in every source and in the merged map.

    Args:
        sources: Source name -> `(Z, Y, X)` uint8 map.
        merged: `(Z, Y, X)` uint8.
        class_source: Class id -> name of the source it was taken from.
        classes: The class list.
        overwritten: Class id -> trusted voxels that a kept pseudo tumor took.
    """
    joint = {name: _joint(volume, merged) for name, volume in sources.items()}
    after = next(iter(joint.values())).sum(axis=0)
    return {
        c: VoxelCounts(
            before={name: int(table[c].sum()) for name, table in joint.items()},
            merged=int(after[c]),
            taken=int(joint[class_source[c]][c, c]) if class_source[c] in joint else 0,
            overwritten=int(overwritten.get(c, 0)),
        )
        for c in classes.ids
    }


TABLE = "provenance.csv"
SUMMARY = "provenance.md"
FATES = ("kept", "dropped", "superseded", "absorbed")


def sidecar(
    case: str,
    report: MergeReport,
    classes: ClassList,
    *,
    rules: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    pseudo_name: str,
) -> dict[str, Any]:
    """Tell one case's provenance in plain values, classes by name.

    Args:
        case: The case id.
        report: What merging found.
        classes: The class list.
        rules: The choices it was merged with.
        sources: Source name -> what is known of it, for every source that had a map; any number.
        pseudo_name: The name among them that the report's `pseudo` stands for.
    """

    def named(source: str) -> str:
        return pseudo_name if source == PSEUDO else source

    def organ(class_id: int) -> str:
        return classes.name_of(class_id) if class_id else "background"

    by_name = {
        classes.name_of(c): {
            "id": c,
            "source": named(report.class_source[c]),
            "before": {named(s): n for s, n in counts.before.items()},
            "merged": counts.merged,
            "filled": counts.merged - counts.taken,
            "overwritten_by_pseudo_tumor": counts.overwritten,
        }
        for c, counts in report.counts.items()
    }
    tumors = [
        {
            "found_in": named(t.origin),
            "fate": t.fate,
            "voxels": t.voxels,
            "shell_voxels": t.shell_voxels,
            "shell_organ_fraction": round(t.organ_fraction, 4),
            "filled_with": organ(t.filled_with) if t.fate != "kept" else None,
        }
        for t in report.components
    ]
    return {
        "case": case,
        "rules": dict(rules),
        "sources": {name: dict(known) for name, known in sources.items()},
        "trusted": [classes.name_of(c) for c in report.trusted],
        "tumor_bearing": [classes.name_of(c) for c in report.tumor_bearing],
        "classes": by_name,
        "tumors": tumors,
    }


def provenance_row(told: Mapping[str, Any], classes: ClassList) -> dict[str, Any]:
    """Give a case's row of the cohort table.

    Args:
        told: The case's sidecar.
        classes: The class list.
    """
    fates = Counter(t["fate"] for t in told["tumors"])
    row: dict[str, Any] = {
        "case": told["case"],
        "sources": " + ".join(told["sources"]),
        "trusted": " ".join(told["trusted"]),
        "tumor_bearing": " ".join(told["tumor_bearing"]),
        **{f"tumors_{fate}": fates[fate] for fate in FATES},
        "overwritten": sum(c["overwritten_by_pseudo_tumor"] for c in told["classes"].values()),
    }
    for c in classes.entries:
        known = told["classes"][c.name]
        before = known["before"]
        row |= {
            f"{c.short}_source": known["source"],
            f"{c.short}_ground_truth": before.get(GROUND_TRUTH),
            f"{c.short}_pseudo": next((n for s, n in before.items() if s != GROUND_TRUTH), None),
            f"{c.short}_merged": known["merged"],
        }
    return row


def summarise(sidecars: Sequence[Mapping[str, Any]], classes: ClassList) -> str:
    """Sum a cohort's provenance up in a Markdown table, one row a class.

    Args:
        sidecars: The sidecar of every case.
        classes: The class list.
    """
    from pandas import DataFrame

    rows = []
    for name in classes.names:
        entries = [s["classes"][name] for s in sidecars]
        origin = Counter(
            e["source"] if e["source"] in (GROUND_TRUTH, NONE) else PSEUDO for e in entries if e["merged"]
        )
        pseudo = sum(n for e in entries for s, n in e["before"].items() if s != GROUND_TRUTH)
        row = {
            "class": name,
            "cases from ground truth": origin[GROUND_TRUTH],
            "cases from teacher": origin[PSEUDO],
            "ground truth": f"{sum(e['before'].get(GROUND_TRUTH, 0) for e in entries):,}",
            "pseudo": f"{pseudo:,}",
            "merged": f"{sum(e['merged'] for e in entries):,}",
            "tumor-bearing cases": sum(name in s["tumor_bearing"] for s in sidecars),
            "voxels overwritten by pseudo tumors": sum(e["overwritten_by_pseudo_tumor"] for e in entries),
        }
        rows.append(row)
    fates = Counter(t["fate"] for s in sidecars for t in s["tumors"])
    tumors = ", ".join(f"{fates[fate]} {fate}" for fate in FATES if fates[fate])
    table = DataFrame(rows).to_markdown(tablefmt="github", index=False, stralign=None, disable_numparse=True)
    told = f"{len(sidecars)} cases; voxels before (ground truth, pseudo) and after (merged)"
    return f"{told}\n\n{table}\n\ntumor components: {tumors or 'none judged'}\n"


def write_provenance(folder: Path, sidecars: Sequence[Mapping[str, Any]], classes: ClassList) -> str:
    """Write `provenance.csv` and `provenance.md` beside the merged labels.

    Returns:
        The summary.
    """
    rows = [provenance_row(told, classes) for told in sidecars]
    summary = summarise(sidecars, classes)
    write_csv(folder / TABLE, rows)
    write_text(folder / SUMMARY, summary)
    return summary
