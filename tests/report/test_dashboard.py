"""The dashboard of a run or a sweep: as files here, as a report for W&B, from one description."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wandb_workspaces.reports.v2 as wr
from matplotlib.colors import to_hex
from omegaconf import DictConfig

from colours import ciede2000, to_lab, to_linear
from flare.core.errors import FlareError
from flare.core.files import write_csv
from flare.core.pictures import rgb, run_strokes
from flare.dashboard import main, make_dashboard, read_comparison
from flare.report.comparison import build_report, compared_bars, compared_curves
from flare.report.figures import to_svg
from flare.runs.folders import record_environment
from flare.sweeps.jobs import COMPLETED, Job

pytestmark = pytest.mark.slow


@pytest.fixture
def run(config: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """A run of two rounds with its ablation table."""
    write_rounds(config, tmp_path, "mo", "mt")
    rows = [
        {
            "round": "mo",
            "cases": 3,
            "organ_mean_DSC": 80.0,
            "Lesion_DSC": None,
            "paper_organ_mean_DSC": 86.68,
        },
        {"round": "mt", "cases": 4, "organ_mean_DSC": None, "Lesion_DSC": 30.0, "paper_organ_mean_DSC": None},
    ]
    write_csv(tmp_path / "table5.csv", rows)
    return tmp_path


def write_rounds(config: Callable[..., DictConfig], folder: Path, *names: str) -> None:
    for name in names:
        place = folder / "rounds" / name
        rows = [
            {
                "epoch": n,
                "step": 10 * n + 10,
                "train/loss": 1 / (n + 1),
                "val/dsc_mean": d,
                "val/dsc/liver": d,
            }
            for n, d in ((0, None), (1, 0.25), (2, 0.5))
        ]
        write_csv(place / "training.csv", rows)
        record_environment(place, config("train", f"round={name}", "name=trial", "logger=wandb"))


def test_a_run_is_told_by_its_rounds(run: Path) -> None:
    found = read_comparison(run)
    assert (found.name, found.project, found.entity) == ("trial", "flare", None)
    assert list(found.curves) == ["mo", "mt"]
    assert found.curves["mo"][2]["val/dsc_mean"] == 0.5
    assert found.tables[0].rows[0][2].text == "80.00 (86.68)"


def test_files_show_curves_bars_and_table(run: Path) -> None:
    paths = make_dashboard(run, output=run / "out", online=False)
    page = paths["html"].read_text()
    assert page.count("data:image/svg+xml;base64,") == 4  # Dice by step and last, loss, liver
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(a.startswith(("data:", "#")) for a in addresses)  # nothing to fetch
    assert re.findall(r'<a href="#([\w-]+)"', page) == re.findall(r'<section id="([\w-]+)"', page)
    for colour, _, _ in run_strokes(("mo", "mt")).values():  # a legend beside each section's pictures
        assert page.count(f'{colour}"></i>') == 3
    assert "80.00 (86.68)" in page
    assert "| mo | 0.5 |" in paths["md"].read_text()
    spec = json.loads(paths["json"].read_text())
    assert spec["group"] == "trial"
    assert [s["title"] for s in spec["sections"]] == ["Validation", "Loss", "Classes", "Cases"]


def test_a_sweep_is_told_by_its_jobs(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    for number, lr in enumerate(("0.1", "0.2")):
        write_rounds(config, tmp_path / str(number), "mo")
        Job(str(number), "train", ["round=mo", f"lr={lr}"], COMPLETED, 1.0).write(tmp_path)
    found = read_comparison(tmp_path)
    assert list(found.curves) == ["lr=0.1", "lr=0.2"]
    assert [row[1].text for row in found.tables[0].rows] == ["0.1", "0.2"]


def test_wandb_gets_the_same_panels(run: Path) -> None:
    found = replace(read_comparison(run), project="p", entity="team")
    report = build_report(found)
    assert (report.project, report.entity, report.title) == ("p", "team", "Ablation: trial")
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert [len(g.panels) for g in grids] == [len(panels) for panels in found.sections.values()]
    lines = grids[0].panels[0]
    assert isinstance(lines, wr.LinePlot)
    assert "val/dsc_mean" in str(lines.y)
    assert "trial" in str(grids[0].runsets[0].filters)


def test_wandb_gets_no_folder_or_file_name_of_a_sweep(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    for number, patient in enumerate(("smith", "jones")):
        write_rounds(config, tmp_path / str(number), "mo")
        overrides = [
            f"data.root=/data/patients/{patient}",
            f"round.checkpoint={patient}.ckpt",
            f"+trainer.profiler=/logs/{patient}",
            f"optimizer.lr=0.{number}",
        ]
        Job(str(number), "train", overrides, COMPLETED, 1.0).write(tmp_path)
    found = read_comparison(tmp_path)
    assert "/data/patients/smith" in str(found.tables)  # files here may hold it
    (text,) = [b.text for b in build_report(found).blocks if isinstance(b, wr.MarkdownBlock)]
    assert "smith" not in text
    assert "jones" not in text
    assert "| 0 | - | - | 0.0 | completed | 1 |" in text
    assert "| job | round.checkpoint | trainer.profiler | optimizer.lr | status |" in text


def test_online_without_a_login_is_refused_after_the_files_are_written(
    config: Callable[..., DictConfig], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(run / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(FlareError, match=r"^online=true: W&B refuses"):
        main(config("dashboard", f"run={run}", "online=true"))
    assert (run / "dashboard.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run: not given"),
        (["run=/nowhere"], "run=/nowhere: expected the folder"),
        (["run=x", "online=maybe"], "online=maybe: expected true or false"),
    ],
)
def test_refusals_are_one_line(config: Callable[..., DictConfig], arguments: list[str], message: str) -> None:
    with pytest.raises(FlareError, match=f"^{message}.*$"):
        main(config("dashboard", *arguments))


def test_no_two_runs_look_alike_and_each_looks_the_same_in_every_picture() -> None:
    names = [str(n) for n in range(21)]
    strokes = run_strokes(names)
    assert len(set(strokes.values())) == 21
    assert run_strokes(names[:2]) == {name: strokes[name] for name in names[:2]}


def test_no_two_runs_have_one_colour_and_all_stand_out_on_white() -> None:
    colours = [colour for colour, _, _ in run_strokes([str(n) for n in range(24)]).values()]
    labs = to_lab(to_linear(np.array([rgb(colour) for colour in colours])))
    differences = ciede2000(labs[:, None], labs[None])
    np.fill_diagonal(differences, np.inf)
    assert differences.min() > 12
    assert ciede2000(labs, np.array([100.0, 0, 0])).min() > 25


def test_a_value_that_was_logged_once_is_a_bar_and_no_curve(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    write_rounds(config, tmp_path, "mo", "mt")
    for name in ("mo", "mt"):
        row = {"epoch": 0, "step": 10, "train/loss": 0.5, "val/dsc_mean": 0.25, "val/dsc/liver": math.nan}
        write_csv(tmp_path / "rounds" / name / "training.csv", [row])
    drawn = [p for panels in read_comparison(tmp_path).sections.values() for p in panels if p.is_drawn]
    assert [(p.kind, p.title) for p in drawn] == [
        ("bars", "mean Dice, last"),
        ("bars", "train/loss, last"),
        ("bars", "dsc/liver, last"),
    ]


def test_the_names_of_bars_are_whole() -> None:
    name = "model.net.deep_supervision=false optimizer.weight_decay=0.00003 data.augmentation.mirror=none"
    (axes,) = compared_bars({name: 0.5}, run_strokes([name])).axes
    assert "".join(axes.get_yticklabels()[0].get_text().split()) == name.replace(" ", "")


def test_curves_and_bars_of_a_run_have_its_colour() -> None:
    strokes = run_strokes("ab")
    lines = compared_curves({"a": [(1, 0.5), (2, math.nan)], "b": [(1, 0.25)]}, strokes).axes[0].lines
    assert [line.get_color() for line in lines] == [strokes["a"][0], strokes["b"][0]]
    assert lines[0].get_xydata().tolist() == [[1, 0.5]]  # what is not finite is no point
    (bar,) = compared_bars({"b": 0.5}, strokes).axes[0].patches
    assert to_hex(bar.get_facecolor()) == strokes["b"][0]


def test_a_folder_without_training_is_no_ablation(tmp_path: Path) -> None:
    with pytest.raises(FlareError, match="found no training"):
        read_comparison(tmp_path)


def test_a_figure_is_the_same_file_each_time() -> None:
    points = {"a": [(1, 0.5), (2, 0.25)]}
    first, second = (to_svg(compared_curves(points, run_strokes("a"))) for _ in range(2))
    assert first == second
