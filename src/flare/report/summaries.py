"""Tables: what was run, scores beside the paper's, provenance, efficiency; the console's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flare.core.cases import SPLITS
from flare.core.classes import ClassList
from flare.evaluation.metrics import MEASURES
from flare.evaluation.rendering import Column, Table, beside, cell
from flare.evaluation.summary import Row
from flare.merging.provenance import FATES, GROUND_TRUTH, NONE
from flare.models.names import describe_network
from flare.prepare.analysis import kind_counts
from flare.report.agreement import COMPARISONS, Quality
from flare.report.charts import mean_of
from flare.report.facts import Facts, RoundFacts


def mean_table(rows: Sequence[Mapping[str, Any]], classes: ClassList) -> Table:
    """Organ means and tumor of the ablation table, the paper's in brackets.

    Args:
        rows: Of `table5.csv`, with numbers as such.
        classes: The class list.
    """
    names = ["organ_mean", *(c.short for c in classes.entries if c.id == classes.tumor)]
    keys = [f"{name}_{measure}" for name in names for measure in MEASURES]
    columns = [Column("round"), Column("cases"), *(Column(k.replace("_", " "), "max") for k in keys)]
    body = [
        [
            cell(row["round"]),
            cell(row["cases"], 0),
            *(beside(row.get(k), row.get(f"paper_{k}")) for k in keys),
        ]
        for row in rows
    ]
    return Table("Rounds, in percent, the paper's in brackets; best in bold", columns, body)


def cohort_table(facts: Facts) -> list[Row]:
    """Cases of each kind in each split that has any."""
    counts = {split: kind_counts(facts.cases, split) for split in SPLITS}
    return [
        {"split": split, **kinds, "all": sum(kinds.values())}
        for split, kinds in counts.items()
        if any(kinds.values())
    ]


def ablation_table(facts: Facts, measure: str) -> list[Row]:
    """Rows of Table 5 for `DSC` or `NSD`: ours, the paper's beside, the best of ours marked."""
    keys = [f"{name}_{measure}" for name in [*(c.short for c in facts.classes.entries), "organ_mean"]]
    best = {}
    for key in keys:
        values = [row[key] for row in facts.table if row.get(key) is not None]
        best[key] = max(values) if len(values) > 1 and max(values) > 0 else None
    ours = {r.name for r in facts.rounds}
    return [
        {
            "name": row["round"],
            "baseline": row["round"] not in ours,
            "cases": row["cases"],
            "paper_cases": row.get("paper_cases"),
            "cells": [
                {
                    "ours": row.get(key),
                    "paper": row.get(f"paper_{key}"),
                    "best": row.get(key) is not None and row.get(key) == best[key],
                }
                for key in keys
            ],
        }
        for row in facts.table
    ]


def provenance_table(rounds: Sequence[RoundFacts], classes: ClassList) -> list[Row]:
    """Where the labels of each round on hybrid labels came from, one row a round."""
    found = []
    for item in rounds:
        if not item.provenance:
            continue
        maps = {GROUND_TRUTH: 0, "teacher": 0}
        voxels = {GROUND_TRUTH: 0, "teacher": 0}
        for row in item.provenance:
            for c in classes.entries:
                merged, source = int(row[f"{c.short}_merged"] or 0), row[f"{c.short}_source"]
                if merged and source != NONE:
                    kind = GROUND_TRUTH if source == GROUND_TRUTH else "teacher"
                    maps[kind] += 1
                    voxels[kind] += merged
        total = sum(voxels.values())
        found.append(
            {
                "round": item.name,
                "teacher": ", ".join(item.teachers),
                "cases": len(item.provenance),
                "from_truth": maps[GROUND_TRUTH],
                "from_teacher": maps["teacher"],
                "teacher_percent": 100 * voxels["teacher"] / total if total else None,
                "bearing": sum(len(row["tumor_bearing"].split()) for row in item.provenance),
                **{fate: sum(int(row[f"tumors_{fate}"]) for row in item.provenance) for fate in FATES},
                "overwritten": sum(int(row["overwritten"]) for row in item.provenance),
            }
        )
    return found


def quality_table(found: Sequence[Quality], classes: ClassList) -> list[Row]:
    """Mean Dice of each comparison in percent, organs and tumor apart, with the number of cases."""
    tumor = [i for i in classes.ids if i == classes.tumor]
    return [
        {
            "round": q.round,
            "teacher": q.teacher,
            "of": q.of,
            "cells": [
                {
                    "n": q.cases[k],
                    "organs": q.percent(k, classes.organs),
                    "tumor": q.percent(k, tumor),
                }
                for k in COMPARISONS
            ],
        }
        for q in found
    ]


def efficiency_table(rounds: Sequence[RoundFacts]) -> list[Row]:
    """Training throughput and seconds a case of inference, one row a round."""
    rows = []
    for item in rounds:
        seconds = [row["seconds"] for row in item.seconds]
        memory = [mb for row in item.curve if (mb := row.get("gpu_memory_mb")) is not None]
        rows.append(
            {
                "round": item.name,
                "patches_per_s": mean_of(item.curve, "patches_per_s"),
                "gpu_memory_mb": max(memory) if memory else None,
                "n": len(seconds),
                "median_s": float(np.median(seconds)) if seconds else None,
                "max_s": max(seconds) if seconds else None,
                "windows": mean_of(item.seconds, "windows"),
            }
        )
    return rows


def settings_table(config: Mapping[str, Any], plan: Mapping[str, str]) -> list[tuple[str, str]]:
    """The choices that a reader asks for first, from the last round's configuration."""
    data, optimizer, trainer = config["data"], config["optimizer"], config["trainer"]
    augmentation = data.get("augmentation") or {}
    used = [
        k.replace("_", " ") for k, v in augmentation.items() if isinstance(v, dict) and v.get("probability")
    ]
    used += [str(extra["_target_"]).rpartition(".")[2] for extra in augmentation.get("extra") or ()]
    return [
        ("Spacing (z, y, x)", f"{_times(data['spacing_mm'])} mm"),
        ("Patch, batch", f"{_times(data['patch_size'])} voxels, {data['batch_size']} a batch"),
        ("Network", f"{config['model']['name']}: {describe_network(config['model']['net'])}"),
        ("Optimizer", ", ".join(f"{k} {v}" for k, v in optimizer.items() if not k.startswith("_"))),
        (
            "Length",
            f"{_times([trainer['max_epochs'], trainer['limit_train_batches']])} iterations a round",
        ),
        (
            "Weights start from",
            "the teacher's" if plan["init"] == "teacher" else "fresh draws (as in the paper)",
        ),
        ("Augmentation", ", ".join(used) or "none"),
        (
            "Inference",
            f"windows {plan['inference']}, flips {plan['tta']}, back to the grid: {plan['restore']}",
        ),
        ("Seed", str(config["seed"])),
    ]


def ranked(facts: Facts) -> list[tuple[str, float]]:
    """Scored cases with their mean DSC over the last round's classes that were scored, the best first."""
    shorts = [c.short for c in facts.classes.entries]
    means = {}
    for row in facts.last.scores:
        values = [row[f"{s}_DSC"] for s in shorts if row.get(f"{s}_DSC") is not None]
        if values:
            means[row["Name"]] = float(np.mean(values))
    return sorted(means.items(), key=lambda item: (-item[1], item[0]))


def _times(values: Sequence[Any], sign: str = " \N{MULTIPLICATION SIGN} ") -> str:
    return sign.join(f"{v:g}" for v in values)
