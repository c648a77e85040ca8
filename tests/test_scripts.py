"""Less common uses of the scripts: sweeps, other class lists, awkward case ids."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import bad_cohort
from bad_cohort import put
from flare.cli import iterate_rounds
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.core.volumes import read_image
from flare.prepare.settings import PrepareSettings
from flare.runs.checkpoints import load_checkpoint
from tiny_run import FEW, NETWORK, SETTINGS, configuration, run_iterate, script

pytestmark = pytest.mark.slow

HOSPITAL = """
bladder: {id: 1, short: Bladder, role: organ, tolerance_mm: 2, slice_range: false}
prostate: {id: 2, short: Prostate, role: organ, tolerance_mm: 2, slice_range: false}
rectum: {id: 5, short: Rectum, role: organ, tolerance_mm: 3, slice_range: true}
"""
ONE_STEP = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.precision=32"]


def assert_no_paths(logs: list[Path], *folders: Path) -> None:
    """Log files and trackers get case ids only."""
    assert logs
    for path in logs:
        text = path.read_text()
        assert not [line for line in text.splitlines() if any(str(f) in line for f in folders)], path
        assert ".nii" not in text


@pytest.mark.long
@pytest.mark.slow
def test_jobs_of_a_sweep_have_folders_of_their_own_and_a_refused_one_ends_no_other(tmp_path: Path) -> None:
    line = [*SETTINGS, FEW, f"paths.outputs={tmp_path / 'outputs'}"]
    done = script("train", "-m", "round=mot,mo,mt", *line, cwd=tmp_path)
    assert done.returncode == 1
    assert "round=mot needs its teacher's checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    (sweep,) = (tmp_path / "outputs" / "demo" / "multirun").iterdir()
    found = {p.relative_to(sweep).parts[0]: p.parts[-3] for p in sweep.rglob("checkpoints/last.ckpt")}
    assert found == {"1": "mo", "2": "mt"}
    assert not (tmp_path / "outputs" / "demo" / "rounds").exists()
    logs = [*sweep.rglob("*.log"), *sweep.rglob("logs/**/*.csv"), *sweep.rglob("hparams.yaml")]
    assert_no_paths(logs, tmp_path)


@pytest.mark.slow
def test_a_class_list_of_ones_own_is_a_config(tmp_path: Path) -> None:
    (tmp_path / "conf" / "classes").mkdir(parents=True)
    (tmp_path / "conf" / "classes" / "hospital.yaml").write_text(HOSPITAL)
    for number in range(2):
        array = np.zeros(bad_cohort.SHAPE, np.uint8)
        array[2:6, 3:12, 4:8], array[2:6, 3:12, 8:12], array[6:8, 3:12, 4:14] = 1, 2, 5
        put(tmp_path / "data" / "images" / f"p{number}_0000.nii.gz", bad_cohort.image(number))
        put(tmp_path / "data" / "labels" / f"p{number}.nii.gz", array)
    (tmp_path / "data" / "unlabeled").mkdir()
    own = ["--config-dir", str(tmp_path / "conf"), "classes=hospital"]
    net = ["model=tiny", *NETWORK, "data.patch_size=[4,8,8]", "data.workers=0", *ONE_STEP]
    outputs = tmp_path / "outputs"
    done = script("train", *own, *bad_cohort.overrides(tmp_path / "data", outputs), *net, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint = outputs / "default" / "rounds" / "all" / "checkpoints" / "last.ckpt"
    assert load_checkpoint(checkpoint).class_list.names == ("bladder", "prostate", "rectum")
    assert load_checkpoint(checkpoint).outputs == (0, 1, 2, 5)
    folders = [f"input={tmp_path / 'data' / 'images'}", f"output={tmp_path / 'out'}", "tta=none"]
    # the checkpoint brings its list, and what it made carries it
    done = script("infer", f"checkpoint={checkpoint}", *folders, "executor.workers=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(np.unique(read_image(tmp_path / "out" / "p0.nii.gz").array)) <= {0, 1, 2, 5}
    folders = [f"predictions={tmp_path / 'out'}", f"references={tmp_path / 'data' / 'labels'}"]
    done = script("evaluate", *folders, "executor.workers=0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    columns = [f"{c}_{m}" for m in ("DSC", "NSD") for c in ("Bladder", "Prostate", "Rectum")]
    assert list(read_csv(tmp_path / "out" / "metrics.csv")[0]) == ["Name", *columns]
    logs = [*outputs.rglob("*.log"), *outputs.rglob("logs/**/*.csv"), *outputs.rglob("hparams.yaml")]
    assert_no_paths(logs, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_no_figure_of_the_paper_stands_beside_other_classes(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    run_iterate(outputs, "rounds=[mo]")
    run = outputs / "demo"
    assert (run / "table5.csv").read_text().startswith("round,cases,Liver_DSC")
    assert "paper_Liver_DSC" in (run / "table5.csv").read_text()
    assert "These are phantoms, not patients." in (run / "table5.md").read_text()
    assert "online validation" in (run / "report.html").read_text()
    for other in (["report.published=none"], ["classes.liver.tolerance_mm=4", "name=other"]):
        result = run_iterate(outputs, "rounds=[mo]", *other)
        assert not [key for row in result["table"] for key in row if key.startswith("paper")]
        run = outputs / ("other" if "name=other" in other else "demo")
        files = sorted(path for path in run.glob("table*") if path.suffix in (".csv", ".md", ".tex"))
        assert [path.stem for path in files] == [f"table{n}" for n in (2, 4, 5, 8) for _ in range(3)]
        assert not [path.name for path in files if "paper" in path.read_text()]
        page = (run / "report.html").read_text()
        assert "online validation" not in page
        assert "the paper's" not in page


def test_the_papers_figures_asked_for_beside_other_classes_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    with pytest.raises(FlareError, match=r"^report\.published=flare23: the paper's figures are of FLARE23's"):
        run_iterate(tmp_path, "rounds=[mo]", "report.published=flare23", "classes.liver.tolerance_mm=4")
    assert not list(tmp_path.rglob("*.nii.gz"))


@pytest.mark.long
@pytest.mark.slow
def test_cases_whose_ids_end_as_image_names_do_go_through_all_steps(tmp_path: Path) -> None:
    made = configuration("prepare", [*SETTINGS, FEW, f"paths.outputs={tmp_path / 'made'}"])
    settings = PrepareSettings.from_config(made)
    assert settings.generator is not None
    settings.generator.make(settings.executor)
    root = tmp_path / "FLARE23"
    for path in (tmp_path / "made" / "data" / "phantom-demo-0").rglob("*.nii.gz"):
        if path.parent.name == "truth":
            continue
        name = path.name.replace(".nii.gz", "_0000.nii.gz")
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path.parent.name / name)
    cohort = ["test_images=imagesTs", "test_labels=labelsTs", "scoring={split: test, protocol: present}"]
    line = [
        *[setting for setting in SETTINGS if not setting.startswith("data.phantom")],
        "data=flare23", f"data.root={root}", *(f"data.{key}" for key in cohort),
        f"paths.outputs={tmp_path / 'outputs'}", "rounds=[mo,mo1]", "baselines=[]",
    ]  # fmt: skip
    result = iterate_rounds(configuration("iterate", line), line)
    assert [row["cases"] for row in result["table"]] == [2, 4]
    rounds = tmp_path / "outputs" / "demo" / "rounds"
    for split, case in (("validation", "phantom_4001_0000"), ("test", "phantom_5001_0000")):
        (row,) = read_csv(rounds / "mo1" / split / "metrics.csv")
        assert row["Name"] == case
        assert (rounds / "mo1" / split / "predictions" / f"{case}.nii.gz").is_file()
        assert '"missing": []' in (rounds / "mo1" / split / "summary.json").read_text()
    assert len(list((rounds / "mo1" / "labels").glob("phantom_*_0000.nii.gz"))) == 4
    assert len(read_csv(rounds / "mo1" / "labels" / "provenance.csv")) > 0
