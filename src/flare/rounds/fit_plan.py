"""The command that fits a plan of inference to a checkpoint: the cheapest windows and flips that lose little.

It measures on the validation cases what each candidate changes alone, then combines what is worth it (ours).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from flare.core.cases import Case, read_index
from flare.core.class_files import own_classes, require_agreement
from flare.core.classes import ClassList
from flare.core.errors import NOT_NEGATIVE, FlareError, Rule, check_values
from flare.core.files import atomic, write_csv, write_json
from flare.core.paths import require_writable, settle_paths
from flare.evaluation.metrics import ScoreSettings
from flare.evaluation.scores import failed_cases, score_folder
from flare.evaluation.summary import only_learned, read_scores, summarise
from flare.inference.exported import format_of
from flare.inference.fitted import ANY_WINDOW, AT_PATCH, BY, PLANNED, plan_path
from flare.inference.predict import find_checkpoint, predict_cases
from flare.inference.settings import InferenceSettings
from flare.rounds.score import held_out
from flare.runs.checkpoints import Checkpoint, load_checkpoint
from flare.runs.folders import machine, prepared_folder
from flare.runs.journal import Journal
from flare.runs.locks import lock
from flare.runs.work import Executor, Outcome, build_executor, naming, report_failures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
Row = dict[str, Any]
Changes = Mapping[str, Any]
SECTION = f"a section of {', '.join(PLANNED)}"
CHANGES = Rule(lambda value: isinstance(value, Mapping) and value.keys() <= PLANNED.keys(), SECTION)
SEVERAL = Rule(lambda v: isinstance(v, list) and all(map(CHANGES.holds, v)), f"a list, each {SECTION}")
MEASURES = {"organ_DSC": "organ_points", "tumor_DSC": "tumor_points"}  # -> key of the most that may be lost
RULES = {"reference": CHANGES, "start": CHANGES, "candidates": SEVERAL}
RULES |= dict.fromkeys(MEASURES.values(), NOT_NEGATIVE)


@dataclass
class Trial:
    """What is measured with, and what has been."""

    checkpoint: Checkpoint
    cases: Sequence[Case]
    settings: InferenceSettings
    score: ScoreSettings
    output: Path
    executor: Executor
    # by name of a setting: itself, then of its cases what inference tells and their scores
    tried: dict[str, InferenceSettings] = field(default_factory=dict)
    costs: dict[str, list[Row]] = field(default_factory=dict)
    scores: dict[str, list[Row]] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)

    def measure(self, changes: Changes, name: str) -> None:
        """Predict and score the cases with changed settings; cases that failed before are left out."""
        log.info("plan: %s", name)
        folder, settings = self.output / folder_name(name), replace(self.settings, **changes)
        predictions, failed = folder / "predictions", {failure.case_id for failure in self.failures}
        cases = [case for case in self.cases if case.id not in failed]
        done = predict_cases(
            self.checkpoint.path,
            {case.id: case.image for case in cases},
            predictions,
            settings=settings,
            executor=self.executor,
            journal=Journal(folder / "predict.jsonl"),
            classes=self.score.classes,
        )
        there = {row["case"] for row in done.rows}
        labels = {case.id: case.label for case in cases if case.label and case.id in there}
        summary = score_folder(
            predictions, labels, output=folder, settings=self.score, executor=self.executor
        )
        self.failures += [*done.failures, *failed_cases(summary)]
        self.tried[name], self.costs[name] = settings, done.rows
        self.scores[name] = read_scores(folder / "metrics.csv")

    def table(self) -> list[Row]:
        """What each setting costs and scores, over the cases that all have; the first is the reference."""
        common = set.intersection(*({row["Name"] for row in found} for found in self.scores.values()))
        with naming(self.failures):
            if not common:
                raise FlareError("data.validation_images: no labelled case is left that every setting has")
        rows = []
        for name in self.tried:
            costs = [row for row in self.costs[name] if row["case"] in common]
            scores = [row for row in self.scores[name] if row["Name"] in common]
            means = {key: mean(row[key] for row in costs) for key in ("windows", "network_vox")}
            # medians: the first case of a setting may wait for an engine that prepares itself
            means |= {key: round(median(row[key] for row in costs), 3) for key in ("seconds", "cpu_s")}
            rows.append({"setting": name, "cases": len(common), **means, **self._points(scores)})
        first = rows[0]["network_vox"] or 1
        return [{**row, "share": round(row["network_vox"] / first, 4)} for row in rows]

    def _points(self, scores: Sequence[Row]) -> Row:
        """Mean DSC in points, of what the network has learned."""
        classes = self.score.classes
        found = summarise(only_learned(scores, classes, self.checkpoint.targets), classes)
        means = (found["organ_mean"]["DSC"], (found["tumor"] or {"DSC": None})["DSC"])
        points = (None if dsc is None else round(100 * dsc, 2) for dsc in means)
        return dict(zip(MEASURES, points, strict=True))


def cheapest(rows: Sequence[Row], most: Mapping[str, float]) -> Row:
    """Choose the row of the fewest network voxels that loses little against the first; of equals the first.

    They lose no more points than `most` says by config key. A measure that the first row lacks is left out.
    """
    least = {key: rows[0][key] - most[MEASURES[key]] - 1e-9 for key in MEASURES if rows[0][key] is not None}
    allowed = [row for row in rows if all(row[k] is not None and row[k] >= v for k, v in least.items())]
    return min(allowed, key=lambda row: row["network_vox"])


def is_on_front(row: Row, rows: Sequence[Row]) -> bool:
    """Whether no other row is as cheap and as good, and better in one of them."""
    values = [(-r["network_vox"], *(-1.0 if r[k] is None else r[k] for k in MEASURES)) for r in (row, *rows)]
    return not any(
        other != values[0] and all(a >= b for a, b in zip(other, values[0], strict=True)) for other in values
    )


def main(cfg: DictConfig) -> Row:
    """Fit a plan as `conf/plan.yaml` and the command line say, and store it; gives its row of the table.

    A value that means nothing is refused before any work, and so are a checkpoint of other classes, an
    exported file, and a cohort without a labelled validation case; at the end, that a case failed.
    """
    settle_paths(cfg)
    cfg = own_classes(cfg)
    check_values(cfg, RULES)
    given: Any = {key: OmegaConf.to_container(cfg[key]) for key in ("reference", "start", "candidates")}
    most = {key: cfg[key] for key in MEASURES.values()}
    path = find_checkpoint(cfg)
    if format_of(path):
        raise FlareError(f"checkpoint={path}: takes windows of one size; expected the .ckpt that it is from")
    output = Path(cfg.output or path.with_suffix(".plan"))
    require_writable("output", output)
    require_writable("checkpoint", path.parent)  # the plan lies beside it
    settings = replace(InferenceSettings.from_config(cfg), measure=False)
    for changes in (given["start"], *given["candidates"]):
        replace(settings, **changes)  # which checks them
    if replace(settings, **given["reference"]).window is not None:
        raise FlareError("reference: expected window=null, which exported files take as well")
    checkpoint, classes = load_checkpoint(path), ClassList.from_config(cfg.classes)
    require_agreement("checkpoint", (path, checkpoint.class_list), classes, "the configuration (classes=)")
    cases = held_out(read_index(prepared_folder(cfg).index), "validation")
    if not cases:
        raise FlareError("data.validation_labels: the cohort has no labelled validation case to measure on")
    answered = tuple(sorted(case.id for case in cases if classes.tumor in case.annotated))
    score = replace(ScoreSettings.from_config(cfg, "data.scoring.protocol"), answered=answered)
    with lock(output), closing(build_executor(cfg)) as executor:
        # one case at a time: its seconds are those of the whole machine
        trial = Trial(checkpoint, cases, settings, score, output, executor.alone())
        best = _fit(trial, **given, most=most)
    report_failures(trial.failures, "plan")
    return best


def told(changes: Changes) -> str:
    """Name settings by what they change."""
    return " ".join(f"{key}={value}".replace(" ", "") for key, value in changes.items()) or "start"


def folder_name(setting: str) -> str:
    """Give a folder's name for that of a setting."""
    return re.sub(r"[^\w.]+", "-", setting).strip("-")


