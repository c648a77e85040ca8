"""Tables as people read them: Markdown and LaTeX, the best value of a column in bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flare.files import write_text

LATEX_SPECIAL = {"\\": r"\textbackslash{}", **{c: "\\" + c for c in "&%$#_{}"}, "±": r"$\pm$"}


class Cell(NamedTuple):
    """What a cell shows, and the number it is compared by (None: not compared)."""

    text: str
    value: float | None = None


class Column(NamedTuple):
    """A heading, and which value is best: `max`, `min` or, where none is, an empty string."""

    heading: str
    best: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title.

    Args:
        title: Shown above the table.
        columns: Headings.
        rows: Cells, as many a row as there are columns.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def best(self) -> list[float | None]:
        """The best value of each column; None where nothing is compared or fewer than two values are."""
        found: list[float | None] = []
        for column, cells in zip(self.columns, zip(*self.rows, strict=True), strict=False):
            values = [c.value for c in cells if c.value is not None]
            chosen = {"max": max, "min": min}.get(column.best)
            found.append(chosen(values) if chosen and len(values) > 1 else None)
        return found


def number(value: float | None, digits: int = 2) -> Cell:
    """A cell with a number, or a dash."""
    return Cell("-") if value is None else Cell(f"{value:.{digits}f}", value)


def beside(ours: float | None, theirs: float | None, digits: int = 2) -> Cell:
    """A cell with our number, compared by it, and the paper's in brackets where it has one."""
    cell = number(ours, digits)
    return cell if theirs is None else Cell(f"{cell.text} ({theirs:.{digits}f})", cell.value)


def to_markdown(tables: Sequence[Table]) -> str:
    """Tables in Markdown, one after the other."""
    parts = []
    for table in tables:
        lines = [
            [c.heading for c in table.columns],
            ["---"] * len(table.columns),
            *([_bold(c, b, "**{}**") for c, b in zip(row, table.best(), strict=True)] for row in table.rows),
        ]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"**{table.title}**\n\n{body}\n")
    return "\n".join(parts)


def to_latex(tables: Sequence[Table]) -> str:
    """Tables in LaTeX (needs the package booktabs), one after the other."""
    parts = []
    for table in tables:
        head = " & ".join(_escape(c.heading) for c in table.columns)
        body = [
            " & ".join(
                _bold(Cell(_escape(c.text), c.value), b, r"\textbf{{{}}}")
                for c, b in zip(row, table.best(), strict=True)
            )
            for row in table.rows
        ]
        lines = [
            r"\begin{table}",
            rf"\caption{{{_escape(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{line} \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def write_table(stem: Path, tables: Sequence[Table]) -> None:
    """Write tables as `<stem>.md` and `<stem>.tex`."""
    write_text(stem.with_suffix(".md"), to_markdown(tables))
    write_text(stem.with_suffix(".tex"), to_latex(tables))


def _bold(cell: Cell, best: float | None, pattern: str) -> str:
    return pattern.format(cell.text) if best is not None and cell.value == best else cell.text


def _escape(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(c, c) for c in text)
