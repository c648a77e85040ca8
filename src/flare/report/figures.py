"""A page from its template: style, scripts and pictures become part of it, nothing is loaded."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare.core.pictures import TARGETS
from flare.report.facts import RoundFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **context: Any) -> str:
    """Fill a template.

    Args:
        template: Its file.
        context: What it shows; a name that it lacks is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fixed"] = lambda v, digits=1: "\N{EN DASH}" if v is None else f"{v:,.{digits}f}"
    environment.globals["part"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment.get_template(template).render(**context)


INK, GREY, LINE, ACCENT, PAPER = "#1d2733", "#6b7683", "#d5dae0", "#2f6f9f", "#a0522d"

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa4b0",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#3c4753",
    "ytick.color": "#3c4753",
    "legend.frameon": False,
    "svg.hashsalt": "flare",  # with it the same figure is the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the page's style while the block runs."""
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, laid out so that nothing is cut off."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure) -> str:
    """A figure as a data address: vectors, sharp at any zoom; an image of its own, so that no ids meet."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_address(buffer.getvalue(), "image/svg+xml")


def data_address(content: bytes, kind: str) -> str:
    """Bytes as a `data:` address of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


WIDTH, HEIGHT, GAP, ROW, EDGE = 122, 129, 24, 153, 4  # of a box, between columns, of a row, around all
BELOW = 11  # how far below its boxes an arrow runs that has others to pass

CASES = {
    "organs_complete": "organs complete",
    "tumor": "with tumor",
    "labeled": "labelled",
    "all": "labelled or not",
}

LEARNS = {"organs": "organs", "tumor": "tumor", "organs_tumor": "both"}


def place(rounds: Sequence[RoundFacts]) -> dict[str, tuple[int, int]]:
    """Column and row of each round: a pupil stands right of its teacher; a row ends where a branch does."""
    known = {r.name for r in rounds}
    places: dict[str, tuple[int, int]] = {}
    rows = 0
    for item in rounds:
        teachers = [name for name in item.teachers if name in known]
        if teachers:
            row = places[teachers[0]][1]
            column = 1 + max(places[name][0] for name in teachers)
            while (column, row) in places.values():
                row += 1
        else:
            column, row = 0, rows
        places[item.name] = (column, row)
        rows = max(rows, row + 1)
    return places


def draw_graph(rounds: Sequence[RoundFacts]) -> str:
    """Draw the rounds as boxes and the pseudo labels as arrows.

    Args:
        rounds: In the order in which they ran.

    Returns:
        An `<svg>` element that needs nothing outside of it.
    """
    places = place(rounds)
    columns = 1 + max(column for column, _ in places.values())
    rows = 1 + max(row for _, row in places.values())
    width = 2 * EDGE + columns * WIDTH + (columns - 1) * GAP
    height = 2 * EDGE + rows * ROW - (ROW - HEIGHT) + BELOW
    parts = [
        f'<svg viewBox="0 0 {width} {height}" class="graph" role="img" style="width:{width}px" '
        'aria-label="Graph of rounds">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#55606e"/></marker></defs>',
    ]
    for item in rounds:
        for name in item.teachers:
            if name in places:
                is_second = name == item.unlabeled_teacher
                parts.append(_arrow(places[name], places[item.name], is_second))
    parts += [_box(item, *places[item.name]) for item in rounds]
    return "".join([*parts, "</svg>"])


def _corner(column: int, row: int) -> tuple[int, int]:
    return EDGE + column * (WIDTH + GAP), EDGE + row * ROW


def _arrow(source: tuple[int, int], target: tuple[int, int], is_second: bool) -> str:
    """From side to side, or below the boxes that stand between; dashed from a second teacher."""
    (x0, y0), (x1, y1) = _corner(*source), _corner(*target)
    if target[0] - source[0] > 1:
        x0, x1, low = x0 + WIDTH // 2, x1 + WIDTH // 2, max(y0, y1) + HEIGHT + BELOW
        path = f"M{x0} {y0 + HEIGHT}V{low}H{x1}V{y1 + HEIGHT + 2}"
    else:
        x0, y0, y1 = x0 + WIDTH, y0 + HEIGHT // 2, y1 + HEIGHT // 2
        bend = (x1 - x0) // 2
        path = f"M{x0} {y0}C{x0 + bend} {y0} {x1 - bend} {y1} {x1 - 2} {y1}"
    dashes = ' stroke-dasharray="4 3"' if is_second else ""
    return (
        f'<path d="{path}" fill="none" stroke="#55606e" stroke-width="1.6"{dashes} marker-end="url(#tip)"/>'
    )


def _box(item: RoundFacts, column: int, row: int) -> str:
    x, y = _corner(column, row)
    plan, colour = item.plan, TARGETS[item.plan["targets"]]
    word = "by" if len(item.teachers) > 1 else "teacher"
    labels = f"{word} {', '.join(item.teachers).upper()}" if item.teachers else "ground truth"
    lines = [
        f"learns {LEARNS[plan['targets']]}",
        f"{plan['cases']} case{'' if plan['cases'] == '1' else 's'}",
        CASES.get(plan["of"], plan["of"]),
        labels,
        f"{plan['model']}, {plan['epochs']} epoch{'' if plan['epochs'] == '1' else 's'}",
    ]
    parts = [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="#fff" stroke="{colour}" '
        'stroke-width="1.5"/>',
        f'<path d="M{x} {y + 30}V{y + 7}a7 7 0 0 1 7-7H{x + WIDTH - 7}a7 7 0 0 1 7 7V{y + 30}z" '
        f'fill="{colour}"/>',
        f'<text x="{x + 9}" y="{y + 20}" class="name">{escape(item.name.upper())}</text>',
    ]
    parts += [
        f'<text x="{x + 9}" y="{y + 49 + 17 * n}" class="line">{escape(line)}</text>'
        for n, line in enumerate(lines)
    ]
    return "".join(parts)
