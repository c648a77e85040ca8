"""How figures of the page look, and how they get into it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def bare(axes: Axes) -> None:
    """Leave out what a picture does not need: ticks, grid and frame."""
    axes.set_axis_off()
