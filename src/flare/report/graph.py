"""The graph of rounds as inline SVG: who teaches whom, on how many cases, for which targets."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from flare.report.gather import RoundFacts
from flare.report.palette import TARGETS

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
