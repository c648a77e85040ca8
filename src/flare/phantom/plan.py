"""Which cases a cohort has: every draw that makes one case unlike another, as plain values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flare.errors import FlareError
from flare.phantom.classes import ORGANS

VERSION = 1  # raised when the generator makes other voxels of the same settings

# First case number of each kind: growing one kind renames no case of another.
FIRST_NUMBER = {
    "organs_complete": 1,
    "tumor": 1001,
    "partial": 2001,
    "unlabeled": 3001,
    "validation": 4001,
    "test": 5001,
    "extra": 6001,
}
MAPS = ("amos_0001.nii.gz", "amos_0013.nii.gz")
# Where the index axes i, j, k run to, and whether the grid is tilted against the room.
ORDERS = (
    ("RAS", False),
    ("LPS", False),
    ("LAS", True),
    ("LPS", True),
    ("SAR", False),
    ("PLI", True),
    ("RAS", True),
)
TUMOR_STYLES = ("tumor_with_host", "tumor_with_others", "tumor_only")
PARTIAL_STYLES = ("some_organs", "some_organs_filled")
# How often a patient of the kind bears a tumor at all.
BEARING = {"organs_complete": 0.0, "tumor": 1.0, "partial": 0.6, "unlabeled": 0.75}
# With no contrast agent a lesion 40 HU below its organ would be fat, so tumor patients are injected.
PHASES = {False: {"native": 0.25, "arterial": 0.3, "portal": 0.45}, True: {"arterial": 0.4, "portal": 0.6}}


def plan_cohort(
    *,
    size: str,
    seed: int,
    counts: Mapping[str, int],
    grids: Mapping[str, Mapping[str, Any]],
    tumors: Mapping[str, Any],
    deformation_mm: float,
    noise_hu: tuple[float, float],
    extra_anatomy: str | Path | None,
) -> dict[str, dict[str, Any]]:
    """Draw the specification of every case.

    Args:
        size: A key of `grids`.
        seed: The same seed gives the same cohort.
        counts: Cases of each kind (`FIRST_NUMBER`); kinds that are not named have none.
        grids: Size to `in_plane_mm` [low, high], `slice_mm` [low, high] and `matrix` (rows, or None).
        tumors: `diameter_mm` [low, high] and `contrast_hu` [low, high] of a patient's first tumor;
            `minimum_mm` it has at least; `isodense`, the share of first tumors (none in the test split)
            without contrast; `hosts`, name to weight, `outside` among them; `secondary`, the probability of a
            further tumor, and its `secondary_diameter_mm`.
        deformation_mm: Standard deviation of the smooth deformation.
        noise_hu: Range of the noise's standard deviation over scanners.
        extra_anatomy: Folder with a TotalSegmentator label map, for `extra` test cases; None or an absent
            folder: none are made.

    Returns:
        Case id to its specification, in order of ids.

    Raises:
        FlareError: If a key has a value that means nothing.
    """
    _check(size, counts, grids, tumors)
    third = _label_map(extra_anatomy)
    plan = {}
    for kind, first in FIRST_NUMBER.items():
        for k in range(counts.get(kind, 0) if kind != "extra" or third else 0):
            case_id = f"phantom_{first + k:04d}"
            draw = random.Random(f"{seed}/{case_id}")
            plan[case_id] = {
                "kind": kind,
                "seed": draw.randrange(2**31),
                **_anatomy(kind, k, third),
                **_scan(draw, kind, k, grids[size], noise_hu, deformation_mm),
                **_findings(draw, kind, k, tumors),
            }
    return plan


def _check(size: str, counts: Mapping[str, int], grids: Mapping[str, Any], tumors: Mapping[str, Any]) -> None:
    """Refuse settings that mean nothing."""
    if size not in grids:
        raise FlareError(f"data.phantom.size: expected one of {sorted(grids)}, given {size!r}")
    unknown = set(counts) - set(FIRST_NUMBER)
    if unknown or any(n < 0 or n > 999 for n in counts.values()):
        raise FlareError(
            f"data.phantom.counts: expected 0 to 999 of {list(FIRST_NUMBER)}, given {dict(counts)}"
        )
    unknown = set(tumors["hosts"]) - {*ORGANS, "outside"}
    if unknown:
        raise FlareError(f"data.phantom.tumors.hosts: expected organs or outside, given {sorted(unknown)}")


def _label_map(folder: str | Path | None) -> str | None:
    """The TotalSegmentator label map of a folder, if there is one."""
    found = sorted(Path(folder).glob("*_totalsegmentator.nii.gz")) if folder else []
    return str(found[0]) if found else None


def _anatomy(kind: str, k: int, third: str | None) -> dict[str, Any]:
    """Whose anatomy it is: the shipped maps take turns."""
    if kind == "extra":
        return {"anatomy": str(third), "numbering": "totalsegmentator"}
    return {"anatomy": MAPS[k % len(MAPS)], "numbering": "amos"}


def _scan(
    draw: random.Random, kind: str, k: int, grid: Mapping[str, Any], noise_hu: Any, deformation_mm: float
) -> dict[str, Any]:
    """Field of view, voxels, voxel order and quality of the scan."""
    order, tilted = ORDERS[(k + list(FIRST_NUMBER).index(kind)) % len(ORDERS)]
    whole = kind in ("organs_complete", "validation", "test", "extra") or draw.random() < 0.6
    in_plane = draw.uniform(*grid["in_plane_mm"])
    return {
        "spacing_mm": [round(draw.uniform(*grid["slice_mm"]), 2), round(in_plane, 3), round(in_plane, 3)],
        "in_plane_mm": list(grid["in_plane_mm"]),
        "matrix": grid["matrix"],
        "margin_mm": draw.uniform(-6, 35),
        # measured from the lowest organ, and from the map's upper end, both downwards
        "below_mm": draw.uniform(15, 120) if whole else draw.uniform(-45, 0),
        "off_top_mm": draw.uniform(0, 12) if whole else draw.uniform(0, 60),
        "voxel_order": order,
        "tilt_degrees": [draw.uniform(-a, a) for a in (9, 3, 3)] if tilted else [0.0, 0.0, 0.0],
        "blur_vox": draw.uniform(0.35, 0.6),
        "noise_hu": draw.uniform(*noise_hu),
        "fat_mm": draw.uniform(7, 20),
        "wall_mm": draw.uniform(10, 15),
        "bowel_gas": draw.uniform(0.1, 0.5),
        "stomach_gas": draw.uniform(0.05, 0.3),
        "deformation_mm": deformation_mm,
    }


def _findings(draw: random.Random, kind: str, k: int, tumors: Mapping[str, Any]) -> dict[str, Any]:
    """Contrast phase, tumors, and how the annotators draw."""
    bears = draw.random() < BEARING.get(kind, 1.0)
    phases = PHASES[bears]
    phase = draw.choices(list(phases), list(phases.values()))[0]
    style = {"tumor": TUMOR_STYLES[k % 3], "partial": PARTIAL_STYLES[k % 2], "unlabeled": None}
    order = list(ORGANS)
    draw.shuffle(order)
    return {
        "phase": phase,
        "tumors": _tumors(draw, kind, tumors) if bears else [],
        "style": style.get(kind, "complete"),
        "organ_order": order,
        "organ_count": draw.randint(3, 6),
    }


def _tumors(draw: random.Random, kind: str, tumors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first tumor, which is what the cohort promises, and perhaps one or two more."""
    hosts, weights = list(tumors["hosts"]), list(tumors["hosts"].values())
    flat = kind not in ("test", "extra") and draw.random() < tumors["isodense"]
    found = [
        {
            "host": draw.choices(hosts, weights)[0],
            "diameter_mm": round(draw.uniform(*tumors["diameter_mm"]), 1),
            "contrast_hu": 0.0 if flat else round(draw.uniform(*tumors["contrast_hu"]), 1),
            "minimum_mm": tumors["minimum_mm"],
        }
    ]
    while len(found) < 3 and draw.random() < tumors["secondary"]:
        found.append(
            {
                "host": draw.choices(hosts, weights)[0],
                "diameter_mm": round(draw.uniform(*tumors["secondary_diameter_mm"]), 1),
                "contrast_hu": round(draw.uniform(0, tumors["contrast_hu"][1]), 1),
                "minimum_mm": 0.0,
            }
        )
    return found
