"""What files from the field do to the scripts: kinds A, B, C, D, J and K of the field reports."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import bad_cohort
from bad_cohort import image, label, put
from bad_files import QFORM_CODE, SFORM_CODE, SROW, patch_bytes, write_series
from flare.baselines.predictors import save_untrained
from flare.core.cases import Case
from flare.core.checks import Checks
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.core.preprocessing import Intensity
from flare.core.volumes import read_image
from flare.evaluation.scores import evaluate
from flare.inference.predict import infer
from flare.prepare.cohort import prepare
from flare.training.module import segment_case
from flare.training.settings import TrainingSettings
from tiny_run import NETWORK, configuration

pytestmark = pytest.mark.slow

NET = [
    "model=tiny",
    *NETWORK,
    "data.patch_size=[16,32,32]",
    "tta=none",
    "inference.precision=32",
    "trainer=cpu",
]
MOVED = (SROW + 12, "<f", [40.0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights of a tiny network, which finds organs everywhere."""
    path = tmp_path_factory.mktemp("weights") / "net.ckpt"
    line = [*NET, "data.spacing_mm=[8,8,8]", "round=mot", "model=tiny"]
    settings = TrainingSettings.from_config(configuration("train", line))
    save_untrained(settings, Intensity(-200, 300, 50, 100), path)
    return path


