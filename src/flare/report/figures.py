"""Pages from templates, and figures in their style: all becomes part of the page, nothing is loaded."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
INK, GREY, ACCENT, PAPER = "#1d2733", "#6b7683", "#2f6f9f", "#a0522d"
FEW_POINTS = 40  # of a curve: each has a dot (ours)


def render(template: str, **context: Any) -> str:
    """Fill a template; a name that the context lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["fixed"] = lambda v, digits=1: "\N{EN DASH}" if v is None else f"{v:,.{digits}f}"
    environment.filters["times"] = lambda v: " \N{MULTIPLICATION SIGN} ".join(f"{number:g}" for number in v)
    environment.filters |= {"address": data_address, "svg": to_svg}
    environment.globals["part"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment.get_template(template).render(**context)


@contextmanager
def new_figure(width: float, height: float) -> "Iterator[Figure]":
    """An empty figure of a size in inches, in the page's style while the block runs; nothing is cut off."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(TEMPLATES / "figures.mplstyle"):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: "Figure") -> str:
    """A figure as a data address: vectors, sharp at any zoom; an image of its own, so that no ids meet."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "flare"}):  # with it the same figure is the same file
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_address(buffer.getvalue(), "image/svg+xml")


def data_address(content: bytes, kind: str) -> str:
    """Bytes as a `data:` address of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw_curve(axes: "Axes", points: Sequence[tuple[float, float]], colour: str, dash: str = "-") -> bool:
    """Draw the finite points as one curve, dots too where they are few; whether there are any."""
    finite = [p for p in points if np.isfinite(p[1])]
    if finite:
        marker = "o" if len(finite) <= FEW_POINTS else None
        look = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 3.5, "linewidth": 1.5}
        axes.plot(*zip(*finite, strict=True), clip_on=False, **look)  # type: ignore[arg-type]
    return bool(finite)


def draw_series(axes: "Axes", values: Sequence[float | None], mark: str, colour: str, label: str) -> None:
    """Draw one value a round, where it has one."""
    points = [(place, value) for place, value in enumerate(values) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), mark, color=colour, markersize=5, label=label, clip_on=False)


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """One legend for all axes of a figure, in one line."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
