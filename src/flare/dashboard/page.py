"""The dashboard as files: one self-contained page, Markdown, and what it shows as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from flare.dashboard.gather import Ablation
from flare.dashboard.spec import BARS, LINES, Dashboard, Panel
from flare.evaluation.rendering import Table, to_markdown
from flare.files import write_json, write_text
from flare.report.drawing import INK, LINE, new_figure, style, to_svg

STYLE = f"""body{{font:15px/1.5 system-ui,sans-serif;color:{INK};max-width:70em;margin:2em auto}}
table{{border-collapse:collapse}}td,th{{padding:.3em .7em;border-bottom:1px solid {LINE};text-align:right}}
td:first-child,th:first-child{{text-align:left}}.panels{{display:flex;flex-wrap:wrap;gap:1em}}
img{{max-width:100%}}h2{{margin-top:1.6em}}.scroll{{overflow-x:auto}}"""


def write_files(dashboard: Dashboard, ablation: Ablation, output: Path) -> dict[str, Path]:
    """Write `dashboard.html`, `.md` and `.json`.

    Args:
        dashboard: What to show.
        ablation: The numbers.
        output: Folder.

    Returns:
        The files by suffix.
    """
    paths = {suffix: output / f"dashboard.{suffix}" for suffix in ("html", "md", "json")}
    write_json(paths["json"], dashboard.to_dict())
    write_text(paths["md"], _markdown(dashboard, ablation))
    write_text(paths["html"], _html(dashboard, ablation))
    return paths


def last_value(ablation: Ablation, training: str, key: str) -> float | None:
    """The last value of a key in a training, if it has any."""
    values = [row[key] for row in ablation.curves[training] if key in row]
    return values[-1] if values else None


def _markdown(dashboard: Dashboard, ablation: Ablation) -> str:
    parts = [f"# {dashboard.title}\n", to_markdown(ablation.tables)]
    for section in dashboard.sections:
        keys = [k for p in section.panels if p.kind in (LINES, BARS) for k in p.keys]
        keys = list(dict.fromkeys(keys))
        if not keys:
            continue
        lines = [["training" if ablation.is_trained else "job", *keys], ["---"] * (len(keys) + 1)]
        for name in ablation.curves:
            values = [last_value(ablation, name, key) for key in keys]
            lines.append([name, *("-" if v is None else f"{v:.4g}" for v in values)])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        told = "Last values.\n\n" if ablation.is_trained else ""
        parts.append(f"## {section.title}\n\n{told}{table}\n")
    return "\n".join(parts)


def _html(dashboard: Dashboard, ablation: Ablation) -> str:
    body = [f"<h1>{escape(dashboard.title)}</h1>"]
    body += [_table(table) for table in ablation.tables]
    for section in dashboard.sections:
        drawn = [_figure(p, ablation) for p in section.panels if p.kind in (LINES, BARS)]
        if drawn:
            body.append(f'<h2>{escape(section.title)}</h2><div class="panels">{"".join(drawn)}</div>')
    head = f'<meta charset="utf-8"><title>{escape(dashboard.title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _table(table: Table) -> str:
    """A table as HTML, the best values in bold."""
    head = "".join(f"<th>{escape(c.heading)}</th>" for c in table.columns)
    rows = []
    for row, best in zip(table.rows, table.best().to_numpy(), strict=True):
        cells = [
            f"<b>{escape(c.text)}</b>" if is_best else escape(c.text)
            for c, is_best in zip(row, best, strict=True)
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    title = f"<p>{escape(table.title)}</p>"
    return f'{title}<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _figure(panel: Panel, ablation: Ablation) -> str:
    """A panel as a picture in vectors."""
    names: Sequence[str] = list(ablation.curves)
    with style():
        figure = new_figure(5.2, 2.9 if panel.kind == LINES else 0.8 + 0.3 * len(names))
        axes = figure.subplots()
        axes.set_title(panel.title)
        for key in panel.keys:
            if panel.kind == BARS:
                axes.barh(range(len(names)), [last_value(ablation, n, key) or 0.0 for n in names])
                axes.set_yticks(range(len(names)), names)
                axes.invert_yaxis()
                continue
            for name, rows in ablation.curves.items():
                points = [(row["step"], row[key]) for row in rows if key in row]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            axes.set_xlabel("step")
            axes.legend(fontsize=7.5)
        address = to_svg(figure)
    return f'<img alt="{escape(panel.title)}" src="{address}">'
