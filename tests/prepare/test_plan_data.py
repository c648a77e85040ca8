"""`python -m flare.plan_data`: from headers to a preset that the scripts take."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import warm
from cohort_files import image_array, label_array, write
from flare.core.errors import CONF, FlareError
from flare.core.files import read_csv, write_json
from flare.core.volumes import read_grid, read_image
from flare.inference import engines
from flare.prepare import proposal
from flare.training import build
from flare.training.settings import TrainingSettings
from tiny_run import ROOT, SETTINGS, counts

pytestmark = pytest.mark.slow

SHAPE = (12, 24, 28)
Compose = Callable[..., DictConfig]


def write_dataset(
    root: Path, shape: tuple[int, int, int] = SHAPE, cases: int = 4, slice_mm: float = 3.0
) -> Path:
    """Labelled cases in nnU-Net's layout, stored in two orders, and a test case of another size."""
    for seed in range(cases):
        order = ((0, 1, 2), (2, 1, 0))[seed % 2]
        direction = np.eye(3)[:, [2 - axis for axis in order][::-1]].ravel().tolist()
        spacing = tuple((slice_mm, 2.0, 2.0)[axis] for axis in order)[::-1]
        place = {"direction": tuple(direction)}
        image, label = image_array(seed, shape), label_array(1, 2, shape=shape)
        write(root / "imagesTr" / f"m_{seed}_0000.nii.gz", image.transpose(order), spacing, **place)
        write(root / "labelsTr" / f"m_{seed}.nii.gz", label.transpose(order), spacing, **place)
    write(root / "imagesTs" / "t_0_0000.nii.gz", image_array(9, (40, 40, 40)))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "cyst": 2}}
    write_json(root / "dataset.json", {**content, "numTraining": cases, "file_ending": ".nii.gz"})
    return root


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """What chooses the cohort below a folder whose name needs no quotes."""
    return ["data=nnunet", f"data.root={tmp_path / 'Dataset1_A'}", f"paths.outputs={tmp_path / 'out'}"]


@pytest.fixture
def plan(config: Compose, given: list[str]) -> Callable[..., Any]:
    return lambda *more: proposal.main(config("plan_data", *given, "executor.workers=0", *more))


def preset(tmp_path: Path, name: str, *overrides: str) -> DictConfig:
    """What `train --config-dir <plans> experiment=<name>` composes."""
    place = f"hydra.searchpath=[file://{tmp_path / 'out' / 'plans'}]"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [place, f"experiment={name}", *overrides])


