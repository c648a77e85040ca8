"""The specification of each case of the cohort, drawn from the seed, as plain values."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flare.core.errors import check_values, choice, rules_of
from flare.core.files import read_csv

VERSION = 1  # raised when the generator makes other voxels of the same settings

# the challenge's classes, numbered from 1
ORGANS = (
    "liver", "right_kidney", "spleen", "pancreas", "aorta", "inferior_vena_cava", "right_adrenal_gland",
    "left_adrenal_gland", "gallbladder", "esophagus", "stomach", "duodenum", "left_kidney",
)  # fmt: skip
TUMOR = "tumor"
CLASS_IDS = {name: number for number, name in enumerate((*ORGANS, TUMOR), start=1)}
OUTSIDE = "outside"  # of the organs: a tumor's host as well
SETTINGS = ("size", "seed", "counts", "grids", "tumors", "deformation_mm", "noise_hu", "extra_anatomy")
RULES = rules_of("phantom")

# Of each kind: its first case number, so that growing one renames no case of another; its folders, as the
# challenge names them; how often a patient bears a tumor at all; whether every scan has the whole abdomen.
KINDS = {row["kind"]: row for row in read_csv(Path(__file__).with_name("kinds.csv"))}
MAPS = ("amos_0001.nii.gz", "amos_0013.nii.gz")
# Where the index axes i, j, k run to, and whether the grid is tilted against the room.
ORDERS = (
    ("RAS", False), ("LPS", False), ("LAS", True), ("LPS", True), ("SAR", False), ("PLI", True),
    ("RAS", True),
)  # fmt: skip
TUMOR_STYLES = ("tumor_with_host", "tumor_with_others", "tumor_only")
PARTIAL_STYLES = ("some_organs", "some_organs_filled")
# Without contrast agent a lesion 40 HU below its organ would look like fat, so tumor patients get contrast.
PHASES = {False: {"native": 0.25, "arterial": 0.3, "portal": 0.45}, True: {"arterial": 0.4, "portal": 0.6}}


def plan_cohort(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Draw the specification of every case, in order of case ids.

    The settings are `data.phantom` of `conf/data/phantom.yaml`. Kinds that `counts` does not name have no
    case, nor has `extra` without a folder `extra_anatomy`. A key whose value means nothing is refused.
    """
    check_values({"data": {"phantom": settings}}, RULES)
    hosts = (*ORGANS, OUTSIDE)
    choice(*settings["grids"]).require("data.phantom.size", settings["size"])
    for key, known, names in (
        ("", SETTINGS, settings),
        (".counts", KINDS, settings["counts"]),
        (".tumors.hosts", hosts, settings["tumors"]["hosts"]),
    ):
        for name in names:
            choice(*known).require(f"data.phantom{key}", name)
    extra = settings["extra_anatomy"]
    third = sorted(Path(extra).glob("*_totalsegmentator.nii.gz")) if extra else []
    plan = {}
    for kind, told in KINDS.items():
        # the shipped maps take turns
        anatomies = [str(path) for path in third[:1]] if kind == "extra" else MAPS
        for k in range(settings["counts"].get(kind, 0) if anatomies else 0):
            case_id = f"phantom_{int(told['first']) + k:04d}"
            draw = random.Random(f"{settings['seed']}/{case_id}")
            plan[case_id] = {
                "kind": kind,
                "seed": draw.randrange(2**31),
                "anatomy": anatomies[k % len(anatomies)],
                "numbering": "totalsegmentator" if kind == "extra" else "amos",
                **_scan(draw, kind, k, settings),
                **_findings(draw, kind, k, settings["tumors"]),
            }
    return plan


def case_files(root: Path, case_id: str, kind: str) -> dict[str, Path]:
    """Name the files of a case: `image`, and `label` and `truth` where its kind has them."""
    told = KINDS[kind]
    found = {"image": root / told["images"] / f"{case_id}_0000.nii.gz"}
    named = {"label": told["labels"], "truth": told["truth"]}
    return found | {what: root / name / f"{case_id}.nii.gz" for what, name in named.items() if name}


def _scan(draw: random.Random, kind: str, k: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Field of view, voxels, voxel order and quality of the scan."""
    grid = settings["grids"][settings["size"]]
    order, tilted = ORDERS[(k + list(KINDS).index(kind)) % len(ORDERS)]
    whole = KINDS[kind]["whole"] == "yes" or draw.random() < 0.6
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
        "noise_hu": draw.uniform(*settings["noise_hu"]),
        "fat_mm": draw.uniform(7, 20),
        "wall_mm": draw.uniform(10, 15),
        "bowel_gas": draw.uniform(0.1, 0.5),
        "stomach_gas": draw.uniform(0.05, 0.3),
        "deformation_mm": settings["deformation_mm"],
    }


def _findings(draw: random.Random, kind: str, k: int, tumors: Mapping[str, Any]) -> dict[str, Any]:
    """Contrast phase, tumors, and how the annotators draw."""
    bears = draw.random() < float(KINDS[kind]["bearing"])
    phase = draw.choices(list(PHASES[bears]), list(PHASES[bears].values()))[0]
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
    """The first tumor, of the promised size, and by chance one or two more."""
    hosts, weights = list(tumors["hosts"]), list(tumors["hosts"].values())
    flat = kind not in ("test", "extra") and draw.random() < tumors["isodense"]

    def one(diameter_mm: Any, contrast_hu: Any, minimum_mm: float) -> dict[str, Any]:
        host = draw.choices(hosts, weights)[0]
        diameter = round(draw.uniform(*diameter_mm), 1)
        contrast = round(draw.uniform(*contrast_hu), 1) if contrast_hu else 0.0
        return {"host": host, "diameter_mm": diameter, "contrast_hu": contrast, "minimum_mm": minimum_mm}

    found = [one(tumors["diameter_mm"], None if flat else tumors["contrast_hu"], tumors["minimum_mm"])]
    while len(found) < 3 and draw.random() < tumors["secondary"]:
        found.append(one(tumors["secondary_diameter_mm"], (0, tumors["contrast_hu"][1]), 0.0))
    return found
