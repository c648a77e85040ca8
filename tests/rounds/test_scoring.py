"""What a trained round leaves on held-out cases: done once, and again where something failed."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from flare.core.cases import Case
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json, sha256
from flare.core.geometry import Geometry
from flare.core.volumes import read_image, write_labels
from flare.inference.predict import Predicted
from flare.rounds import score
from flare.rounds.score import finish_round, score_split
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RoundFolder, RunFolder
from flare.runs.work import Job, LocalExecutor, Outcome

GEOMETRY = Geometry((4, 8, 8), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


class Flaky(LocalExecutor):
    """The worker of one case, or of all for "", dies the first time that a function runs."""

    def __init__(self, case: str, function: str) -> None:
        super().__init__(workers=0, retries=0)
        self.case, self.function = case, function
        self.seen: list[str] = []

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        self.seen.append(function.__name__)
        is_first = self.seen.count(self.function) == 1 and function.__name__ == self.function
        for outcome in super().run(function, jobs):
            dies = is_first and self.case in ("", outcome.case_id)
            fault = Outcome(outcome.case_id, error="its worker process died", is_fault=True)
            yield fault if dies else outcome


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Two validation cases, each predicted as it is annotated."""
    array = np.zeros(GEOMETRY.shape, np.uint8)
    array[:, 2:6, 2:6] = 1
    made = []
    for case in ("a", "b"):
        label = tmp_path / "labels" / f"{case}.nii.gz"
        write_labels(label, array, GEOMETRY)
        write_labels(
            tmp_path / "rounds" / "mo" / "validation" / "predictions" / f"{case}.nii.gz", array, GEOMETRY
        )
        made.append(Case(case, label, label, "validation", "partial", (1,), (1,)))
    return made


