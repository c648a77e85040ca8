"""The value of ignored voxels: from label files and class lists into arrays, scores and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from flare.convert.nnunet import _channel_names
from flare.core.cases import Entry, read_label_map
from flare.core.class_files import agreed_classes, classes_at, own_classes, read_dataset, write_classes
from flare.core.classes import IGNORE, ClassList
from flare.core.errors import CaseError, FlareError
from flare.core.geometry import Geometry, Volume
from flare.core.pictures import find_view, paint
from flare.core.preprocessing import resample_classes, without_ignored
from flare.core.volumes import read_labels, write_image
from flare.evaluation.metrics import ScoreSettings
from flare.evaluation.scores import score_files
from flare.inference.components import compare_case
from flare.merging.merge import merge_folders, merged_files
from flare.prepare.analysis import analyse_labels, write_label_analysis
from flare.prepare.intensity import foreground_histogram
from flare.prepare.read import count_labels

IDENTITY = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
Compose = Callable[..., DictConfig]


def grid(shape: tuple[int, ...], spacing: tuple[float, float, float] = (3.0, 2.0, 2.0)) -> Geometry:
    return Geometry(shape, spacing, (0.0, 0.0, 0.0), IDENTITY)  # type: ignore[arg-type]


def three(**beside: Any) -> ClassList:
    """Classes 1, 3 and the tumor 4."""
    common = {"tolerance_mm": 2, "slice_range": False}
    found = {
        name: {"id": i, "short": name.upper(), "role": "tumor" if name == "lesion" else "organ", **common}
        for name, i in (("liver", 1), ("spleen", 3), ("lesion", 4))
    }
    return ClassList.from_config({**found, **beside})


def labels_file(folder: Path, array: np.ndarray, name: str = "a.nii.gz") -> Path:
    write_image(folder / name, array, grid(array.shape))
    return folder / name


def test_a_list_with_it_reads_back_and_one_without_is_as_before(tmp_path: Path, labels: ClassList) -> None:
    assert ClassList.from_config(three(ignore=9).to_config()) == three(ignore=9)
    assert three(ignore=9) != three()
    assert three(ignore=9).agrees(three())  # segmentations do not depend on it
    assert "ignore" not in labels.to_config()
    write_classes(tmp_path, three(ignore=9))
    found = classes_at(tmp_path)
    assert found is not None
    assert found[1].ignore == 9


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"classes\.ignore=3: is the id of a class"),
        (0, r"classes\.ignore=0: expected null or a whole number from 1 to 255"),
        (256, "whole number from 1 to 255"),
        ({"id": 9}, r"classes\.ignore=.*whole number"),  # no class has this name
    ],
)
def test_a_value_that_cannot_be_ignored_is_refused(value: Any, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        three(ignore=value)


targets = st.sampled_from([0, 1, 3, 4, "liver", "lesion", "ignore", 9])
maps = st.dictionaries(st.sampled_from(["0", "1", "2", "3", "7", "9", "-1", "300", "rest"]), targets)


@settings(max_examples=200)
@given(
    given_map=st.none() | maps,
    values=st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 9, 255, -1, 300]), min_size=1, max_size=8),
    ignore=st.sampled_from([9, 255]),
)
def test_a_value_is_a_class_background_ignored_or_refused(
    given_map: dict[str, Any] | None, values: list[int], ignore: int
) -> None:
    if given_map and ignore != 9:
        given_map = {key: target for key, target in given_map.items() if target != 9}
    classes = three(ignore=ignore)
    own = {"liver": 1, "lesion": 4, "ignore": ignore}

    def expected(value: int) -> int | None:
        """As docs/data.md says, one value at a time; None is refused."""
        named = given_map or {}
        if str(value) in named:
            target = named[str(value)]
        elif value in (0, ignore):
            target = value
        elif named:
            target = named.get("rest")
        else:
            target = value if value in (1, 3, 4) else None
        number = own.get(target, target)
        return IGNORE if number == ignore else number

    array, wanted = np.array(values, np.int16).reshape(1, 1, -1), [expected(value) for value in values]
    path, table = Path("labels/a.nii.gz"), read_label_map(given_map, classes)
    with patch("flare.core.volumes.read_image", return_value=Volume(array, grid(array.shape))):
        if None not in wanted:
            assert read_labels(path, classes, table, "a").array[0, 0].tolist() == wanted
            return
        with pytest.raises(CaseError) as caught:
            read_labels(path, classes, table, "a")
    refused = sorted({v for v, found in zip(values, wanted, strict=True) if found is None})
    parts = (str(refused), str(path), "data.label_map", "classes.ignore")
    assert all(part in str(caught.value) for part in parts)


def test_without_it_no_value_is_ignored(tmp_path: Path) -> None:
    path = labels_file(tmp_path, np.full((2, 2, 2), IGNORE, np.uint8))
    with pytest.raises(CaseError, match=r"values \[255\] outside the class list"):
        read_labels(path, three(), None, "a")
    with pytest.raises(FlareError, match=r"data\.label_map\.7=ignore: classes\.ignore is null"):
        read_label_map({7: "ignore"}, three())
    with pytest.raises(FlareError, match=r"data\.label_map\.7: expected one of \[0, 1, 3, 4, 9\]"):
        read_label_map({7: 8}, three(ignore=9))


def dataset(folder: Path, **labels_of: Any) -> Path:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels_of},
        "file_ending": ".nii.gz",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunets_dataset_says_which_value_it_is(tmp_path: Path, config: Compose) -> None:
    root = dataset(tmp_path, liver=1, spleen=2, ignore=3)
    assert read_dataset(root / "dataset.json")[0].ignore == 3
    cfg = own_classes(config("train", "data=nnunet", f"data.root={root}"))
    assert ClassList.from_config(cfg.classes).ignore == 3
    assert ClassList.from_config(cfg.classes).names == ("liver", "spleen")
    # a value that somebody chose counts, and chooses no other class list
    cfg = own_classes(config("train", "data=nnunet", f"data.root={root}", "classes.ignore=200"))
    assert ClassList.from_config(cfg.classes).ignore == 200
    with pytest.raises(FlareError, match=r"dataset\.json: classes\.ignore=2: is the id of a class"):
        read_dataset(dataset(tmp_path / "bad", liver=1, spleen=2, ignore=2) / "dataset.json")


@pytest.mark.parametrize(("named", "expected"), [({}, IGNORE), ({"5": 0}, 0)])
def test_the_rest_of_a_label_map_never_takes_what_the_dataset_ignores(
    tmp_path: Path, config: Compose, named: dict[str, int], expected: int
) -> None:
    root = dataset(tmp_path, liver=1, colon=4, ignore=5)
    given_map = {"1": "liver", "rest": 0, **named}
    text = ", ".join(f"{key}: {value}" for key, value in given_map.items())
    cfg = own_classes(config("train", "data=nnunet", f"data.root={root}", f"data.label_map={{{text}}}"))
    classes = ClassList.from_config(cfg.classes)
    path = labels_file(tmp_path, np.array([0, 1, 4, 5], np.uint8).reshape(1, 1, 4).repeat(2, 0).repeat(2, 1))
    found = read_labels(path, classes, read_label_map(cfg.data.label_map, classes), "a").array
    assert found[0, 0].tolist() == [0, 1, 0, expected]
    again = own_classes(cfg)  # what is settled stays
    assert (again.classes, again.data.label_map) == (cfg.classes, cfg.data.label_map)


def test_folders_bring_it_to_evaluation(tmp_path: Path, config: Compose) -> None:
    write_classes(tmp_path / "predictions", three())
    dataset(tmp_path / "references", liver=1, spleen=3, lesion=4, ignore=5)
    folders = {key: tmp_path / key for key in ("predictions", "references")}
    cfg = config("evaluate", *(f"{key}={folder}" for key, folder in folders.items()))
    assert ClassList.from_config(agreed_classes(cfg, folders).classes).ignore == 5


def test_an_nnunet_model_has_no_output_for_it(tmp_path: Path) -> None:
    path = dataset(tmp_path, liver=1, spleen=2, ignore=3) / "dataset.json"
    assert _channel_names(path) == ("background", "liver", "spleen")


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(2, 5), st.integers(2, 9), st.integers(2, 9)),
    apart=st.sampled_from([None, 0, 2]),
)
def test_resampling_by_class_ignores_exactly_what_depends_on_the_ignored(
    seed: int, shape: tuple[int, int, int], apart: int | None
) -> None:
    rng = np.random.default_rng(seed)
    array = rng.choice([0, 2, 5, IGNORE], p=[0.4, 0.25, 0.15, 0.2], size=(4, 7, 7)).astype(np.uint8)
    fills = [np.where(array == IGNORE, value, array).astype(np.uint8) for value in (0, 2, 5)]
    outcomes = np.stack([resample_classes(filled, shape, separate_axis=apart) for filled in fills])
    found = resample_classes(array, shape, separate_axis=apart)
    agreed = (outcomes == outcomes[0]).all(0)
    assert (found[agreed] == outcomes[0][agreed]).all()
    # of two halves the known class stands, though the other might have had the higher id
    settled, alone = found[~agreed], outcomes[0][~agreed]
    assert ((settled == IGNORE) | ((settled == alone) & (alone > 0))).all()
    assert set(np.unique(found)) <= {0, 2, 5, IGNORE}


def test_it_is_no_class_of_a_case_and_no_foreground(tmp_path: Path) -> None:
    classes = three(ignore=9)
    array = np.zeros((2, 4, 5), np.uint8)
    array[0, 0], array[1, 0] = 9, 1
    counted = count_labels("a", labels_file(tmp_path, array), classes, None)
    assert counted["voxels"] == {"1": 5, str(IGNORE): 5}
    assert counted["warnings"] == []
    analysis = analyse_labels(
        [Entry("a", "train", tmp_path / "i", tmp_path / "a.nii.gz")], {"a": counted}, classes
    )
    assert analysis.cases[0].present == (1,)
    assert analysis.cases[0].annotated == (1,)
    write_label_analysis(tmp_path / "t.csv", analysis, classes)
    head, row = (tmp_path / "t.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["ignored_ml"] == "0.06"
    nothing = labels_file(tmp_path, np.where(array == 1, 0, array), "b.nii.gz")
    assert count_labels("b", nothing, classes, None)["warnings"] == ["label file without any foreground"]
    image = np.where(array == 9, 100, 7).astype(np.int16)
    histogram = foreground_histogram(image, np.where(array == 9, IGNORE, array).astype(np.uint8))
    assert np.flatnonzero(histogram).tolist() == [32768 + 7]


def test_scores_volumes_and_fits_leave_it_out(tmp_path: Path) -> None:
    classes = three(ignore=9)
    truth = np.zeros((6, 12, 12), np.uint8)
    truth[1:5, 2:10, 2:10] = 1
    ours = truth.copy()
    truth[1:5, 2:10, 6:10] = 9
    ours[1:5, 2:10, 6:8] = 4  # whatever is said there
    ours[1:5, 8:10, 2:6] = 0
    reference, prediction = labels_file(tmp_path, truth, "r.nii.gz"), labels_file(tmp_path, ours, "p.nii.gz")
    found = score_files("a", reference, prediction, None, ScoreSettings(classes, "present", details=True))
    liver = found.classes["LIVER"]
    assert liver.dsc == pytest.approx(2 * 96 / (96 + 128), abs=1e-4)
    assert (liver.reference_ml, liver.prediction_ml) == (
        pytest.approx(128 * 0.012),
        pytest.approx(96 * 0.012),
    )
    assert found.classes["LESION"].dsc is None
    assert not found.lesions
    flare = score_files("a", reference, prediction, None, ScoreSettings(classes, "flare23"))
    assert flare.classes["LESION"].dsc == 1  # both lack it where somebody knows
    assert compare_case("a", prediction, reference, classes, None)["liver"] == pytest.approx(
        (2 * 96 / (96 + 128),) * 2
    )
    right = np.where(truth == 9, 3, truth)
    perfect = score_files(
        "a", reference, labels_file(tmp_path, right, "q.nii.gz"), None, ScoreSettings(classes)
    )
    assert (perfect.classes["LIVER"].dsc, perfect.classes["LIVER"].nsd) == (1, 1)
    same = np.arange(8, dtype=np.uint8)
    assert without_ignored(same, same)[0] is same


def test_merged_files_have_the_value_of_their_list(tmp_path: Path, config: Compose) -> None:
    from flare.merging.merge import FolderSettings
    from flare.runs.work import build_executor

    truth = np.zeros((2, 3, 4), np.uint8)
    truth[0, 0], truth[1, 0] = 1, 9
    pseudo = np.zeros_like(truth)
    pseudo[1, 0, :2] = 3
    for folder, cases in (("truth", {"both": truth, "alone": truth}), ("pseudo", {"both": pseudo})):
        write_classes(tmp_path / folder, three(ignore=9))
        for case, array in cases.items():
            labels_file(tmp_path / folder, array, f"{case}.nii.gz")
    given = {"ground_truth": tmp_path / "truth", "pseudo": tmp_path / "pseudo", "output": tmp_path / "merged"}
    overrides = [f"{key}={folder}" for key, folder in given.items()]
    cfg = config("merge_labels", "executor.workers=0", *overrides)
    cfg = agreed_classes(cfg, given, ["ground_truth"])
    merge_folders(FolderSettings.from_config(cfg), build_executor(cfg))
    assert (
        "ignored voxels in 2 cases: 8 before, 4 after" in (tmp_path / "merged" / "provenance.md").read_text()
    )
    expected = {"both": truth * (truth == 1) + pseudo, "alone": truth}
    for case, array in expected.items():
        files = merged_files(tmp_path / "merged", case)
        found = read_labels(files["labels"], three(ignore=9), None, case).array
        assert np.array_equal(found, np.where(array == 9, IGNORE, array))
    listed = classes_at(tmp_path / "merged")
    assert listed is not None
    assert listed[1].ignore == 9


def test_pictures_outline_it_and_look_at_the_rest(labels: ClassList) -> None:
    array = np.zeros((40, 40), np.uint8)
    array[10:20, 10:20] = IGNORE
    grey = np.full(array.shape, 40.0)
    plain, shown = (paint(grey, a, (1, 1), labels) for a in (np.zeros_like(array), array))
    changed = (plain != shown).any(-1)
    assert not changed[12:18, 12:18].any()
    assert (shown[10, 10:20] == 255).all()
    truth = np.zeros((4, 60, 60), np.uint8)
    truth[:, 2:4], truth[1:3, 40:50, 40:50] = IGNORE, 1
    centre, box = find_view(Volume(truth, grid(truth.shape)), truth, labels)
    assert 40 <= centre[1] < 50
    assert box[1].start > 4
