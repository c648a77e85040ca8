"""The embedded cohort: layout, kinds, anatomy in every voxel order, tumors, determinism, resuming."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from flare.core.errors import FlareError
from flare.phantom.case import Canvas, annotate, draw_case, generate_case, place, stamp_tumor
from flare.phantom.generator import Phantom
from flare.phantom.placement import room_positions
from flare.phantom.plan import CLASS_IDS, ORDERS, ORGANS, plan_cohort
from flare.runs.work import LocalExecutor

pytestmark = pytest.mark.slow  # whole programs


TUMOR = CLASS_IDS["tumor"]
HOSTS = {"liver": 0.5, "right_kidney": 0.2, "spleen": 0.2, "pancreas": 0.05, "outside": 0.05}
COUNTS = {"organs_complete": 2, "tumor": 3, "partial": 2, "unlabeled": 1, "validation": 1, "test": 2}
EXTRA = Path(__file__).parents[3] / "shared" / "data" / "abdomen_3mm"


def settings(**changes: Any) -> dict[str, Any]:
    """Coarse voxels: what is tested here does not need finer ones."""
    return {
        "size": "coarse",
        "seed": 5,
        "counts": COUNTS,
        "grids": {
            "coarse": {"in_plane_mm": [4.0, 5.0], "slice_mm": [5.0, 7.0], "matrix": None},
            "square": {"in_plane_mm": [1.0, 9.0], "slice_mm": [8.0, 9.0], "matrix": 96},
        },
        "tumors": {
            "diameter_mm": [24, 50],
            "minimum_mm": 15,
            "contrast_hu": [40, 70],
            "isodense": 0.0,
            "hosts": HOSTS,
            "secondary": 0.3,
            "secondary_diameter_mm": [6, 20],
        },
        "deformation_mm": 6.0,
        "noise_hu": [8, 14],
        "extra_anatomy": None,
        **changes,
    }


def make(root: Path, **changes: Any) -> None:
    Phantom(root, settings(**changes)).make(LocalExecutor(workers=0, retries=0))


def read(path: Path) -> tuple[sitk.Image, np.ndarray]:
    image = sitk.ReadImage(str(path))
    return image, sitk.GetArrayFromImage(image)


def centroid(image: sitk.Image, array: np.ndarray, number: int) -> np.ndarray:
    """Physical centre (x, y, z; LPS) by SimpleITK's own arithmetic."""
    index = np.argwhere(array == number).mean(0)[::-1]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom")
    make(root)
    return root


@pytest.fixture(scope="module")
def cases(cohort: Path) -> dict[str, Any]:
    return json.loads((cohort / "cohort.json").read_text())["cases"]


@pytest.fixture(scope="module")
def spec() -> Callable[..., dict[str, Any]]:
    plan = plan_cohort(settings())
    return lambda case_id="phantom_0001", **changes: {**plan[case_id], **changes}


def test_layout_is_the_challenges(cohort: Path) -> None:
    def names(folder: str) -> list[str]:
        return sorted(p.name for p in (cohort / folder).iterdir())

    labelled = ["0001", "0002", "1001", "1002", "1003", "2001", "2002"]
    assert names("imagesTr2200") == [f"phantom_{n}_0000.nii.gz" for n in labelled]
    assert names("labelsTr2200") == [f"phantom_{n}.nii.gz" for n in labelled]
    assert names("unlabelTr1800") == ["phantom_3001_0000.nii.gz"]
    assert names("imagesVal") == ["phantom_4001_0000.nii.gz"]
    assert names("labelsVal") == ["phantom_4001.nii.gz"]
    assert names("imagesTs") == ["phantom_5001_0000.nii.gz", "phantom_5002_0000.nii.gz"]
    assert names("labelsTs") == ["phantom_5001.nii.gz", "phantom_5002.nii.gz"]
    assert names("truth") == [f"phantom_{n}.nii.gz" for n in [*labelled, "3001"]]


