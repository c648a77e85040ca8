"""Table 2: what trainings are and cost, by a stated formula, beside the paper's; and on what machine."""

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from flare.core.cases import Case
from flare.core.errors import FlareError
from flare.core.files import read_csv, write_csv, write_json
from flare.prepare.cohort import Foreseen
from flare.rounds.protocol import foresee, protocol_row, write_protocol
from flare.rounds.settings import RoundSettings
from flare.runs.folders import machine
from flare.runs.journal import Journal

A4000 = "NVIDIA RTX A4000, 16376 MiB, 140.00 W"
SILENT = "NVIDIA A30 MIG 1g.6gb, 5952 MiB, [N/A]"
LENGTH = ["data.batch_size=2", "trainer.limit_train_batches=100", "trainer.max_epochs=2"]
ENERGY = ["report.energy.host_watts=100", "report.energy.grid_kg_per_kwh=0.5"]


@pytest.fixture
def trained(config: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., RoundSettings]:
    """A round of two epochs of 100 batches at 0.005 patches a second, on GPUs or on none."""

    def make(*overrides: str, gpus: list[str] | None = None, devices: int = 1) -> RoundSettings:
        line = ["round=mo", f"paths.run={tmp_path}", *LENGTH, *ENERGY, *overrides]
        made = RoundSettings.from_config(config("train", *line))
        rows = [{"epoch": n, "patches_per_s": 0.005} for n in range(2)]
        write_csv(made.folder.training_csv, rows)
        network = {"parameters_m": 22.56, "multiply_adds_g": 253.06, "with_norms_g": 253.9}
        known = {"gpus": gpus or [], "network": network, "os": "Some Linux", "libraries": {"torch": "2.1"}}
        known |= {"device": "cpu" if gpus is None else "cuda", "devices": devices}
        write_json(made.folder.root / "environment.json", known)
        return made

    return make


@pytest.mark.parametrize(
    ("overrides", "gpus", "devices", "hours", "watts"),
    [
        ([], None, 1, 80_000 / 3600, 100),
        ([], None, 2, 160_000 / 3600, 100),  # speed is that of all devices, the batch is each one's
        ([], [A4000, A4000], 1, 80_000 / 3600, 240),
        ([], [A4000, A4000], 2, 160_000 / 3600, 380),
        (["report.energy.gpu_watts=50"], [SILENT], 1, 80_000 / 3600, 150),
        (["report.energy.gpu_watts=50"], [], 2, 160_000 / 3600, 200),
        ([], [SILENT], 1, 80_000 / 3600, None),  # nothing says what it draws
        ([], [], 1, 80_000 / 3600, None),
    ],
)
def test_energy_is_hours_times_watts(
    trained: Callable[..., RoundSettings],
    overrides: list[str],
    gpus: list[str] | None,
    devices: int,
    hours: float,
    watts: Any,
) -> None:
    row = protocol_row(trained(*overrides, gpus=gpus, devices=devices))
    assert row["hours"] == pytest.approx(hours, rel=1e-5)
    kwh = None if watts is None else pytest.approx(hours * watts / 1000, rel=1e-4)
    assert row["energy_kwh"] == kwh
    assert row["co2_kg"] == (None if watts is None else pytest.approx(hours * watts / 1000 / 2, rel=1e-4))


def test_a_round_that_is_not_trained_costs_nothing_known(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    row = protocol_row(RoundSettings.from_config(config("train", "round=mo", f"paths.run={tmp_path}")))
    assert [row[k] for k in ("hours", "energy_kwh", "co2_kg", "parameters_m")] == [None] * 4


def test_the_papers_tables_stand_below_ours(trained: Callable[..., RoundSettings], tmp_path: Path) -> None:
    write_protocol([trained()], tmp_path / "table2", has_paper=True)
    ours, medium, large = read_csv(tmp_path / "table2.csv")
    told = [medium[k] for k in ("model", "parameters_m", "with_norms_g", "hours", "co2_kg")]
    assert told == ["medium", "22", "253.9", "25", "8.14"]
    told = [large[k] for k in ("model", "parameters_m", "with_norms_g", "hours", "co2_kg")]
    assert told == ["large", "85", "375.14", "33", "9.83"]
    assert (ours["round"], ours["patch"], ours["multiply_adds_g"]) == ("mo", "32x128x192", "253.06")
    assert "five more for each normalised element" in (tmp_path / "table2.md").read_text()
    assert r"five more for each normalised" in (tmp_path / "table2.tex").read_text()
    write_protocol([trained()], tmp_path / "table2", has_paper=False)
    assert len(read_csv(tmp_path / "table2.csv")) == 1


def test_what_the_rounds_of_a_cohort_take(
    trained: Callable[..., RoundSettings], config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """2 epochs of 100 batches of 2 at 0.005 patches a second are 80,000 s; 100 MB packed are 100e6 voxels.

    No image has more than 30e6 mm3 on the training grid, whose voxels are of 5.76: 5.2 MB of cache a case. A
    map of labels takes 0.01 bytes a voxel: two on the image's grid and one on that for training.
    """
    cases = [
        Case(f"c{n}", tmp_path / f"c{n}.nii.gz", None, "train", "organs_complete", (), ()) for n in range(4)
    ]
    cases = [replace(case, label=case.image) for case in cases]
    for case in cases:
        with case.image.open("wb") as stream:
            stream.truncate(10**8)  # sparse: takes no room
    cohort = Foreseen(cases, pending={"c1": "image changed", "of another split": "new"})
    mo = trained(gpus=[A4000], devices=1)
    longer = RoundSettings.from_config(
        config("train", "round=mo1", f"paths.run={tmp_path}", *LENGTH, "trainer.max_epochs=3")
    )
    others = RoundSettings.from_config(
        config("train", "round=mo2", f"paths.run={tmp_path}", "data.batch_size=4")
    )
    noted = Journal(mo.folder.journal("predict-validation"))
    for name, seconds in (("v1", 8.0), ("v2", 10.0)):
        noted.record(name, {}, {}, {}, {"seconds": seconds})
    assert foresee([mo, longer, others], cohort, workers=2) == [
        "cache: about 21 MB for 4 training cases, 1 to read, about 3 s",
        "round mo: training 22.2 h on 1 x cuda (measured in mo)",
        "round mo1: training 33.3 h on 1 x cuda (measured in mo), labels about 8 MB, "
        "4 predictions one at a time 36 s",
        "round mo2: training not measured, labels about 8 MB, 4 predictions one at a time not measured",
    ]


@pytest.mark.parametrize("key", ["gpu_watts", "host_watts", "grid_kg_per_kwh"])
def test_watts_below_nothing_are_refused(config: Callable[..., DictConfig], key: str) -> None:
    with pytest.raises(FlareError, match=rf"report\.energy\.{key}=-1"):
        RoundSettings.from_config(config("train", "round=mo", f"report.energy.{key}=-1"))


def test_the_machine_is_told_without_its_name() -> None:
    found = machine()
    assert set(found) == {"os", "cpu", "cores", "ram_gb", "gpus", "cuda"}
    assert found["cpu"]
    assert found["cores"] >= 1
    assert 0.1 < found["ram_gb"] < 1e5
    assert platform.node() not in (found["os"], found["cpu"])


def test_gpus_are_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{A4000}'\necho '{SILENT}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine()["gpus"] == [A4000, SILENT]
