"""A cohort in nnU-Net's raw layout, and splits without moving files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from cohort_files import image_array, label_array, write
from flare.core.class_files import classes_at
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.prepare.cohort import analyse, prepare, prepare_cohort
from flare.prepare.splits import Split

pytestmark = pytest.mark.usefixtures("no_drawing")
LABELS = {"background": 0, "bladder": 1, "prostate": 2, "rectum": 3, "tumor": 4}


def write_dataset(root: Path, **changes: Any) -> Path:
    """Six labelled cases, an unlabelled one, and one of two test cases with a label."""
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nii.gz"}
    for seed in range(9):
        split, case = ("Ts" if seed > 6 else "Tr"), f"mine_{seed:03d}"
        write(root / f"images{split}" / f"{case}_0000.nii.gz", image_array(seed))
        if seed not in (6, 8):
            write(
                root / f"labels{split}" / f"{case}.nii.gz", label_array(1, 2, 3, *([4] if seed % 2 else []))
            )
    (root / "dataset.json").write_text(json.dumps({**content, **changes}))
    return root


@pytest.fixture
def compose(config: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., DictConfig]:
    """A configuration for the cohort below `tmp_path`."""
    own = ["data=nnunet", f"data.root={tmp_path / 'Dataset123_Mine'}", f"paths.outputs={tmp_path / 'out'}"]
    return lambda *more: config("prepare", *own, "data.spacing_mm=[5,2,2]", "executor.workers=0", *more)


def splits(cases: Any) -> dict[str, str]:
    """Of the labelled cases, by the last digit."""
    return {c.id[-1]: c.split for c in cases if c.label is not None}


def test_classes_cases_and_splits_come_from_the_dataset(tmp_path: Path, compose: Any) -> None:
    root = write_dataset(tmp_path / "Dataset123_Mine")
    cohort = prepare(compose())
    assert {c.id: (c.split, c.kind) for c in cohort.cases} == {
        **{f"mine_{i:03d}": ("train", "tumor" if i % 2 else "organs_complete") for i in range(6)},
        "mine_006": ("train", "unlabeled"),
        "mine_007": ("test", "tumor"),
        "mine_008": ("test", "unlabeled"),
    }
    assert cohort.folder.root == tmp_path / "out" / "cache" / "Dataset123_Mine"
    carried = classes_at(cohort.folder.root)
    assert carried is not None
    assert carried[1].names == ("bladder", "prostate", "rectum", "tumor")
    columns = list(read_csv(cohort.folder.label_analysis)[0])
    volumes = ["bladder_ml", "prostate_ml", "rectum_ml", "tumor_ml"]
    assert columns[3:] == [*volumes, "source", "contradiction"]
    assert {c.image.parent.parent for c in cohort.cases} == {root}


def test_two_classes_are_merged_by_a_map(tmp_path: Path, compose: Any) -> None:
    write_dataset(tmp_path / "Dataset123_Mine")
    cohort = prepare(compose("data.label_map={1: bladder, 2: bladder, 3: rectum, 4: tumor}"))
    carried = classes_at(cohort.folder.root)
    assert carried is not None
    assert carried[1].told == "1 bladder, 3 rectum, 4 tumor"
    row = {row["case"]: row for row in read_csv(cohort.folder.label_analysis)}["mine_001"]
    assert float(row["bladder_ml"]) == pytest.approx(2 * float(row["rectum_ml"])) != 0


def test_a_cohort_of_other_classes_is_refused_before_it_is_read(tmp_path: Path, config: Any) -> None:
    """By FLARE23's ids the bladder would be a liver."""
    root = write_dataset(tmp_path / "Dataset123_Mine")
    line = ["data=flare23", f"data.root={root}", "data.labeled_images=imagesTr", "data.labels=labelsTr"]
    with pytest.raises(
        FlareError, match=r"data.labels: .*dataset.json has the classes 1 bladder.*has 1 liver"
    ):
        prepare(config("prepare", *line, f"paths.outputs={tmp_path / 'out'}"))
    assert not (tmp_path / "out").exists()