def test_images_are_int16_hu_on_the_grid_of_their_labels(cohort: Path) -> None:
    for path in sorted((cohort / "labelsTr2200").iterdir()):
        labels, _ = read(path)
        image, array = read(cohort / "imagesTr2200" / path.name.replace(".nii", "_0000.nii"))
        assert array.dtype == np.int16
        assert array.min() >= -1024
        assert array.max() > 250
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(image, get)(), getattr(labels, get)(), atol=1e-5)


def test_label_files_hold_what_their_kind_says(cohort: Path, cases: dict[str, Any]) -> None:
    for case_id, case in cases.items():
        if case["kind"] == "unlabeled":
            continue
        folder = {"validation": "labelsVal", "test": "labelsTs"}.get(case["kind"], "labelsTr2200")
        present = set(np.unique(read(cohort / folder / f"{case_id}.nii.gz")[1])) - {0}
        if case["kind"] == "organs_complete":
            assert present == {CLASS_IDS[n] for n in ORGANS}
        elif case["kind"] == "partial":
            assert 0 < len(present) < len(ORGANS)
            assert TUMOR not in present
        else:
            assert TUMOR in present


def test_tumor_cases_leave_the_tumor_out_of_its_organ(cohort: Path, cases: dict[str, Any]) -> None:
    styles = {c["style"]: i for i, c in cases.items() if c["kind"] == "tumor"}
    assert set(styles) == {"tumor_with_host", "tumor_with_others", "tumor_only"}
    for style, case_id in styles.items():
        drawn = read(cohort / "labelsTr2200" / f"{case_id}.nii.gz")[1]
        truth = read(cohort / "truth" / f"{case_id}.nii.gz")[1]
        assert np.array_equal(drawn == TUMOR, truth == TUMOR)
        assert np.array_equal(drawn[drawn > 0], truth[drawn > 0])
        hosts = {
            CLASS_IDS[t["host"]] for t in cases[case_id]["tumors"] if t["host"] != "outside" and t["voxels"]
        }
        present = set(np.unique(drawn)) - {0, TUMOR}
        assert (len(present) == 0) == (style == "tumor_only")
        assert hosts <= present if style == "tumor_with_host" else not hosts & present


def test_filled_style_draws_the_organ_over_its_tumor() -> None:
    whole = np.array([[[1, 1, 1, 3]]], np.uint8)
    truth = np.array([[[1, TUMOR, 1, 3]]], np.uint8)

    def drawn(style: str) -> list[int]:
        spec = {"style": style, "organ_order": ["spleen", *ORGANS], "organ_count": 1}
        return annotate(truth, whole, {"liver"}, spec).ravel().tolist()

    assert drawn("some_organs_filled") == [1, 1, 1, 0]
    assert drawn("some_organs") == [1, 0, 1, 0]
    assert drawn("tumor_with_others") == [0, TUMOR, 0, 3]
    assert drawn("tumor_with_host") == [1, TUMOR, 1, 3]
    assert drawn("tumor_only") == [0, TUMOR, 0, 0]


def test_test_cases_bear_a_tumor_of_the_promised_size(cohort: Path, cases: dict[str, Any]) -> None:
    for case_id, case in cases.items():
        if case["kind"] not in ("test", "tumor"):
            continue
        folder = "labelsTs" if case["kind"] == "test" else "truth"
        image, array = read(cohort / folder / f"{case_id}.nii.gz")
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray((array == TUMOR) * 1)))
        volume = np.bincount(parts.ravel())[1:].max() * np.prod(image.GetSpacing())
        assert (6 * volume / np.pi) ** (1 / 3) >= 15
        assert case["tumors"][0]["contrast_hu"] >= 40


