"""A predictor of any function as its network, with every choice of inference spelled out."""

from typing import Any

from flare.core.classes import ClassList
from flare.core.geometry import Shape, Spacing
from flare.core.preprocessing import Intensity
from flare.inference.predictor import Predictor
from flare.inference.settings import BodyRule, InferenceSettings

PATCH = (8, 16, 16)
SPACING = (4.0, 1.2, 1.2)
AS_IS = Intensity(lower=-2000, upper=2000, mean=0, std=1)
DENSE = InferenceSettings(
    name="dense",
    overlap=0.5,
    average="logits",
    centre="image",
    extend=False,
    tta="none",
    restore="trilinear",
    memory_mb=8,
    precision="32",
    body=BodyRule(threshold_hu=-500, opening_mm=6, minimum_ml=1),
)


def predictor(
    network: Any,
    labels: ClassList,
    settings: InferenceSettings = DENSE,
    outputs: tuple[int, ...] = (0,),
    mirror_axes: tuple[int, ...] = (0, 1, 2),
    intensity: Intensity = AS_IS,
    spacing_mm: Spacing = SPACING,
    patch_size: Shape = PATCH,
) -> Predictor:
    return Predictor(
        network,
        classes=labels,
        outputs=outputs,
        spacing_mm=spacing_mm,
        interpolation="linear",
        intensity=intensity,
        patch_size=patch_size,
        mirror_axes=mirror_axes,
        settings=settings,
    )
