"""Scripts on folders of other classes than the configuration's: the list that lies beside counts, or none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flare.core.class_files import classes_at, write_classes
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json
from flare.core.geometry import Geometry
from flare.core.volumes import read_labels, write_labels
from flare.evaluation.scores import evaluate
from flare.rounds.label import merge
from tiny_run import script

GRID = Geometry((8, 8, 8), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
ROLES = {"bladder": "organ", "prostate": "organ", "rectum": "organ", "tumor": "tumor"}
HOSPITAL = ClassList.from_config(
    {
        name: {"id": i, "short": name.title(), "role": role, "tolerance_mm": 2, "slice_range": False}
        for i, (name, role) in enumerate(ROLES.items(), start=1)
    }
)
TUMOR = 4
SCORES = [f"{c}_{m}" for m in ("DSC", "NSD") for c in ("Bladder", "Prostate", "Rectum", "Tumor")]


def volume(*class_ids: int) -> np.ndarray:
    """A column of each class."""
    array = np.zeros(GRID.shape, np.uint8)
    for place, class_id in enumerate(class_ids):
        array[2:6, 2:6, place] = class_id
    return array


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A case whose tumor the prediction misses; FLARE23's list calls it pancreas and scores the absent 14."""
    write_labels(tmp_path / "references" / "a.nii.gz", volume(1, 2, 3, TUMOR), GRID)
    write_labels(tmp_path / "predictions" / "a.nii.gz", volume(1, 2, 3), GRID)
    return tmp_path / "predictions", tmp_path / "references"


def line(folders: tuple[Path, Path], *more: str) -> list[str]:
    return [f"predictions={folders[0]}", f"references={folders[1]}", "executor.workers=0", *more]


@pytest.mark.slow
def test_evaluate_scores_the_classes_that_the_predictions_carry(folders: tuple[Path, Path]) -> None:
    write_classes(folders[0], HOSPITAL)
    done = script("evaluate", *line(folders), cwd=folders[0])
    assert done.returncode == 0, done.stderr
    (row,) = read_csv(folders[0] / "metrics.csv")
    assert list(row) == ["Name", *SCORES]
    assert (row["Bladder_DSC"], row["Tumor_DSC"]) == ("1.0", "0.0")
    assert read_json(folders[0] / "summary.json")["tumor"] == {"DSC": 0.0, "NSD": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["classes=flare23", "+classes.mesh={id: 99}"])
def test_a_chosen_list_that_contradicts_the_folder_is_refused_in_a_line(
    folders: tuple[Path, Path], chosen: str
) -> None:
    write_classes(folders[0], HOSPITAL)
    full = chosen.replace("99", "99, short: M, role: organ, tolerance_mm: 1, slice_range: false")
    done = script("evaluate", *line(folders, full), cwd=folders[0])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    carried = folders[0] / "classes.json"
    assert f"predictions: {carried} has the classes 1 bladder, 2 prostate, 3 rectum, 4 tumor" in done.stderr
    assert not (folders[0] / "metrics.csv").exists()


def test_the_list_of_the_references_counts_where_the_predictions_have_none(
    config: Any, folders: tuple[Path, Path]
) -> None:
    write_classes(folders[1], HOSPITAL)
    assert evaluate(config("evaluate", *line(folders)))["tumor"]["DSC"] == 0


def test_predictions_are_scored_against_nnunet_labels(config: Any, folders: tuple[Path, Path]) -> None:
    ids = {c.name: c.id for c in HOSPITAL.entries}
    (folders[1].parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **ids}}))
    references = folders[1].rename(folders[1].with_name("labelsTs"))
    write_classes(folders[0], HOSPITAL)
    assert list(evaluate(config("evaluate", *line((folders[0], references))))["classes"]) == [
        "Bladder", "Prostate", "Rectum", "Tumor",
    ]  # fmt: skip


