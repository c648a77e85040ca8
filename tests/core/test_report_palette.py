"""Class colours: fixed, and told apart by readers who see fewer colours."""

from itertools import combinations

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.core.pictures import class_colours, rgb

# what is left of linear RGB without one of the cones (Machado, Oliveira and Fernandes, 2009, severity 1)
SIGHT = {
    "normal": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str) -> np.ndarray:
    c = np.array(rgb(colour)) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("sight", "least"), [("normal", 30), ("protanope", 20), ("deuteranope", 20)])
def test_any_two_classes_are_told_apart(labels: ClassList, sight: str, least: float) -> None:
    colours = class_colours(labels).values()
    distances = [float(np.linalg.norm(lab(a, sight) - lab(b, sight))) for a, b in combinations(colours, 2)]
    assert min(distances) > least


def test_the_tumor_keeps_its_colour_in_another_class_list(labels: ClassList) -> None:
    few = ClassList.from_config({k: v for k, v in labels.to_config().items() if k in ("spleen", "tumor")})
    assert class_colours(few)[14] == class_colours(labels)[14]
    assert list(class_colours(few)) == [3, 14]