@pytest.mark.parametrize("host", ["liver", "left_kidney", "pancreas", "outside"])
def test_tumor_lies_in_its_host(spec: Callable[..., dict[str, Any]], host: str) -> None:
    wanted = {"host": host, "diameter_mm": 25.0, "contrast_hu": 45.0, "minimum_mm": 0.0}
    canvas, whole, _, found = draw_case(spec(tumors=[wanted], noise_hu=5.0, phase="portal"))
    tumor = canvas.labels == TUMOR
    assert found[0]["host"] == host
    assert found[0]["voxels"] == tumor.sum() > 0
    inside = whole[tumor] == CLASS_IDS.get(host, 0)
    assert inside.mean() > 0.4
    assert set(np.unique(whole[tumor])) <= {0, CLASS_IDS.get(host, 0)}
    # where nothing was stamped, truth is what it was
    assert np.array_equal(canvas.labels[~tumor], whole[~tumor])
    if host != "outside":
        organ = canvas.labels == CLASS_IDS[host]
        assert np.median(canvas.image[organ]) - np.median(canvas.image[tumor]) > 20


def test_tumor_in_a_ball_has_the_wanted_volume() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(40) - 20] * 3, indexing="ij"))
    labels = ((grid**2).sum(0) < 19**2).astype(np.uint8)
    canvas = Canvas(
        labels, labels.copy(), np.full(labels.shape, 100, np.int16), np.full(3, 2.0), np.full(64, 100.0)
    )
    wanted = {"host": "liver", "diameter_mm": 30.0, "contrast_hu": 40.0, "minimum_mm": 15.0}
    found = stamp_tumor(canvas, np.random.default_rng(0), wanted)
    assert found["voxels"] == (canvas.labels == TUMOR).sum()
    # volume of a ball of 30 mm: 14137 mm3 = 1767 voxels of 8 mm3; lobes change it by some per cent
    assert found["voxels"] == pytest.approx(1767, rel=0.3)
    assert canvas.image[canvas.labels == TUMOR].mean() == pytest.approx(60, abs=2)


@pytest.mark.parametrize(("order", "tilted"), ORDERS)
def test_anatomy_is_right_in_every_voxel_order(
    tmp_path: Path, spec: Callable[..., dict[str, Any]], order: str, tilted: bool
) -> None:
    tilt = [8.0, 2.5, -2.5] if tilted else [0.0, 0.0, 0.0]
    generate_case(str(tmp_path), "a", spec(voxel_order=order, tilt_degrees=tilt))
    image, array = read(tmp_path / "truth" / "a.nii.gz")
    axes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    assert axes == order
    at = {name: centroid(image, array, CLASS_IDS[name]) for name in ORGANS}
    x, y, z = ({name: p[axis] for name, p in at.items()} for axis in range(3))
    # LPS: x grows to the patient's left, y to the back, z to the head
    assert x["liver"] < x["aorta"] < x["spleen"]
    assert x["right_kidney"] < x["inferior_vena_cava"] < x["aorta"] < x["left_kidney"]
    assert y["stomach"] < y["aorta"] < y["left_kidney"]
    assert z["duodenum"] < z["liver"] < z["esophagus"]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.allclose(direction @ direction.T, np.eye(3), atol=1e-6)
    assert np.isclose(np.abs(direction).max(axis=0), 1).all() != tilted


def test_voxel_order_changes_the_file_but_not_the_patient(
    tmp_path: Path, spec: Callable[..., dict[str, Any]]
) -> None:
    arrays = []
    for order in ("RAS", "SAR"):
        changed = spec(voxel_order=order, tilt_degrees=[0.0, 0.0, 0.0])
        generate_case(str(tmp_path), order, changed)
        image = sitk.ReadImage(str(tmp_path / "imagesTr2200" / f"{order}_0000.nii.gz"))
        arrays.append(sitk.DICOMOrient(image, "LPS"))
    assert np.array_equal(*(sitk.GetArrayFromImage(a) for a in arrays))
    assert np.allclose(arrays[0].GetOrigin(), arrays[1].GetOrigin(), atol=1e-3)


@pytest.mark.parametrize("case_id", ["phantom_0001", "phantom_1002", "phantom_5001"])
def test_nothing_above_the_label_map_is_shown(spec: Callable[..., dict[str, Any]], case_id: str) -> None:
    one = spec(case_id, tilt_degrees=[5.0, 3.0, 3.0], off_top_mm=0.0)
    anatomy, warp, geometry = place(np.random.default_rng(one["seed"]), one)
    last = geometry.shape[0]
    points = warp.to_map(room_positions(geometry, last - 3, last))
    inside = anatomy.skin_depth(points) > 0
    assert inside.any()
    assert points[0, inside].max() <= anatomy.top_mm + 1e-3


