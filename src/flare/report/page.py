"""From a run's folder to its page: gather, compare, draw, make tables, and fill the template."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf

from flare.core.cases import KINDS, SPLITS
from flare.core.classes import ClassList
from flare.core.files import config_hash, read_csv, read_json, sha256, stat_key, write_text
from flare.core.pictures import TARGETS, class_colours, title
from flare.evaluation import lesions, metrics, published, rendering
from flare.evaluation.summary import Row
from flare.merging.provenance import FATES, GROUND_TRUTH, NONE
from flare.models.names import describe_network
from flare.prepare.analysis import draw_label_analysis, kind_counts
from flare.report import agreement, charts, examples, figures
from flare.report.facts import Facts, ReportSettings, RoundFacts, gather
from flare.rounds import graph, protocol
from flare.rounds.score import Results, Trained
from flare.runs.folders import public_config
from flare.runs.journal import Inputs, Journal, tell_again

log = logging.getLogger(__name__)
NIIVUE = Path(__file__).with_name("vendor") / "niivue.umd.js"
FORMAT = 8  # raised when the page changes, so that pages made before are made again


def write_report(settings: ReportSettings, trained: Trained, results: Results) -> Path:
    """Make `report.html` and `figures/` in the run's folder, or find them made; returns the page."""
    root = trained.run.root
    outputs = {"page": root / "report.html", "overview": root / "figures" / "overview.png"}
    journal = _journal(trained)
    inputs, config = _basis(settings, trained, sorted((f.case_id, str(f.error)) for f in results.failures))
    if why := journal.why("report", inputs, config):
        tell_again("report", why if "report" in journal else "")
        build_report(settings, trained, results, **outputs)
        journal.record("report", inputs, config, outputs)
    return outputs["page"]


def explain_report(settings: ReportSettings, trained: Trained) -> str:
    """Say why the page of a run whose rounds all stand is made again; empty if it is not."""
    journal = _journal(trained)
    before = (journal.config("report") if "report" in journal else None) or {}
    return journal.why("report", *_basis(settings, trained, before.get("failed", [])))


def _journal(trained: Trained) -> Journal:
    return Journal(trained.run.root / "journal" / "report.jsonl")


def _basis(settings: ReportSettings, trained: Trained, failed: Sequence[Any]) -> tuple[Inputs, Row]:
    """What the page is made from, and what else decides it."""
    configs = [public_config(r.config) for r in trained.rounds]
    config = {"format": FORMAT, "config": settings.public, "rounds": configs, "failed": failed}
    # small files count by their content, volumes by the journals that made them
    patterns = ["training.csv", "environment.json", "labels/provenance.csv", "journal/*.jsonl"]
    patterns += [f"{settings.split}/{name}" for name in ("journal.jsonl", "metrics.csv")]
    run, truth = trained.run, settings.truth
    paths = [run.root / name for name in ("environment.json", "plan.csv", "table5.csv")]
    paths += [p for r in trained.rounds for name in patterns for p in sorted(r.folder.root.glob(name))]
    paths += [trained.cohort.folder.index, trained.cohort.folder.label_sources]
    state: dict[str, Any] = {str(p): sha256(p) for p in paths if p.exists()}
    state |= {} if truth is None else {str(truth): stat_key(truth)}
    return {"run": config_hash(state)}, config


def build_report(
    settings: ReportSettings, trained: Trained, results: Results, *, page: Path, overview: Path
) -> None:
    """Write the page, an HTML file, and the picture for a README, a PNG file."""
    started = time.monotonic()
    facts = gather(settings, trained, results)
    rounds, classes = facts.rounds, settings.classes
    quality = agreement.pseudo_label_quality(settings, trained)
    folder = trained.rounds[-1].folder.root / settings.split / "predictions"
    shown = examples.show_cases(facts, folder, trained.executor)
    last = public_config(trained.rounds[-1].config)
    colours = class_colours(classes)
    selected = [row for r in trained.rounds for row in read_csv(r.folder.selection, may_lack=True)]
    context = {
        "facts": facts,
        "today": date.today().isoformat(),
        "headline": headline(facts),
        "graph": charts.draw_graph(rounds),
        "targets": TARGETS,
        "last": last,
        "network": describe_network(last["model"]["net"]),
        "config": OmegaConf.to_yaml(OmegaConf.create(last)),
        "kinds": KINDS,
        "cohort": {split: kind_counts(facts.cases, split) for split in SPLITS},
        "classes": [(c, title(c), colours[c.id]) for c in classes.entries],
        "completeness": draw_label_analysis(facts.cases, classes),
        "curves": charts.learning_curves(rounds),
        "sources": source_rows(trained.cohort.folder.label_sources),
        "has_paper": has_paper(facts),
        "starts": graph.tell_starts([r.plan for r in rounds]),
        "frozen": graph.tell_frozen([r.plan for r in rounds]),
        "trend": charts.trend(facts),
        "ablation": [(m, ablation_table(facts, m)) for m in metrics.MEASURES] if results.table else [],
        "tumors": lesions.detection_tables(results.tumors, facts.last.name) if results.tumors else [],
        "boxes": charts.class_boxes(facts.last, classes) if facts.ranked else None,
        "fits": {r.name: read_json(path) for r in trained.rounds if (path := r.folder.components).exists()},
        "protocol": [rendering.csv_table(trained.run.root / "table2.csv", protocol.TRAININGS)],
        "sample": agreement.SAMPLE,
        "quality": quality,
        "quality_parts": agreement.parts(classes).values(),
        "quality_figure": agreement.label_quality(quality, classes),
        "kept": agreement.kept_labels(selected),
        "comparisons": list(agreement.COMPARISONS)[: None if settings.truth else 1],
        "provenance": [provenance_row(r, classes) for r in rounds if r.provenance],
        "shown": shown,
        "viewer": examples.viewer_json(facts, shown),
        "niivue": NIIVUE.read_text(encoding="utf-8").replace("</script", "<\\/script"),
        "seconds": charts.seconds_by_stage(rounds) if any(r.seconds for r in rounds) else None,
        "efficiency": [efficiency_row(r) for r in rounds],
    }
    write_text(page, figures.render("report.html", **context))
    shown.sort(key=lambda s: s.rank != "median")
    charts.write_overview(overview, facts, (shown[0].case, shown[0].pictures) if shown else None)
    log.info("report.html: %.1f MB, made in %.0f s", page.stat().st_size / 1e6, time.monotonic() - started)


