"""What the runs of a study of arms and seeds say: means, spread over seeds, intervals over cases, tests.

Scores are DSC in percent, of `metrics.csv` of one set of test cases. A run's score is the mean over classes
of the mean over cases. An arm's is the mean over its seeds, with the lowest and highest seed. Its interval is
the bootstrap's over cases, each case averaged over the seeds before. The spread says what another training
may give, the interval what other patients may give; neither says what another training cohort would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import write_csv, write_text
from flare.evaluation.summary import interval, score_matrix

LEAST = 0.1  # DSC from which on a run has learnt a class
Rows = Sequence[Mapping[str, Any]]
Runs = Mapping[str, Mapping[int, Rows]]  # arm -> seed -> a row a case
Detections = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> what `detection` gives
Row = dict[str, Any]
FOUND = ("patient_sensitivity", "specificity", "auc", "sensitivity", "false_positives_per_scan", "froc")


def cube(runs: Mapping[int, Rows], columns: Sequence[str]) -> np.ndarray:
    """Scores `(seeds, cases, columns)`, seeds and cases in ascending order; NaN where not scored.

    Raises:
        FlareError: If two runs scored different cases.
    """
    ordered = [sorted(runs[seed], key=lambda row: row["Name"]) for seed in sorted(runs)]
    cases = {tuple(row["Name"] for row in rows) for rows in ordered}
    if len(cases) != 1:
        raise FlareError(f"seeds {sorted(runs)} scored different cases; expected the same test set")
    return np.stack([score_matrix(rows, columns) for rows in ordered])


def mean_of(scores: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis over what was scored; NaN where nothing was."""
    return np.ma.filled(np.ma.masked_invalid(scores).mean(axis), np.nan)


def learnt_classes(runs: Runs, names: Sequence[str], excused: Sequence[str] = ()) -> list[str]:
    """The classes whose mean DSC over cases is at least `LEAST` in every run of the arms not `excused`."""
    judged = [cube(of, [f"{n}_DSC" for n in names]) for arm, of in runs.items() if arm not in excused]
    lowest = np.min([mean_of(scores, axis=1).min(axis=0) for scores in judged], axis=0)
    return [name for name, score in zip(names, lowest, strict=True) if score >= LEAST]


def describe(scores: np.ndarray) -> Row | None:
    """Sum up an arm from its `(seeds, cases, columns)`; None where nothing is scored."""
    if not np.isfinite(scores).any():
        return None
    by_seed = mean_of(mean_of(scores, axis=1), axis=1)
    low, high = interval(mean_of(scores, axis=0)) or (np.nan, np.nan)
    spread = {"lowest": by_seed.min(), "highest": by_seed.max()}
    return {"mean": by_seed.mean(), **spread, "low": low, "high": high, "seeds": len(by_seed)}


def contrast(first: np.ndarray, second: np.ndarray) -> Row:
    """Compare two arms of equal seeds and cases, the first less the second.

    `p` is Wilcoxon's of the differences of cases, each averaged over columns and seeds. `agree` says whether
    every seed has the sign of the mean.
    """
    both = np.isfinite(first) & np.isfinite(second)
    difference = np.where(both, first, np.nan) - np.where(both, second, np.nan)
    by_seed = mean_of(mean_of(difference, axis=1), axis=1)
    by_case = mean_of(mean_of(difference, axis=2), axis=0)
    by_case = by_case[np.isfinite(by_case)]
    low, high = interval(by_case[:, None]) or (np.nan, np.nan)
    p = float(wilcoxon(by_case).pvalue) if by_case.any() else 1.0
    agree = bool((np.sign(by_seed) == np.sign(by_seed.mean())).all())
    spread = {"lowest": by_seed.min(), "highest": by_seed.max()}
    return {"mean": by_seed.mean(), **spread, "low": low, "high": high, "p": p, "agree": agree}


