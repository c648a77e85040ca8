"""Values that are no HU: kind B of the field reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flare.core.checks import Checks, unlikely_cause
from flare.core.errors import CaseError
from flare.core.volumes import read_image

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)


def body() -> np.ndarray:
    """HU of a body in air: a third soft tissue, some fat, lung and bone, padding around."""
    array = RANDOM.normal(-1000, 15, (20, 60, 60))
    array[:, 10:50, 10:50] = RANDOM.normal(50, 20, (20, 40, 40))
    array[:, 10:50, 10:15] = RANDOM.normal(-100, 15, (20, 40, 5))
    array[:, 20:30, 20:30] = RANDOM.normal(-850, 30, (20, 10, 10))
    array[:, 45:48, 28:32] = RANDOM.normal(700, 100, (20, 3, 4))
    array[:, :2] = -1024
    return array.round()


def mr() -> np.ndarray:
    array = np.abs(RANDOM.normal(0, 10, (20, 60, 60)))
    array[:, 10:50, 10:50] = RANDOM.gamma(8, 60, (20, 40, 40))
    return array.round()


def window(lower: float, upper: float) -> np.ndarray:
    return ((np.clip(body(), lower, upper) - lower) / (upper - lower) * 255).round()


NO_HU = {
    "HU + 1024": (lambda: body() + 1024, "HU \\+ 1024"),
    "HU + 1000, padded": (lambda: body() + 1000, "HU \\+ 1024"),
    "HU - 1024": (lambda: body() - 1024, "applied twice"),
    "wrapped in 16 bits": (lambda: body().astype(np.int16).view(np.uint16).astype(np.float32), "wrapped"),
    "wrapped in 12 bits": (lambda: body() % 4096, "wrapped"),
    "0 to 1": (lambda: window(-160, 240) / 255, "small range"),
    "standard deviations": (lambda: (body() - body().mean()) / body().std(), "small range"),
    "8 bits": (lambda: window(-160, 240), "8 bits"),
    "signed 8 bits": (lambda: window(-160, 240) - 128, "8 bits"),
    "MR": (mr, "another modality"),
    "MR with a bias field": (lambda: mr() - 12, "another modality"),
    "air": (lambda: RANDOM.normal(-1000, 20, (9, 9, 9)), "air"),
    "constant": (lambda: np.full((9, 9, 9), -1024), "one value"),
    "zeros": (lambda: np.zeros((9, 9, 9)), "one value"),
}
HU = {
    "body": body,
    "padded with -3024": lambda: np.pad(body(), 20, constant_values=-3024),
    "padded far": lambda: np.pad(body(), ((0, 0), (300, 300), (300, 300)), constant_values=-2000),
    "metal": lambda: np.where(body() > 900, 30000, body()),
    "a crop of soft tissue": lambda: body()[:, 32:44, 32:44],
    "a crop without air": lambda: body()[:, 12:48, 10:48],
    "a soft window": lambda: np.clip(body(), -160, 240),
    "noise": lambda: RANDOM.integers(-200, 300, (6, 8, 10)),
}


@pytest.mark.parametrize("name", NO_HU)
def test_values_that_are_no_hu(name: str) -> None:
    make, cause = NO_HU[name]
    array = make().astype(np.float32)
    said = Checks().doubt(array, "a")
    assert said.startswith("doubtful intensities")
    with pytest.raises(CaseError, match=cause):
        Checks(intensity="refuse").doubt(array, "a")
    assert Checks(intensity="off").doubt(array, "a") == ""
    if np.array_equal(array, array.astype(np.int16)):
        assert Checks().doubt(array.astype(np.int16), "a") == said


@pytest.mark.parametrize("name", HU)
def test_values_that_may_be_hu(name: str) -> None:
    assert unlikely_cause(HU[name]().astype(np.int16)) is None


@pytest.mark.parametrize(
    ("folder", "cause"), [("B_hu_plus_1024", "HU + 1024"), ("B_zero_to_one", "small range")]
)
def test_values_from_the_field(real_data: Path, folder: str, cause: str) -> None:
    (path,) = (real_data / "field" / folder).iterdir()
    said = Checks().doubt(read_image(path).array, "a")
    assert cause in said
    assert "0 to 1" in said


def test_real_scans_are_hu(real_data: Path) -> None:
    for name in (
        "abdomen_3mm/abdomen_0000.nii.gz", "slab_dicom/series", "torso_512/torso_0000.nii.gz",
        "field/reference_0000.nii.gz",
    ):  # fmt: skip
        assert unlikely_cause(read_image(real_data / name).array) is None, name
    (crlm,) = (real_data / "crlm").glob("*.nii.gz")
    assert unlikely_cause(read_image(crlm).array) is None
