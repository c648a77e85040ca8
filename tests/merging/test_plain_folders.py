"""`merge_labels.py` on plain folders: refusals, unchanged cases skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

import warm
from flare.core.classes import ClassList
from flare.core.errors import CaseError, FlareError
from flare.core.files import read_csv, read_json
from flare.core.geometry import Geometry, Orientation
from flare.core.volumes import read_labels, write_labels
from flare.rounds.label import merge

pytestmark = pytest.mark.slow  # whole programs


ROOT = Path(__file__).parents[2]
Config = Callable[..., DictConfig]
GRID = Geometry((3, 4, 5), (5.0, 0.8, 0.7), (10.0, -20.0, 30.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def volume(**boxes: int) -> np.ndarray:
    """Organs by column: `x0=1` puts class 1 into the first."""
    array = np.zeros(GRID.shape, dtype=np.uint8)
    for name, class_id in boxes.items():
        array[:, :, int(name[1:])] = class_id
    return array


@pytest.fixture
def folders(tmp_path: Path, config: Config) -> Callable[..., Any]:
    """Run a merge of `tmp_path/{truth,pseudo}` into `tmp_path/out`."""

    def run(*overrides: str) -> dict[str, Any]:
        given = [
            f"ground_truth={tmp_path / 'truth'}",
            f"pseudo={tmp_path / 'pseudo'}",
            f"output={tmp_path / 'out'}",
        ]
        return merge(config("merge_labels", *given, "executor.workers=0", *overrides))

    (tmp_path / "truth").mkdir()
    (tmp_path / "pseudo").mkdir()
    return run


def put(folder: Path, case: str, array: np.ndarray, geometry: Geometry = GRID) -> None:
    write_labels(folder / f"{case}.nii.gz", array, geometry)


def test_plain_folders_are_matched_by_case_id(tmp_path: Path, folders: Any, labels: ClassList) -> None:
    put(tmp_path / "truth" / "1-50", "both", volume(x0=1, x1=1))
    put(tmp_path / "pseudo", "both_0000", volume(x1=1, x2=1, x4=3))
    put(tmp_path / "truth", "truth_only", volume(x0=14, x1=1))
    put(tmp_path / "pseudo", "pseudo_only", volume(x0=2, x3=14))
    done = folders()
    assert done["merged"] == ["both", "pseudo_only", "truth_only"]
    read = {c: read_labels(tmp_path / "out" / f"{c}.nii.gz", labels) for c in done["merged"]}
    np.testing.assert_array_equal(read["both"].array, volume(x0=1, x1=1, x4=3))
    np.testing.assert_array_equal(read["truth_only"].array, volume(x0=14, x1=1))
    np.testing.assert_array_equal(read["pseudo_only"].array, volume(x0=2, x3=14))
    assert all(not r.geometry.differences(GRID) for r in read.values())
    rows = {r["case"]: r for r in read_csv(done["provenance"])}
    assert {c: r["sources"] for c, r in rows.items()} == {
        "both": "ground_truth + pseudo",
        "truth_only": "ground_truth",
        "pseudo_only": "pseudo",
    }
    assert (rows["both"]["Liver_source"], rows["both"]["Liver_merged"]) == ("ground_truth", "24")
    assert read_json(tmp_path / "out" / "both.json")["classes"]["spleen"]["source"] == "pseudo"


def test_the_keys_of_plain_folders_reach_the_rules(tmp_path: Path, folders: Any, labels: ClassList) -> None:
    put(tmp_path / "truth", "a", volume(x0=3, x1=14))
    put(tmp_path / "pseudo", "a", volume(x0=1, x2=1, x4=3))

    def result(*overrides: str) -> list[int]:
        folders(*overrides)
        return read_labels(tmp_path / "out" / "a.nii.gz", labels).array[0, 0].tolist()

    assert result() == [1, 14, 1, 0, 3]  # spleen within 3 mm of the tumor: not trusted
    assert result("dilation_mm=0.5") == [3, 14, 1, 0, 0]
    assert result("rule=gt_first") == [3, 14, 1, 0, 0]
    assert result("targets=organs") == [1, 1, 1, 0, 3]
    assert result("targets=tumor") == [3, 14, 0, 0, 0]
    put(tmp_path / "truth", "a", volume(x0=1))
    put(tmp_path / "pseudo", "a", volume(x0=1, x1=14))
    assert result() == [1, 14, 0, 0, 0]
    assert result("tumor_inside_fraction=0.51") == [1, 0, 0, 0, 0]
    (tmp_path / "truth" / "a.nii.gz").unlink()
    put(tmp_path / "pseudo", "a", volume(x0=1, x3=14))
    put(tmp_path / "truth", "b", volume(x0=1))
    assert result() == [1, 0, 0, 14, 0]
    assert result("constrain_unlabeled=true") == [1, 0, 0, 0, 0]


def test_a_fault_costs_no_labels_that_were_merged_and_a_refusal_does(
    tmp_path: Path, folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "truth", "a", volume(x0=1))
    put(tmp_path / "pseudo", "a", volume(x0=1))
    folders()
    merged = tmp_path / "out" / "a.nii.gz"
    kept = merged.read_bytes()
    errors = {"Permission denied": PermissionError(13, "Permission denied"), "cut": CaseError("a", "is cut")}
    for said, error in errors.items():

        def fails(error: Exception = error, **_: object) -> None:
            raise error

        assert merged.read_bytes() == kept
        monkeypatch.setattr("flare.merging.merge.merge_case", fails)
        with pytest.raises(FlareError, match=rf"a: .*{said}"):
            folders("dilation_mm=0.5")
    assert not merged.exists()


def test_foreign_ids_and_declared_classes(tmp_path: Path, folders: Any, labels: ClassList) -> None:
    put(tmp_path / "truth", "a", volume(x0=5))
    put(tmp_path / "pseudo", "a", volume(x0=1, x2=9))
    folders("data.label_map={5: 1, rest: 0}")
    assert read_labels(tmp_path / "out" / "a.nii.gz", labels).array[0, 0].tolist() == [1, 0, 9, 0, 0]
    folders(
        "data.label_map={5: 1, rest: 0}",
        "data.sources=[{match: '*/truth/*', annotates: [liver, gallbladder]}]",
    )
    assert read_labels(tmp_path / "out" / "a.nii.gz", labels).array[0, 0].tolist() == [1, 0, 0, 0, 0]


def test_an_empty_label_file_tells_nothing_whatever_is_declared(
    tmp_path: Path, folders: Any, labels: ClassList
) -> None:
    put(tmp_path / "truth", "a", volume())
    put(tmp_path / "pseudo", "a", volume(x0=1))
    folders("data.sources=[{match: a, annotates: [liver]}]")
    assert read_labels(tmp_path / "out" / "a.nii.gz", labels).array[0, 0].tolist() == [1, 0, 0, 0, 0]


def test_another_voxel_order_is_merged_losslessly(tmp_path: Path, folders: Any, labels: ClassList) -> None:
    order = Orientation((2, 0, 1), (True, False, True))
    truth, pseudo = volume(x0=1, x1=1), volume(x1=1, x2=3)
    truth[0, 0, 0] = 2
    put(tmp_path / "truth", "a", order.apply(truth), order.apply_geometry(GRID))
    put(tmp_path / "pseudo", "a", pseudo)
    folders()
    expected = volume(x0=1, x1=1, x2=3)
    expected[0, 0, 0] = 2
    found = read_labels(tmp_path / "out" / "a.nii.gz", labels)
    np.testing.assert_array_equal(found.array, expected)
    assert not found.geometry.differences(GRID)


def test_bad_cases_are_named_at_the_end_and_the_rest_is_done(tmp_path: Path, folders: Any) -> None:
    shifted = Geometry(GRID.shape, GRID.spacing_mm, (10.5, -20.0, 30.0), GRID.direction)
    for case, geometry in (("fine", GRID), ("moved", shifted)):
        put(tmp_path / "truth", case, volume(x0=1), geometry)
        put(tmp_path / "pseudo", case, volume(x0=1))
    put(tmp_path / "truth", "foreign", volume(x0=77))
    put(tmp_path / "pseudo", "foreign", volume(x0=1))
    put(tmp_path / "truth", "twice", volume(x0=1))
    put(tmp_path / "truth" / "again", "twice_0000", volume(x0=1))
    (tmp_path / "pseudo" / "broken.nii.gz").write_bytes(b"not an image")
    with pytest.raises(FlareError) as refused:
        folders()
    text = str(refused.value)
    assert "4 failed" in text
    assert "pseudo labels and ground truth" in text
    assert "10.5" in text
    assert "[77]" in text
    assert str(tmp_path / "truth" / "twice.nii.gz") in text
    assert str(tmp_path / "truth" / "again" / "twice_0000.nii.gz") in text
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["fine.nii.gz"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.json")) == ["classes.json", "fine.json"]
    assert [r["case"] for r in read_csv(tmp_path / "out" / "provenance.csv")] == ["fine"]


def test_only_what_changed_is_merged_again(tmp_path: Path, folders: Any) -> None:
    for case in "abc":
        put(tmp_path / "truth", case, volume(x0=1))
        put(tmp_path / "pseudo", case, volume(x0=1, x2=3))
    assert folders()["merged"] == ["a", "b", "c"]
    again = folders()
    assert (again["merged"], again["unchanged"]) == ([], ["a", "b", "c"])
    put(tmp_path / "truth", "b", volume(x0=1, x1=1))
    (tmp_path / "out" / "c.nii.gz").unlink()
    put(tmp_path / "pseudo", "d", volume(x0=1))
    assert folders()["merged"] == ["b", "c", "d"]
    assert folders("dilation_mm=4")["merged"] == ["a", "b", "c", "d"]
    assert len(read_csv(tmp_path / "out" / "provenance.csv")) == 4


def test_a_case_that_turns_bad_leaves_no_old_label(tmp_path: Path, folders: Any) -> None:
    for case in "ab":
        put(tmp_path / "truth", case, volume(x0=1))
        put(tmp_path / "pseudo", case, volume(x0=1))
    folders()
    (tmp_path / "truth" / "a.nii.gz").write_bytes(b"")
    with pytest.raises(FlareError, match="1 failed"):
        folders()
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json", "twice.nii.gz"])
def test_what_others_made_in_the_output_stays(tmp_path: Path, folders: Any, name: str) -> None:
    for place in ("truth", "truth/again"):
        put(tmp_path / place, "twice", volume(x0=1))
    put(tmp_path / "pseudo", "a", volume(x0=1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"{}")
    refusal = "1 failed" if name.startswith("twice") else r"out: holds 1 files that this step did not make"
    with pytest.raises(FlareError, match=refusal):
        folders()
    assert (tmp_path / "out" / name).read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "expected either round, or all of ground_truth, pseudo, output; given neither"),
        (["round=mo1", "output=x"], "given round=mo1 and output"),
        (["pseudo=x"], "missing: ground_truth, output"),
        (["ground_truth=nowhere", "pseudo=nowhere", "output=x"], "ground_truth=nowhere: no such folder"),
        (["round=mt"], "there is nothing to merge"),
        (["round=mo1", "rule=vote"], "labels.rule=vote: expected one of"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_any_work(
    config: Config, overrides: list[str], message: str
) -> None:
    with pytest.raises(FlareError, match=message):
        merge(config("merge_labels", *overrides))


def test_the_output_is_never_inside_an_input(tmp_path: Path, config: Config) -> None:
    put(tmp_path / "truth", "a", volume(x0=1))
    put(tmp_path / "pseudo", "a", volume(x0=1))
    for output in ("truth", "pseudo/merged"):
        with pytest.raises(FlareError, match="expected a folder outside"):
            merge(
                config(
                    "merge_labels",
                    f"ground_truth={tmp_path / 'truth'}",
                    f"pseudo={tmp_path / 'pseudo'}",
                    f"output={tmp_path / output}",
                )
            )


def test_the_script_refuses_in_one_line_and_merges_in_processes(tmp_path: Path) -> None:
    put(tmp_path / "truth", "a", volume(x0=1))
    put(tmp_path / "pseudo", "a", volume(x0=1, x2=3))

    def script(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "merge_labels.py"), *overrides]
        return warm.run(command, tmp_path)

    refused = script("pseudo=pseudo")
    assert refused.returncode == 1
    assert "missing: ground_truth, output" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert script("ground_truth=truth", "pseudo=pseudo", "output=out").returncode == 0
    assert (tmp_path / "out" / "a.nii.gz").is_file()