@pytest.fixture
def mo(config: Callable[..., DictConfig], tmp_path: Path) -> RoundSettings:
    return RoundSettings.from_config(config("train", "round=mo", f"paths.run={tmp_path}"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoundFolder:
    """A trained round whose predictions are there."""
    monkeypatch.setattr("flare.rounds.score.predict_split", lambda *_: Predicted())
    made = RunFolder(tmp_path).round("mo")
    made.checkpoints.mkdir(parents=True)
    made.last.write_text("weights")
    return made


def test_a_score_that_failed_is_tried_again_and_one_that_did_not_is_kept(
    mo: RoundSettings, cases: list[Case]
) -> None:
    root = mo.folder.root / "validation"
    executor = Flaky("b", "score_files")
    summary, failures = score_split(mo, cases, root, executor)
    assert [f.case_id for f in failures] == ["b"]
    for _ in range(2):
        summary, failures = score_split(mo, cases, root, executor)
        assert failures == []
        assert summary["cases"] == 2
    assert executor.seen == ["score_files"] * 2


def test_another_score_of_ones_own_scores_a_round_again(
    mo: RoundSettings, config: Callable[..., DictConfig], cases: list[Case], tmp_path: Path
) -> None:
    root, executor = mo.folder.root / "validation", Flaky("none", "none")
    score_split(mo, cases, root, executor)
    extra = "evaluation.extra=[{_target_: outside.Volumes, name: liver}]"
    own = RoundSettings.from_config(config("train", "round=mo", f"paths.run={tmp_path}", extra))
    for _ in range(2):
        summary, failures = score_split(own, cases, root, executor)
        assert failures == []
        assert summary["extra_scores"]["liver_reference_ml"] == pytest.approx(4 * 16 * 2 / 1000)
    assert [row["Name"] for row in read_csv(root / "extra_scores.csv")] == ["a", "b"]
    assert executor.seen == ["score_files"] * 2


def test_a_case_that_cannot_be_scored_costs_the_others_nothing(mo: RoundSettings, cases: list[Case]) -> None:
    root = mo.folder.root / "validation"
    (root / "predictions" / "b.nii.gz").write_bytes(b"no image")
    executor = Flaky("none", "none")
    for _ in range(2):
        _, (failure,) = score_split(mo, cases, root, executor)
        assert failure.case_id == "b"
    assert executor.seen == ["score_files"]


def test_a_fit_that_failed_is_named_and_made_again(
    mo: RoundSettings, cases: list[Case], folder: RoundFolder
) -> None:
    executor = Flaky("b", "compare_case")
    (failure,) = finish_round(mo, cases, executor)
    assert (failure.case_id, failure.error) == ("b", "its worker process died")
    assert read_json(folder.components)["organs"]["liver"]["cases"] == 1
    for _ in range(2):
        assert finish_round(mo, cases, executor) == []
        assert read_json(folder.components)["organs"]["liver"]["cases"] == 2
    assert executor.seen == ["score_files", "compare_case", "compare_case"]


@pytest.mark.parametrize(
    ("function", "step"), [("score_files", "scoring"), ("compare_case", "round=mo, fitting components")]
)
def test_a_step_that_failed_in_general_stops_the_run_and_leaves_no_half_result(
    mo: RoundSettings, cases: list[Case], folder: RoundFolder, function: str, step: str
) -> None:
    more = [replace(cases[0], id=name) for name in ("c", "d")]
    predictions = folder.root / "validation" / "predictions"
    for case in more:
        shutil.copy(predictions / "a.nii.gz", predictions / f"{case.id}.nii.gz")
    with pytest.raises(FlareError, match=rf"^{step}: 4 of 4 cases .* 4 x its worker process died \(case a\)"):
        finish_round(mo, [*cases, *more], Flaky("", function))
    assert not folder.components.exists()
    assert (folder.root / "validation" / "metrics.csv").exists() == (function == "compare_case")


def test_another_checkpoint_is_fitted_anew(mo: RoundSettings, cases: list[Case], folder: RoundFolder) -> None:
    executor = LocalExecutor(workers=0, retries=0)
    finish_round(mo, cases, executor)
    folder.last.write_text("other weights")
    finish_round(mo, cases, executor)
    assert read_json(folder.components)["checkpoint"] == sha256(folder.last)


def test_rows_of_the_table_are_means_over_the_cases_that_every_row_has(
    config: Callable[..., DictConfig],
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MO is right in `a` and wrong in `b`; MO1 is right in `a` and fails in `b`: neither is the better."""
    run = RunFolder(tmp_path)
    wrong = np.zeros(GEOMETRY.shape, np.uint8)
    wrong[:, :2, :2] = 1
    for name in ("mo", "mo1"):
        for case in cases:
            is_wrong = (name, case.id) == ("mo", "b")
            array = wrong if is_wrong else read_image(case.image).array
            path = run.round(name).root / "validation" / "predictions" / f"{case.id}.nii.gz"
            write_labels(path, array, GEOMETRY)
    failure = Outcome("b", error="unreadable")

    def predict(settings: RoundSettings, *_: Any) -> Predicted:
        return Predicted(failures=[failure] if settings.name == "mo1" else [])

    monkeypatch.setattr(score, "predict_split", predict)
    overrides = ["data.scoring={split: validation, protocol: present}"]
    overrides += [f"paths.run={tmp_path}"]
    rounds = [RoundSettings.from_config(config("train", f"round={n}", *overrides)) for n in ("mo", "mo1")]
    trained = score.Trained(rounds, _Cohort(cases), run, LocalExecutor(0, 0))  # type: ignore[arg-type]
    results = score.write_ablation(trained)
    assert [(r["round"], r["Liver_DSC"], r["organ_mean_DSC"]) for r in results.table] == [
        ("mo", 100.0, 100.0),
        ("mo1", 100.0, 100.0),
    ]
    assert (results.compared, results.failures) == (1, [failure])
    told = "ean over 1 cases of 2, those that every row has"
    assert told in caplog.text
    assert (tmp_path / "table5.md").read_text().count(told) == 2  # DSC and NSD
    assert "over 1 cases" in (tmp_path / "table4.md").read_text()


def test_a_row_without_cases_takes_none_from_the_others() -> None:
    named = {name: [{"Name": case} for case in cases] for name, cases in {"mo": "abc", "mo1": "bcd"}.items()}
    assert score.common_cases(named) == {"b", "c"}
    assert score.common_cases({**named, "thresholds": []}) == {"b", "c"}
    assert score.common_cases({"thresholds": []}) == set()


def test_without_labelled_cases_the_table_is_left_out_and_an_old_one_does_not_stay(
    config: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("table5.csv", "table5.md", "table4.csv", "table5.previous.csv"):
        (tmp_path / name).write_text(name)
    rounds = [RoundSettings.from_config(config("train", "round=mo", "data.scoring.split=test"))]
    trained = score.Trained(rounds, _Cohort([]), RunFolder(tmp_path), LocalExecutor(0, 0))  # type: ignore[arg-type]
    results = score.write_ablation(trained)
    assert results.table == []
    assert "data.scoring.split=test: no labelled case" in caplog.text
    left = {p.name: p.read_text() for p in tmp_path.glob("table[4-8]*")}
    assert left == {
        "table4.previous.csv": "table4.csv",
        "table5.previous.csv": "table5.csv",
        "table5.previous.md": "table5.md",
    }


def test_a_reference_without_tumor_is_a_control_where_its_source_looks_for_tumors(
    mo: RoundSettings, config: Callable[..., DictConfig], cases: list[Case], tmp_path: Path
) -> None:
    """Under `present` an absent tumor is not scored: only a declaration says that the patient has none."""
    present = ["data.scoring.protocol=present", f"paths.run={tmp_path}"]
    own = RoundSettings.from_config(config("train", "round=mo", *present))
    declared = [replace(cases[0], annotated=(1, 14)), cases[1]]
    root, executor = mo.folder.root / "validation", Flaky("none", "none")
    for given, controls in ((cases, 0), (declared, 1), (declared, 1)):
        lesions = score_split(own, given, root, executor)[0]["lesions"]
        assert (lesions["scans"], lesions["controls"]) == (controls, controls)
        assert lesions["specificity"] == (1.0 if controls else None)
    assert executor.seen == ["score_files"] * 2  # another declaration scores again


def test_the_table_of_tumors_has_the_rows_that_segment_them(
    config: Callable[..., DictConfig],
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MT finds the lesion of `a` and calls `b`, which has none; MO learns no tumor."""
    run = RunFolder(tmp_path)
    truth = read_image(cases[0].image).array
    truth[:2, 2:4, 2:4] = 14
    write_labels(cases[0].image, truth, GEOMETRY)
    for name in ("mo", "mt"):
        for case in cases:
            array = read_image(case.image).array
            array[:1, 3:5, 3:5] = 14
            write_labels(
                run.round(name).root / "validation/predictions" / f"{case.id}.nii.gz", array, GEOMETRY
            )
    monkeypatch.setattr(score, "predict_split", lambda *_: Predicted())
    overrides = ["data.scoring={split: validation, protocol: flare23}", f"paths.run={tmp_path}"]
    rounds = [RoundSettings.from_config(config("train", f"round={n}", *overrides)) for n in ("mo", "mt")]
    trained = score.Trained(rounds, _Cohort(cases), run, LocalExecutor(0, 0))  # type: ignore[arg-type]
    tumors = score.write_ablation(trained).tumors
    assert list(tumors) == ["mt"]
    row = tumors["mt"]
    assert (row["patient_sensitivity"], row["specificity"], row["sensitivity"]) == (1.0, 0.0, 1.0)
    assert (row["false_alarms"], row["auc"]) == (["b"], 1.0)  # the lesion of `a` is the larger one
    (line,) = read_csv(tmp_path / "tumors.csv")
    assert (line["Name"], line["controls"], line["false_positives_per_scan"]) == ("mt", "1", "0.5")
    assert "Ours are validation cases of phantom." in (tmp_path / "tumors.md").read_text()
    assert (tmp_path / "tumors.tex").exists()


def complete_cases(count: int, tmp_path: Path) -> list[Case]:
    """Training cases with complete organs, all with one file."""
    file = tmp_path / "any.nii.gz"
    return [Case(f"c{n}", file, file, "train", "organs_complete", (1,), (1,)) for n in range(count)]


def test_without_a_labelled_validation_case_a_fifth_of_the_complete_ones_is_held_out_for_the_fit(
    config: Callable[..., DictConfig], cases: list[Case], tmp_path: Path
) -> None:
    train = complete_cases(11, tmp_path)
    mo, mt, everything = (
        RoundSettings.from_config(config("train", f"round={name}")) for name in ("mo", "mt", "all")
    )
    folder, fold = mo.fit_cases(train)
    assert (folder, len(fold)) == ("components", 2)
    assert [c for c in train if c not in fold] == mo.train_cases(train)
    assert [c.id for c in mo.fit_cases(train[::-1])[1]] == [c.id for c in fold]  # by id, not by place
    assert mo.fit_cases(train[:4]) == ("components", [])  # too few to lose one
    assert everything.train_cases(train) == train  # it teaches none
    strict = RoundSettings.from_config(config("train", "round=mo", "data.components_split=validation"))
    assert (strict.fit_cases(train), strict.train_cases(train)) == (("validation", []), train)
    assert not mt.fits_components
    # a labelled validation case is enough
    assert mo.fit_cases([*train, *cases]) == ("validation", cases)
    assert mo.train_cases([*train, *cases]) == train


@pytest.mark.parametrize(
    ("split", "fitted", "kept"),
    [
        ("auto", ["a", "b"], 11),
        ("test", ["t"], 11),
        ("train", 2, 9),
        ("[c3,b]", ["c3", "b"], 10),
        ("validation", ["a", "b"], 11),
    ],
)
def test_the_fit_is_made_on_the_cases_that_are_named_and_no_round_trains_on_them(
    config: Callable[..., DictConfig], cases: list[Case], tmp_path: Path, split: str, fitted: Any, kept: int
) -> None:
    everything = [*complete_cases(11, tmp_path), *cases, replace(cases[0], id="t", split="test")]
    mo = RoundSettings.from_config(config("train", "round=mo", f"data.components_split={split}"))
    found = [c.id for c in mo.fit_cases(everything)[1]]
    assert found == fitted if isinstance(fitted, list) else len(found) == fitted
    trained = {c.id for c in mo.train_cases(everything)}
    assert len(trained) == kept
    assert not trained & set(found)


def test_a_name_that_no_labelled_case_has_is_refused(
    config: Callable[..., DictConfig], cases: list[Case]
) -> None:
    mo = RoundSettings.from_config(config("train", "round=mo", "data.components_split=[a,nobody,c]"))
    unlabeled = replace(cases[0], id="c", label=None)
    with pytest.raises(FlareError, match=r"data\.components_split: no labelled case is named c, nobody"):
        mo.train_cases([*cases, unlabeled])


@pytest.mark.parametrize("value", ["nowhere", "3", "[1,2]", "null"])
def test_a_split_that_is_none_is_refused(config: Callable[..., DictConfig], value: str) -> None:
    with pytest.raises(FlareError, match=r"data\.components_split=.*expected auto, train, validation, test"):
        RoundSettings.from_config(config("train", "round=mo", f"data.components_split={value}"))


def test_held_out_training_cases_are_predicted_and_fitted_on_but_not_scored(
    mo: RoundSettings, cases: list[Case], folder: RoundFolder
) -> None:
    named = replace(mo, components_split=("a", "b"))
    held = [replace(c, split="train", kind="organs_complete") for c in cases]
    shutil.move(folder.root / "validation", folder.root / "components")
    executor = Flaky("none", "none")
    assert finish_round(named, held, executor) == []
    fit = read_json(folder.components)
    assert (fit["cases"], fit["organs"]["liver"]["cases"]) == ("2 held-out training cases", 2)
    assert executor.seen == ["compare_case"]
    assert not (folder.root / "validation" / "metrics.csv").exists()


class _Cohort:
    """As much of a cohort as is looked at."""

    def __init__(self, cases: list[Case]) -> None:
        self.cases = cases
