"""What trackers are told of a training, read back: all that docs/logging.md lists, and no path."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flare.core.classes import ClassList
from flare.core.files import write_csv
from flare.core.geometry import Geometry, Volume
from flare.evaluation.lesions import detection, write_detection
from flare.evaluation.tables import AblationRow, table5
from flare.prepare.cohort import Cohort
from flare.report.comparison import publish_table
from flare.runs.folders import RoundFolder, run_folder
from flare.training.loggers import KEY, MlflowRun, Overlays, cut_slice
from tiny_round import LIVER, TINY, TUMOR, configuration, train_tiny, write_cohort
from wandb_files import OfflineRun, read_offline

pytestmark = pytest.mark.slow  # whole programs


DOCS = Path(__file__).parents[2] / "docs" / "logging.md"
WANDB = ["logger=wandb", "logger.wandb.offline=true"]
THERE = ("liver", "spleen", "tumor")  # classes of the tiny cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def folder(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> RoundFolder:
    """A round of two epochs, interrupted after the first and resumed."""
    outputs = tmp_path_factory.mktemp("outputs")
    first = (*WANDB, "name=trial", "round=mot", "model=tiny", *TINY[3:7], "labels.source=ground_truth")
    train_tiny(cohort, outputs, *first, "trainer.max_epochs=1", "scheduler.decay_epochs=2")
    return train_tiny(cohort, outputs, *first, "trainer.max_epochs=2", "ckpt_path=last")[1]


@pytest.fixture(scope="module")
def runs(folder: RoundFolder) -> list[OfflineRun]:
    return in_order(run for logs in folder.checkpoints.glob("*/logs") for run in read_offline(logs))


def in_order(runs: Iterable[OfflineRun]) -> list[OfflineRun]:
    """Runs as they began, which their folders' names tell."""
    return sorted(runs, key=lambda run: run.folder.name)


def documented(section: str) -> set[str]:
    """Keys in the tables of a section of the documentation, a class's key once a class."""
    text = DOCS.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE)
    keys = {key for key, told in rows if "only with a GPU" not in told or torch.cuda.is_available()}
    return {key.replace("<class>", name) for key in keys for name in (THERE if "<class>" in key else ("",))}


def synced(run: Path) -> set[Path]:
    """What the documented `wandb sync` finds in a run's folder."""
    command = re.search(r"^wandb sync (.+)$", DOCS.read_text(), re.MULTILINE)
    assert command is not None
    globs = [g.removeprefix("outputs/demo/") for g in command[1].split("#")[0].split()]
    return {path for glob in globs for path in run.glob(glob)}


def test_the_documented_command_finds_the_runs_of_rounds(runs: list[OfflineRun], folder: RoundFolder) -> None:
    assert synced(folder.root.parents[1]) == {run.folder for run in runs}


def test_every_documented_key_is_logged_and_nothing_else(runs: list[OfflineRun]) -> None:
    expected = documented("Of a training")
    assert {"train/ce", "val/nsd/tumor", "val/overlays"} <= expected
    for run in runs:
        assert {key for key in run.keys if "." not in key} == expected


def test_group_job_and_tags_are_experiment_round_and_choices(runs: list[OfflineRun]) -> None:
    run = runs[0].run
    assert (run["run_group"], run["job_type"], run["project"]) == ("trial", "mot", "flare")
    assert run["tags"] == ["flare23", "tiny", "organs_tumor"]


def test_a_resumed_training_goes_on_in_its_run(runs: list[OfflineRun], folder: RoundFolder) -> None:
    first, second = (run.run["run_id"] for run in runs)
    assert first == second == torch.load(folder.last, weights_only=True)[KEY]["wandb"]
    epochs = [[row["epoch"] for row in run.history if "train/loss" in row] for run in runs]
    assert epochs == [[0], [1]]
    assert all(any(r["type"] == "exit" for r in run.records) for run in runs)  # each was ended


