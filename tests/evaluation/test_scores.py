"""Scores of a cohort: files matched by case, means as the challenge takes them, everything odd named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json
from flare.core.geometry import Geometry
from flare.core.volumes import write_labels
from flare.evaluation.metrics import ScoreSettings
from flare.evaluation.scores import evaluate, read_lesions, score_folder
from flare.evaluation.summary import summarise
from flare.runs.work import LocalExecutor

GEOMETRY = Geometry((8, 8, 8), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
FLIPPED = Geometry((8, 8, 8), (2.0, 1.0, 1.0), (7.0, 0.0, 0.0), (-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def block(class_id: int, first: int = 2) -> np.ndarray:
    array = np.zeros((8, 8, 8), np.uint8)
    array[first : first + 4, 2:6, 2:6] = class_id
    return array


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three references: one matched exactly, one by half, one without a prediction."""
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    for case, class_id in (("a", 1), ("b", 14), ("c", 1)):
        write_labels(references / f"{case}.nii.gz", block(class_id), GEOMETRY)
    write_labels(predictions / "a.nii.gz", block(1), GEOMETRY)
    write_labels(predictions / "b.nii.gz", block(14, first=4), GEOMETRY)
    write_labels(predictions / "other.nii.gz", block(1), GEOMETRY)
    return predictions, references


def run(config: Any, predictions: Path, references: Path, *more: str) -> dict[str, Any]:
    return evaluate(
        config(
            "evaluate",
            f"predictions={predictions}",
            f"references={references}",
            "executor.workers=0",
            *more,
        )
    )


def test_one_row_a_case_with_the_official_columns(config: Any, folders: tuple[Path, Path]) -> None:
    run(config, *folders)
    rows = read_csv(folders[0] / "metrics.csv")
    assert [r["Name"] for r in rows] == ["a", "b", "c"]
    columns = list(rows[0])
    assert columns[:3] == ["Name", "Liver_DSC", "RK_DSC"]
    assert columns[14:16] == ["Lesion_DSC", "Liver_NSD"]
    assert columns[-1] == "Lesion_NSD"
    assert len(columns) == 29
    assert rows[1]["Lesion_DSC"] == "0.5"
    assert rows[0]["Spleen_DSC"] == "1.0"


