"""Class lists beside segmentations: what `classes.json` and nnU-Net's `dataset.json` say, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from flare.core.class_files import (
    are_chosen,
    carried_classes,
    classes_at,
    own_classes,
    read_dataset,
    write_classes,
)
from flare.core.classes import ClassList
from flare.core.errors import FlareError

VERSION_2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "Left Kidney": 2, "liver": 1, "cyst": 4, "kidney tumor": 3},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def dataset(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.json"
    path.write_text(json.dumps({**VERSION_2, **changes}))
    return path


def test_a_written_list_reads_back_and_is_written_once(tmp_path: Path, labels: ClassList) -> None:
    write_classes(tmp_path, labels)
    path = tmp_path / "classes.json"
    before = path.stat()
    write_classes(tmp_path, labels)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert classes_at(tmp_path) == (path, labels)
    path.write_text("{")
    write_classes(tmp_path, labels)
    assert classes_at(tmp_path) == (path, labels)


def test_nnunet_names_become_classes_by_id_with_a_tumor_by_name(tmp_path: Path) -> None:
    classes = read_dataset(dataset(tmp_path))[0]
    assert [(c.id, c.name, c.short, c.role) for c in classes.entries] == [
        (1, "liver", "liver", "organ"),
        (2, "left_kidney", "Left Kidney", "organ"),
        (3, "kidney_tumor", "kidney tumor", "tumor"),
        (4, "cyst", "cyst", "organ"),
    ]
    two = {"liver tumor": 1, "kidney tumor": 2, "ignore": 3}
    assert [c.role for c in read_dataset(dataset(tmp_path, labels=two))[0].entries] == ["organ", "organ"]


def test_nnunet_version_1_has_ids_as_keys(tmp_path: Path) -> None:
    first = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}}
    (tmp_path / "dataset.json").write_text(json.dumps(first))
    found = read_dataset(tmp_path / "dataset.json")[0]
    assert [(c.id, c.name, c.role) for c in found.entries] == [(1, "liver", "organ"), (2, "cancer", "tumor")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "'whole' is the region .*data.label_map"),
        ({"labels": {"liver": 1, "spleen": 1}}, "ids must be distinct"),
        ({"labels": {"liver": 300}}, "classes.liver.id=300: expected a whole number from 1 to 254"),
        ({"labels": None}, "has no labels"),
        ({"labels": {"background": 0}}, "has no class beside the background"),
        ({"labels": {"left kidney": 1, "Left_Kidney": 2}}, "differ by case or spaces alone"),
        (
            {"dataset": {"a": {"images": ["a.nii.gz", "b.nii.gz"], "label": "l.nii.gz"}}},
            "dataset.a: expected one",
        ),
        ({"dataset": {"a": "a.nii.gz"}}, "dataset.a: expected one image and its label"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "has 2 channels; expected one"),
        ({"file_ending": ".png"}, "file_ending '.png'; expected one of .nii.gz"),
    ],
)
def test_a_dataset_that_is_none_of_ours_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FlareError, match=f"dataset.json.*{message}"):
        read_dataset(dataset(tmp_path, **changes))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"liver": 1}', '{"liver": {"id": 1}}', "\udcff"])
def test_a_damaged_list_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FlareError, match=r"classes.json"):
        classes_at(tmp_path)


def test_the_list_of_nnunet_lies_beside_its_labels_but_not_beside_other_folders(tmp_path: Path) -> None:
    path = dataset(tmp_path)
    for name in ("labelsTr", "labelsTs", "imagesTr", "mine"):
        (tmp_path / name).mkdir()
    assert [classes_at(tmp_path / name) is None for name in ("labelsTr", "labelsTs", "imagesTr", "mine")] == [
        False, False, True, True,
    ]  # fmt: skip
    found = carried_classes("references", tmp_path / "labelsTr")
    assert found is not None
    assert found[0] == path


def test_folders_of_different_lists_are_no_one_folder(tmp_path: Path, labels: ClassList) -> None:
    write_classes(tmp_path / "one", labels)
    assert carried_classes("output", tmp_path / "one" / "new") is None  # what lies around it is of no matter
    assert carried_classes("pseudo", tmp_path) == (tmp_path / "one" / "classes.json", labels)
    dataset(tmp_path / "two" / "deep")
    with pytest.raises(
        FlareError, match=r"pseudo: .*two/deep/dataset.json has the classes 1 liver, 2 left_k"
    ):
        carried_classes("pseudo", tmp_path)


def test_another_files_dataset_json_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"title": "something else"}')
    assert carried_classes("predictions", tmp_path) is None


def test_who_names_no_list_chose_none(config: Any) -> None:
    assert not are_chosen(config("evaluate", "predictions=p", "references=r"))
    changed = config("evaluate", "predictions=p", "references=r", "classes.liver.id=99")
    assert are_chosen(changed)


@pytest.mark.parametrize("root", ["null", "???"])
def test_a_dataset_without_its_folder_is_refused(config: Any, root: str) -> None:
    with pytest.raises(FlareError, match=r"^data\.root: not given; .*data\.dataset=dataset\.json$"):
        own_classes(config("prepare", "data=nnunet", f"data.root={root}"))
    with pytest.raises(FlareError, match=r"data\.root: not given"):
        own_classes(config("iterate", "data=nnunet"))


def test_a_map_merges_classes_of_the_dataset(config: Any, tmp_path: Path) -> None:
    dataset(tmp_path / "Dataset007_Mine")
    line = ["data=nnunet", f"data.root={tmp_path / 'Dataset007_Mine'}"]
    found = own_classes(config("prepare", *line, "data.label_map={1: liver, 2: 2, 3: 3, 4: kidney_tumor}"))
    assert list(found.classes) == ["liver", "left_kidney", "kidney_tumor"]
    assert found.data.name == "Dataset007_Mine"
    assert found.model.net.classes == found.classes  # what the network is built from
    assert own_classes(config("prepare", *line, "data.name=other")).data.name == "other"


def test_a_dataset_of_the_chosen_classes_keeps_their_roles_and_others_are_refused(
    config: Any, tmp_path: Path
) -> None:
    chosen = {name: c["id"] for name, c in config("prepare").classes.items() if c is not None}
    path = dataset(tmp_path, labels={"background": 0, **chosen})
    line = ["data=nnunet", f"data.root={tmp_path}"]
    assert own_classes(config("prepare", *line)).classes.tumor.short == "Lesion"
    with pytest.raises(
        FlareError, match=rf"data.dataset: {path} has the classes 1 liver.*classes=\) has .*99"
    ):
        own_classes(config("prepare", *line, "classes.liver.id=99"))


def test_cases_that_the_dataset_lists_come_from_there(config: Any, tmp_path: Path) -> None:
    listed = {"a": {"images": ["x/a.nii.gz"], "label": "y/a.nii.gz"}}
    dataset(tmp_path, dataset=listed)
    found = own_classes(config("prepare", "data=nnunet", f"data.root={tmp_path}")).data
    assert found.cases == {"a": {"image": "x/a.nii.gz", "label": "y/a.nii.gz", "split": "train"}}
    assert found.labeled_images is None
    assert found.labels is None
