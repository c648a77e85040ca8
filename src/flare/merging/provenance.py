"""Where each voxel of merged labels came from: in plain values a case, as a table and in short a cohort."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flare.core.classes import IGNORE, ClassList
from flare.merging.maps import Shell, table

GROUND_TRUTH = "ground_truth"
PSEUDO = "pseudo"
NONE = "none"  # source of a class that the round does not have
TABLE, SUMMARY = "provenance.csv", "provenance.md"
FATES = ("kept", "dropped", "superseded", "absorbed")


@dataclass(frozen=True, order=True)
class TumorComponent:
    """What became of one component of a tumor.

    Its fate: `kept`; `dropped` (a pseudo tumor outside the organs); `superseded` (one where the ground truth
    answers for tumors, or tumors are no target); `absorbed` (a ground-truth tumor in an organ-only round).
    """

    origin: str  # the source in whose map it was found
    fate: str
    voxels: int
    shell: Shell


def tell_origin(
    merged: np.ndarray,
    maps: Mapping[str, np.ndarray],
    class_source: Mapping[int, str],
    classes: ClassList,
    *,
    trusted: Sequence[int] = (),
    bearing: Sequence[int] = (),
    overwritten: Mapping[int, int] | None = None,
    tumors: Sequence[TumorComponent] = (),
) -> dict[str, Any]:
    """Tell where a case's merged labels came from, classes by name, as its sidecar does.

    `maps` are by source, `(Z, Y, X)` uint8 like the merged one; `class_source` leads from class id to the
    source that the class was taken from. `trusted` are the organs whose ground truth was taken, `bearing`
    those that a dilated ground-truth tumor overlaps, both ascending; `overwritten` counts by class id the
    trusted ground-truth voxels that a kept pseudo tumor took; `tumors` are all components that were judged.

    Gives `trusted`, `tumor_bearing`, `classes` and `tumors`, these with the largest first. Of a class,
    `filled` counts the voxels that it has where its source has another: there was a tumor, or nothing was
    known. `ignored`, if there are any, counts voxels that the ground truth ignores and those that stay so.
    """
    names = {0: "background"} | {c.id: c.name for c in classes.entries}
    after, before, same = _histogram(merged), {}, {}
    for name, volume in maps.items():
        before[name] = _histogram(volume)
        same[name] = _histogram(a[a == b] for a, b in zip(volume, merged, strict=True))
    by_name = {
        c.name: {
            "id": c.id,
            "source": (source := class_source[c.id]),
            "before": {name: int(counts[c.id]) for name, counts in before.items()},
            "merged": int(after[c.id]),
            "filled": int(after[c.id] - (same[source][c.id] if source in same else 0)),
            "overwritten_by_pseudo_tumor": (overwritten or {}).get(c.id, 0),
        }
        for c in classes.entries
    }
    found = [
        {
            "found_in": t.origin,
            "fate": t.fate,
            "voxels": t.voxels,
            "shell_voxels": t.shell.voxels,
            "shell_organ_fraction": round(t.shell.organ_fraction, 4),
            "filled_with": names[t.shell.fill] if t.fate != "kept" else None,
        }
        for t in sorted(tumors, key=lambda t: (-t.voxels, t))
    ]
    organs = {"trusted": [names[c] for c in trusted], "tumor_bearing": [names[c] for c in bearing]}
    told = organs | {"classes": by_name, "tumors": found}
    silent = before[GROUND_TRUTH][IGNORE] if GROUND_TRUTH in before else 0
    return told | ({"ignored": {GROUND_TRUTH: int(silent), "merged": int(after[IGNORE])}} if silent else {})


def from_teacher(labels: np.ndarray, pseudo: np.ndarray, told: Mapping[str, Any]) -> np.ndarray:
    """Mask the voxels of a case whose label is the teacher's own, by its map and the case's sidecar."""
    found = [c["id"] for c in told["classes"].values() if c["source"] not in (GROUND_TRUTH, NONE)]
    return (labels == pseudo) & table([0, *found] if found else [])[labels]


def _histogram(planes: Iterable[np.ndarray]) -> np.ndarray:
    """How often each of 256 values occurs; plane by plane, since numpy counts in 64 bits a voxel."""
    return sum((np.bincount(p.ravel(), minlength=256) for p in planes), np.zeros(256, dtype=np.int64))


def provenance_row(told: Mapping[str, Any], classes: ClassList) -> dict[str, Any]:
    """Give a case's row of the cohort table, from its sidecar."""
    fates = Counter(t["fate"] for t in told["tumors"])
    row: dict[str, Any] = {
        "case": told["case"],
        "sources": " + ".join(told["sources"]),
        "trusted": " ".join(told["trusted"]),
        "tumor_bearing": " ".join(told["tumor_bearing"]),
        **{f"tumors_{fate}": fates[fate] for fate in FATES},
        "overwritten": sum(c["overwritten_by_pseudo_tumor"] for c in told["classes"].values()),
    }
    ignored = told.get("ignored", {})
    row |= {f"ignored_{name}": ignored.get(name, 0) for name in (GROUND_TRUTH, "merged") if classes.ignore}
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
    """Sum a cohort's sidecars up in a Markdown table, one row a class."""
    from pandas import DataFrame

    rows = []
    for name in classes.names:
        entries = [s["classes"][name] for s in sidecars]
        sources = [e["source"] for e in entries if e["merged"]]
        origin = Counter(source if source in (GROUND_TRUTH, NONE) else PSEUDO for source in sources)
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
    if ignored := [s["ignored"] for s in sidecars if "ignored" in s]:
        before, after = (sum(counts[name] for counts in ignored) for name in (GROUND_TRUTH, "merged"))
        told += f"; ignored voxels in {len(ignored)} cases: {before:,} before, {after:,} after"
    return f"{told}\n\n{table}\n\ntumor components: {tumors or 'none judged'}\n"
