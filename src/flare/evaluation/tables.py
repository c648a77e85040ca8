"""The paper's Tables 4 to 8 with our numbers beside: csv, Markdown and LaTeX."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from flare.core.classes import ClassList
from flare.core.files import write_csv
from flare.evaluation.metrics import MEASURES, mean
from flare.evaluation.published import public_validation, published
from flare.evaluation.rendering import Cell, Column, Table, beside, cell, write_table
from flare.evaluation.summary import Row, Rows, only_learned, score_matrix

ONLINE = "FLARE23's 100 online validation cases, in the last row on its 50 public ones (Table 4)"
# of Table 4: our cases, then the paper's cohorts
COHORTS = ("", "paper_public_", "paper_online_", "paper_testing_")
# up to these the challenge's ranking makes no difference (paper, section 3.1)
TOLERANCE_S, TOLERANCE_GB = 15, 4
EFFICIENCY: dict[str, str] = published()["efficiency"]


@dataclass(frozen=True)
class AblationRow:
    """One row of the ablation table: a round, or a baseline, which may have no training cases.

    `summary` is what `scores.score_folder` gives. Of what `targets` leave out, cells stay empty.
    """

    round: str
    cases: int | None
    summary: Mapping[str, Any]
    targets: str = "organs_tumor"

    def percent(self, classes: ClassList) -> dict[str, float | None]:
        """`<short>_DSC`, ... and `organ_mean_DSC`, ..., in percent with two digits."""
        learned = classes.outputs(self.targets)
        scored = {c.short: self.summary["classes"][c.short] for c in classes.entries if c.id in learned}
        if self.targets != "tumor":
            scored["organ_mean"] = self.summary["organ_mean"]
        scores = {k: scored.get(k[:-4], {}).get(k[-3:]) for k in _score_columns(classes)}
        return {k: None if score is None else round(100 * score, 2) for k, score in scores.items()}


def _score_columns(classes: ClassList) -> list[str]:
    """Columns of Table 5: of each measure the classes; the organ means last."""
    of_classes = [f"{c.short}_{m}" for m in MEASURES for c in classes.entries]
    return [*of_classes, *(f"organ_mean_{m}" for m in MEASURES)]


def table5(
    rows: Sequence[AblationRow], classes: ClassList, stem: Path, *, note: str = "", has_paper: bool = True
) -> list[Row]:
    """Write the ablation table: `<stem>.csv`, one row a name, and `.md` and `.tex` in the paper's shape.

    All rows are of the same cases. `note` is what a reader of `.md` and `.tex` must know of them. With
    `has_paper` the paper's figures stand beside its rounds, its organ mean where all organs are scored, and
    its public cases below. Gives the csv's rows: `round`, `cases`, scores in percent, the paper's `paper_*`.
    """
    lines: list[Row] = []
    ours = ["cases", *_score_columns(classes)]
    has_paper = has_paper and any(row.round in published()["table5"] for row in rows)
    theirs = [f"paper_{k}" for k in ours] if has_paper else []
    for row in rows:
        scored = row.percent(classes)
        line: Row = {"round": row.round, "cases": row.cases, **scored}
        paper = published()["table5"].get(row.round, {})
        flat = {f"paper_{n}_{m}": value for m in MEASURES for n, value in paper.get(m, {}).items()}
        flat["paper_cases"] = paper.get("training_images")
        for m in MEASURES:  # a mean of other organs is no rival
            if any(scored[f"{classes.by_id(i).short}_{m}"] is None for i in classes.organs):
                flat[f"paper_organ_mean_{m}"] = None
        lines.append(line | {k: flat.get(k) for k in theirs})
    write_csv(stem.with_suffix(".csv"), lines, ["round", *ours, *theirs])
    names = [*(c.short for c in classes.entries), "organ_mean"]
    heads = [Column("round"), Column("cases"), *(Column(n.replace("_", " "), "max") for n in names)]
    tables = []
    for m in MEASURES:
        told = f"; in brackets the paper's on {ONLINE}" if has_paper else ""
        title = f"{m} (%){told}; best of each column in bold" + (note and f". {note}")
        public = [public_validation(m) | {"paper_cases": 4000}] if has_paper else []
        body = []
        for line in [*lines, *public]:
            scores = [beside(line.get(f"{n}_{m}"), line.get(f"paper_{n}_{m}")) for n in names]
            body.append([Cell(line["round"]), beside(line["cases"], line.get("paper_cases"), 0), *scores])
        tables.append(Table(title, heads, body))
    write_table(stem, tables)
    return lines


def table4(rows: Rows, classes: ClassList, stem: Path, *, has_paper: bool = True) -> list[Row]:
    """Write scores per class: mean and standard deviation over cases, and beside the paper's three cohorts.

    The best of a row is bold, DSC and NSD apart. A class not scored here is not compared, nor is our average,
    which would be one of fewer classes. `rows` are of `metrics.csv`; an empty cell or None is not scored.
    """
    lines: list[Row] = [{"target": c.short} for c in classes.entries]
    average: Row = {"target": "average"}
    for m in MEASURES:
        scores = 100 * score_matrix(rows, [f"{c.short}_{m}" for c in classes.entries])
        for line, column in zip(lines, scores.T, strict=True):
            known = column[~np.isnan(column)].tolist()
            line |= {m: mean(known), f"{m}_std": float(np.std(known)) if known else None}
        average |= {m: mean(line[m] for line in lines), f"{m}_std": None}
    compared = [line["DSC"] is not None for line in lines]
    lines.append(average)
    paper = published()["table4"]
    for line in lines if has_paper else ():
        line |= {f"paper_{k}": paper.get(line["target"], {}).get(k) for k in paper["average"]}
    write_csv(stem.with_suffix(".csv"), lines)
    shown = list(product(COHORTS if has_paper else COHORTS[:1], MEASURES))
    heads = [Column("target"), *(Column(f"{c.replace('_', ' ')}{m}", "max", across=m) for c, m in shown)]
    body = []
    for line, is_compared in zip(lines, [*compared, all(compared)], strict=True):
        cells = [_spread(line[f"{c}{m}"], line.get(f"{c}{m}_std")) for c, m in shown]
        body.append([Cell(line["target"]), *(c if is_compared else Cell(c.text) for c in cells)])
    title = f"Scores in percent over {len(rows)} cases; best of each row in bold, DSC and NSD apart"
    write_table(stem, [Table(title, heads, body)])
    return lines


def _spread(mean: float | None, std: float | None) -> Cell:
    found = cell(mean)
    return found if std is None else Cell(f"{found.text}±{std:.2f}", found.value)


def write_efficiency(rows: Rows, folder: Path, *, has_paper: bool = True) -> dict[str, float | None]:
    """Write `table6` and `table7` from what inference measured; where it did not, remove earlier ones.

    The paper's eight cases stand below ours, its average below our means. `rows` are those of
    `inference.csv`, with the keys of `EFFICIENCY` where `inference.measure=true`; the GPU's are None or
    absent without one. Gives means over cases, None for what no case has; empty if nothing was measured.
    """
    measured = [row for row in rows if row.get("time_s") is not None]
    if not measured:
        for name, suffix in product(("table6", "table7"), (".csv", ".md", ".tex")):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        return {}
    means = {k: mean(row.get(k) for row in measured) for k in EFFICIENCY}
    paper = [c | {"size": "x".join(map(str, c["size"]))} for c in published()["table6"] if has_paper]
    columns = ("case", "size", "time_s", "max_gpu_mb", "gpu_auc")
    told = f"the challenge tolerates {TOLERANCE_S} s and {TOLERANCE_GB} GB of GPU memory"
    write_compared(measured, paper, columns, folder / "table6", f"Efficiency per case ({told})")
    averages = [published()["table7"]][:has_paper]
    write_compared([means], averages, EFFICIENCY, folder / "table7", "Average efficiency")
    return means


def write_compared(
    ours: Rows, paper: Rows, keys: Collection[str], stem: Path, title: str, digits: int = 2, best: str = "max"
) -> list[Row]:
    """Write ours and the paper's rows; of a score the highest is best (`best`), of a cost the lowest."""
    groups = (("ours", ours), ("paper", paper))
    lines = [{"source": of, **{k: row.get(k) for k in keys}} for of, rows in groups for row in rows]
    write_csv(stem.with_suffix(".csv"), lines)
    heads = {k: EFFICIENCY.get(k, k.replace("_", " ")) for k in lines[0]}
    columns = [Column(head, "min" if k in EFFICIENCY else best) for k, head in heads.items()]
    write_table(stem, [Table(title, columns, [[cell(ln[k], digits) for k in heads] for ln in lines])])
    return lines


def write_round_tables(
    folder: Path,
    *,
    scores: Rows,
    summary: Mapping[str, Any],
    inference: Rows,
    classes: ClassList,
    targets: str,
    has_paper: bool = True,
) -> None:
    """Write tables 4 and 8, and 6 and 7 where the efficiency was measured; what is not learned stays empty.

    `scores` are the rows of `metrics.csv`, `inference` of `inference.csv`; `summary` is `score_folder`'s.
    """
    table4(only_learned(scores, classes, targets), classes, folder / "table4", has_paper=has_paper)
    organ_mean = dict.fromkeys(MEASURES) if targets == "tumor" else summary["organ_mean"]
    tumor = {} if targets == "organs" else summary["tumor"] or {}
    efficiency = write_efficiency(inference, folder, has_paper=has_paper)
    ours: Row = {f"organ_{m}": organ_mean[m] for m in MEASURES}
    ours |= {f"tumor_{m}": tumor.get(m) for m in MEASURES}
    ours |= {k: efficiency.get(k) for k in ("gpu_auc", "time_s")}
    paper = [published()["table8"]][:has_paper]
    write_compared([ours], paper, ours, folder / "table8", "Test cases", digits=4)
