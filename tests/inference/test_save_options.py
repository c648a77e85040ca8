"""What `infer.py` keeps beside labels: probabilities, labels on the network's grid, volumes, some classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.core.geometry import Geometry, Volume
from flare.core.preprocessing import preprocess
from flare.core.volumes import read_image
from flare.inference import predict as cohort
from flare.inference.predict import infer
from flare.inference.predictor import Predictor
from flare.inference.saving import Saving
from flare.runs.work import progress, steps
from small_predictor import AS_IS, DENSE, predictor
from tiny_round import write_case

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint_0_1.ckpt"


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5)] * 3),
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
)
def test_the_networks_grid_has_the_extent_of_the_scan(shape, spacing, order, signs) -> None:
    direction = np.zeros((3, 3))
    direction[order, range(3)] = signs
    geometry = Geometry(shape, spacing, (3.0, -7.0, 11.0), tuple(direction.ravel()))
    case = preprocess(Volume(np.zeros(shape, np.int16), geometry), (2.0, 1.5, 1.0), "linear")
    grid = case.grid
    assert grid.shape == case.array.shape
    corners = [(g.to_mm((-0.5, -0.5, -0.5)), g.to_mm(np.array(g.shape) - 0.5)) for g in (case.ras, grid)]
    np.testing.assert_allclose(corners[0], corners[1], atol=1e-9)


def test_labels_on_the_networks_grid_are_the_largest_logits_there(labels) -> None:
    """Of a network that says the class by intensity; on a grid that is not resampled they are the labels."""

    def network(patches: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(patches), patches, patches - 100], dim=1).clamp(-500, 500)

    draw = np.random.default_rng(0)
    array = draw.integers(-400, 400, (8, 16, 20)).astype(np.int16)
    geometry = Geometry(array.shape, (4.0, 1.2, 1.2), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    ours = predictor(network, labels, DENSE, outputs=(0, 3, 7), intensity=AS_IS)
    found = ours.predict(Volume(array, geometry), low_resolution=True)
    assert found.low_resolution is not None
    ras = preprocess(Volume(array, geometry), (4.0, 1.2, 1.2), "linear")
    np.testing.assert_array_equal(
        ras.orientation.invert(found.low_resolution.array), np.where(array > 0, 3, 0)
    )
    np.testing.assert_array_equal(found.segmentation, np.where(array > 0, 3, 0))
    assert not found.low_resolution.geometry.differences(ras.ras)
    kept = ours.predict(Volume(array, geometry), low_resolution=True, components=(3,)).low_resolution
    assert kept is not None
    assert 0 < (kept.array == 3).sum() < (found.low_resolution.array == 3).sum()
    air = Volume(np.full(array.shape, -1000, np.int16), geometry)
    empty = ours.predict(air, low_resolution=True, probabilities=(7, 0))
    assert empty.low_resolution is not None
    assert empty.probabilities is not None
    assert not empty.low_resolution.array.any()
    assert empty.probabilities.shape == (2, *array.shape)
    assert not empty.probabilities[0].any()
    assert (empty.probabilities[1] == 1).all()


def test_probabilities_of_some_classes_are_those_of_all(labels) -> None:
    def network(patches: torch.Tensor) -> torch.Tensor:
        return torch.cat([patches * 0, patches / 100, -patches / 50], dim=1)

    array = np.random.default_rng(1).integers(-400, 400, (8, 16, 20)).astype(np.int16)
    geometry = Geometry(array.shape, (5.0, 1.0, 1.5), (0.0, 0.0, 0.0), (0, 1, 0, 1, 0, 0, 0, 0, 1))
    ours = predictor(network, labels, DENSE, outputs=(0, 3, 7))
    every = ours.predict(Volume(array, geometry), probabilities=True).probabilities
    some = ours.predict(Volume(array, geometry), probabilities=(7, 3)).probabilities
    assert every is not None
    np.testing.assert_array_equal(some, every[[2, 1]])


def test_steps_of_a_case_stand_below_the_bar_of_its_process() -> None:
    with steps("windows", 3) as step:  # no bar here, as in a worker
        step()
    with progress("predict", total=2) as bar:
        with steps("windows", 3) as step:
            assert [task.description for task in bar.tasks] == ["predict", "windows"]
            for done in (0, 1, 2):
                step()
                assert (bar.tasks[1].completed, bar.tasks[1].total) == (done, 3)
        assert [task.description for task in bar.tasks] == ["predict"]
        with pytest.raises(ZeroDivisionError), steps("windows", 3):
            1 / 0  # noqa: B018
        assert len(bar.tasks) == 1
    with steps("windows", 3) as step:
        step()
    assert len(bar.tasks) == 1


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    write_case(root, "a", 9, split="Val")
    write_case(root, "b", 5, split="Val")
    return root / "imagesVal"


@pytest.fixture
def run(config, scans: Path, tmp_path: Path):
    def start(*overrides: str):
        common = [f"input={scans}", f"output={tmp_path / 'out'}", f"checkpoint={CHECKPOINT}", "tta=none"]
        return infer(config("infer", *common, "executor.workers=0", "inference.precision=32", *overrides))

    return start


@pytest.mark.slow
def test_what_is_asked_for_lies_beside_and_is_done_once(
    run, scans: Path, tmp_path: Path, monkeypatch
) -> None:
    done: list[str] = []
    original = cohort.predict_case

    def counted(case: str, **job):
        done.append(case)
        return original(case, **job)

    monkeypatch.setattr(cohort, "predict_case", counted)
    run()
    plain = sorted(path.name for path in tmp_path.rglob("*"))
    labels = {case: read_image(tmp_path / "out" / f"{case}.nii.gz").array for case in ("a", "b")}
    run("save=[]", "only=null")
    assert done == ["a", "b"]  # the new keys' defaults do nothing again
    assert "volumes.csv" not in plain
    every = "save=[probabilities,low_resolution,volumes]"
    for _ in range(2):
        run(every)
    assert done == ["a", "b", "a", "b"]
    how = {"tta": "none", "precision": "32"}
    for case in ("a", "b"):
        expected = Predictor.from_checkpoint(CHECKPOINT, **how).predict(
            read_image(scans / f"{case}_0000.nii.gz"), probabilities=True, low_resolution=True
        )
        np.testing.assert_array_equal(read_image(tmp_path / "out" / f"{case}.nii.gz").array, labels[case])
        with np.load(tmp_path / "out_probabilities" / f"{case}.npz") as stored:
            assert len(stored.files) == 15
            assert stored["liver"].dtype == np.float16
            np.testing.assert_array_equal(stored["background"], expected.probabilities[0])
            np.testing.assert_array_equal(stored["liver"], expected.probabilities[1])
        low = read_image(tmp_path / "out_low_resolution" / f"{case}.nii.gz")
        np.testing.assert_array_equal(low.array, expected.low_resolution.array)
        assert not low.geometry.differences(expected.low_resolution.geometry)
    rows = {row["case"]: row for row in read_csv(tmp_path / "out" / "volumes.csv")}
    spacing = sitk.ReadImage(str(scans / "a_0000.nii.gz")).GetSpacing()
    ml = (labels["a"] == 1).sum() * np.prod(spacing) / 1000
    assert float(rows["a"]["liver"]) == pytest.approx(ml, abs=1e-3)
    assert len(rows["b"]) == 15
    assert "volumes_ml" not in read_csv(tmp_path / "out" / "inference.csv")[0]
    (tmp_path / "out_low_resolution" / "b.nii.gz").unlink()
    run(every)
    assert done == ["a", "b", "a", "b", "b"]


@pytest.mark.slow
def test_some_classes_alone(run, tmp_path: Path) -> None:
    run()
    every = read_image(tmp_path / "out" / "a.nii.gz").array
    found = sorted(set(np.unique(every).tolist()) - {0})
    assert found  # of the classes that there are, one is dropped
    run("save=[probabilities,volumes,low_resolution]", "only=spleen")
    assert not read_image(tmp_path / "out" / "a.nii.gz").array[every == 1].any()
    assert set(np.unique(read_image(tmp_path / "out_low_resolution" / "a.nii.gz").array)) <= {0, 3}
    with np.load(tmp_path / "out_probabilities" / "a.npz") as stored:
        assert stored.files == ["spleen"]
    assert list(read_csv(tmp_path / "out" / "volumes.csv")[0]) == ["case", "spleen"]
    run("only=[liver]")
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "a.nii.gz").array, np.where(every == 1, 1, 0))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["save=logits"], "^save=logits: expected some of probabilities, low_resolution, volumes$"),
        (["only=[liver,bladder]"], "^only=bladder: expected some of liver, "),
        (["only=background"], "^only=background: expected some of liver, "),
    ],
)
def test_a_name_that_is_none_is_refused(run, tmp_path: Path, overrides, message) -> None:
    with pytest.raises(FlareError, match=message):
        run(*overrides)
    assert not (tmp_path / "out").exists()


def test_more_than_labels_do_not_go_to_one_file(run, scans: Path, tmp_path: Path) -> None:
    one = [f"input={scans / 'a_0000.nii.gz'}", f"output={tmp_path / 'x.nii.gz'}"]
    with pytest.raises(FlareError, match=r"^save=volumes: expected output=<folder>, given x.nii.gz$"):
        run(*one, "save=volumes")


def test_the_default_is_noted_nowhere() -> None:
    assert Saving().identity() == {}
    assert Saving(("volumes",), (3, 1)).identity() == {"save": ["volumes"], "only": [1, 3]}
