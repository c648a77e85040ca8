"""The predictor as a library: a checkpoint of the first version, the page about it, other engines."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import outside
from flare.core.geometry import Orientation, Volume
from flare.core.volumes import read_image
from flare.inference.predict import infer
from flare.inference.predictor import Predictor
from tiny_round import LIVER, SHAPE, write_case

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "data" / "checkpoint_0_1.ckpt"
SEGMENTATION = "71504a16758a2ede593bb6b3c9dccff5c064dcb634cf3bc69267f143a8be18e3"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    write_case(tmp_path, "held_out", 9, split="Val")
    return tmp_path / "imagesVal" / "held_out_0000.nii.gz"


def test_a_checkpoint_of_the_first_version_predicts_what_it_did(held_out: Path) -> None:
    predictor = Predictor.from_checkpoint(CHECKPOINT, tta="none", precision="32", device="cpu")
    found = predictor.predict(read_image(held_out)).segmentation
    assert np.unique(found, return_counts=True)[1].tolist() == [found.size - 956, 956]
    assert hashlib.sha256(found.tobytes()).hexdigest() == SEGMENTATION


def test_a_checkpoint_alone_is_enough_and_predicts_as_the_paper_does(held_out: Path) -> None:
    predictor = Predictor.from_checkpoint(CHECKPOINT)
    prediction = predictor.predict(read_image(held_out))
    assert len(predictor.flips) == 4
    assert prediction.segmentation.shape == SHAPE
    assert prediction.probabilities is None


def test_the_page_about_the_library_does_what_it_says(
    held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "last.ckpt").write_bytes(CHECKPOINT.read_bytes())
    (tmp_path / "ct_0000.nii.gz").write_bytes(held_out.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "docs/library.md", "exec"), names)
    volume, prediction = names["volume"], names["prediction"]
    written = read_image(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(written.array, prediction.segmentation)
    assert not written.geometry.differences(volume.geometry)
    assert prediction.probabilities.shape == (15, *SHAPE)
    assert prediction.probabilities.dtype == np.float16
    np.testing.assert_allclose(prediction.probabilities.astype(float).sum(0), 1, atol=5e-3)
    # 2 x 2 x 3 mm
    expected = np.count_nonzero(prediction.segmentation == LIVER) * 12 / 1000
    assert prediction.volumes_ml["liver"] == pytest.approx(expected)
    assert prediction.volumes_ml["aorta"] == 0
    assert len(prediction.volumes_ml) == 14
    assert capsys.readouterr().out.endswith(f"{prediction.volumes_ml['liver']} ml\n")


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_probabilities_lie_as_the_labels_do_in_any_voxel_order(held_out: Path, average: str) -> None:
    predictor = Predictor.from_checkpoint(CHECKPOINT, tta="none", precision="32", average=average)
    scan = read_image(held_out)
    order = Orientation((2, 0, 1), (True, False, True))
    other = Volume(np.ascontiguousarray(order.apply(scan.array)), order.apply_geometry(scan.geometry))
    plain, turned = (predictor.predict(v, probabilities=True) for v in (scan, other))
    assert plain.probabilities is not None
    assert turned.probabilities is not None
    for straight, other_way in zip(plain.probabilities, turned.probabilities, strict=True):
        np.testing.assert_array_equal(other_way, order.apply(straight))
    first, second = np.sort(plain.probabilities.astype(float), axis=0)[[-1, -2]]
    clear = first - second > 2e-3  # beyond what float16 rounds away
    ids = np.array(predictor.outputs)[plain.probabilities.argmax(0)]
    np.testing.assert_array_equal(ids[clear], plain.segmentation[clear])
    assert clear.mean() > 0.9


def test_an_engine_from_outside_runs_alone(config, held_out: Path, tmp_path: Path, monkeypatch) -> None:
    """Whatever of torch's forward was still used would fail."""
    monkeypatch.setattr("flare.models.unet.UNet.forward", None)
    outside.built.clear()
    given = [f"input={held_out}", f"output={tmp_path / 'out'}", f"checkpoint={CHECKPOINT}"]
    infer(config("infer", *given, "engine=outside.bright_engine", "inference.precision=32"))
    assert outside.built == [("UNet", "cpu", "32")]
    bright = read_image(held_out).array > 98.9954594017094  # the mean that the checkpoint carries
    written = read_image(tmp_path / "out" / "held_out.nii.gz").array
    np.testing.assert_array_equal(written, np.where(bright, LIVER, 0))
