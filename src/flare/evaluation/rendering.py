"""Tables as people read them: Markdown and LaTeX, the best values in bold."""

from __future__ import annotations

import math
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
    """A heading, which value is best, and what it is the best of.

    Args:
        heading: Shown above the column.
        best: `max`, `min` or, where none is, an empty string.
        across: Name that columns share whose cells are compared along a row; empty: down the column.
    """

    heading: str
    best: str = ""
    across: str = ""


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

    def best(self) -> list[list[bool]]:
        """Which cells are the best, row by row; none where fewer than two finite values are compared."""
        compared: dict[tuple[int | str, ...], list[float]] = {}
        for row, cells in enumerate(self.rows):
            for place, cell in enumerate(cells):
                if self.columns[place].best and cell.value is not None and math.isfinite(cell.value):
                    compared.setdefault(self._rivals(row, place), []).append(cell.value)
        chosen = {"max": max, "min": min}
        return [
            [
                len(values := compared.get(self._rivals(row, place), [])) > 1
                and cell.value == chosen[self.columns[place].best](values)
                for place, cell in enumerate(cells)
            ]
            for row, cells in enumerate(self.rows)
        ]

    def _rivals(self, row: int, place: int) -> tuple[int | str, ...]:
        """What a cell is compared with: those of its row that share a name, or its column."""
        across = self.columns[place].across
        return (across, row) if across else (place,)


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
            *(
                [_bold(c.text, b, "**{}**") for c, b in zip(row, best, strict=True)]
                for row, best in zip(table.rows, table.best(), strict=True)
            ),
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
            " & ".join(_bold(_escape(c.text), b, r"\textbf{{{}}}") for c, b in zip(row, best, strict=True))
            for row, best in zip(table.rows, table.best(), strict=True)
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


def _bold(text: str, is_best: bool, pattern: str) -> str:
    return pattern.format(text) if is_best else text


def _escape(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(c, c) for c in text)
