"""Tables 4, 6, 7 and 8 of one round."""

from pathlib import Path
from typing import Any

import pytest

from flare.core.classes import ClassList
from flare.core.files import read_csv
from flare.evaluation.metrics import MEASURES
from flare.evaluation.tables import write_round_tables

COSTS = {
    "max_gpu_mb": None,
    "gpu_auc": None,
    "cpu_percent": 50.0,
    "cpu_auc": 75.0,
    "ram_mb": 9.0,
    "ram_auc": 9.0,
}


@pytest.fixture
def write(labels: ClassList, tmp_path: Path) -> Any:
    scores = [{f"{c.short}_{m}": "0.5" for c in labels.entries for m in MEASURES}]
    half = dict.fromkeys(MEASURES, 0.5)
    summary = {"organ_mean": half, "tumor": half}

    def start(inference: list[dict[str, Any]], targets: str = "organs_tumor") -> Path:
        write_round_tables(
            tmp_path, scores=scores, summary=summary, inference=inference, classes=labels, targets=targets
        )
        return tmp_path

    return start


def measured(case: str, time_s: float) -> dict[str, Any]:
    return {"case": case, "size": "64x60x20", "time_s": time_s, **COSTS}


def test_without_a_measurement_there_is_no_table_of_efficiency(write: Any) -> None:
    folder = write([{"case": "a", "size": "64x60x20", "seconds": 1.0}])
    assert sorted(p.name for p in folder.iterdir()) == [
        f"table{n}.{suffix}" for n in (4, 8) for suffix in ("csv", "md", "tex")
    ]
    assert read_csv(folder / "table8.csv")[0]["time_s"] == ""


def test_measured_cases_give_all_tables_and_their_mean_stands_in_two(write: Any) -> None:
    folder = write([measured("a", 1.0), measured("b", 2.0)])
    table6, table7, table8 = (read_csv(folder / f"table{n}.csv") for n in (6, 7, 8))
    assert [(r["source"], r["case"], r["size"], r["time_s"]) for r in table6[:2]] == [
        ("ours", "a", "64x60x20", "1.0"),
        ("ours", "b", "64x60x20", "2.0"),
    ]
    assert (table6[2]["source"], table6[2]["size"]) == ("paper", "512x512x55")
    ours, paper = table7
    assert (ours["time_s"], ours["max_gpu_mb"], ours["cpu_auc"]) == ("1.5", "", "75.0")
    assert (paper["time_s"], paper["max_gpu_mb"]) == ("26.7", "2504.6")
    assert (table8[0]["time_s"], table8[0]["gpu_auc"]) == ("1.5", "")


def test_tables_of_an_earlier_measurement_do_not_outlive_it(write: Any) -> None:
    write([measured("a", 1.0)])
    folder = write([{"case": "a", "seconds": 1.0}])
    assert not list(folder.glob("table[67].*"))


@pytest.mark.parametrize(
    ("targets", "organ", "tumor"),
    [("organs", "50.0", ""), ("tumor", "", "50.0"), ("organs_tumor", "50.0", "50.0")],
)
def test_what_a_round_does_not_learn_stays_empty(write: Any, targets: str, organ: str, tumor: str) -> None:
    folder = write([], targets)
    rows = {r["target"]: r["DSC"] for r in read_csv(folder / "table4.csv")}
    assert (rows["Liver"], rows["Lesion"]) == (organ, tumor)
    ours = read_csv(folder / "table8.csv")[0]
    assert (ours["organ_DSC"], ours["tumor_NSD"]) == (organ and "0.5", tumor and "0.5")