def test_organs_keep_a_patients_volume(spec: Callable[..., dict[str, Any]]) -> None:
    canvas, _, geometry, _ = draw_case(spec())
    litres = np.bincount(canvas.labels.ravel(), minlength=15) * np.prod(geometry.spacing_mm) / 1e6
    assert 0.9 < litres[CLASS_IDS["liver"]] < 2.2
    assert 0.09 < litres[CLASS_IDS["left_kidney"]] < 0.3
    assert litres[CLASS_IDS["right_adrenal_gland"]] > 0.001


@pytest.mark.parametrize("phase", ["native", "arterial", "portal"])
def test_hu_ranges_of_neighbours_overlap(spec: Callable[..., dict[str, Any]], phase: str) -> None:
    canvas, _, _, _ = draw_case(spec(phase=phase, noise_hu=12.0))

    def span(name: str) -> tuple[float, float]:
        return tuple(np.percentile(canvas.image[canvas.labels == CLASS_IDS[name]], [5, 95]))

    for one, other in (("liver", "spleen"), ("pancreas", "duodenum"), ("stomach", "duodenum")):
        (a, b), (c, d) = span(one), span(other)
        assert max(a, c) < min(b, d), (one, other)
    fat = canvas.image[canvas.labels == 0]
    assert ((fat > -140) & (fat < -60)).sum() > 1000
    assert (fat < -900).mean() > 0.2


def test_contrast_agent_brightens_the_aorta(spec: Callable[..., dict[str, Any]]) -> None:
    means = []
    for phase in ("native", "portal", "arterial"):
        canvas, _, _, _ = draw_case(spec(phase=phase))
        means.append(np.median(canvas.image[canvas.labels == CLASS_IDS["aorta"]]))
    assert means[0] + 50 < means[1] < means[2] - 50


def test_slabs_do_not_show(spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _, _ = draw_case(spec())
    monkeypatch.setattr("flare.phantom.case.SLAB_VOXELS", 9000)
    second, _, _, _ = draw_case(spec())
    assert np.array_equal(first.image, second.image)


def test_matrix_of_fixed_size(spec: Callable[..., dict[str, Any]]) -> None:
    plan = plan_cohort(settings(size="square"))
    canvas, _, geometry, _ = draw_case(plan["phantom_0001"])
    assert canvas.image.shape[1:] == (96, 96)
    assert geometry.spacing_mm[1] == geometry.spacing_mm[2]


def test_same_seed_same_files_other_seed_other_files(tmp_path: Path, cohort: Path) -> None:
    for name, seed in (("same", 5), ("other", 6)):
        make(tmp_path / name, counts={"test": 1}, seed=seed)
    files = [
        r / "imagesTs" / "phantom_5001_0000.nii.gz" for r in (cohort, tmp_path / "same", tmp_path / "other")
    ]
    first, same, other = (read(f)[1] for f in files)
    assert np.array_equal(first, same)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_finished_cohort_is_left_alone_and_a_half_made_one_completed(tmp_path: Path) -> None:
    def stats() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}

    make(tmp_path, counts={"tumor": 2})
    before = stats()
    make(tmp_path, counts={"tumor": 2})
    assert stats() == before
    lost = tmp_path / "labelsTr2200" / "phantom_1002.nii.gz"
    content = read(lost)[1]
    lost.unlink()
    (tmp_path / "cohort.json").unlink()
    (tmp_path / "imagesTr2200" / ".partial-x").mkdir()
    make(tmp_path, counts={"tumor": 2, "test": 1})
    assert np.array_equal(read(lost)[1], content)
    after = stats()
    assert after["phantom_1001_0000.nii.gz"] == before["phantom_1001_0000.nii.gz"]
    assert after["phantom_1002_0000.nii.gz"] > before["phantom_1002_0000.nii.gz"]
    assert "phantom_5001_0000.nii.gz" in after
    assert not (tmp_path / "imagesTr2200" / ".partial-x").exists()
    make(tmp_path, counts={"tumor": 1})
    assert sorted(stats()) == ["phantom_1001.nii.gz", "phantom_1001_0000.nii.gz"]