def test_cases_are_held_out_by_list_without_moving_files(tmp_path: Path, compose: Any) -> None:
    write_dataset(tmp_path / "Dataset123_Mine")
    given = compose("data.split={validation: [mine_001, mine_004], test: [mine_000]}")
    held_out = {"0": "test", "1": "validation", "4": "validation"}
    assert splits(prepare_cohort(given).cases) == {
        **dict.fromkeys("235", "train"), **held_out, "7": "test",
    }  # fmt: skip
    assert splits(analyse(compose("data.split.validation=[mine_005]")).cases)["5"] == "validation"
    assert splits(prepare_cohort(compose()).cases)["1"] == "train"  # and back


def test_a_fold_of_nnunet_is_a_split(tmp_path: Path, compose: Any) -> None:
    root = write_dataset(tmp_path / "Dataset123_Mine")
    ids = [f"mine_{i:03d}" for i in range(6)]
    folds = [{"train": ids[:4], "val": ids[4:]}, {"train": ids[2:], "val": ids[:2]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    found = splits(prepare_cohort(compose("data.split=splits_final.json")).cases)
    assert [found[i] for i in "012345"] == ["train"] * 4 + ["validation"] * 2
    found = splits(prepare_cohort(compose("data.split={file: splits_final.json, fold: 1}")).cases)
    assert [found[i] for i in "012345"] == ["validation"] * 2 + ["train"] * 4
    write(root / "imagesTr" / "new_0000.nii.gz", image_array(20))
    write(root / "labelsTr" / "new.nii.gz", label_array(1))
    with pytest.raises(FlareError, match=r"fold 0 of splits_final.json: has new neither in train nor in val"):
        prepare_cohort(compose("data.split=splits_final.json"))


class Named:
    """A labelled training case."""

    split, label = "train", Path("label")

    def __init__(self, case: str) -> None:
        self.id = case


def drawn(count: int, given: Mapping[str, Any]) -> dict[str, str]:
    cases = [Named(f"c{i:03d}") for i in range(count)]
    return Split.from_config(given, Path()).assign(cases)  # type: ignore[arg-type]


def test_a_share_is_drawn_by_its_seed_and_hardly_moves_with_the_cohort() -> None:
    one = drawn(100, {"validation": 0.2, "test": 0.1})
    assert sorted(one.values()) == ["test"] * 10 + ["validation"] * 20
    assert one == drawn(100, {"validation": 0.2, "test": 0.1, "seed": 0})
    assert one != drawn(100, {"validation": 0.2, "test": 0.1, "seed": 1})
    alone = drawn(100, {"validation": 0.2})
    grown = drawn(105, {"validation": 0.2})
    assert len(alone.keys() - grown.keys()) <= 5
    assert len(grown) == 21


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"validation": ["c009"]}, "c009 .*the cohort has no such case"),
        ({"validation": [7]}, "data.split.validation: 7 is no text; .*needs quotes"),
        ({"validation": ["c000"], "test": ["c000"]}, "c000 is named twice"),
        ({"validation": ["c000", "c001"]}, "no labelled case is left to train on"),
        ({"validation": 1.5}, r"data.split.validation=1.5: expected \{validation"),
        ({"validation": 0.6, "test": 0.4}, "leave no training case"),
        ({"validation": 0.5, "file": "splits_final.json"}, "data.split.file=splits_final.json: expected"),
        ({"validation": 0.5, "seed": "x"}, "data.split.seed=x: expected a whole number"),
        ({"train": ["c000"]}, r"data.split.train=\['c000'\]: expected"),
        ({"file": "/nowhere/splits_final.json"}, "/nowhere/splits_final.json cannot be read: No such file"),
        (["c000"], r"data.split=\['c000'\]: expected"),
    ],
)
def test_a_split_that_cannot_be_is_refused(given: Any, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        drawn(2, given)


@pytest.mark.parametrize("text", ["{", "{}x", '{"train": []}', '[{"train": []}]'])
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits_final.json").write_text(text)
    with pytest.raises(FlareError, match=r"splits_final.json is no splits_final.json of nnU-Net"):
        Split.from_config("splits_final.json", tmp_path)


def test_an_unlabelled_case_is_not_held_out(tmp_path: Path, compose: Any) -> None:
    write_dataset(tmp_path / "Dataset123_Mine")
    with pytest.raises(FlareError, match=r"mine_006 cannot be held out or trained on: it has no label"):
        prepare_cohort(compose("data.split.validation=[mine_006]"))
    with pytest.raises(FlareError, match=r"mine_007 .*: its folder puts it into test"):
        prepare_cohort(compose("data.split.validation=[mine_007]"))