@pytest.fixture
def segment(checkpoint: Path, tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    def run(source: Path, *more: str, output: str = "out") -> dict[str, dict[str, Any]]:
        line = [f"checkpoint={checkpoint}", f"input={source}", f"output={tmp_path / output}", "tta=none"]
        found = infer(configuration("infer", [*line, "executor.workers=0", "inference.precision=32", *more]))
        return {row["case"]: row for row in found["cases"]}

    return run


def cohort(root: Path) -> Path:
    """A labelled case and an empty folder for unlabelled ones."""
    put(root / "images" / "plain_0000.nii.gz", image())
    put(root / "labels" / "plain.nii.gz", label())
    (root / "unlabeled").mkdir()
    return root


def prepared(root: Path, *more: str, workers: int = 0) -> tuple[dict[str, tuple[str, str]], str]:
    """Status and reason of each case, and what the refusal says."""
    message = ""
    try:
        prepare(configuration("prepare", [*bad_cohort.overrides(root, root / "o", workers=workers), *more]))
    except FlareError as error:
        message = str(error)
    rows = read_csv(root / "o" / "cache" / "flare23" / "integrity.csv")
    return {row["case"]: (row["status"], row["reason"]) for row in rows}, message


# --- prepare


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_prepare_refuses_contradictions_or_warns(tmp_path: Path, workers: int) -> None:
    root = cohort(tmp_path)
    moved = patch_bytes(put(root / "unlabeled" / "moved_0000.nii", image()), MOVED)
    patch_bytes(put(root / "unlabeled" / "formless_0000.nii", image()), (QFORM_CODE, "<2h", [0, 0]))
    patch_bytes(put(root / "unlabeled" / "micron_0000.nii", image()), (123, "<B", [3]))
    (root / "unlabeled" / "other.nhdr").write_text("NRRD0005\n")
    rows, message = prepared(root, workers=workers)
    assert rows["plain"][0] == "ok"
    expected = {"moved": "that differ", "formless": "its directions", "micron": "the unit micron"}
    for case, said in {**expected, "other": "format that is not read"}.items():
        assert rows[case][0] == "refused"
        assert said in rows[case][1]
        assert f"  {case}: " in message
    assert str(moved) in message
    lax = [f"data.checks.{check}=warn" for check in ("forms", "direction", "size")]
    rows, message = prepared(root, *lax, workers=workers)
    assert {rows[case][0] for case in ("moved", "formless", "micron")} == {"warning"}
    assert rows["other"][0] == "refused"
    assert "the sform counts" in rows["moved"][1]
    rows, _ = prepared(root, workers=workers)  # what was let pass is not let pass for ever
    assert rows["moved"][0] == "refused"


def test_prepare_calls_intensities_doubtful(tmp_path: Path) -> None:
    root = cohort(tmp_path)
    put(root / "unlabeled" / "mr_0000.nii.gz", image(1) + 300)
    rows, message = prepared(root)
    assert rows["plain"] == ("ok", "")
    assert rows["mr"][0] == "warning"
    assert "doubtful intensities, 100 to 599" in rows["mr"][1]
    assert not message
    rows, message = prepared(root, "data.intensity_check=refuse")
    assert rows["mr"][0] == "refused"
    assert "expected HU" in message
    assert prepared(root, "data.intensity_check=off")[0]["mr"] == ("ok", "")


def test_prepare_rounds_scaled_labels_with_a_warning(tmp_path: Path) -> None:
    root = cohort(tmp_path)
    near = label().astype(np.float32)
    put(root / "images" / "near_0000.nii.gz", image(1))
    put(root / "labels" / "near.nii.gz", np.where(near > 0, near - np.float32(5e-5), near))
    rows, message = prepared(root)
    assert rows["near"][0] == "warning"
    assert "rounded" in rows["near"][1]
    assert not message
    assert prepared(root, "data.checks.labels=refuse")[0]["near"][0] == "refused"


def test_prepare_refuses_a_series_in_two_folders(tmp_path: Path) -> None:
    root = cohort(tmp_path)
    for name, first in (("part1", 0), ("part2", 25)):
        places = [(0, 0, first + 5 * z) for z in range(5)]
        write_series(root / "unlabeled" / name, places, uid="1.2.9.9", shape=(10, 12), spacing_xy=(2, 2))
    rows, _ = prepared(root)
    assert {rows[part][0] for part in ("part1", "part2")} == {"refused"}
    assert "one DICOM series in 2 folders" in rows["part1"][1]


# --- infer


def test_infer_follows_the_same_checks(segment: Callable, tmp_path: Path) -> None:
    path = patch_bytes(put(tmp_path / "in" / "a_0000.nii", image()), MOVED, (SFORM_CODE, "<h", [4]))
    with pytest.raises(FlareError, match=r"a: .*that differ"):
        segment(tmp_path / "in")
    assert list(segment(tmp_path / "in", "data.checks.forms=warn")) == ["a"]
    given, written = (nib.load(p).header for p in (path, tmp_path / "out" / "a.nii.gz"))
    for name in (
        "qform_code",
        "sform_code",
        "qoffset_x",
        "quatern_b",
        "srow_x",
        "srow_y",
        "srow_z",
        "pixdim",
    ):
        np.testing.assert_array_equal(given[name], written[name])
    with pytest.raises(FlareError, match=r"a: .*that differ"):
        segment(tmp_path / "in")


@pytest.mark.parametrize(
    ("folder", "cause"), [("B_hu_plus_1024", "HU + 1024"), ("B_zero_to_one", "small range")]
)
def test_infer_warns_once_of_values_that_are_no_hu(
    segment: Callable, real_data: Path, caplog: pytest.LogCaptureFixture, folder: str, cause: str
) -> None:
    source = real_data / "field" / folder
    with caplog.at_level(logging.WARNING):
        (row,) = segment(source).values()
    assert cause in row["doubt"]
    assert sum("doubtful" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(FlareError, match="expected HU"):
        segment(source, "data.intensity_check=refuse")
    caplog.clear()
    (row,) = segment(source, "data.intensity_check=off", output="off").values()
    assert not row["doubt"]
    assert "doubtful" not in caplog.text


def test_air_is_background(segment: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).normal(-1000, 20, (20, 60, 60)).astype(np.int16)
    noise[:, 50:52] = 0  # a table
    put(tmp_path / "in" / "air.nii.gz", noise)
    with caplog.at_level(logging.WARNING):
        row = segment(tmp_path / "in", "inference.body.minimum_ml=100")["air"]
    assert not read_image(tmp_path / "out" / "air.nii.gz").array.any()
    assert (row["windows"], row["body_found"]) == (0, False)
    assert "all of it becomes background" in caplog.text


@pytest.mark.parametrize("shape", [(8, 12, 12), (2, 5, 6)])
def test_a_scan_smaller_than_a_body_is_segmented(
    segment: Callable, tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    put(tmp_path / "in" / "crop.nii.gz", image(0, shape))  # 23 and 1 ml
    assert segment(tmp_path / "in")["crop"]["windows"] > 0
    found = read_image(tmp_path / "out" / "crop.nii.gz").array
    assert found.shape == shape
    assert found.any()


def test_far_padding_and_many_slices_are_no_fault(segment: Callable, tmp_path: Path) -> None:
    """What was right: a body of 1 litre in 20 litres of padding, and 1,200 slices."""
    padded = np.full((40, 120, 120), -2000, np.int16)
    padded[:, 20:70, 30:80] = np.random.default_rng(0).normal(40, 20, (40, 50, 50))
    put(tmp_path / "in" / "padded.nii.gz", padded, spacing_xyz=(2.2, 2.2, 2.2))
    put(tmp_path / "in" / "long.nii.gz", image(0, (1200, 10, 12)), spacing_xyz=(8, 8, 1))
    rows = segment(tmp_path / "in")
    assert not any(row["doubt"] for row in rows.values())
    assert all(row["body_found"] for row in rows.values())
    assert read_image(tmp_path / "out" / "long.nii.gz").array.shape == (1200, 10, 12)


@pytest.mark.parametrize("name", ["x.img", "x.hdr", "x.nhdr", "x.mhd", "x.png", "x"])
def test_a_single_input_of_another_format_is_refused_at_once(
    segment: Callable, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"0" * 400)
    with pytest.raises(FlareError, match=r"^input=.*format that is not read"):
        segment(tmp_path / name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["C_analyze_pair", "C_detached_nrrd"])
def test_images_beside_good_scans_that_are_not_read_are_named(
    segment: Callable, real_data: Path, tmp_path: Path, folder: str
) -> None:
    source = Path(shutil.copytree(real_data / "field" / folder, tmp_path / "in"))
    put(source / "good.nii.gz", image())
    case = "x" if folder == "C_analyze_pair" else "detached"
    with pytest.raises(FlareError, match=rf"(?s)^infer: 1 failed.*  {case}: .*format that is not read"):
        segment(source)
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["good.nii.gz"]


@pytest.mark.parametrize("folder", ["D_gzip_named_nii", "D_nifti2", "D_multiframe/plain"])
def test_sound_content_gives_the_segmentation_of_the_reference(
    segment: Callable, real_data: Path, tmp_path: Path, folder: str
) -> None:
    segment(real_data / "field" / "reference_0000.nii.gz")
    known = read_image(tmp_path / "out" / "reference.nii.gz")
    assert known.array.any()
    (case,) = segment(real_data / "field" / folder, output="other")
    found = read_image(tmp_path / "other" / f"{case}.nii.gz")
    np.testing.assert_array_equal(found.array, known.array)
    assert not found.geometry.differences(known.geometry)


def test_infer_refuses_a_series_in_two_folders(segment: Callable, tmp_path: Path) -> None:
    for name, first in (("part1", 0), ("part2", 25)):
        places = [(0, 0, first + 5 * z) for z in range(5)]
        write_series(tmp_path / "in" / name, places, uid="1.2.9.9", shape=(10, 12), spacing_xy=(2, 2))
    with pytest.raises(FlareError, match=r"(?s)infer: 2 failed.*one DICOM series in 2 folders"):
        segment(tmp_path / "in")


# --- who else reads


def test_evaluate_follows_the_same_checks(tmp_path: Path) -> None:
    put(tmp_path / "p" / "a.nii.gz", label())
    path = put(tmp_path / "r" / "a.nii", label())
    patch_bytes(path, (256 + 12, "<f", [40.0]))  # the qform is moved, the sform is true
    line = [f"predictions={tmp_path / 'p'}", f"references={tmp_path / 'r'}", "executor.workers=0"]
    with pytest.raises(FlareError, match=r"a: .*that differ"):
        evaluate(configuration("evaluate", line))
    evaluate(configuration("evaluate", [*line, "data.checks.forms=warn"]))
    (row,) = read_csv(tmp_path / "p" / "metrics.csv")
    assert float(row["Liver_DSC"]) == 1


def test_one_tolerance_counts_in_evaluate(tmp_path: Path) -> None:
    put(tmp_path / "p" / "a.nii.gz", label())
    put(tmp_path / "r" / "a.nii.gz", label(), origin=(0.002, 0, 0))
    line = [f"predictions={tmp_path / 'p'}", f"references={tmp_path / 'r'}", "executor.workers=0"]
    with pytest.raises(FlareError, match=r"a: .*data\.checks\.tolerance_mm"):
        evaluate(configuration("evaluate", line))
    evaluate(configuration("evaluate", [*line, "data.checks.tolerance_mm=0.01"]))


def test_validation_of_a_training_follows_the_same_checks(tmp_path: Path, labels: Any) -> None:
    path = patch_bytes(put(tmp_path / "a_0000.nii", image()), MOVED, (SFORM_CODE, "<h", [4]))
    target = patch_bytes(put(tmp_path / "a.nii", label()), MOVED, (SFORM_CODE, "<h", [4]))
    case = Case("a", path, target, "validation", "tumor", (1, 14), (1, 14))

    def predictor(**checks: str) -> Any:
        found = SimpleNamespace(segmentation=label())
        return SimpleNamespace(settings=SimpleNamespace(checks=Checks(**checks)), predict=lambda _: found)

    with pytest.raises(FlareError, match="that differ"):
        segment_case(predictor(), case, classes=labels, label_map=None)
    known = segment_case(predictor(forms="warn"), case, classes=labels, label_map=None)
    np.testing.assert_array_equal(known["reference"], label())