def test_a_plan_is_a_preset_with_its_reasons(tmp_path: Path, plan: Any, given: list[str]) -> None:
    write_dataset(tmp_path / "Dataset1_A")
    found = plan()
    assert found.cases == 4  # not the test case
    folder = tmp_path / "out" / "plans"
    assert sorted(p.relative_to(folder) for p in folder.rglob("*.yaml")) == [
        Path("experiment/Dataset1_A_plan.yaml"), Path("model/Dataset1_A_plan.yaml"),
    ]  # fmt: skip
    cfg = preset(tmp_path, "Dataset1_A_plan", *given, "round=mot3")  # a round has no say in the network
    assert (cfg.name, cfg.model.name) == ("Dataset1_A", "Dataset1_A_plan")
    assert cfg.data.spacing_mm == [3.0, 2.0, 2.0]
    # 3 mm are less than twice 2 mm: all axes at first; 12 voxels halved are 6, which are not halved again
    assert cfg.data.patch_size == [12, 24, 28]
    assert cfg.model.net.strides == [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
    assert cfg.model.net.encoder_kernels == [[3, 3, 3]] * 3
    assert cfg.model.net.decoder_kernels == [[3, 3, 3]] * 2
    assert cfg.model.net.features == [32, 64, 128]
    assert (cfg.data.batch_size, cfg.data.augmentation.dummy_2d) == (2, False)
    text = (folder / "experiment" / "Dataset1_A_plan.yaml").read_text()
    for key in ("spacing_mm", "patch_size", "batch_size", "dummy_2d"):
        assert re.search(rf"{key}: .+   # \S", text)
    assert "median case, 12 x 24 x 28 voxels" in text
    assert max(map(len, text.splitlines())) < 160
    # another network, chosen on the command line, is that network alone
    small = preset(tmp_path, "Dataset1_A_plan", *given, "model=small").model
    assert (small.name, small.net.features) == ("small", [16, 32, 64, 128, 256])
    assert (small.net.convolutions_per_stage, small.net.head_bias, len(small.net.strides)) == (2, False, 5)


def test_a_bad_header_is_named_and_the_rest_is_planned(
    tmp_path: Path, plan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "Dataset1_A")
    (root / "imagesTr" / "m_2_0000.nii.gz").write_bytes(b"no image")
    (root / "labelsTr" / "orphan.nii.gz").write_bytes((root / "labelsTr" / "m_0.nii.gz").read_bytes())
    with pytest.raises(FlareError, match="2 failed, the rest is done") as refused:
        plan()
    assert re.search(r"m_2: .*m_2_0000.nii.gz", str(refused.value))
    assert "orphan: label without an image" in str(refused.value)
    assert preset(tmp_path, "Dataset1_A_plan").data.patch_size == [12, 24, 28]


def test_only_headers_are_read(tmp_path: Path, plan: Any) -> None:
    """Cut in its voxels, a file is no training case, but its size is known."""
    root = write_dataset(tmp_path / "Dataset1_A")
    path = root / "imagesTr" / "m_0_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    assert plan().cases == 4


def test_an_empty_cohort_is_refused_in_a_line(tmp_path: Path, plan: Any) -> None:
    root = write_dataset(tmp_path / "Dataset1_A", cases=1)
    for folder in ("imagesTr", "labelsTr"):
        for path in (root / folder).iterdir():
            path.unlink()
    with pytest.raises(FlareError, match=r"^data.labeled_images: no training case[^\n]*$"):
        plan()
    next((root / "imagesTs").iterdir()).unlink()
    with pytest.raises(FlareError, match=r"^data.root: no image in any of the cohort's folders[^\n]*$"):
        plan()
    assert not (tmp_path / "out" / "plans").exists()


def test_another_plan_is_overwritten_only_if_told(tmp_path: Path, plan: Any) -> None:
    root = write_dataset(tmp_path / "Dataset1_A")
    plan()
    files = {p: p.read_text() for p in (tmp_path / "out" / "plans").rglob("*.yaml")}
    plan()  # the same again
    write(root / "imagesTr" / "m_9_0000.nii.gz", image_array(9, (40, 64, 64)))
    with pytest.raises(
        FlareError, match=r"^output: .*experiment/Dataset1_A_plan.yaml is another plan[^\n]*overwrite"
    ):
        plan()
    assert {p: p.read_text() for p in files} == files
    plan("overwrite=true")
    assert {p: p.read_text() for p in files} != files


@pytest.mark.parametrize("override", ["gpu_memory_gb=0", "gpu_memory_gb=much", "overwrite=1"])
def test_a_value_that_means_nothing_is_refused(plan: Any, override: str) -> None:
    with pytest.raises(FlareError, match=rf"^{override}: expected"):
        plan(override)


def test_the_network_of_two_slices_is_trained_in_float32_on_a_cpu(
    tmp_path: Path, plan: Any, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset({"amx_bf16"}))

    def precision() -> str:
        cfg = preset(tmp_path, "Dataset1_A_plan", *given, "classes={}", "trainer=cpu")
        return build.choose_precision(TrainingSettings.from_config(proposal.own_classes(cfg)))

    root = write_dataset(tmp_path / "Dataset1_A", shape=(2, 32, 32), slice_mm=6)
    assert plan().topology.patch_size == (2, 32, 32)
    assert precision() == "32-true"
    write_dataset(root, shape=(8, 32, 32), slice_mm=6)
    assert plan("overwrite=true").topology.patch_size == (8, 32, 32)
    assert precision() == "bf16-mixed"


@pytest.mark.slow
def test_a_made_cohort_is_planned_as_well(tmp_path: Path, config: Compose) -> None:
    line = [*SETTINGS[:2], counts(organs_complete=1), f"paths.outputs={tmp_path / 'out'}"]
    found = proposal.main(config("plan_data", *line, "executor.workers=0"))
    assert found.cases == 1
    cfg = preset(tmp_path, "[demo,phantom_plan]", *line[1:])
    assert tuple(cfg.data.patch_size) == found.topology.patch_size
    assert (cfg.name, cfg.model.name) == ("phantom", "phantom_plan")


def test_the_command_that_takes_a_plan_repeats_what_chose_the_cohort() -> None:
    given = ["data=nnunet", "data.root='/a b'", "gpu_memory_gb=4", "output=plans", "+data.x=1", "round=mo"]
    line = proposal.command("train", Path("plans"), "A", given)
    expected = ["python", "train.py", "--config-dir", "plans", "experiment=A_plan"]
    assert shlex.split(line) == [*expected, "data=nnunet", "data.root='/a b'", "+data.x=1"]
    line = proposal.command("iterate", Path("plans"), "A", ["experiment=demo", "seed=1"])
    assert shlex.split(line)[4:] == ["experiment=[demo,A_plan]", "seed=1"]


@pytest.mark.slow
def test_the_commands_that_it_ends_with_train_and_iterate(tmp_path: Path, given: list[str]) -> None:
    write_dataset(tmp_path / "Dataset1_A")

    def run(*words: str) -> str:
        done = warm.run(words, tmp_path)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    said = run(sys.executable, "-m", "flare.plan_data", *given, "executor.workers=0")
    lines = [shlex.split(line) for line in re.findall(r"python \w+\.py --config-dir .*", said)]
    assert [line[1] for line in lines] == ["train.py", "iterate.py"]
    once = ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.workers=0"]
    own = [*once, "executor.workers=0"]
    (_, train, *words), (_, iterate, *others) = lines
    run(sys.executable, str(ROOT / train), *words, *own)
    last = tmp_path / "out" / "Dataset1_A" / "rounds" / "all" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["flare"]["patch_size"] == [12, 24, 28]
    run(sys.executable, str(ROOT / iterate), *others, *own, "rounds=[mo]", "dry_run=true")
    (row,) = read_csv(tmp_path / "out" / "Dataset1_A" / "plan.csv")
    assert (row["model"], row["cases"]) == ("Dataset1_A_plan", "4")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_header_alone_says_what_the_whole_file_does(tmp_path: Path, ending: str) -> None:
    direction = (0.0, 0, 1, 1, 0, 0, 0, 1, 0)
    path = write(
        tmp_path / f"a{ending}", image_array(1), (1.1, 1.3, 2.5), direction=direction, origin=(3.0, 4, 5)
    )
    assert read_grid(path, "a") == read_image(path).geometry
