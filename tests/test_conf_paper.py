"""Each round's configuration, as `train.py --cfg job --resolve` prints it, against the paper's numbers.

The literals were typed from the paper and, where it is silent, from nnU-Net 1.7, not from `conf/`.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml

from flare.cli import CONF

pytestmark = pytest.mark.slow

ROOT = CONF.parent
ROUNDS = ["mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3"]
OVERRIDES = ["experiment=flare23", "data.root=/x"]

# the same in every round
COMMON = {
    # Tables 2 and 3: training protocols
    "data.batch_size": 2,
    "data.patch_size": [32, 128, 192],
    "trainer.max_epochs": 1500,
    "optimizer._target_": "torch.optim.SGD",
    "optimizer.nesterov": True,
    "optimizer.momentum": 0.99,
    "optimizer.lr": 0.01,
    "scheduler.power": 0.9,
    "scheduler.decay_epochs": 1500,  # the tables print 1000, where epochs end in complex numbers
    "loss.dice_weight": 1.0,
    "loss.ce_weight": 1.0,
    # nnU-Net 1.7, which the paper trains with (Table 1)
    "optimizer.weight_decay": 3e-5,
    "trainer.limit_train_batches": 250,
    "trainer.gradient_clip_val": 12,
    "trainer.precision": "16-mixed",
    "loss.smooth": 1e-5,
    "loss.batch_dice": True,
    "loss.supervise_lowest": False,
    "model.net.transposed_bias": False,
    "model.net.head_bias": False,
    # section 2.1: preprocessing
    "data.spacing_mm": [4.0, 1.2, 1.2],
    "data.percentiles": [0.5, 99.5],
    # section 3.2: augmentation; ranges are nnU-Net's "moreDA"
    "data.augmentation.dummy_2d": True,
    "data.augmentation.rotation.probability": 0.2,
    "data.augmentation.rotation.degrees": 30,
    "data.augmentation.rotation.degrees_2d": 180,
    "data.augmentation.scaling.probability": 0.2,
    "data.augmentation.scaling.range": [0.7, 1.4],
    "data.augmentation.elastic.probability": 0.2,
    "data.augmentation.elastic.alpha": [0, 900],
    "data.augmentation.elastic.alpha_2d": [0, 200],
    "data.augmentation.elastic.sigma": [9, 13],
    "data.augmentation.noise.probability": 0.1,
    "data.augmentation.noise.std": [0, 0.1],
    "data.augmentation.blur.probability": 0.2,
    "data.augmentation.blur.channel_probability": 0.5,
    "data.augmentation.blur.sigma": [0.5, 1.0],
    "data.augmentation.brightness.probability": 0.15,
    "data.augmentation.brightness.range": [0.75, 1.25],
    "data.augmentation.contrast.probability": 0.15,
    "data.augmentation.contrast.range": [0.75, 1.25],
    "data.augmentation.low_resolution.probability": 0.0,  # not in the paper's list
    "data.augmentation.gamma_inverted.probability": 0.1,
    "data.augmentation.gamma_inverted.range": [0.7, 1.5],
    "data.augmentation.gamma.probability": 0.3,
    "data.augmentation.gamma.range": [0.7, 1.5],
    "data.augmentation.mirror.probability": 0.5,
    "data.augmentation.mirror.axes": ["z", "y", "x"],
    # section 2.2: body-prior windows; section 2.3: four flips
    "tta": "tta4",
    "inference.name": "paper",
    "inference.overlap": 0.5,
    "inference.average": "probabilities",
    "inference.centre": "image",
    "inference.extend": False,
    # section 2.2: label merging; fresh weights in every round
    "labels.rule": "paper",
    "labels.constrain_unlabeled": False,
    "round.init": "fresh",
    # the challenge's folders and classes
    "data.root": "/x",
    "data.labeled_images": "imagesTr2200",
    "data.unlabeled_images": "unlabelTr1800",
    "classes.liver.id": 1,
    "classes.left_kidney.id": 13,
    "classes.tumor.id": 14,
    "classes.tumor.tolerance_mm": 2,
    "classes.duodenum.tolerance_mm": 7,
    "classes.aorta.slice_range": True,
}

MEDIUM = {  # Table 2: 5 stages of 2 convolutions
    "model.net.features": [32, 64, 128, 256, 512],
    "model.net.convolutions_per_stage": 2,
    "model.net.strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "model.net.encoder_kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "model.net.decoder_kernels": [[3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
}
LARGE = {  # Table 3: 6 stages of 3 convolutions
    "model.net.features": [32, 64, 128, 256, 512, 512],
    "model.net.convolutions_per_stage": 3,
    "model.net.strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
    "model.net.encoder_kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "model.net.decoder_kernels": [[3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
}


def labels(source: str, cases: str, targets: str, teacher: str | None) -> dict[str, Any]:
    return {
        "labels.source": source,
        "labels.cases": cases,
        "labels.targets": targets,
        "model.net.targets": targets,
        "round.teacher": teacher,
    }


# Table 5 and section 4.1
OF_ROUND = {
    "mo": MEDIUM | labels("ground_truth", "organs_complete", "organs", None),  # 222 cases
    "mo1": MEDIUM | labels("hybrid", "labeled", "organs", "mo"),  # 2200
    "mo2": MEDIUM | labels("hybrid", "labeled", "organs", "mo1"),  # 2200
    "mt": MEDIUM | labels("ground_truth", "tumor", "tumor", None),  # 1497
    "mot": MEDIUM | labels("hybrid", "tumor", "organs_tumor", "mo2"),  # 1497
    "mot1": MEDIUM | labels("hybrid", "labeled", "organs_tumor", "mot"),  # 2200
    "mot2": MEDIUM | labels("hybrid", "all", "organs_tumor", "mot1"),  # 4000
    "mot3": LARGE | labels("hybrid", "all", "organs_tumor", "mot2"),  # 4000
}

# the real script, once per round, in one process: each start of Python costs a second
ALL_ROUNDS = f"""
import runpy, sys
for name in {ROUNDS}:
    print("--- #", name)
    sys.argv = ["train.py", *{OVERRIDES}, "round=" + name, "--cfg", "job", "--resolve"]
    runpy.run_path("train.py", run_name="__main__")
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed() -> dict[str, dict[str, Any]]:
    documents = list(yaml.safe_load_all(run("-c", ALL_ROUNDS)))
    return dict(zip(ROUNDS, documents, strict=True))


def pick(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("name", ROUNDS)
def test_the_papers_numbers(printed: dict[str, dict[str, Any]], name: str) -> None:
    expected = COMMON | OF_ROUND[name] | {"round.name": name, "name": "flare23", "data.name": "flare23"}
    assert len(expected) >= 25
    found = {key: pick(printed[name], key) for key in expected}
    assert found == expected
    assert (
        sum(c is not None for c in printed[name]["model"]["net"]["classes"].values()) == 14
    )  # without ignore


def test_one_process_prints_what_the_command_prints(printed: dict[str, dict[str, Any]]) -> None:
    text = run("train.py", *OVERRIDES, "round=mot3", "--cfg", "job", "--resolve")
    assert yaml.safe_load(text) == printed["mot3"]
