"""The classes of the phantom: the challenge's own numbers, and those of the maps it is made from."""

from __future__ import annotations

ORGANS = (
    "liver",
    "right_kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior_vena_cava",
    "right_adrenal_gland",
    "left_adrenal_gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left_kidney",
)
TUMOR = "tumor"
CLASS_IDS = {name: number for number, name in enumerate((*ORGANS, TUMOR), start=1)}

# What the pelvis holds besides (AMOS 14 bladder, 15 prostate or uterus): painted as soft tissue, no class.
PELVIC = "pelvic_organs"

AMOS_IDS = {
    1: "spleen",
    2: "right_kidney",
    3: "left_kidney",
    4: "gallbladder",
    5: "esophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior_vena_cava",
    10: "pancreas",
    11: "right_adrenal_gland",
    12: "left_adrenal_gland",
    13: "duodenum",
    14: PELVIC,
    15: PELVIC,
}

# TotalSegmentator v2, task `total`; ids that are not named here are left to the painted body.
TOTALSEGMENTATOR_IDS = {
    1: "spleen",
    2: "right_kidney",
    3: "left_kidney",
    4: "gallbladder",
    5: "liver",
    6: "stomach",
    7: "pancreas",
    8: "right_adrenal_gland",
    9: "left_adrenal_gland",
    15: "esophagus",
    19: "duodenum",
    52: "aorta",
    63: "inferior_vena_cava",
    21: PELVIC,
}
