"""A round that starts from its teacher: heads by class, all else as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.models.unet import UNet
from flare.runs.checkpoints import Checkpoint
from flare.training.build import start_from_teacher


def network(labels: ClassList, targets: str, seed: int, **changes: Any) -> UNet:
    torch.manual_seed(seed)
    settings = {
        "features": [2, 3, 4],
        "convolutions_per_stage": 1,
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "encoder_kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "decoder_kernels": [[3, 3, 3], [3, 3, 3]],
        "transposed_bias": False,
        "head_bias": True,
    }
    return UNet(labels.to_config(), targets, **{**settings, **changes})


def checkpoint(labels: ClassList, targets: str, state: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(
        path=Path("mo/last.ckpt"),
        sha256="",
        state_dict=state,
        classes=labels.to_config(),
        targets=targets,
        spacing_mm=(4, 1.2, 1.2),
        interpolation="linear",
        intensity={},
        patch_size=(8, 16, 16),
        mirror_axes=(),
        round="mo",
        config={},
        git_revision="",
    )


def test_organ_rows_are_copied_and_the_tumors_row_stays_fresh(labels: ClassList) -> None:
    teacher = network(labels, "organs", 0).state_dict()
    for head in ("heads.0.bias", "heads.1.bias"):
        teacher[head].copy_(torch.arange(14.0))
    pupil = network(labels, "organs_tumor", 1)
    fresh = {key: weights.clone() for key, weights in pupil.state_dict().items()}
    start_from_teacher(pupil, checkpoint(labels, "organs", teacher), classes=labels, targets="organs_tumor")
    for key, weights in pupil.state_dict().items():
        if key.startswith("heads."):
            assert torch.equal(weights[:14], teacher[key])
            assert torch.equal(weights[14], fresh[key][14])
        else:
            assert torch.equal(weights, teacher[key])


def test_rows_are_copied_by_class_and_not_by_position(labels: ClassList) -> None:
    teacher = network(labels, "tumor", 0).state_dict()
    pupil = network(labels, "organs_tumor", 1)
    start_from_teacher(pupil, checkpoint(labels, "tumor", teacher), classes=labels, targets="organs_tumor")
    head = pupil.state_dict()["heads.1.weight"]
    assert torch.equal(head[0], teacher["heads.1.weight"][0])
    assert torch.equal(head[14], teacher["heads.1.weight"][1])
    assert not torch.equal(head[1], teacher["heads.1.weight"][1])


def test_another_architecture_is_refused(labels: ClassList) -> None:
    teacher = checkpoint(labels, "organs", network(labels, "organs", 0).state_dict())
    deeper = network(labels, "organs", 0, convolutions_per_stage=2)
    with pytest.raises(FlareError, match=r"round.init=teacher: mo/last.ckpt has another architecture"):
        start_from_teacher(deeper, teacher, classes=labels, targets="organs")
    wider = network(labels, "organs", 0, features=[2, 3, 5])
    with pytest.raises(FlareError, match="another architecture"):
        start_from_teacher(wider, teacher, classes=labels, targets="organs")


def test_rows_go_by_name_where_the_class_list_is_another(
    labels: ClassList, caplog: pytest.LogCaptureFixture
) -> None:
    """Another hospital's: other ids, an organ in capitals, one of its own, one id under another name."""
    caplog.set_level("INFO")
    entry = {"role": "organ", "tolerance_mm": 3, "slice_range": False}
    own = {
        "kidney_cyst": {**entry, "id": 2, "short": "Cyst"},  # 2 is the right kidney there
        "Spleen": {**entry, "id": 1, "short": "S"},
        "liver": {**entry, "id": 4, "short": "L"},
        "tumor": {**entry, "id": 7, "short": "T", "role": "tumor"},
    }
    teacher = network(labels, "organs_tumor", 0).state_dict()
    for head in ("heads.0.bias", "heads.1.bias"):
        teacher[head].copy_(torch.arange(15.0))
    classes = ClassList.from_config(own)
    pupil = network(classes, "organs_tumor", 1)
    fresh = {key: weights.clone() for key, weights in pupil.state_dict().items()}
    known = checkpoint(labels, "organs_tumor", teacher)
    start_from_teacher(pupil, known, classes=classes, targets="organs_tumor")
    # outputs: background, spleen (3 there), cyst, liver (1), tumor (14)
    for key, weights in pupil.state_dict().items():
        if key.startswith("heads."):
            assert torch.equal(weights[[0, 1, 3, 4]], teacher[key][[0, 3, 1, 14]])
            assert torch.equal(weights[2], fresh[key][2])
        else:
            assert torch.equal(weights, teacher[key])
    told = "the heads of background, spleen, liver, tumor start from the teacher's, afresh: kidney_cyst"
    assert caplog.messages == [told]