def test_two_folders_of_different_classes_are_not_compared(
    config: Any, folders: tuple[Path, Path], labels: ClassList
) -> None:
    write_classes(folders[0], HOSPITAL)
    write_classes(folders[1], labels)
    with pytest.raises(
        FlareError, match=r"references: .*has the classes 1 liver.*predictions/classes.json has"
    ):
        evaluate(config("evaluate", *line(folders)))


def test_a_label_map_leads_from_the_references_ids_to_the_predictions(
    config: Any, folders: tuple[Path, Path], labels: ClassList
) -> None:
    write_classes(folders[0], HOSPITAL)
    write_classes(folders[1], labels)  # their own ids are of no matter: the map names them
    mapped = "data.label_map={1: bladder, 2: prostate, 3: rectum, 4: rectum}"
    summary = evaluate(config("evaluate", *line(folders, mapped)))
    assert summary["tumor"] == {"DSC": 1.0, "NSD": 1.0}  # on neither side
    assert summary["classes"]["Rectum"]["DSC"] == pytest.approx(2 / 3, abs=1e-4)


@pytest.mark.parametrize("carried", [True, False])
def test_ids_beyond_the_list_are_refused_by_case(
    config: Any, folders: tuple[Path, Path], carried: bool
) -> None:
    if carried:
        write_classes(folders[0], HOSPITAL)
    write_labels(folders[0] / "b.nii.gz", volume(9 if carried else 15), GRID)
    write_labels(folders[1] / "b.nii.gz", volume(1), GRID)
    with pytest.raises(FlareError, match=r"  b: .*label values \[(9|15)\] outside the class list"):
        evaluate(config("evaluate", *line(folders)))
    assert [row["Name"] for row in read_csv(folders[0] / "metrics.csv")] == ["a"]


def merge_line(root: Path, *more: str) -> list[str]:
    given = [
        f"ground_truth={root / 'references'}",
        f"pseudo={root / 'predictions'}",
        f"output={root / 'out'}",
    ]
    return [*given, "executor.workers=0", *more]


@pytest.mark.slow
def test_merge_keeps_the_tumor_of_the_classes_that_its_folders_carry(folders: tuple[Path, Path]) -> None:
    """By FLARE23's list the class of id 4 is an organ, so that a pseudo organ would win over a drawn one."""
    root = folders[0].parent
    write_labels(folders[0] / "a.nii.gz", volume(1, 2, 3, 0, TUMOR), GRID)
    write_labels(folders[1] / "a.nii.gz", volume(1, 2, 3, TUMOR), GRID)
    write_classes(folders[0], HOSPITAL)
    done = script("merge_labels", *merge_line(root), cwd=root)
    assert done.returncode == 0, done.stderr
    told = read_json(root / "out" / "a.json")
    assert "tumor" in json.dumps(told)
    assert "pancreas" not in json.dumps(told)
    assert classes_at(root / "out") == (root / "out" / "classes.json", HOSPITAL)
    assert set(np.unique(read_labels(root / "out" / "a.nii.gz", HOSPITAL).array)) == {0, 1, 2, 3, TUMOR}
    done = script("merge_labels", *merge_line(root, "classes=flare23"), cwd=root)
    assert done.returncode == 1
    assert "pseudo: " in done.stderr
    assert "classes=) has 1 liver" in done.stderr


def test_a_case_with_the_name_of_the_list_is_refused(config: Any, folders: tuple[Path, Path]) -> None:
    write_labels(folders[1] / "classes.nii.gz", volume(1), GRID)
    with pytest.raises(FlareError, match=r"  classes: its sidecar would be the folder's classes.json"):
        merge(config("merge_labels", *merge_line(folders[0].parent)))
    assert classes_at(folders[0].parent / "out") is not None
    assert not (folders[0].parent / "out" / "classes.nii.gz").exists()


def test_merge_writes_into_no_folder_of_other_classes(
    config: Any, folders: tuple[Path, Path], labels: ClassList
) -> None:
    root = folders[0].parent
    write_classes(folders[0], HOSPITAL)
    write_classes(root / "out", labels)
    with pytest.raises(FlareError, match=r"output: .*out/classes.json has the classes 1 liver"):
        merge(config("merge_labels", *merge_line(root)))
