"""Tables with the best in bold, as Markdown, as LaTeX and on the console."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flare.core.files import read_csv, write_text

MARKDOWN = {"tablefmt": "github", "index": False, "stralign": None, "disable_numparse": True}


class Cell(NamedTuple):
    """What a cell shows, and the number it is compared by (None: not compared)."""

    text: str
    value: float | None = None


class Column(NamedTuple):
    """A heading, and which value is best: `max`, `min` or, where none is, an empty string.

    Columns that share a name in `across` are compared along a row, others each down the column.
    """

    heading: str
    best: str = ""
    across: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title; every row has as many cells as there are columns."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @property
    def headings(self) -> list[str]:
        """What stands above the columns."""
        return [c.heading for c in self.columns]

    @property
    def texts(self) -> Any:
        """What the cells show, a `DataFrame`; columns are numbered, since two may have the same heading."""
        from pandas import DataFrame  # half a second to import, so only where tables are made

        return DataFrame([[c.text for c in row] for row in self.rows], columns=range(len(self.columns)))

    def best(self) -> Any:
        """Which cells are the best, as `texts`; none where fewer than two finite values are compared."""
        from pandas import DataFrame

        texts = self.texts
        values = DataFrame([[c.value for c in row] for row in self.rows], columns=texts.columns, dtype=float)
        values, found = values.where(np.isfinite(values)), texts.isna()
        rivals: dict[tuple[str, str | int], list[int]] = {}
        for n, column in enumerate(self.columns):
            if column.best:
                rivals.setdefault((column.best, column.across or n), []).append(n)
        for (best, across), group in rivals.items():
            along = int(isinstance(across, str))  # the axis: columns that share a name, or down one column
            block = values[group]
            best_value = block.agg(best, axis=along).where(block.count(axis=along) > 1)
            found[group] = block.eq(best_value, axis=1 - along)
        return found

    def marked(self) -> list[tuple[list[str], list[bool]]]:
        """Texts of each row, and which are the best."""
        return list(zip(self.texts.to_numpy().tolist(), self.best().to_numpy().tolist(), strict=True))


def cell(value: str | float | None, digits: int = 2) -> Cell:
    """A cell with a text, a number or a dash."""
    if value is None or isinstance(value, str):
        return Cell("-" if value is None else value)
    return Cell(f"{value:.{digits}f}", value)


def beside(ours: float | None, theirs: float | None, digits: int = 2) -> Cell:
    """A cell with our number, compared by it, and the paper's in brackets where it has one."""
    found = cell(ours, digits)
    return found if theirs is None else Cell(f"{found.text} ({theirs:.{digits}f})", found.value)


def to_markdown(tables: Sequence[Table]) -> str:
    """Tables in Markdown, one after the other."""
    parts = []
    for table in tables:
        bold = table.texts.mask(table.best(), "**" + table.texts + "**").set_axis(table.headings, axis=1)
        parts.append(f"**{table.title}**\n\n{bold.to_markdown(**MARKDOWN)}\n")
    return "\n".join(parts)


def to_latex(tables: Sequence[Table]) -> str:
    """Tables in LaTeX (needs the package booktabs), one after the other."""
    parts = []
    for table in tables:
        marks = table.best().replace({True: "textbf:--rwrap", False: ""})
        styler = table.texts.style.hide(axis="index").format(escape="latex")
        styler = styler.apply(lambda _, m=marks: m, axis=None)
        caption, *headings = (re.sub(r"([&%$#_{}])", r"\\\1", t) for t in (table.title, *table.headings))
        shape = "l" + "r" * (len(headings) - 1)
        styler = styler.relabel_index(headings, axis="columns")
        parts.append(styler.to_latex(hrules=True, caption=caption, column_format=shape))
    return "\n".join(parts).replace("±", r"$\pm$")


def write_table(stem: Path, tables: Sequence[Table]) -> None:
    """Write tables as `<stem>.md` and `<stem>.tex`."""
    write_text(stem.with_suffix(".md"), to_markdown(tables))
    write_text(stem.with_suffix(".tex"), to_latex(tables))


def csv_table(path: Path, title: str) -> Table:
    """A table of what a csv file holds."""
    rows = read_csv(path)
    cells = [[cell(value or None) for value in row.values()] for row in rows]
    return Table(title, [Column(key.replace("_", " ")) for key in rows[0]], cells)


def show(table: Table) -> None:
    """Show a table on the console, the best of each column in bold."""
    from rich.table import Table as Shown
    from rich.text import Text

    from flare.runs.work import console

    drawn = Shown(title=table.title, title_justify="left")
    for heading in table.headings:
        drawn.add_column(heading, overflow="fold")
    for texts, best in table.marked():
        drawn.add_row(*(Text(t, "bold" if b else "") for t, b in zip(texts, best, strict=True)))
    console.print(drawn)