def source_rows(path: Path) -> dict[str, dict[str, Row]]:
    """The label analysis by class and source, as prepare has written it."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in read_csv(path, may_lack=True):
        found[row["class"].replace("_", " ")][row["source"]] = row
    return found


def headline(facts: Facts) -> list[tuple[str, float]]:
    """The figures that stand at the top: the last round's, and the best baseline beside the first of them."""
    last = next((row for row in facts.results.table if row["round"] == facts.last.name), {})
    names = {"organ_mean_DSC": "organ", facts.tumor_column: "tumor"}
    known = [(key, name) for key, name in names.items() if last.get(key) is not None]
    found = [(f"{name} DSC of {facts.last.name.upper()}", last[key]) for key, name in known]
    for key, name in known[:1]:
        if best := facts.best_baseline(key):
            found.append((f"{name} DSC of the best baseline ({best['round']})", best[key]))
    return found


def has_paper(facts: Facts) -> bool:
    """Whether a round of the run is one of the paper's, whose figures stand beside it."""
    return any(key.startswith("paper_") for row in facts.results.table for key in row)


def ablation_table(facts: Facts, measure: str) -> list[Row]:
    """Rows of Table 5 for `DSC` or `NSD`: ours, the paper's beside, the best of ours marked."""
    names = [*(c.short for c in facts.settings.classes.entries), "organ_mean"]
    keys = [f"{name}_{measure}" for name in names]
    values = {key: [row[key] for row in facts.results.table if row.get(key) is not None] for key in keys}
    best = {key: max(found) for key, found in values.items() if len(found) > 1 and max(found) > 0}
    rows = [*facts.results.table, *([published.public_validation(measure)] if has_paper(facts) else [])]
    found = []
    for row in rows:
        cells = []
        for key in keys:
            ours, paper = row.get(key), row.get(f"paper_{key}")
            cells.append({"ours": ours, "paper": paper, "best": ours == best.get(key, "")})
        found.append(row | {"baseline": row["round"] not in facts.names, "cells": cells})
    return found


def provenance_row(item: RoundFacts, classes: ClassList) -> Row:
    """Where the labels of a round on hybrid labels came from."""
    rows = item.provenance
    taken: dict[bool, list[int]] = {True: [], False: []}  # is it from the truth -> voxels of class and case
    for row in rows:
        for c in classes.entries:
            merged, source = int(row[f"{c.short}_merged"] or 0), row[f"{c.short}_source"]
            if merged and source != NONE:
                taken[source == GROUND_TRUTH].append(merged)
    total = sum(map(sum, taken.values()))
    return {
        "round": item.name,
        "teacher": ", ".join(item.teachers),
        "cases": len(rows),
        "from_truth": len(taken[True]),
        "from_teacher": len(taken[False]),
        "teacher_percent": 100 * sum(taken[False]) / total if total else None,
        "bearing": sum(len(row["tumor_bearing"].split()) for row in rows),
        **{fate: sum(int(row[f"tumors_{fate}"]) for row in rows) for fate in FATES},
        "overwritten": sum(int(row["overwritten"]) for row in rows),
    }


def efficiency_row(item: RoundFacts) -> Row:
    """Training throughput and seconds a case of inference of a round."""
    seconds = [row["seconds"] for row in item.seconds]
    memory = [mb for row in item.curve if (mb := row.get("gpu_memory_mb")) is not None]
    return {
        "round": item.name,
        "patches_per_s": metrics.mean(row.get("patches_per_s") for row in item.curve),
        "gpu_memory_mb": max(memory, default=None),
        "n": len(seconds),
        "median_s": median(seconds) if seconds else None,
        "max_s": max(seconds, default=None),
        "windows": metrics.mean(row.get("windows") for row in item.seconds),
    }