def test_missing_predictions_count_as_zero_and_odd_ones_are_named(
    config: Any, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    summary = run(config, *folders)
    assert caplog.messages[-1] == "without a prediction, scored zero: c"
    assert summary["missing"] == ["c"]
    assert summary["extra"] == ["other"]
    assert summary["classes"]["Liver"]["DSC"] == round((1 + 1 + 0) / 3, 4)
    assert summary["classes"]["Spleen"]["DSC"] == round((1 + 1 + 0) / 3, 4)
    assert summary["tumor"]["DSC"] == round((1 + 0.5 + 0) / 3, 4)
    assert summary["cases"] == 3
    assert read_json(folders[0] / "summary.json") == summary


def test_present_leaves_cells_empty_and_averages_the_rest(config: Any, folders: tuple[Path, Path]) -> None:
    summary = run(config, *folders, "protocol=present", f"output={folders[0].parent / 'out'}")
    rows = read_csv(folders[0].parent / "out" / "metrics.csv")
    assert (rows[0]["Liver_DSC"], rows[1]["Liver_DSC"], rows[2]["Liver_DSC"]) == ("1.0", "", "0.0")
    assert summary["classes"]["Liver"]["DSC"] == 0.5
    assert summary["classes"]["Spleen"] == {"DSC": None, "NSD": None}
    assert summary["organ_mean"]["DSC"] == 0.5
    assert summary["tumor"]["DSC"] == 0.5


def test_voxel_order_of_a_prediction_does_not_matter(config: Any, tmp_path: Path) -> None:
    array = block(1)
    array[2:4, 2, 2] = 3
    write_labels(tmp_path / "r" / "a.nii.gz", array, GEOMETRY)
    write_labels(tmp_path / "p" / "a.nii.gz", array[:, :, ::-1], FLIPPED)
    assert run(config, tmp_path / "p", tmp_path / "r")["organ_mean"] == {"DSC": 1.0, "NSD": 1.0}


def test_bad_files_are_named_and_the_rest_is_scored(config: Any, folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    other = Geometry((8, 8, 8), (3.0, 1.0, 1.0), GEOMETRY.origin_mm, GEOMETRY.direction)
    write_labels(predictions / "b.nii.gz", block(14), other)
    (predictions / "c.nii.gz").write_bytes(b"nothing")
    with pytest.raises(FlareError, match=r"(?s)2 failed.*b: .*spacing.*c: .*no NIfTI file"):
        run(config, predictions, references)
    assert [r["Name"] for r in read_csv(predictions / "metrics.csv")] == ["a"]
    assert sorted(read_json(predictions / "summary.json")["failed"]) == ["b", "c"]


def test_references_are_renumbered_by_the_label_map(config: Any, tmp_path: Path) -> None:
    write_labels(tmp_path / "r" / "a.nii.gz", block(77), GEOMETRY)
    write_labels(tmp_path / "p" / "a.nii.gz", block(3), GEOMETRY)
    summary = run(config, tmp_path / "p", tmp_path / "r", "data.label_map={77: 3, rest: 0}")
    assert summary["classes"]["Spleen"]["DSC"] == 1


def test_one_slice_references_are_listed(config: Any, tmp_path: Path) -> None:
    aorta = np.zeros((8, 8, 8), np.uint8)
    aorta[3, 2:5, 2:5] = 5
    for side in "rp":
        write_labels(tmp_path / side / "a.nii.gz", aorta, GEOMETRY)
    assert run(config, tmp_path / "p", tmp_path / "r")["one_slice"] == {"a": ["Aorta"]}


def test_details_and_lesions_of_a_cohort(config: Any, folders: tuple[Path, Path]) -> None:
    summary = run(config, *folders)
    details = read_csv(folders[0] / "details.csv")
    assert len(details) == 3 * 14
    lesion = next(d for d in details if (d["case"], d["class"]) == ("b", "Lesion"))
    assert lesion["HD95_mm"] == "4.0"  # two slices of 2 mm
    assert float(lesion["reference_ml"]) == pytest.approx(64 * 2 / 1000)
    assert float(lesion["volume_error_ml"]) == 0
    missing = next(d for d in details if (d["case"], d["class"]) == ("c", "Liver"))
    assert float(missing["volume_error_ml"]) == pytest.approx(-64 * 2 / 1000)
    assert summary["distances"]["Lesion"]["HD95_cases"] == 1
    assert summary["lesions"]["sensitivity"] == 1
    assert summary["lesions"]["scans"] == 3
    assert [row["side"] for row in read_csv(folders[0] / "lesions.csv")] == ["reference", "prediction"]
    low, high = summary["intervals"]["Lesion"]["DSC"]
    assert 0 <= low < 0.5 < high <= 1


def test_a_lesion_is_as_sure_as_its_confidence_where_every_prediction_has_a_map(
    config: Any, folders: tuple[Path, Path]
) -> None:
    """Voxel order differs; one map alone is not mixed with volumes of the other cases."""
    sure = np.zeros((8, 8, 8), np.uint8)
    sure[4:6], sure[6:] = 51, 153  # of the two slices that are right and the two that are not
    confidence = folders[0].parent / "confidence"
    write_labels(confidence / "b.nii.gz", sure[:, :, ::-1], FLIPPED)
    assert run(config, *folders)["lesions"]["auc"] == 1
    assert read_lesions(folders[0])["b"][1].score == pytest.approx(64 * 2 / 1000)
    write_labels(confidence / "a.nii.gz", sure, GEOMETRY)
    run(config, *folders)
    reference, found = read_lesions(folders[0])["b"]
    assert reference.score == found.score == pytest.approx((51 + 153) / 2 / 255)
    assert read_lesions(folders[0])["a"] == []


def test_the_console_tells_patients_and_lesions(
    config: Any, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(config, *folders)["lesions"]
    assert (found["patients_with_tumor"], found["controls"], found["specificity"]) == (1, 2, 1)
    assert "specificity" in capsys.readouterr().err


def test_a_lesion_without_prediction_is_missed(config: Any, folders: tuple[Path, Path]) -> None:
    (folders[0] / "b.nii.gz").unlink()
    lesions = run(config, *folders)["lesions"]
    assert (lesions["lesions"], lesions["detected"]) == (1, 0)


def test_two_runs_are_compared(config: Any, folders: tuple[Path, Path], tmp_path: Path) -> None:
    run(config, *folders, f"output={tmp_path / 'before'}")
    write_labels(folders[0] / "b.nii.gz", block(14), GEOMETRY)
    summary = run(config, *folders, f"output={tmp_path / 'after'}", f"++compare={tmp_path / 'before'}")
    found = {(r["class"], r["measure"]): r for r in read_csv(tmp_path / "after" / "comparison.csv")}
    assert float(found["Lesion", "DSC"]["difference"]) == pytest.approx(0.5 / 3, abs=1e-4)
    assert read_json(tmp_path / "after" / "summary.json") == summary


def test_failures_are_named_even_if_they_leave_nothing_to_compare(
    config: Any, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    run(config, *folders, f"output={tmp_path / 'before'}")
    for path in folders[1].iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(FlareError, match="evaluate: 3 failed"):
        run(config, *folders, f"output={tmp_path / 'after'}", f"++compare={tmp_path / 'before'}")


def test_a_run_that_is_not_there_is_refused_before_any_work(
    config: Any, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(FlareError, match="compare"):
        run(config, *folders, f"output={tmp_path / 'out'}", f"++compare={tmp_path}")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_case_are_refused(config: Any, folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    write_labels(references / "again" / "a.nii.gz", block(1), GEOMETRY)
    with pytest.raises(FlareError, match=r"a: references: 2 files of this id: .*again"):
        run(config, predictions, references)


@pytest.mark.parametrize("key", ["predictions", "references"])
def test_missing_folders_are_refused_with_the_key(
    config: Any, folders: tuple[Path, Path], tmp_path: Path, key: str
) -> None:
    given = dict(zip(("predictions", "references"), folders, strict=True)) | {key: tmp_path / "none"}
    with pytest.raises(FlareError, match=f"{key}: expected a folder"):
        run(config, given["predictions"], given["references"])


def test_organ_mean_is_over_rounded_class_means(labels: ClassList) -> None:
    rows = [
        {"Name": n, **{f"{c.short}_{m}": v for c in labels.entries for m in ("DSC", "NSD")}}
        for n, v in (("a", 0.3333), ("b", 0.3334))
    ]
    rows[0]["Liver_DSC"] = 0.9
    rows[1]["Lesion_DSC"] = None
    summary = summarise(rows, labels)
    assert summary["classes"]["RK"]["DSC"] == np.round(np.mean([0.3333, 0.3334]), 4)
    expected = [summary["classes"][labels.by_id(i).short]["DSC"] for i in labels.organs]
    assert summary["organ_mean"]["DSC"] == np.round(np.mean(expected), 4)
    assert summary["tumor"]["DSC"] == 0.3333


@pytest.mark.slow
def test_worker_processes_give_the_same(
    labels: ClassList, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, references = folders
    given = {p.name.removesuffix(".nii.gz"): p for p in references.iterdir()}
    found = []
    for workers in (0, 2):
        executor = LocalExecutor(workers, retries=1)
        found.append(
            score_folder(
                predictions,
                given,
                output=tmp_path / str(workers),
                settings=ScoreSettings(labels),
                executor=executor,
            )
        )
        executor.close()
    assert found[0] == found[1]


def test_scores_of_ones_own_stand_beside_the_challenges(config: Any, folders: tuple[Path, Path]) -> None:
    plain = run(config, *folders)
    columns = list(read_csv(folders[0] / "metrics.csv")[0])
    assert not (folders[0] / "extra_scores.csv").exists()
    parts = (
        "{_target_: outside.Volumes, name: liver}",
        "{_target_: outside.agreement, _partial_: true, weight: 2}",
    )
    summary = run(config, *folders, f"evaluation.extra=[{', '.join(parts)}]")
    rows = read_csv(folders[0] / "extra_scores.csv")
    # 64 voxels of 2 mm3; case b has no liver, case c no prediction
    assert [(r["Name"], r["liver_reference_ml"], r["liver_prediction_ml"]) for r in rows] == [
        ("a", "0.128", "0.128"),
        ("b", "", ""),
        ("c", "0.128", "0.0"),
    ]
    expected = [2.0, 2 * (512 - 64) / 512, 2 * (512 - 64) / 512]
    assert [float(r["agreement"]) for r in rows] == expected
    assert summary["extra_scores"] == {
        "liver_reference_ml": 0.128,
        "liver_prediction_ml": 0.064,
        "agreement": pytest.approx(np.mean(expected)),
    }
    assert read_json(folders[0] / "summary.json")["extra_scores"] == summary["extra_scores"]
    assert list(read_csv(folders[0] / "metrics.csv")[0]) == columns
    assert {k: v for k, v in summary.items() if k != "extra_scores"} == plain
    run(config, *folders)
    assert not (folders[0] / "extra_scores.csv").exists()  # nothing of an earlier call stays


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("5", "evaluation.extra=5: expected a list of scores"),
        ("[outside.Volumes]", "evaluation.extra=['outside.Volumes']: expected a list of scores"),
        (
            "[{_target_: outside.Volumes, nme: liver}]",
            "evaluation.extra[0]: outside.Volumes does not take nme",
        ),
        ("[{_target_: outside.Smallest}]", "evaluation.extra[0]: outside.Smallest refuses it"),
        (
            "[{_target_: builtins.dict}]",
            "evaluation.extra[0]: builtins.dict gives nothing that can be called",
        ),
    ],
)
def test_a_score_that_cannot_be_built_is_refused_before_any_work(
    config: Any, folders: tuple[Path, Path], given: str, said: str
) -> None:
    with pytest.raises(FlareError) as refused:
        run(config, *folders, f"evaluation.extra={given}")
    assert str(refused.value).startswith(said)
    assert not (folders[0] / "metrics.csv").exists()


def test_two_scores_of_one_name_are_refused(config: Any, folders: tuple[Path, Path]) -> None:
    twice = ", ".join(["{_target_: outside.Volumes, name: liver}"] * 2)
    with pytest.raises(
        FlareError, match=r"evaluation\.extra\[1\]: gives liver_prediction_ml, liver_ref.*taken"
    ):
        run(config, *folders, f"evaluation.extra=[{twice}]")


@pytest.mark.parametrize("protocol", ["flare22", "null"])
def test_an_unknown_protocol_is_refused_by_its_key(
    config: Any, folders: tuple[Path, Path], protocol: str
) -> None:
    with pytest.raises(FlareError, match=r"^protocol=.*: expected one of flare23, corrected, present$"):
        run(config, *folders, f"protocol={protocol}")