def test_files_of_others_are_neither_overwritten_nor_deleted(tmp_path: Path) -> None:
    """A folder with the challenge's names may be somebody's."""
    drawn = tmp_path / "labelsTr2200" / "phantom_1001.nii.gz"
    drawn.parent.mkdir()
    drawn.write_bytes(b"drawn by hand")
    with pytest.raises(
        FlareError, match=r"labelsTr2200: holds 1 files .*phantom_1001\.nii\.gz. None is over"
    ):
        make(tmp_path, counts={"tumor": 1})
    assert [p.name for p in tmp_path.rglob("*.nii.gz")] == [drawn.name]
    drawn.unlink()
    make(tmp_path, counts={"tumor": 2})
    corrected = tmp_path / "labelsTr2200" / "phantom_1002.nii.gz"
    shutil.copy(drawn, corrected)
    kept = corrected.read_bytes()
    make(tmp_path, counts={"tumor": 1})
    assert corrected.read_bytes() == kept


def test_recognising_a_finished_cohort_imports_no_array_library(cohort: Path) -> None:
    code = f"""
import sys
from flare.phantom.generator import Phantom
Phantom({str(cohort)!r}, {settings()!r}).make(None)
print([m for m in ("numpy", "scipy", "SimpleITK", "torch") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"size": "huge"}, "phantom.size"),
        ({"colour": "red"}, "phantom=colour: expected one of size, seed"),
        ({"counts": {"tumour": 1}}, "phantom.counts"),
        ({"tumors": {**settings()["tumors"], "hosts": {"lung": 1}}}, "phantom.tumors.hosts"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(FlareError, match=key):
        plan_cohort(settings(**changes))


def test_controls_are_test_cases_without_a_tumor_and_change_no_other(tmp_path: Path) -> None:
    before = plan_cohort(settings())
    after = plan_cohort(settings(counts={**COUNTS, "control": 3}))
    controls = {case: after.pop(case) for case in ("phantom_7001", "phantom_7002", "phantom_7003")}
    assert after == before
    assert all(spec["tumors"] == [] and spec["style"] == "complete" for spec in controls.values())
    make(tmp_path, counts={"control": 1})
    (label,) = (tmp_path / "labelsTs").glob("*.nii.gz")
    assert label.name == "phantom_7001.nii.gz"
    assert set(np.unique(read(label)[1])) == {0, *(CLASS_IDS[n] for n in ORGANS)}
    assert [c.split for c in Phantom(tmp_path, settings(counts={"control": 1})).planned_cases()] == ["test"]


def test_plan_of_a_case_does_not_depend_on_the_others() -> None:
    few = plan_cohort(settings(counts={"tumor": 1}))
    many = plan_cohort(settings(counts={"organs_complete": 3, "tumor": 5}))
    assert few["phantom_1001"] == many["phantom_1001"]


def test_absent_extra_anatomy_makes_no_case(tmp_path: Path) -> None:
    assert plan_cohort(settings(counts={"extra": 1}, extra_anatomy=tmp_path / "absent")) == {}


@pytest.mark.skipif(not EXTRA.exists(), reason="the real scans are not here")
def test_third_anatomy_is_a_test_case(tmp_path: Path) -> None:
    make(tmp_path, counts={"extra": 1}, extra_anatomy=EXTRA)
    image, array = read(tmp_path / "labelsTs" / "phantom_6001.nii.gz")
    assert CLASS_IDS["esophagus"] not in array
    assert TUMOR in array
    at = {name: centroid(image, array, CLASS_IDS[name])[0] for name in ("liver", "aorta", "spleen")}
    assert at["liver"] < at["aorta"] < at["spleen"]
