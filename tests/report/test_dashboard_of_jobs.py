"""The dashboard of a sweep without trainings: the table of its jobs, and a bar for each measure."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.files import write_text
from flare.dashboard import main, read_comparison
from flare.sweeps.jobs import COMPLETED, FAILED, PLANNED, Job

CONFIG = "name: ablation_tta\nlogger: {wandb: {project: mine, entity: team}}\n"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of `evaluate` over three kinds of flips, of which one failed and one has not begun."""
    for number, dsc in enumerate((0.5, 0.75)):
        measures = {"organ_mean/DSC": dsc, "classes/Liver/DSC": dsc}
        Job(str(number), "evaluate", [f"tta=tta{number}"], COMPLETED, 1.0, None, measures).write(tmp_path)
    Job("2", "evaluate", ["tta=tta2"], FAILED, 1.0, "no room").write(tmp_path)
    Job("3", "evaluate", ["tta=tta3"], PLANNED).write(tmp_path)
    write_text(tmp_path / "1" / ".hydra" / "config.yaml", CONFIG)
    return tmp_path


def test_jobs_are_told_by_their_measures(sweep: Path) -> None:
    found = read_comparison(sweep)
    assert (found.name, found.project, found.entity) == ("ablation_tta", "mine", "team")
    assert found.curves["tta=tta1"] == [{"organ_mean/DSC": 0.75, "classes/Liver/DSC": 0.75}]
    assert list(found.curves) == ["tta=tta0", "tta=tta1"]
    assert [row[2].text for row in found.tables[0].rows] == ["completed", "completed", "failed", "planned"]


def test_files_show_a_bar_of_each_measure_and_the_table(
    config: Callable[..., DictConfig], sweep: Path
) -> None:
    main(config("dashboard", f"run={sweep}"))
    page = (sweep / "dashboard.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 1  # the means alone are shown
    assert "<b>0.7500</b>" in page
    assert "no room" not in page
    text = (sweep / "dashboard.md").read_text()
    assert "| job | organ_mean/DSC |\n" in text
    assert "| tta=tta0 | 0.5 |" in text
    sections = json.loads((sweep / "dashboard.json").read_text())["sections"]
    assert [(s["title"], [p["title"] for p in s["panels"]]) for s in sections] == [
        ("Measures", ["organ_mean/DSC"])
    ]


def test_a_report_of_jobs_that_were_not_logged_is_refused(
    config: Callable[..., DictConfig], sweep: Path
) -> None:
    with pytest.raises(FlareError, match=r"^online=true: only trainings are logged"):
        main(config("dashboard", f"run={sweep}", "online=true"))
    assert (sweep / "dashboard.html").exists()


def test_a_sweep_of_which_nothing_has_begun_is_refused(tmp_path: Path) -> None:
    Job("0", "evaluate", ["tta=tta0"], PLANNED).write(tmp_path)
    with pytest.raises(FlareError, match="no training in it and no job"):
        read_comparison(tmp_path)
