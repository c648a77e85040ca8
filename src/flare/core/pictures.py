"""Slices of a case with one fixed colour a class, the same in every figure, overlay and viewer."""

import io
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from flare.core.classes import IGNORE, ClassList, LabelClass
from flare.core.geometry import Box, Volume, bounding_box

Colour = tuple[int, int, int]
View = tuple[tuple[int, int, int], Box]  # where slices along Z, Y, X cut, and what of them is shown
Stroke = tuple[str, str, str]  # `#rrggbb`, dashes for matplotlib and for CSS
WINDOW_HU = (-160.0, 240.0)  # soft tissue (ours)
PIXELS_PER_MM = 1.5
SMALL_PIXELS_PER_MM = 0.9
MARGIN_MM = 30.0  # around what is labelled
GAP = 3  # pixels on either side of a plane
SHADE, MIDDLE, SLOPE = 32.0, 140.0, 0.8  # how far, from which grey on and how fast the image shades a colour
QUALITY = 82  # of the WebP files
TUMOR = "#e61a33"

# Found by search (ours): any two of these and the tumor's differ by more than 20 in CIELAB (delta E 1976)
# for a protanope and a deuteranope, by more than 30 for others, and all stand out on grey.
ORGANS = (
    *("#00b3b3", "#e6e600", "#8033b3", "#e68000", "#b34d66", "#4d80ff", "#e6ccff"),
    *("#661aff", "#80e666", "#666699", "#99b380", "#00b3ff", "#00ffcc"),
)

# of rounds, by what they learn
TARGETS = {"organs": "#2f6f9f", "tumor": "#b3263a", "organs_tumor": "#6b4a9c"}

# of runs side by side: Okabe and Ito's colours (2008), told apart with any colour vision, yellow left out;
# then, each found as the farthest by CIEDE2000 from those before it, as many as to differ by more than 16
RUNS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1d2733"),
    *("#4d4d00", "#730000", "#9900e6", "#99bf00", "#73004d", "#e6004d", "#737373", "#007373", "#9999e6"),
    *("#999973", "#007300", "#734d4d", "#997300", "#4d4d99", "#26bfbf", "#e69973", "#0000bf"),
)
STROKES = (("-", "solid"), ("--", "dashed"), (":", "dotted"))  # matplotlib's and CSS' name


def class_colours(classes: ClassList) -> dict[int, str]:
    """Class id -> `#rrggbb`; organs in the order of their ids, beyond 13 the colours come again."""
    colours = {id_: ORGANS[i % len(ORGANS)] for i, id_ in enumerate(classes.organs)}
    return colours if classes.tumor is None else {**colours, classes.tumor: TUMOR}


def run_strokes(names: Iterable[str]) -> dict[str, Stroke]:
    """Run -> colour and dashes, the same in every picture; of 24 runs no two share a colour."""
    kinds = [(colour, *stroke) for stroke in STROKES for colour in RUNS]
    return dict(zip(names, cycle(kinds), strict=False))


def rgb(colour: str) -> Colour:
    """Red, green and blue from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def title(c: LabelClass) -> str:
    """A class's name as people write it."""
    return c.name.replace("_", " ")


def draw_case(volumes: tuple[Volume, Volume, Volume], classes: ClassList, *, small: bool) -> dict[str, bytes]:
    """Draw the reference and the prediction of a case, from `read_compared`, on the same slices.

    Gives `reference` and `prediction`, WebP of one size: three planes, or if `small` one coarser axial slice.
    """
    from PIL import Image

    ct, truth, ours = volumes
    view = find_view(truth, ours.array, classes)
    axes, scale = ((0,), SMALL_PIXELS_PER_MM) if small else ((0, 1, 2), PIXELS_PER_MM)
    pictures = {}
    for name, shown in (("reference", truth), ("prediction", ours)):
        planes, buffer = _planes(ct, shown.array, view, axes, scale, classes), io.BytesIO()
        missing = [max(p.shape[0] for p in planes) - plane.shape[0] for plane in planes]
        widths = [((m // 2, m - m // 2), (GAP, GAP), (0, 0)) for m in missing]  # side by side, centred
        sheet = np.concatenate([np.pad(p, w) for p, w in zip(planes, widths, strict=True)], axis=1)
        Image.fromarray(sheet).save(buffer, format="WEBP", quality=QUALITY, method=4)
        pictures[name] = buffer.getvalue()
    return pictures


def find_view(truth: Volume, prediction: np.ndarray, classes: ClassList) -> View:
    """Where to cut maps in RAS voxel order: in the middle of the tumor if there is one, around all labels.

    Gives the index along Z, Y, X of the slices, and the box around the reference's labels (the prediction's,
    if it has none) with a margin.
    """
    candidates = (
        (truth.array > 0) & (truth.array != IGNORE),
        prediction > 0,
        np.ones(truth.array.shape, bool),
    )
    shown = next(mask for mask in candidates if mask.any())
    tumor = truth.array == (classes.tumor or -1)
    focus = tumor if tumor.any() else shown
    z, y, x = (int(np.argmax(focus.sum(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    box = bounding_box(shown, [int(np.ceil(MARGIN_MM / s)) for s in truth.geometry.spacing_mm])
    return (z, y, x), box  # type: ignore[return-value]


def _planes(
    ct: Volume, shown: np.ndarray, view: View, axes: Sequence[int], scale: float, classes: ClassList
) -> list[np.ndarray]:
    """Coloured slices across `axes`, in the radiologist's view: the patient's right is on the left."""
    (centre, box), planes = view, []
    for axis in axes:
        index: list[Any] = list(box)
        index[axis] = centre[axis]
        spacing = [s for a, s in enumerate(ct.geometry.spacing_mm) if a != axis]
        # rows from superior or anterior down; columns from the patient's right, or from anterior
        grey, labels = (np.flip(v[tuple(index)]) for v in (ct.array, shown))
        planes.append(paint(grey, labels, [s * scale for s in spacing], classes))
    return planes


def paint(grey_hu: np.ndarray, labels: np.ndarray, zoom: Sequence[float], classes: ClassList) -> np.ndarray:
    """Zoom into a slice, by pixels a voxel, and lay class colours over it, plain along their borders.

    Inside, the image makes a colour lighter or darker and nothing else: whatever lies below, a class looks
    more like its own swatch than like another's (CIEDE2000), which no mixture with grey does. Of what is
    ignored the border alone is drawn, in white. The result is `(rows, columns, 3)` uint8.
    """
    from PIL import Image
    from scipy import ndimage

    low, high = WINDOW_HU
    size = tuple(max(1, round(n * z)) for n, z in zip(grey_hu.shape[::-1], zoom[::-1], strict=True))
    grey = np.clip((grey_hu.astype(np.float32) - low) / (high - low), 0, 1)
    grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)).clip(0, 1) * 255
    big = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    table = np.zeros((256, 3), np.float32)
    for class_id, colour in class_colours(classes).items():
        table[class_id] = rgb(colour)
    table[IGNORE] = 255
    border = ndimage.morphological_gradient(big, footprint=ndimage.generate_binary_structure(2, 1)) > 0
    shade = np.where(border, 0, np.clip(SLOPE * (grey - MIDDLE), -SHADE, SHADE))
    coloured = np.clip(table[big] + shade[..., None], 0, 255)
    painted = (big > 0) & ((big != IGNORE) | border)
    return np.rint(np.where(painted[..., None], coloured, grey[..., None])).astype(np.uint8)