def groups_of(runs: Runs, classes: ClassList, excused: Sequence[str]) -> dict[str, list[str]]:
    """Columns of each score of the table: all organs, those that every run learnt, the tumor."""
    organs = [classes.by_id(i).short for i in classes.organs]
    tumor = [] if classes.tumor is None else [classes.by_id(classes.tumor).short]
    named = {"organs": organs, "learnt": learnt_classes(runs, organs, excused), "tumor": tumor}
    return {name: [f"{short}_DSC" for short in shorts] for name, shorts in named.items() if shorts}


def tables(
    runs: Runs, pairs: Sequence[tuple[str, str]], classes: ClassList, excused: Sequence[str]
) -> tuple[str, list[Row]]:
    """Make the Markdown of arms and of pairs of arms, and a row a run for the csv.

    A pair is compared over the seeds that both arms have, and left out if it has none.
    """
    groups = groups_of(runs, classes, excused)
    learnt = [column.removesuffix("_DSC") for column in groups.get("learnt", [])]
    lines = [f"learnt by every run: {len(learnt)} organs ({', '.join(learnt)})", ""]
    heads = [f"organs, all {len(groups['organs'])}", f"organs, the {len(learnt)} learnt", "tumor"]
    heads = [head for head, key in zip(heads, ("organs", "learnt", "tumor"), strict=True) if key in groups]
    lines += [f"| arm | seeds | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for arm, of in runs.items():
        found = [describe(cube(of, columns)) for columns in groups.values()]
        lines.append(f"| {arm} | {len(of)} | {' | '.join(_told(f) for f in found)} |")
    lines += ["", f"| difference | seeds | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for first, second in pairs:
        seeds = sorted(runs.get(first, {}).keys() & runs.get(second, {}).keys())
        if seeds:
            cubes = [
                [cube({s: runs[a][s] for s in seeds}, c) for a in (first, second)] for c in groups.values()
            ]
            cells = [_told(contrast(*c) if all(np.isfinite(x).any() for x in c) else None) for c in cubes]
            lines.append(f"| {first} - {second} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n", _rows(runs, groups)


def detection_table(found: Detections) -> str:
    """Make the Markdown of how arms find tumors: the mean over seeds, the lowest and the highest."""
    heads = " | ".join(key.replace("_", " ") for key in FOUND)
    lines = [f"| tumors | {heads} |", "|---" * (len(FOUND) + 1) + "|"]
    for arm, of in found.items():
        values = {key: [row[key] for row in of.values() if row[key] is not None] for key in FOUND}
        cells = [
            f"{np.mean(v):.2f} ({min(v):.2f} to {max(v):.2f})" if v else "-" for v in map(values.get, FOUND)
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rows(runs: Runs, groups: Mapping[str, Sequence[str]]) -> list[Row]:
    """One row a run: its scores, and each class's."""
    found = []
    for arm, of in runs.items():
        for seed, rows in sorted(of.items()):
            means = {}
            for name, columns in groups.items():
                scores = cube({seed: rows}, columns)
                means[name] = describe(scores)
                means |= {c: describe(scores[..., [i]]) for i, c in enumerate(columns)}
            told = {k: None if m is None else round(100 * m["mean"], 2) for k, m in means.items()}
            found.append({"arm": arm, "seed": seed, **told})
    return found


def _told(found: Row | None) -> str:
    """A cell: mean (lowest to highest seed) [interval over cases], and of a difference its p."""
    if found is None:
        return "-"
    mean, lowest, highest, low, high = (
        f"{100 * found[key]:.1f}" for key in ("mean", "lowest", "highest", "low", "high")
    )
    tail = f", p {found['p']:.2g}" + ("" if found["agree"] else ", seeds disagree") if "p" in found else ""
    return f"{mean} ({lowest} to {highest}) [{low}, {high}]{tail}"


def write_study(stem: Path, markdown: str, rows: Sequence[Row]) -> None:
    """Write `<stem>.md` and `<stem>.csv`."""
    write_text(stem.with_suffix(".md"), markdown)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(stem.with_suffix(".csv"), [{c: row.get(c) for c in columns} for row in rows], columns)