def _fit(
    trial: Trial, reference: Changes, start: Changes, candidates: list[Changes], most: Mapping[str, float]
) -> Row:
    """Measure the candidates and what combines them, write table and picture, and store the plan."""
    single = {told(changes): changes for changes in ({}, *candidates)}
    trial.measure(reference, f"reference {told(reference)}")
    for name, changes in single.items():
        trial.measure({**start, **changes}, name)
    _combine(trial, start, single, most)
    rows = trial.table()
    at_patch = [row for row in rows if trial.tried[row["setting"]].window is None]
    chosen = {ANY_WINDOW: cheapest(rows, most), AT_PATCH: cheapest(at_patch, most)}
    best = chosen[ANY_WINDOW]
    for row in rows:
        row |= {"front": is_on_front(row, rows), "chosen": row is best}
    write_csv(trial.output / "plan.csv", rows)
    with atomic(trial.output / "plan.png") as temporary:
        draw_front(rows, most).savefig(temporary, dpi=150)
    plan: Row = {BY: trial.checkpoint.sha256, "date": date.today().isoformat(), "cpu": machine()["cpu"]}
    plan |= {"versions": {name: version(name) for name in ("flare", "torch")}, "reference": rows[0], **most}
    for which, row in chosen.items():
        settings = vars(trial.tried[row["setting"]])
        chosen_values = {key: settings[key] for key in PLANNED}
        plan[which] = {"name": row["setting"], "settings": chosen_values, "row": row}
    write_json(plan_path(trial.checkpoint.path), plan)
    log.info("inference=fast now predicts with this checkpoint by: %s; see %s", best["setting"], trial.output)
    return best


