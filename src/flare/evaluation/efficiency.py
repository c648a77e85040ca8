"""The paper's tables of efficiency and test results, 6 to 8, with our numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from flare.core.files import write_csv
from flare.evaluation.metrics import MEASURES, mean
from flare.evaluation.rendering import Column, Table, cell, published, write_table

# up to these the challenge's ranking makes no difference (paper, section 3.1)
TOLERANCE_S, TOLERANCE_GB = 15, 4

EFFICIENCY = {
    "time_s": "time (s)",
    "max_gpu_mb": "GPU memory (MB)",
    "gpu_auc": "AUC GPU",
    "cpu_percent": "CPU (%)",
    "cpu_auc": "AUC CPU",
    "ram_mb": "RAM (MB)",
    "ram_auc": "AUC RAM",
}


def write_efficiency(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, float | None]:
    """Write `table6` and `table7` from what inference measured; where it did not, remove earlier ones.

    Args:
        rows: One a case, as in `inference.csv`; the keys of `EFFICIENCY` with `inference.measure=true`.
        folder: Where the tables go.

    Returns:
        The means over cases, None for what no case has; empty if nothing was measured.
    """
    measured = [row for row in rows if row.get("time_s") is not None]
    if not measured:
        for name, suffix in product(("table6", "table7"), (".csv", ".md", ".tex")):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        return {}
    means = {k: mean(row.get(k) for row in measured) for k in EFFICIENCY}
    table6(measured, folder / "table6")
    table7(means, folder / "table7")
    return means


def table6(cases: Sequence[Mapping[str, Any]], stem: Path) -> list[dict[str, Any]]:
    """Write time and GPU memory per case, ours first, then the paper's eight.

    Args:
        cases: `case`, `size` (`512x512x100`: x, y, z), `time_s`, and, None or absent without a GPU,
            `max_gpu_mb` and `gpu_auc`.
        stem: Where `.csv`, `.md` and `.tex` go.
    """
    keys = ("time_s", "max_gpu_mb", "gpu_auc")
    paper = [c | {"size": "x".join(map(str, c["size"]))} for c in published()["table6"]]
    lines = [
        {"source": source, "case": c["case"], "size": c["size"], **{k: c.get(k) for k in keys}}
        for source, group in (("ours", cases), ("paper", paper))
        for c in group
    ]
    title = (
        f"Efficiency per case (the challenge tolerates {TOLERANCE_S} s and {TOLERANCE_GB} GB of GPU memory)"
    )
    return _write(lines, stem, title)


def table7(ours: Mapping[str, float | None], stem: Path) -> list[dict[str, Any]]:
    """Write average efficiency, ours and the paper's; the keys are those of `EFFICIENCY`."""
    lines = [
        {"source": source, **{k: values.get(k) for k in EFFICIENCY}}
        for source, values in (("ours", ours), ("paper", published()["table7"]))
    ]
    return _write(lines, stem, "Average efficiency")


def table8(
    summary: Mapping[str, Any], stem: Path, *, efficiency: Mapping[str, float | None] | None = None
) -> list[dict[str, Any]]:
    """Write the test result, ours and the paper's: scores from 0 to 1, AUC of GPU memory, seconds.

    Args:
        summary: What `flare.evaluation.scores` gives on the test cases.
        stem: Where `.csv`, `.md` and `.tex` go.
        efficiency: `gpu_auc` and `time_s`, where they were measured.
    """
    ours: dict[str, Any] = {f"organ_{m}": summary["organ_mean"][m] for m in MEASURES}
    ours |= {f"tumor_{m}": (summary["tumor"] or {}).get(m) for m in MEASURES}
    ours |= {k: (efficiency or {}).get(k) for k in ("gpu_auc", "time_s")}
    lines = [{"source": "ours", **ours}, {"source": "paper", **published()["table8"]}]
    return _write(lines, stem, "Test cases", digits=4)


def _write(lines: list[dict[str, Any]], stem: Path, title: str, digits: int = 2) -> list[dict[str, Any]]:
    """Write ours and the paper's rows; of a score the highest is best, of a cost the lowest."""
    write_csv(stem.with_suffix(".csv"), lines)
    heads = {k: EFFICIENCY.get(k, k.replace("_", " ")) for k in lines[0]}
    columns = [Column(head, "min" if k in EFFICIENCY else "max") for k, head in heads.items()]
    write_table(stem, [Table(title, columns, [[cell(ln[k], digits) for k in heads] for ln in lines])])
    return lines