def test_the_configuration_is_plain_and_no_path_is_anywhere(
    runs: list[OfflineRun], cohort: Cohort, folder: RoundFolder
) -> None:
    config = runs[0].config
    assert config["data"]["patch_size"] == [8, 16, 16]
    assert config["optimizer"]["lr"] == 0.05
    assert "paths" not in config
    assert "root" not in config["data"]
    for run in runs:
        for place in (cohort.folder.root.parent, folder.root.parents[2], DOCS.parents[1]):
            assert str(place).encode() not in run.content
        assert not (run.folder / "files" / "output.log").exists()
        assert not (run.folder / "files" / "wandb-metadata.json").exists()


def test_overlays_are_pictures_with_named_masks(runs: list[OfflineRun], cohort: Cohort) -> None:
    rows = [row for row in runs[0].history if "val/overlays._type" in row]
    assert len(rows) == 1
    row = rows[0]
    assert row["val/overlays._type"] == "images/separated"
    assert row["val/overlays.captions"] == ["held_out"]
    files = runs[0].folder / "files"
    picture = np.asarray(Image.open(files / row["val/overlays.filenames"][0]))
    assert picture.std() > 5  # not blank
    masks = row["val/overlays.all_masks"][0]
    assert set(masks) == {"reference", "segmentation"}
    reference = np.asarray(Image.open(files / masks["reference"]["path"]))
    assert {LIVER, TUMOR} <= set(np.unique(reference).tolist())
    named = json.dumps(runs[0].config["_wandb"])
    assert '"14": "tumor"' in named
    assert '"1": "liver"' in named


def test_the_table_of_cases_has_ids_and_scores(runs: list[OfflineRun]) -> None:
    path = next((runs[0].folder / "files" / "media" / "table" / "val").glob("cases*.json"))
    table = json.loads(path.read_text())
    keys = [f"{m}/{name}" for m in ("dsc", "nsd") for name in THERE]
    assert table["columns"] == ["case", *keys]
    assert [row[0] for row in table["data"]] == ["held_out"]


def test_table5_is_an_artifact_once(cohort: Cohort, labels: ClassList, tmp_path: Path) -> None:
    cfg = configuration(tmp_path, tmp_path, *WANDB, "name=trial")
    run = run_folder(cfg)
    scores = dict.fromkeys(("DSC", "NSD"), 0.5)
    summary = {"classes": {c.short: scores for c in labels.entries}, "organ_mean": scores}
    rows = table5([AblationRow("mo", 3, summary)], labels, run.root / "table5")
    write_detection(run.root / "tumors", {"mo": detection({"a": [], "b": []})}, "mo", "")
    publish_table(cfg, run, rows)
    publish_table(cfg, run, rows)  # unchanged: nothing to say
    (only,) = read_offline(run.root / "logs")
    assert synced(run.root) == {only.folder}
    assert (only.run["run_group"], only.run["job_type"]) == ("trial", "ablation")
    artifact, tumors = (a for a in only.artifacts if a["type"] == "table")
    assert (artifact["name"], tumors["name"]) == ("trial-table5", "trial-tumors")
    files = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert {"table5.csv", "table5.md", "table5.tex"} <= files
    assert {key.replace("<name>", "trial") for key in documented("Of a run of rounds")} <= only.keys
    write_csv(run.root / "table5.csv", [{"round": "mo"}])
    publish_table(cfg, run, rows)
    ids = [r.run["run_id"] for r in read_offline(run.root / "logs")]
    assert len(ids) == 2
    assert ids[0] == ids[1]  # another version in the same run


def test_without_wandb_nothing_is_published(tmp_path: Path) -> None:
    cfg = configuration(tmp_path, tmp_path)
    publish_table(cfg, run_folder(cfg), [{"round": "mo"}])
    assert not list(tmp_path.iterdir())