def _combine(
    trial: Trial, start: Changes, candidates: Mapping[str, Changes], most: Mapping[str, float]
) -> None:
    """Add to the best candidate others that save voxels and touch other keys, the cheapest first.

    What makes the plan no cheaper, or loses too much, is taken back.
    """
    rows = trial.table()
    combined = candidates.get(cheapest(rows, most)["setting"], {})
    voxels = {row["setting"]: row["network_vox"] for row in rows}
    saving = [name for name in candidates if voxels[name] < voxels["start"]]
    for name in sorted(saving, key=lambda name: voxels[name]):
        more = {**combined, **candidates[name]}
        if not combined.keys().isdisjoint(candidates[name]) or told(more) in trial.tried:
            continue
        trial.measure({**start, **more}, told(more))
        if cheapest(trial.table(), most)["setting"] == told(more):
            combined = more


def draw_front(rows: Sequence[Row], most: Mapping[str, float]) -> "Figure":
    """Draw cost against scores, a panel each of organs and tumor: the front, the bound, the chosen one."""
    from matplotlib.figure import Figure

    known = [key for key in MEASURES if rows[0][key] is not None]
    figure = Figure(figsize=(5.2 * len(known), 4 + 0.13 * len(rows)), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(known), squeeze=False)[0], known, strict=True):
        for number, row in enumerate(rows):
            place = (row["share"], row[key])
            axes.plot(*place, "o", color="#0072b2" if row["front"] else "#8a949e")
            aside = (4, 3 if number % 2 else -10)
            axes.annotate(str(number), place, xytext=aside, textcoords="offset points")
            if row["chosen"]:
                axes.plot(*place, "o", markersize=14, fillstyle="none", color="#d55e00")
        axes.axhline(rows[0][key] - most[MEASURES[key]], color="#6b7683", linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel="network voxels, of the reference", ylabel=key.replace("_", " "))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    figure.suptitle("Blue: nothing beats it. Ring: the plan. Dashed: the least it may score", fontsize=9)
    names = [f"{number}  {row['setting']}" for number, row in enumerate(rows)]
    figure.supxlabel("\n".join(names), fontsize=7, x=0.02, ha="left")
    return figure
