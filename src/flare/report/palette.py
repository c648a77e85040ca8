"""One fixed colour a class, in every figure, overlay and viewer of the page."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

from flare.labels import LabelClass, LabelSet

Colour = tuple[int, int, int]
Stroke = tuple[str, str, str]  # `#rrggbb`, dashes for matplotlib and for CSS

TUMOR = "#e61a33"
# Found by search (ours): any two of these and the tumor's differ by more than 20 in CIELAB (delta E 1976)
# for a protanope and a deuteranope, by more than 30 for others, and all stand out on grey.
ORGANS = (
    "#00b3b3",
    "#e6e600",
    "#8033b3",
    "#e68000",
    "#b34d66",
    "#4d80ff",
    "#e6ccff",
    "#661aff",
    "#80e666",
    "#666699",
    "#99b380",
    "#00b3ff",
    "#00ffcc",
)
TARGETS = {
    "organs": "#2f6f9f",
    "tumor": "#b3263a",
    "organs_tumor": "#6b4a9c",
}  # of rounds, by what they learn
# of runs side by side: Okabe and Ito's colours (2008), told apart with any colour vision, yellow left out
RUNS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1d2733")
STROKES = (("-", "solid"), ("--", "dashed"), (":", "dotted"))  # matplotlib's and CSS' name


def class_colours(labels: LabelSet) -> dict[int, str]:
    """Class id -> `#rrggbb`; organs in the order of their ids, beyond 13 the colours come again."""
    colours = {id_: ORGANS[i % len(ORGANS)] for i, id_ in enumerate(labels.organs)}
    return colours if labels.tumor is None else {**colours, labels.tumor: TUMOR}


def run_strokes(names: Iterable[str]) -> dict[str, Stroke]:
    """Run -> colour and dashes, the same in every picture; of 21 runs no two are alike."""
    kinds = [(colour, *stroke) for stroke in STROKES for colour in RUNS]
    return dict(zip(names, cycle(kinds), strict=False))


def rgb(colour: str) -> Colour:
    """Red, green and blue from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def title(c: LabelClass) -> str:
    """A class's name as people write it."""
    return c.name.replace("_", " ")
