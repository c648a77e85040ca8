import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import warm
from bad_files import write_series
from flare.cli import infer_cases
from flare.core.class_files import classes_at
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.inference import predict as cohort
from flare.inference.predict import predict_cases
from flare.inference.settings import InferenceSettings, say_once
from flare.runs.journal import Journal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CLASSES = [
    "model.net.features=[4,8]",
    "model.net.strides=[[1,1,1],[2,2,2]]",
    "model.net.encoder_kernels=[[3,3,3],[3,3,3]]",
    "model.net.decoder_kernels=[[3,3,3]]",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network with random weights, stored as training stores it."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["model=tiny", *CLASSES])
    torch.manual_seed(0)
    network = instantiate(cfg.model.net)
    path = tmp_path_factory.mktemp("weights") / "last.ckpt"
    carried = {
        "classes": OmegaConf.to_container(cfg.classes),
        "targets": "organs_tumor",
        "spacing_mm": [4.0, 3.0, 3.0],
        "interpolation": "linear",
        "intensity": {"lower": -150.0, "upper": 250.0, "mean": 50.0, "std": 60.0},
        "patch_size": [16, 24, 24],
        "mirror_axes": [0, 1, 2],
        "round": "mo",
        "config": {"model": OmegaConf.to_container(cfg.model, resolve=True)},
        "git_revision": "unknown",
    }
    state = {f"net.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "flare": carried}, path)
    return path


def write_ct(path, seed=0, shape=(10, 24, 28), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(0, 80, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.5, 2.75, 5.0))
    image.SetOrigin((-100.5, 20.25, -300.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def run(config, checkpoint, tmp_path):
    def start(*overrides, checkpoint=checkpoint):
        given = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "executor.workers=0"]
        return infer_cases(
            config(
                "infer",
                f"checkpoint={checkpoint}",
                "inference.body.minimum_ml=1",
                "inference.precision=32",
                "tta=none",
                *given,
                *overrides,
            )
        )

    return start


def test_a_folder_is_searched_and_each_case_keeps_its_geometry(run, tmp_path):
    write_ct(tmp_path / "in" / "a_0000.nii.gz")
    write_ct(tmp_path / "in" / "deep" / "b.nrrd", 1, direction=(0, -1, 0, 1, 0, 0, 0, 0, 1))
    write_ct(tmp_path / "in" / "deep" / "c.mha", 2, direction=(-1, 0, 0, 0, 0, 1, 0, 1, 0))
    result = run()
    assert [row["case"] for row in result["cases"]] == ["a", "b", "c"]
    for case, source in (("a", "a_0000.nii.gz"), ("b", "deep/b.nrrd"), ("c", "deep/c.mha")):
        given = sitk.ReadImage(str(tmp_path / "in" / source))
        written = sitk.ReadImage(str(tmp_path / "out" / f"{case}.nii.gz"))
        assert written.GetPixelID() == sitk.sitkUInt8
        assert written.GetSize() == given.GetSize()
        for of in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
            np.testing.assert_allclose(of(written), of(given), atol=1e-5)
    rows = read_csv(tmp_path / "out" / "inference.csv")
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert all(int(row["windows"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    assert all(int(row["uncovered_body_vox"]) >= 0 for row in rows)


def test_a_measured_case_is_done_again_and_says_what_it_cost(run, tmp_path):
    write_ct(tmp_path / "in" / "a.nii.gz")
    assert "time_s" not in run()["cases"][0]
    segmentation = (tmp_path / "out" / "a.nii.gz").read_bytes()
    row = run("inference.measure=true")["cases"][0]
    assert row["size"] == "28x24x10"
    assert row["time_s"] >= row["seconds"] > 0
    assert row["cpu_auc"] >= 0
    assert row["ram_mb"] > 10
    assert row["max_gpu_mb"] is None or row["max_gpu_mb"] > 0
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == segmentation
    assert float(read_csv(tmp_path / "out" / "inference.csv")[0]["ram_auc"]) == row["ram_auc"]
    assert read_csv(tmp_path / "out" / "table6.csv")[0]["case"] == "a"
    assert float(read_csv(tmp_path / "out" / "table7.csv")[0]["ram_mb"]) == row["ram_mb"]
    # measured once, it is left alone in either way
    assert run("inference.measure=true")["cases"] == run()["cases"] == [row]


def test_the_papers_efficiency_stands_beside_flare23s_classes_alone(run, tmp_path):
    write_ct(tmp_path / "in" / "a.nii.gz")
    for override, sources in (
        ("report.published=auto", {"ours", "paper"}),
        ("report.published=none", {"ours"}),
    ):
        run("inference.measure=true", override)
        for name in ("table6", "table7"):
            assert {row["source"] for row in read_csv(tmp_path / "out" / f"{name}.csv")} == sources


@pytest.mark.parametrize("fails", [False, True])
def test_no_worker_outlives_the_command(run, tmp_path, monkeypatch, fails):
    """Python ends with an error now and then if one does."""
    write_ct(tmp_path / "in" / "a.nii.gz")
    closed = []
    monkeypatch.setattr("flare.runs.work.LocalExecutor.close", lambda self: closed.append(self.workers))
    if fails:
        monkeypatch.setattr(cohort, "write_csv", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("executor.workers=3")
    else:
        run("executor.workers=3")
    assert closed == [3]


@pytest.mark.parametrize(
    ("tta", "axes", "told"),
    [
        ("tta8", [], "without mirroring, so nothing is flipped, as with tta=none"),
        ("tta4", [], "without mirroring, so nothing is flipped, as with tta=none"),
        ("tta8", [2, 1], "with mirroring along y, x alone, so 4 maps are averaged instead of 8"),
        ("tta4", [0], "with mirroring along z alone, so 2 maps are averaged instead of 4"),
        ("tta8", [0, 1, 2], None),
        ("none", [], None),
    ],
)
def test_flips_that_are_left_out_are_said_once(run, checkpoint, tmp_path, caplog, tta, axes, told):
    say_once.cache_clear()
    content = torch.load(checkpoint, weights_only=True)
    content["flare"]["mirror_axes"] = axes
    torch.save(content, tmp_path / "other.ckpt")
    for number in range(2):
        write_ct(tmp_path / "in" / f"{number}.nii.gz", number)
    run(f"tta={tta}", checkpoint=tmp_path / "other.ckpt")
    expected = [f"tta={tta}: the network is trained {told}"] if told else []
    assert [r.getMessage() for r in caplog.records if "tta" in r.getMessage()] == expected


def test_measured_and_other_cases_share_a_table(run, tmp_path):
    write_ct(tmp_path / "in" / "b.nii.gz")
    run("inference.measure=true")
    write_ct(tmp_path / "in" / "a.nii.gz", 1)
    run()
    rows = read_csv(tmp_path / "out" / "inference.csv")
    assert [row["time_s"] == "" for row in rows] == [True, False]


def test_what_is_done_is_left_alone_until_image_weights_or_settings_change(run, tmp_path, monkeypatch):
    write_ct(tmp_path / "in" / "a.nii.gz")
    write_ct(tmp_path / "in" / "b.nii.gz", 1)
    done = []
    original = cohort.predict_case

    def counted(case, **job):
        done.append(case)
        return original(case, **job)

    monkeypatch.setattr(cohort, "predict_case", counted)
    first = run()
    assert run() == first
    assert done == ["a", "b"]
    write_ct(tmp_path / "in" / "b.nii.gz", 7)
    run()
    assert done == ["a", "b", "b"]
    run("inference.memory_mb=5")
    assert done == ["a", "b", "b"]
    run("tta=tta4")
    assert done == ["a", "b", "b", "a", "b"]
    (tmp_path / "out" / "a.nii.gz").unlink()
    run("tta=tta4")
    assert done == ["a", "b", "b", "a", "b", "a"]


def test_a_bad_case_is_named_leaves_nothing_and_the_rest_is_done(run, tmp_path):
    write_ct(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no image")
    write_ct(tmp_path / "in" / "x" / "twice.nii.gz")
    write_ct(tmp_path / "in" / "y" / "twice_0000.nii.gz")
    with pytest.raises(FlareError) as refusal:
        run()
    text = str(refusal.value)
    assert "bad" in text
    assert str(tmp_path / "in" / "x" / "twice.nii.gz") in text
    assert str(tmp_path / "in" / "y" / "twice_0000.nii.gz") in text
    assert "good" not in text
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["good.nii.gz"]


def test_a_result_of_an_image_that_went_bad_does_not_stay(run, tmp_path):
    path = write_ct(tmp_path / "in" / "a.nii.gz")
    write_ct(tmp_path / "in" / "b.nii.gz")
    run()
    path.write_bytes(b"damaged")
    with pytest.raises(FlareError, match="a"):
        run()
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["b.nii.gz"]


def test_the_output_may_lie_inside_the_input_and_is_not_segmented_again(run, tmp_path):
    write_ct(tmp_path / "in" / "a_0000.nii.gz")
    for _ in range(2):
        result = run(f"output={tmp_path / 'in' / 'segmented'}")
        assert [row["case"] for row in result["cases"]] == ["a"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("checkpoint=/nowhere/x.ckpt", "checkpoint"),
        ("checkpoint=null", "checkpoint"),
        ("input=/nowhere", "input"),
        ("input=", "input: not given"),
        ("inference.name=quick", "inference.name"),
        ("round=mo1", "round"),
        ("round=mo", "spacing_mm"),
        ("classes.liver.id=20", "classes"),
    ],
)
def test_a_bad_configuration_is_refused_before_any_work(run, tmp_path, override, named):
    write_ct(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(FlareError, match=named):
        run(override)
    assert not (tmp_path / "out").exists()


def test_an_output_that_would_mix_with_the_input_is_refused(run, tmp_path):
    image = write_ct(tmp_path / "in" / "a.nii.gz")
    for given in (image, image.parent):
        with pytest.raises(FlareError, match="output"):
            run(f"input={given}", f"output={image.parent}")


def test_an_empty_folder_is_refused(run, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(FlareError, match="no image"):
        run()


@pytest.mark.slow
def test_a_dicom_series_is_one_case(run, real_data, tmp_path):
    series = real_data / "slab_dicom" / "series"
    result = run(f"input={series}", "inference=fast")
    assert [row["case"] for row in result["cases"]] == ["series"]
    written = sitk.ReadImage(str(tmp_path / "out" / "series.nii.gz"))
    assert written.GetSize() == (512, 512, 20)


def test_the_largest_component_alone_is_kept_of_organs(config, checkpoint, tmp_path, labels):
    from flare.inference.largest import keep_largest
    from flare.runs.work import LocalExecutor

    image = write_ct(tmp_path / "a.nii.gz", shape=(10, 40, 40))
    settings = InferenceSettings.from_config(
        config("infer", "inference=dense", "tta=none", "inference.precision=32")
    )
    executor = LocalExecutor(workers=0, retries=0)
    results = []
    for components in ("none", "organs"):
        done = predict_cases(
            checkpoint,
            {"a": image},
            tmp_path / "out",
            settings=replace(settings, components=components),
            executor=executor,
            journal=Journal(tmp_path / "predict.jsonl"),
            classes=labels,
        )
        assert not done.failures
        results.append(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "a.nii.gz"))))
    plain, cleaned = results
    assert (plain != cleaned).any()
    np.testing.assert_array_equal(cleaned, keep_largest(plain, tuple(range(1, 14))))


def test_the_checkpoint_brings_its_classes_and_what_it_made_carries_them(run, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    for place in (content["flare"], content["flare"]["config"]["model"]["net"]):
        place["classes"] = {("bladder" if k == "liver" else k): v for k, v in place["classes"].items()}
    other = tmp_path / "other.ckpt"
    torch.save(content, other)
    write_ct(tmp_path / "in" / "a.nii.gz")
    run(checkpoint=other)
    path, carried = classes_at(tmp_path / "out")
    assert path.name == "classes.json"
    assert carried.name_of(1) == "bladder"
    mesh = "{id: 15, short: M, role: organ, tolerance_mm: 1, slice_range: false}"
    with pytest.raises(FlareError, match=r"its classes are 1 bladder.*classes=\) has 1 liver.*15 mesh"):
        run(f"+classes.mesh={mesh}", f"output={tmp_path / 'new'}", checkpoint=other)
    with pytest.raises(
        FlareError, match=r"output: .*classes.json has the classes 1 bladder.*last.ckpt has 1 l"
    ):
        run()


def test_a_job_of_a_sweep_takes_the_checkpoint_of_the_named_run(run, checkpoint, tmp_path, monkeypatch):
    job = OmegaConf.create({"job": {"num": 0}, "runtime": {"output_dir": str(tmp_path / "job")}})
    monkeypatch.setattr(
        "flare.runs.folders.HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: job)
    )
    last = tmp_path / "outputs" / "default" / "rounds" / "mo" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    shutil.copy(checkpoint, last)
    write_ct(tmp_path / "in" / "a.nii.gz")
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    run("round=mo", "data.spacing_mm=[4,3,3]", outputs, checkpoint="null")
    assert (tmp_path / "out" / "a.nii.gz").is_file()


@pytest.mark.long
@pytest.mark.slow
def test_the_script_exits_with_one_and_one_line_and_works_in_processes(checkpoint, tmp_path):
    write_ct(tmp_path / "in" / "a.nii.gz")
    write_ct(tmp_path / "in" / "b.nii.gz", 1)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"")
    command = [
        *(sys.executable, str(ROOT / "infer.py"), f"checkpoint={checkpoint}", f"input={tmp_path / 'in'}"),
        *(
            f"output={tmp_path / 'out'}",
            "executor.workers=2",
            "inference.precision=32",
            f"paths.outputs={tmp_path / 'runs'}",
        ),
    ]
    run = warm.run(command, tmp_path)
    assert run.returncode == 1
    assert "bad" in run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]
    (tmp_path / "in" / "bad.nii.gz").unlink()
    assert warm.run([*command, "executor.workers=0"], tmp_path).returncode == 0


def test_a_single_image_goes_to_the_file_that_output_names(run, tmp_path):
    write_ct(tmp_path / "in" / "a.nii.gz")
    run()
    target = tmp_path / "one" / "mine.nii.gz"
    result = run(f"input={tmp_path / 'in' / 'a.nii.gz'}", f"output={target}")
    assert result["output"] == str(target)
    assert [p.name for p in target.parent.iterdir()] == ["mine.nii.gz"]
    found, wanted = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (target, tmp_path / "out/a.nii.gz")
    )
    np.testing.assert_array_equal(found, wanted)
    before = target.read_bytes()
    with pytest.raises(FlareError, match="no file is overwritten"):
        run(f"output={target}")
    assert target.read_bytes() == before


def export(root):
    """Two patients with a scan and slices for the bolus each, below studies of one name, and a localizer."""
    like = {"shape": (24, 28), "spacing_xy": (2.75, 2.5)}
    for patient, uid in (("p1", "1.2.1"), ("p2", "1.2.2")):
        at = root / patient / "study"
        write_series(at / "series", [(0, 0, 5 * z) for z in range(10)], uid=uid, **like)
        write_series(at / "bolus", [(0, 0, 20)] * 3, uid=f"{uid}.7", **like)
    topogram = {"t0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_series(root / "p1" / "study" / "topo", [(0, 0, 0)], uid="1.2.1.9", **topogram)
    return root


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("path", ["p1_study_series", "p2_study_series"]),
        ("dicom_series_uid", ["1.2.1", "1.2.2"]),
    ],
)
def test_an_export_of_patients_studies_and_series(run, tmp_path, caplog, rule, expected):
    export(tmp_path / "in")
    with pytest.raises(
        FlareError, match=r"series: 2 files of this id: .*; data\.case_id=path tells them apart$"
    ):
        run()
    caplog.clear()
    assert [row["case"] for row in run(f"data.case_id={rule}")["cases"]] == expected
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [f"{e}.nii.gz" for e in expected]
    (told,) = [r.getMessage() for r in caplog.records if "localizers and scouts" in r.getMessage()]
    names = {"path": ["p1_study_bolus", "p1_study_topo", "p2_study_bolus"]}
    assert told.endswith(", ".join(names.get(rule, ["1.2.1.7", "1.2.1.9", "1.2.2.7"])))


def test_an_export_in_one_folder_is_segmented_series_by_series(run, tmp_path):
    for patient in sorted(export(tmp_path / "from").iterdir()):
        for path in sorted(patient.rglob("*.dcm")):
            (tmp_path / "in" / "flat").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "in" / "flat" / f"{patient.name}{path.parent.name}{path.name}")
    first = run()["cases"]
    assert len(first) == 2
    assert all(row["case"].startswith("flat_") for row in first)
    assert run()["cases"] == first
    run(f"input={tmp_path / 'from' / 'p1' / 'study' / 'series'}", f"output={tmp_path / 'one'}")
    one = (tmp_path / "one" / "series.nii.gz").read_bytes()
    assert one in [(tmp_path / "out" / f"{row['case']}.nii.gz").read_bytes() for row in first]


def test_folders_named_by_case_and_what_is_no_scan(run, tmp_path):
    for case, seed in (("s0001", 0), ("s0002", 1)):
        write_ct(tmp_path / "in" / case / "ct.nii.gz", seed)
        write_ct(tmp_path / "in" / ".snapshots" / case / "ct.nii.gz", seed)
    with pytest.raises(FlareError, match=r"data\.case_id=parent tells them apart$"):
        run()
    assert [r["case"] for r in run("data.case_id=parent")["cases"]] == ["s0001", "s0002"]
    one = [
        f"input={tmp_path / 'in' / 's0002'}",
        f"output={tmp_path / 'one'}",
    ]  # folder by folder, as in a loop
    assert [r["case"] for r in run(*one, "data.case_id=parent")["cases"]] == ["s0002"]
    write_ct(tmp_path / "in" / "s0001" / "mask.nii.gz")
    wild = f"input={tmp_path}/in/s*/ct.nii.gz"
    assert [r["case"] for r in run(wild, "data.case_id=parent")["cases"]] == ["s0001", "s0002"]
    with pytest.raises(FlareError, match=r"^data.case_id=stem: expected one of leaf, parent, path"):
        run("data.case_id=stem")
    topogram = {"t0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_series(tmp_path / "topo", [(0, 0, 0), (0, 0, 9)], **topogram)
    with pytest.raises(FlareError, match=r"holds no image .* but localizers and scouts: topo$"):
        run(f"input={tmp_path / 'topo'}")


def test_labels_drawn_by_hand_are_not_overwritten(run, tmp_path):
    drawn = write_ct(tmp_path / "labelsTr" / "a.nii.gz", 5)
    before = drawn.read_bytes()
    write_ct(tmp_path / "in" / "a_0000.nii.gz")
    write_ct(tmp_path / "in" / "b_0000.nii.gz", 1)
    with pytest.raises(
        FlareError, match=r"labelsTr: holds 1 files .*: a\.nii\.gz.*choose another folder \(output="
    ):
        run(f"output={tmp_path / 'labelsTr'}")
    assert drawn.read_bytes() == before
    assert [p.name for p in (tmp_path / "labelsTr").iterdir()] == ["a.nii.gz"]


def test_a_segmentation_corrected_by_hand_is_not_overwritten_and_a_damaged_one_is_made_again(run, tmp_path):
    write_ct(tmp_path / "in" / "a.nii.gz")
    run()
    result = tmp_path / "out" / "a.nii.gz"
    made = result.read_bytes()
    for damaged in (made[: len(made) // 2], b"", made[:40] + bytes([made[40] ^ 1]) + made[41:]):
        result.write_bytes(damaged)
        run()
        assert result.read_bytes() == made
    corrected = write_ct(result, 9).read_bytes()
    for change in ("tta=tta4", "tta=none"):
        with pytest.raises(FlareError, match="or that were changed since"):
            run(change)
        assert result.read_bytes() == corrected


def test_several_images_do_not_go_to_one_file(run, tmp_path):
    for name in ("a", "b"):
        write_ct(tmp_path / "in" / f"{name}.nii.gz")
    with pytest.raises(FlareError, match="output: expected a folder for the 2 images"):
        run(f"output={tmp_path / 'x.nii.gz'}")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(run, tmp_path):
    write_ct(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "file").write_text("")
    with pytest.raises(FlareError, match=r"output=.*file/deep.*is a file; expected a folder"):
        run(f"output={tmp_path / 'file' / 'deep'}")
