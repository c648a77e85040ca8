"""Each job of a sweep notes how it ended; the table compares jobs; failed jobs run again alone."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.files import read_csv, write_csv
from flare.inference.measure import ResourceSampler
from flare.inference.predict import predict_case
from flare.inference.predictor import Prediction
from flare.inference.settings import InferenceSettings
from flare.sweeps.__main__ import main
from flare.sweeps.jobs import COMPLETED, FAILED, Job, compare, measure, read_jobs, varied, write_sweep


def jobs() -> list[Job]:
    common = ["experiment=demo"]
    return [
        Job("0", "train", ["round=mo", *common], COMPLETED, 4.0, None, {"val/dsc_mean": 0.5, "lr": 0.1}),
        Job("10", "train", ["round=mot", *common], FAILED, 1.0, "no teacher"),
        Job("2", "train", ["round=mt", *common], COMPLETED, 3.0, None, {"val/dsc_mean": 0.25, "lr": 0.1}),
    ]


def test_jobs_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    assert [job.folder for job in read_jobs(tmp_path)] == ["0", "2", "10"]
    assert read_jobs(tmp_path)[0] == jobs()[0]


def test_only_what_differs_is_a_column() -> None:
    assert varied(jobs()) == ["round"]
    assert varied(jobs()[:1]) == ["round", "experiment"]


def test_the_table_compares_the_jobs_and_names_the_failed_ones(tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    write_sweep(tmp_path)
    rows = read_csv(tmp_path / "sweep.csv")
    assert [(r["job"], r["round"], r["status"], r["val/dsc_mean"]) for r in rows] == [
        ("0", "mo", "completed", "0.5"),
        ("2", "mt", "completed", "0.25"),
        ("10", "mot", "failed", ""),
    ]
    assert rows[2]["error"] == "no teacher"
    text = (tmp_path / "sweep.md").read_text()
    assert "| job | round | status | job_seconds | val/dsc_mean |" in text
    assert "| 0 | mo | completed | 4 | **0.5000** |" in text
    assert "| 2 | mt | completed | 3 | 0.2500 |" in text
    assert "lr" not in text  # a setting, not a result
    assert "job 10 (round=mot) failed: no teacher" in text
    assert f"sweep={tmp_path} rerun=true" in text
    assert (tmp_path / "sweep.tex").exists()


def test_of_losses_and_times_the_lowest_is_best() -> None:
    both = [Job(x, "train", [f"x={x}"], COMPLETED, measures={"train/loss": 2.0}) for x in "12"]
    assert {c.heading: c.best for c in compare(both).columns}["train/loss"] == "min"


def test_means_over_different_classes_are_not_ranked() -> None:
    organs = {"val/dsc_mean": 0.5, "val/dsc/liver": 0.5}
    tumor = {"val/dsc_mean": 0.1, "val/dsc/tumor": 0.1}
    table = compare(
        [Job(n, "train", [f"round={n}"], COMPLETED, measures=m) for n, m in (("mo", organs), ("mt", tumor))]
    )
    assert not any(column.best for column in table.columns)
    assert "none is best" in table.title


def test_numbers_of_a_job_are_the_last_of_its_rounds_and_what_it_returned(tmp_path: Path) -> None:
    path = tmp_path / "rounds" / "mo" / "training.csv"
    write_csv(path, [{"train/loss": 2, "val/dsc_mean": 0.5}, {"train/loss": 1, "val/dsc_mean": None}])
    assert measure(tmp_path, 0.5) == {"train/loss": 1.0, "val/dsc_mean": 0.5, "objective": 0.5}
    write_csv(tmp_path / "rounds" / "mt" / "training.csv", [{"train/loss": 3}])
    assert measure(tmp_path, None) == {"mo/train/loss": 1.0, "mo/val/dsc_mean": 0.5, "mt/train/loss": 3.0}


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"organ_mean": {"DSC": 0.9, "NSD": None}, "failed": {}}, {"organ_mean/DSC": 0.9}),  # evaluate
        ({"output": "x", "cases": [{"windows": 1}, {"windows": 4}]}, {"windows": 2.5}),  # infer
        ({"table": [{"round": "mo", "organ_mean_DSC": 80}]}, {"mo/organ_mean_DSC": 80.0}),  # iterate
        ({"x": float("nan"), "done": True}, {}),
    ],
)
def test_whatever_a_script_returns(returned: object, expected: dict[str, float], tmp_path: Path) -> None:
    assert measure(tmp_path, returned) == expected


def test_what_depends_on_predictions_does_not_keep_scores_from_being_compared() -> None:
    scores = {"classes/Liver/DSC": 0.5, "organ_mean/DSC": 0.5}
    more = {"lesions/by_organ/Liver/found": 1.0, "distances/Liver/HD95_mm": 3.0}
    found = (("a", scores), ("b", scores | more))
    table = compare([Job(n, "evaluate", [f"tta={n}"], COMPLETED, measures=m) for n, m in found])
    assert {c.heading: c.best for c in table.columns}["organ_mean/DSC"] == "max"


def measured_here(function: Callable[..., dict], job: dict, *, gpu: int | None) -> dict:
    """What `measured` gives, without the seconds in which a process of its own begins."""
    with ResourceSampler(gpu=gpu) as sampler:
        row = function(**job)
    return row | sampler.usage()


def test_what_a_case_costs_is_shown_beside_what_the_job_took(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.Image(12, 12, 12, sitk.sitkInt16), str(image))
    prediction = Prediction(np.zeros((12, 12, 12), np.uint8), 12, 0, True, {"network": 40.0})
    predictor = SimpleNamespace(
        predict=lambda scan, components: prediction, spacing_mm=(1.0, 1.0, 1.0), interpolation="linear"
    )
    monkeypatch.setattr("flare.inference.predict.load_predictor", lambda *_: predictor)
    monkeypatch.setattr("flare.inference.predict.measured", measured_here)
    settings = InferenceSettings.from_config(config("infer", "inference.measure=true"))
    row = predict_case("a", image, tmp_path / "out" / "a.nii.gz", image, "", settings)
    for n, tta in enumerate(("none", "tta4")):
        found = measure(tmp_path, {"cases": [row]})
        Job(str(n), "infer", [f"tta={tta}"], COMPLETED, 90.0, None, found).write(tmp_path)
    write_sweep(tmp_path)
    header, line = (tmp_path / "sweep.csv").read_text().splitlines()[:2]
    assert line.startswith("0,none,completed,90.0,12.0,")
    assert len(set(header.split(","))) == len(header.split(","))
    assert 40 <= float(read_csv(tmp_path / "sweep.csv")[0]["seconds"]) < 90
    best = {c.heading: c.best for c in compare(read_jobs(tmp_path)).columns if c.best}
    assert best == {"windows": "min", "seconds": "min", "time_s": "min"}


def test_a_diverged_training_has_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "rounds" / "mo" / "training.csv"
    write_csv(path, [{"train/loss": 2, "val/dsc_mean": 0.5}, {"train/loss": float("nan")}])
    assert measure(tmp_path, float("nan")) == {"val/dsc_mean": 0.5}


def test_refusals_are_one_line(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    def refusal(*overrides: str) -> str:
        with pytest.raises(FlareError) as caught:
            main(config("sweeps", *overrides), overrides)
        return str(caught.value)

    sweep = f"sweep={tmp_path}"
    assert refusal() == "sweep: not given; expected sweep=<path>"
    assert refusal(sweep) == f"{sweep}: no job of a sweep has begun there"
    jobs()[0].write(tmp_path)
    assert refusal(sweep, "rerun=1") == "rerun=1: expected true or false"
    assert refusal(sweep, "seed=1") == "seed=1: overrides are for rerun=true"


def test_listing_tells_whether_all_is_done(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    for job in jobs():
        job.write(tmp_path)
    listing = config("sweeps", f"sweep={tmp_path}")
    with pytest.raises(FlareError, match="1 of 3 jobs are not complete"):
        main(listing, [])
    Job("10", "train", ["round=mot"], COMPLETED).write(tmp_path)
    main(listing, [])
