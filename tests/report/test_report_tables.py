"""The page's tables from rows as a run leaves them."""

from pathlib import Path
from typing import Any

import pytest

from flare.core.classes import ClassList
from flare.report.charts import class_boxes, trend, trends
from flare.report.examples import named_ranks
from flare.report.facts import Facts, ReportSettings, RoundFacts, gather
from flare.report.page import ablation_table, efficiency_row, headline, provenance_row
from flare.rounds.score import Results
from report_run import make_run

pytestmark = pytest.mark.slow

PLAN = {"cases": "2", "of": "all", "targets": "organs", "model": "tiny", "epochs": "1"}


def facts(labels: ClassList, rounds: list[RoundFacts], table: list[dict[str, Any]]) -> Facts:
    settings = ReportSettings("run", "phantom", "test", "present", labels, None, None, {})
    return Facts(settings, [], [], rounds, Results(table, []))


def two_classes(labels: ClassList) -> ClassList:
    return ClassList.from_config({k: v for k, v in labels.to_config().items() if k in ("liver", "tumor")})


def test_the_best_of_ours_is_marked_whatever_the_paper_has(labels: ClassList) -> None:
    rows = [
        {"round": "mo", "cases": 4, "Liver_DSC": 60.0, "organ_mean_DSC": 50.0, "paper_Liver_DSC": 95.7},
        {"round": "atlas", "cases": None, "Liver_DSC": 70.0, "organ_mean_DSC": 20.0},
    ]
    found = ablation_table(facts(two_classes(labels), [RoundFacts("mo", [], PLAN)], rows), "DSC")
    first, second, public = found
    assert [c["best"] for c in first["cells"]] == [False, False, True]  # liver, tumor, organ mean
    assert [c["best"] for c in second["cells"]] == [True, False, False]
    assert (first["baseline"], second["baseline"]) == (False, True)
    assert first["cells"][0] == {"ours": 60.0, "paper": 95.7, "best": False}
    # Table 4, first column; the mean of its 13 organs, by hand
    assert [(c["ours"], c["paper"]) for c in public["cells"]] == [(None, 97.46), (None, 52.23), (None, 88.92)]


def test_provenance_counts_maps_and_volume_by_source(labels: ClassList) -> None:
    fates = {"tumors_kept": "1", "tumors_dropped": "2", "tumors_superseded": "0", "tumors_absorbed": "0"}
    rows = [
        {"tumor_bearing": "liver", "overwritten": "5", **fates, "Liver_source": "mo@12", "Liver_merged": "30"}
        | {"Lesion_source": "ground_truth", "Lesion_merged": "10"},
        {
            "tumor_bearing": "",
            "overwritten": "0",
            **fates,
            "Liver_source": "ground_truth",
            "Liver_merged": "20",
        }
        | {"Lesion_source": "none", "Lesion_merged": "0"},
    ]
    row = provenance_row(RoundFacts("mo1", ["mo"], PLAN, provenance=rows), two_classes(labels))
    assert (row["from_truth"], row["from_teacher"]) == (2, 1)
    assert row["teacher_percent"] == 50
    assert (row["bearing"], row["overwritten"], row["kept"], row["dropped"]) == (1, 5, 2, 4)


def test_cases_are_ranked_by_the_classes_that_were_scored(labels: ClassList) -> None:
    scores = [
        {"Name": "a", "Liver_DSC": 0.5, "Lesion_DSC": None},
        {"Name": "b", "Liver_DSC": 0.9, "Lesion_DSC": 0.3},
        {"Name": "c", "Liver_DSC": None, "Lesion_DSC": None},
    ]
    order = list(facts(two_classes(labels), [RoundFacts("mo", [], PLAN, scores=scores)], []).ranked)
    assert order == ["b", "a"]
    assert named_ranks(order) == {"b": "best", "a": "worst"}
    assert named_ranks(["x"]) == {"x": "best"}
    assert named_ranks("abc") == {"a": "best", "b": "median", "c": "worst"}


def test_efficiency_of_a_round_without_scored_cases_is_empty() -> None:
    row = efficiency_row(RoundFacts("mo", [], PLAN, curve=[{"patches_per_s": 4.0}]))
    assert (row["patches_per_s"], row["n"], row["median_s"], row["gpu_memory_mb"]) == (4.0, 0, None, None)


@pytest.mark.parametrize(
    ("last", "drawn", "name", "shown"),
    [("mt", "Lesion", "tumor", {"tumor"}), ("mo", "organ_mean", "organ", {"liver", "spleen"})],
)
def test_what_the_last_round_does_not_learn_is_nowhere(
    tmp_path: Path, last: str, drawn: str, name: str, shown: set[str]
) -> None:
    made = make_run(tmp_path, (last,))
    found = gather(*made.arguments())
    scores = {c.name: found.last.scores[0][f"{c.short}_DSC"] for c in found.settings.classes.entries}
    scored = {key: value for key, value in scores.items() if value is not None}
    assert set(scored) == shown
    (mean,) = found.ranked.values()
    assert mean == pytest.approx(sum(scored.values()) / len(scored))
    ticks = class_boxes(found.last, found.settings.classes).axes[1].get_xticklabels()
    assert len(ticks) == (1 if last == "mt" else 13)
    assert list(trends(found)) == [f"{drawn}_DSC"]
    figure = trend(found)
    assert figure is not None
    assert len(figure.axes) == 1
    told = [told for told, _ in headline(found)]
    assert told == [f"{name} DSC of {last.upper()}", f"{name} DSC of the best baseline (atlas)"]


def test_a_run_whose_rounds_are_not_in_the_table_has_no_trend(labels: ClassList) -> None:
    assert trend(facts(labels, [RoundFacts("mo", [], PLAN)], [])) is None
