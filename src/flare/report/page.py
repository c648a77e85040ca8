"""From a run's folder to its page: gather, compare, draw, and fill the template."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from flare.core.cases import KINDS
from flare.core.files import config_hash, sha256, stat_key, write_text
from flare.core.pictures import TARGETS, class_colours, title
from flare.prepare.analysis import plot_label_analysis
from flare.report import charts, summaries
from flare.report.agreement import SAMPLE, pseudo_label_quality
from flare.report.examples import Shown, lookup_table, show_cases, write_overview
from flare.report.facts import Facts, ReportSettings, gather
from flare.report.figures import data_address, draw_graph, render, to_svg
from flare.rounds.ablation import Results, Trained
from flare.rounds.graph import tell_starts
from flare.runs.journal import Journal
from flare.runs.records import public_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
NIIVUE = Path(__file__).with_name("vendor") / "niivue.umd.js"


def build_report(
    settings: ReportSettings, trained: Trained, results: Results, *, page: Path, overview: Path
) -> None:
    """Write the page and the picture for a README.

    Args:
        settings: What the configuration says.
        trained: The rounds.
        results: The ablation table, and the cases that failed.
        page: The HTML file to write.
        overview: The PNG file to write.
    """
    started = time.monotonic()
    facts = gather(settings, trained, results)
    quality = pseudo_label_quality(settings, trained)
    predictions = trained.run.round(facts.last.name).root / settings.split / "predictions"
    shown = show_cases(facts, predictions, trained.executor)
    last = public_config(trained.rounds[-1].config)
    context = {
        **_figures(facts),
        **_tables(facts),
        "facts": facts,
        "starts": tell_starts([r.plan for r in facts.rounds]),
        "today": date.today().isoformat(),
        "settings": summaries.settings_table(last, facts.last.plan),
        "config": OmegaConf.to_yaml(OmegaConf.create(last)),
        "sample": SAMPLE,
        "quality": summaries.quality_table(quality, facts.classes),
        "quality_figure": _svg(charts.label_quality(quality, facts.classes)),
        "shown": shown,
        "viewer": viewer_json(facts, shown),
        "niivue": NIIVUE.read_text(encoding="utf-8").replace("</script", "<\\/script"),
    }
    write_text(page, render("report.html", **context))
    write_overview(overview, facts, shown)
    size = page.stat().st_size / 1e6
    log.info("report.html: %.1f MB, made in %.0f s", size, time.monotonic() - started)


def _figures(facts: Facts) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "labels.svg"
        plot_label_analysis(path, facts.cases, facts.classes)
        completeness = data_address(path.read_bytes(), "image/svg+xml")
    return {
        "graph": draw_graph(facts.rounds),
        "completeness": completeness,
        "curves": to_svg(charts.learning_curves(facts.rounds)),
        "trend": _svg(charts.trend(facts)),
        "boxes": to_svg(charts.class_boxes(facts.last, facts.classes)) if summaries.ranked(facts) else None,
        "seconds": to_svg(charts.seconds_by_stage(facts.rounds))
        if any(r.seconds for r in facts.rounds)
        else None,
    }


def _svg(figure: Figure | None) -> str | None:
    return None if figure is None else to_svg(figure)


def _tables(facts: Facts) -> dict[str, Any]:
    colours = class_colours(facts.classes)
    return {
        "kinds": KINDS,
        "cohort": summaries.cohort_table(facts),
        "classes": [(c, title(c), colours[c.id]) for c in facts.classes.entries],
        "targets": TARGETS,
        "ablation": [(m, summaries.ablation_table(facts, m)) for m in ("DSC", "NSD")] if facts.table else [],
        "provenance": summaries.provenance_table(facts.rounds, facts.classes),
        "efficiency": summaries.efficiency_table(facts.rounds),
        "headline": headline(facts),
    }


def headline(facts: Facts) -> list[tuple[str, float]]:
    """The figures that stand at the top: the last round's, and the best baseline beside the first of them."""
    last = next((row for row in facts.table if row["round"] == facts.last.name), {})
    tumor = "" if facts.classes.tumor is None else f"{facts.classes.by_id(facts.classes.tumor).short}_DSC"
    known = [(k, n) for k, n in (("organ_mean_DSC", "organ"), (tumor, "tumor")) if last.get(k) is not None]
    found = [(f"{name} DSC of {facts.last.name.upper()}", last[key]) for key, name in known]
    trained = {r.name for r in facts.rounds}
    for key, name in known[:1]:
        baselines = [r for r in facts.table if r["round"] not in trained and r[key] is not None]
        if baselines:
            best = max(baselines, key=lambda r: r[key])
            found.append((f"{name} DSC of the best baseline ({best['round']})", best[key]))
    return found


def viewer_json(facts: Facts, shown: Sequence[Shown]) -> str | None:
    """What the viewer's script reads, as JSON that can stand inside a `<script>`."""
    cases = [{"name": s.case, "rank": s.rank, **s.volumes} for s in shown if s.volumes]
    if not cases:
        return None
    data = {"lookup": lookup_table(facts.classes), "cases": cases}
    return json.dumps(data).replace("<", "\\u003c")  # no markup whatever a case or a class is called


FORMAT = 5  # raised when the page changes, so that pages made before are made again


def write_report(settings: ReportSettings, trained: Trained, results: Results) -> Path:
    """Make the page of a run, or find it made.

    Args:
        settings: What the configuration says.
        trained: The rounds; their run's folder gets `report.html` and `figures/`.
        results: The ablation table and the cases that failed.

    Returns:
        The page.
    """
    root = trained.run.root
    outputs = {"page": root / "report.html", "overview": root / "figures" / "overview.png"}
    journal = Journal(root / "journal" / "report.jsonl")
    inputs: dict[str, Path | str] = {"run": config_hash(_state(settings, trained))}
    config = {
        "format": FORMAT,
        "config": settings.public,
        "rounds": [public_config(r.config) for r in trained.rounds],
        "failed": sorted((f.case_id, str(f.error)) for f in results.failures),
    }
    if not journal.is_current("report", inputs, config):
        build_report(settings, trained, results, **outputs)
        journal.record("report", inputs, config, outputs)
    return outputs["page"]


def _state(settings: ReportSettings, trained: Trained) -> dict[str, Any]:
    """What the page is made from: small files by their content, volumes by the journals that made them."""
    patterns = (
        "training.csv",
        "environment.json",
        "labels/provenance.csv",
        "journal/*.jsonl",
        f"{settings.split}/journal.jsonl",
        f"{settings.split}/metrics.csv",
    )
    run, truth = trained.run, settings.truth
    paths = [run.root / name for name in ("environment.json", "plan.csv", "table5.csv")]
    paths += [
        p for r in trained.rounds for name in patterns for p in sorted(run.round(r.name).root.glob(name))
    ]
    paths.append(trained.cohort.folder.index)
    found: dict[str, Any] = {str(p): sha256(p) for p in paths if p.exists()}
    return found | ({} if truth is None else {str(truth): stat_key(truth)})
