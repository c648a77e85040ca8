"""The study of labels: its statistics, its corruption of pseudo labels, and what it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.core.errors import FlareError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield
    for name in ("ablation_table", "ablate_labels", "corrupted"):
        sys.modules.pop(name, None)


def rows(**scores: list[float | None]) -> list[dict[str, Any]]:
    """Rows of `metrics.csv`, of cases a, b, ..., from the DSC of each class."""
    cases = zip(*scores.values(), strict=True)
    return [
        {"Name": chr(97 + i)} | {f"{n}_DSC": v for n, v in zip(scores, case, strict=True)}
        for i, case in enumerate(cases)
    ]


def two_classes() -> ClassList:
    common = {"tolerance_mm": 2.0, "slice_range": False}
    organs = {n: {"id": i, "short": n, "role": "organ", **common} for i, n in enumerate(("x", "y"), start=1)}
    return ClassList.from_config({**organs, "t": {"id": 3, "short": "t", "role": "tumor", **common}})


def test_an_arm_is_the_mean_of_its_seeds_and_of_classes() -> None:
    import ablation_table as table

    runs = {1: rows(x=[0.2, 0.4], y=[0.6, 1.0]), 2: rows(x=[0.0, 0.2], y=[0.4, 0.4])}
    found = table.describe(table.cube(runs, ["x_DSC", "y_DSC"]))
    assert found is not None
    by_seed = [(0.3 + 0.8) / 2, (0.1 + 0.4) / 2]
    assert found["mean"] == pytest.approx(sum(by_seed) / 2)
    assert (found["lowest"], found["highest"]) == pytest.approx((by_seed[1], by_seed[0]))
    a, b = (
        (0.2 + 0.6 + 0.0 + 0.4) / 4,
        (0.4 + 1.0 + 0.2 + 0.4) / 4,
    )  # the cases: a bootstrap of two ends at them
    assert (found["low"], found["high"]) == pytest.approx((a, b), abs=1e-4)


def test_what_is_not_scored_does_not_count() -> None:
    import ablation_table as table

    found = table.describe(table.cube({1: rows(t=[0.5, None, 0.7])}, ["t_DSC"]))
    assert found is not None
    assert found["mean"] == pytest.approx(0.6)
    assert table.describe(table.cube({1: rows(t=[None, None])}, ["t_DSC"])) is None


def test_runs_of_different_cases_are_refused() -> None:
    import ablation_table as table

    with pytest.raises(FlareError, match="different cases"):
        table.cube({1: rows(x=[0.1, 0.2]), 2: rows(x=[0.1])}, ["x_DSC"])


def test_a_class_is_learnt_if_every_run_has_it() -> None:
    import ablation_table as table

    good, lost = rows(x=[0.8, 0.8], y=[0.2, 0.0]), rows(x=[0.8, 0.8], y=[0.19, 0.0])  # means 0.1 and 0.095
    assert table.learnt_classes({"one": {1: good, 2: good}}, ["x", "y"]) == ["x", "y"]
    assert table.learnt_classes({"one": {1: good, 2: lost}}, ["x", "y"]) == ["x"]
    assert table.learnt_classes({"one": {1: good}, "two": {1: lost}}, ["x", "y"]) == ["x"]
    assert table.learnt_classes({"one": {1: good}, "two": {1: lost}}, ["x", "y"], ["two"]) == ["x", "y"]


def test_arms_are_compared_case_by_case_and_seed_by_seed() -> None:
    import ablation_table as table
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, (2, 9))
    gain = rng.uniform(-0.02, 0.1, (2, 9))
    first, second = ({s: rows(x=list(m[s])) for s in (0, 1)} for m in (base + gain, base))
    found = table.contrast(*(table.cube(of, ["x_DSC"]) for of in (first, second)))
    assert found["mean"] == pytest.approx(gain.mean())
    assert (found["lowest"], found["highest"]) == pytest.approx(sorted(gain.mean(axis=1)))
    assert found["p"] == pytest.approx(wilcoxon(gain.mean(axis=0)).pvalue)
    assert found["low"] < found["mean"] < found["high"]
    assert found["agree"]
    gain[0] = -gain[0] / 2
    mixed = {s: rows(x=list((base + gain)[s])) for s in (0, 1)}
    assert not table.contrast(*(table.cube(of, ["x_DSC"]) for of in (mixed, second)))["agree"]


def test_the_tables_show_each_arm_each_pair_and_each_run() -> None:
    import ablation_table as table

    none = [None, None]
    runs = {
        "mo": {1: rows(x=[0.5, 0.6], y=[0.0, 0.1], t=none), 2: rows(x=[0.7, 0.6], y=[0.5, 0.5], t=none)},
        "partial": {1: rows(x=[0.6, 0.7], y=[0.5, 0.5], t=[0.2, None])},
    }  # fmt: skip
    text, csv = table.tables(runs, [("partial", "mo"), ("ours", "mo")], two_classes(), [])
    assert "learnt by every run: 1 organs (x)" in text
    arm = next(line for line in text.splitlines() if line.startswith("| mo |"))
    assert arm.startswith("| mo | 2 | 43.8 (30.0 to 57.5)")
    assert arm.endswith("| - |")  # the tumor, which it does not learn
    pair = next(line for line in text.splitlines() if line.startswith("| partial - mo |"))
    assert "| 1 | 27.5 (27.5 to 27.5)" in pair  # the seed that both have
    assert "| 10.0 (10.0 to 10.0)" in pair
    assert "ours" not in text
    assert [(row["arm"], row["seed"]) for row in csv] == [("mo", 1), ("mo", 2), ("partial", 1)]
    assert csv[0]["organs"] == 30.0
    assert csv[2]["t_DSC"] == 20.0
    assert csv[0]["t_DSC"] is None


def test_tumors_found_are_the_mean_over_seeds_that_tell() -> None:
    import ablation_table as table

    empty = dict.fromkeys(table.FOUND)
    text = table.detection_table({"ours": {1: {**empty, "auc": 0.5}, 2: {**empty, "auc": 0.75}}})
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert dict(zip(table.FOUND, cells[1:], strict=True)) == dict.fromkeys(table.FOUND, "-") | {
        "auc": "0.62 (0.50 to 0.75)"
    }


def block(*classes: tuple[int, slice]) -> np.ndarray:
    """A map with cubes along x."""
    found = np.zeros((12, 12, 40), np.uint8)
    for c, where in classes:
        found[4:8, 4:8, where] = c
    return found


def test_corruption_takes_its_share_of_classes_and_each_form() -> None:
    import corrupted

    labels = block((1, slice(4, 8)), (2, slice(12, 16)), (3, slice(30, 34)))
    assert (corrupted.corrupt(labels, 0.0, np.random.default_rng(0)) == labels).all()
    forms, touched = set(), 0
    for seed in range(300):
        found = corrupted.corrupt(labels, 0.2, np.random.default_rng(seed))
        changed = [c for c in (1, 2, 3) if ((found == c) != (labels == c)).any()]
        touched += len(changed)
        if len(changed) == 1:
            size, volume = (found == changed[0]).sum(), 4**3
            forms |= {"deleted"} if not size else {"dilated"} if size > volume else {"shifted"}
        elif len(changed) == 2 and ((found == changed[0]) == (labels == changed[1])).all():
            forms |= {"swapped"}
    assert forms == {"deleted", "dilated", "shifted", "swapped"}
    assert 0.2 < touched / 900 < 0.3  # a swap of one changes two
    assert (labels == block((1, slice(4, 8)), (2, slice(12, 16)), (3, slice(30, 34)))).all()


def test_only_the_named_teacher_is_corrupted_and_always_alike() -> None:
    from dataclasses import dataclass
    from types import SimpleNamespace

    import corrupted

    @dataclass
    class Map:
        array: np.ndarray

    labels = block((1, slice(4, 8)), (2, slice(12, 16)))
    made = corrupted.corrupting(lambda job: (Map(labels), "row"), "partial1", 1.0, 3)
    job = [SimpleNamespace(labeller=SimpleNamespace(round=r), case=SimpleNamespace(id=c)) for r, c in
           (("partial1", "a"), ("partial1", "b"), ("partial", "a"))]  # fmt: skip
    found = [made(j) for j in job]
    assert (found[0][0].array != labels).any()
    assert (found[2][0].array == labels).all()
    assert (made(job[0])[0].array == found[0][0].array).all()
    assert [row for _, row in found] == ["row"] * 3


def test_a_round_gets_its_pseudo_labels_where_they_are_corrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import corrupted

    from composed import composed
    from flare.core.cases import Case
    from flare.core.geometry import Geometry, Volume
    from flare.core.volumes import read_labels
    from flare.rounds import label_case
    from flare.rounds.settings import Labeller, RoundSettings
    from flare.runs.folders import RoundFolder

    settings = RoundSettings.from_config(composed("train", "round=partial1", "experiment=demo"))
    labels = block((1, slice(4, 8)), (3, slice(12, 16)))
    geometry = Geometry(labels.shape, (3.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    case = Case("a", tmp_path / "a.nii.gz", None, "train", "unlabeled", (), ())
    labeller = Labeller(tmp_path / "last.ckpt", "0", "partial1", (), (0, *range(1, 15)))
    job = label_case.LabelJob(case, None, "", labeller, settings.labels, RoundFolder(tmp_path))
    made = corrupted.corrupting(lambda job: (Volume(labels, geometry), None), "partial1", 1.0, 3)
    expected = made(job)[0].array
    monkeypatch.setattr(label_case, "pseudo_labels", made)
    label_case.label_case(job)
    written = read_labels(tmp_path / "labels" / "a.nii.gz", settings.classes).array
    assert (written == expected).all()
    assert (expected != labels).any()


def test_the_rounds_of_each_arm_share_its_iterations(tmp_path: Path) -> None:
    import ablate_labels as ablate

    study = ablate.Study(tmp_path, 2400, ())
    for arm, own in ablate.ARMS.items():
        assert study.epochs(arm) * ablate.EPOCH * len(own.rounds) == 2400
        assert not study.is_done(arm, 1)
    with pytest.raises(FlareError, match=r"--iterations 2500.*8 rounds"):
        ablate.Study(tmp_path, 2500, ()).epochs("paper")
    assert {name for pair in ablate.PAIRS for name in pair} <= ablate.ARMS.keys()
