"""Class colours: fixed, and told apart by readers who see fewer colours."""

from itertools import combinations

import numpy as np
import pytest

from colours import ciede2000, to_lab, to_linear
from flare.core.classes import ClassList
from flare.core.pictures import class_colours, paint, rgb

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


def lab(colour: str, sight: str) -> np.ndarray:
    return to_lab(SIGHT[sight] @ to_linear(np.array(rgb(colour))))


@pytest.mark.parametrize(("sight", "least"), [("normal", 30), ("protanope", 20), ("deuteranope", 20)])
def test_any_two_classes_are_told_apart(labels: ClassList, sight: str, least: float) -> None:
    colours = class_colours(labels).values()
    distances = [float(np.linalg.norm(lab(a, sight) - lab(b, sight))) for a, b in combinations(colours, 2)]
    assert min(distances) > least


def test_the_tumor_keeps_its_colour_in_another_class_list(labels: ClassList) -> None:
    few = ClassList.from_config({k: v for k, v in labels.to_config().items() if k in ("spleen", "tumor")})
    assert class_colours(few)[14] == class_colours(labels)[14]
    assert list(class_colours(few)) == [3, 14]


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [  # of the published test data (Sharma, Wu and Dalal, 2005, Table 1)
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (58, 24, 15), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
    ],
)
def test_the_difference_of_two_colours_is_the_published_one(
    first: tuple[float, ...], second: tuple[float, ...], difference: float
) -> None:
    assert float(ciede2000(np.array(first), np.array(second))) == pytest.approx(difference, abs=1e-4)


def test_a_class_laid_over_any_grey_is_nearest_to_its_own_swatch(labels: ClassList) -> None:
    swatches = {i: to_lab(to_linear(np.array(rgb(colour)))) for i, colour in class_colours(labels).items()}
    hu = np.tile(np.arange(-200.0, 281.0, dtype=np.float32), (9, 1))  # wider than the window
    for class_id in swatches:
        painted = paint(hu, np.full(hu.shape, class_id, np.uint8), (1.0, 1.0), labels)
        inside = to_lab(to_linear(painted[4].reshape(-1, 1, 3)))
        differences = ciede2000(inside, np.stack(list(swatches.values())))
        nearest = {list(swatches)[n] for n in differences.argmin(axis=1)}
        assert nearest == {class_id}, labels.name_of(class_id)
        assert len(np.unique(painted[4], axis=0)) > 40  # and the image is seen through it
