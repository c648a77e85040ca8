"""The paper's numbers, checked against each other: sums that a slip of a digit would break."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.evaluation.published import is_flare23, published, shows_published

ROUNDS = ("mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3")


def test_rounds_and_their_training_images() -> None:
    images = {name: published()["table5"][name]["training_images"] for name in published()["table5"]}
    expected = dict(zip(ROUNDS, (222, 2200, 2200, 1497, 1497, 2200, 4000, 4000), strict=True))
    assert images == expected


@pytest.mark.parametrize("name", [r for r in ROUNDS if r != "mt"])
@pytest.mark.parametrize("measure", ["DSC", "NSD"])
def test_organ_means_are_the_means_of_the_organs(labels: ClassList, name: str, measure: str) -> None:
    scores = published()["table5"][name][measure]
    organs = [scores[labels.by_id(i).short] for i in labels.organs]
    assert np.mean(organs) == pytest.approx(scores["organ_mean"], abs=0.0051)


def test_headline_figures_of_table_5() -> None:
    means = [published()["table5"][r]["DSC"].get("organ_mean") for r in ROUNDS]
    assert means == [86.68, 87.88, 88.38, None, 88.59, 88.85, 88.86, 88.93]
    tumors = [published()["table5"][r]["DSC"].get("Lesion") for r in ROUNDS]
    assert tumors == [None, None, None, 34.34, 43.76, 44.31, 44.73, 45.76]
    assert published()["table5"]["mt"]["NSD"] == {"Lesion": 24.02}


def test_averages_of_table_4_are_over_all_fourteen_classes(labels: ClassList) -> None:
    table = published()["table4"]
    for split in ("public", "online", "testing"):
        for measure in ("DSC", "NSD"):
            values = [table[c.short][f"{split}_{measure}"] for c in labels.entries]
            expected = table["average"][f"{split}_{measure}"]
            assert np.mean(values) == pytest.approx(expected, abs=0.0101), (split, measure)


def test_online_column_of_table_4_is_the_last_round_of_table_5(labels: ClassList) -> None:
    for c in labels.entries:
        for measure in ("DSC", "NSD"):
            online = published()["table4"][c.short][f"online_{measure}"]
            assert online == pytest.approx(published()["table5"]["mot3"][measure][c.short], abs=0.0101)


def test_test_column_of_table_4_agrees_with_table_8(labels: ClassList) -> None:
    table = published()["table4"]
    means = [
        np.mean([table[labels.by_id(i).short][f"testing_{m}"] for i in labels.organs]) for m in ("DSC", "NSD")
    ]
    assert np.round(means, 2).tolist() == [89.75, 95.93]  # the paper prints 89.68 and 95.89
    table8 = published()["table8"]
    assert (table8["organ_DSC"], table8["organ_NSD"]) == (0.8968, 0.9589)
    assert 100 * table8["tumor_DSC"] == pytest.approx(table["Lesion"]["testing_DSC"])
    assert 100 * table8["tumor_NSD"] == pytest.approx(table["Lesion"]["testing_NSD"])
    assert (table8["gpu_auc"], table8["time_s"]) == (33804, 18.53)


def test_efficiency_tables() -> None:
    cases = published()["table6"]
    assert [c["case"] for c in cases] == ["0001", "0051", "0017", "0019", "0099", "0063", "0048", "0029"]
    assert [c["size"][2] for c in cases] == [55, 100, 150, 215, 334, 448, 499, 554]
    assert sum(c["time_s"] for c in cases) == pytest.approx(239.14)
    assert sum(c["gpu_auc"] for c in cases) == 429945
    assert {c["max_gpu_mb"] for c in cases} == {2468}
    assert (published()["table7"]["time_s"], published()["table7"]["gpu_auc"]) == (26.7, 49352.9)


def test_the_figures_are_of_the_class_list_that_the_configuration_calls_flare23s(labels: ClassList) -> None:
    assert is_flare23(labels)


@pytest.mark.parametrize(
    "change",
    [
        {"liver": {"tolerance_mm": 3}},
        {"aorta": {"slice_range": False}},
        {"liver": {"short": "Hepar"}},
        {"tumor": {"role": "organ"}},
        {"spleen": {"id": 20}},
        {"spleen": None},
    ],
)
def test_any_other_class_list_is_not_flare23s(labels: ClassList, change: dict[str, Any]) -> None:
    config = {name: own | (change.get(name) or {}) for name, own in labels.to_config().items()}
    config = {name: own for name, own in config.items() if change.get(name, own) is not None}
    assert not is_flare23(ClassList.from_config(config))
    config["liver_cyst"] = config["liver"] | {"id": 30, "short": "Cyst"}
    assert not is_flare23(ClassList.from_config(config))


@pytest.mark.parametrize(
    ("overrides", "protocol", "shown"),
    [
        (["data=flare23", "data.root=x"], "flare23", True),
        (["data=flare23", "data.root=x"], "corrected", False),
        (["data=flare23", "data.root=x"], "present", False),
        (["data=flare23", "data.root=x"], None, True),  # inference scores nothing
        (["data=flare23", "data.root=x", "report.published=flare23"], "present", True),
        (["data=flare23", "data.root=x", "report.published=none"], "flare23", False),
        ([], "present", True),  # the phantom
        (["report.published=none"], "present", False),
        (["classes.liver.tolerance_mm=4"], "flare23", False),
        (["classes.liver.tolerance_mm=4"], None, False),
    ],
)
def test_the_papers_figures_are_shown_by_flare23s_classes_and_protocol(
    config: Callable[..., DictConfig], overrides: list[str], protocol: str | None, shown: bool
) -> None:
    cfg = config("iterate", *overrides)
    assert shows_published(cfg, ClassList.from_config(cfg.classes), protocol) is shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["report.published=true"], "report.published=True: expected one of auto, none, flare23"),
        (["report.published=all"], "report.published=all: expected one of auto, none, flare23"),
        (["report.published=flare23", "classes.liver.tolerance_mm=4"], "report.published=flare23: the paper"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    config: Callable[..., DictConfig], overrides: list[str], message: str
) -> None:
    cfg = config("iterate", *overrides)
    with pytest.raises(FlareError, match=f"^{message}[^\n]*$"):
        shows_published(cfg, ClassList.from_config(cfg.classes), "flare23")