def test_tensorboard_has_numbers_and_pictures(cohort: Cohort, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, folder = train_tiny(cohort, tmp_path, "logger=tensorboard", "trainer.max_epochs=1")
    events = EventAccumulator(str(next(folder.checkpoints.glob("*/logs/tensorboard"))))
    events.Reload()
    tags = events.Tags()
    assert {"lr", "train/loss", "train/dice", "val/dsc/liver", "val/nsd_mean"} <= set(tags["scalars"])
    assert tags["images"] == ["val/overlays/held_out"]
    assert any(name.startswith("val/cases") for name in tags["tensors"])


def test_mlflow_goes_on_in_its_run(cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.tracking import MlflowClient

    common = ("logger=mlflow", "name=trial", "validation.nsd=false")
    outputs = tmp_path / "with a space"
    train_tiny(cohort, outputs, *common, "trainer.max_epochs=1", "scheduler.decay_epochs=2")
    # another configuration, which MLflow would refuse
    train_tiny(cohort, outputs, *common, "ckpt_path=last")
    uri = f"sqlite:///{outputs / 'trial' / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("trial")
    assert experiment is not None
    assert experiment.artifact_location == str(outputs / "trial" / "mlflow" / "artifacts")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.tags["mlflow.source.name"]) == ("all", "flare")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [2, 5]
    assert run.data.params["trainer/max_epochs"] == "1"
    assert not (Path.cwd() / "mlruns").exists()
    assert "logger.mlflow" not in caplog.text
    # a run in the folder of plain files of earlier versions, or in a store that was deleted
    other = MlflowRun(tracking_uri=uri, run_name="mo", experiment_name="trial", run_id="0" * 32)
    assert other.run_id not in (run.info.run_id, "0" * 32)
    assert f"the store has no run {'0' * 32}, so another begins" in caplog.text


def test_mlflow_leaves_no_store_until_its_run_begins(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    MlflowRun(tracking_uri=uri, run_name=None, experiment_name="x")
    MlflowRun(tracking_uri=f"file:{tmp_path / 'folder'}", run_name=None, experiment_name="x")
    assert list(tmp_path.iterdir()) == []


def segmented(tumor_slice: int | None) -> dict[str, Any]:
    geometry = Geometry((6, 8, 8), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    reference = np.zeros(geometry.shape, np.uint8)
    reference[1:4, 2:7, 2:7] = LIVER
    if tumor_slice is not None:
        reference[tumor_slice, 3:5, 3:5] = TUMOR
    image = np.full(geometry.shape, 40, np.int16)
    return {"image": Volume(image, geometry), "reference": reference, "segmentation": reference}


def test_a_slice_goes_through_the_tumor(labels: ClassList) -> None:
    with_tumor = cut_slice("a", segmented(3), labels)  # type: ignore[arg-type]
    assert (with_tumor.reference == TUMOR).sum() == 4
    assert with_tumor.grey.dtype == np.uint8
    assert np.all(with_tumor.grey == 128)  # 40 HU is the middle of -160 to 240: 127.5, rounded to even
    without = cut_slice("a", segmented(None), labels)  # type: ignore[arg-type]
    assert (without.reference == LIVER).sum() == 25


@pytest.mark.parametrize(
    ("shown", "epoch", "validated_every", "is_due"),
    [
        (None, 4, 1, True),
        (4, 8, 1, False),
        (4, 9, 1, True),
        (18, 19, 1, True),
        (14, 17, 3, True),  # of 20 epochs the last validation is after 18
        (14, 17, 2, False),
        (18, 19, None, True),
    ],
)
def test_when_overlays_are_due(
    shown: int | None, epoch: int, validated_every: int | None, is_due: bool
) -> None:
    class Trainer:
        current_epoch, max_epochs, check_val_every_n_epoch = epoch, 20, validated_every

    callback = Overlays(every_n_epochs=5, cases=1)
    callback.load_state_dict({"shown": shown})
    assert callback._is_due(Trainer()) is is_due  # type: ignore[arg-type]
    assert callback.state_dict() == {"shown": shown}
