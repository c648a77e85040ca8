"""2. The sliding window on a real CT: ours with nnU-Net's settings against nnU-Net v2's predictor.

nnU-Net accumulates in half precision. Its own code is run twice: as it is, and with float32 put in place of
its half precision, which leaves the algorithm alone. The windows of `paper` and `flare22` at five sizes are
in tests/inference/test_visits_paper.py, since no package holds the authors' rule.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from nnunetv2.inference import predict_from_raw_data, sliding_window_prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from rows import ABDOMEN, NNUNET2, Row, limited, stated

from flare.cli import CONF
from flare.convert.foreign import ConvertSettings, write_checkpoint
from flare.convert.layout import Foreign
from flare.convert.nnunet import export_folder
from flare.core.classes import ClassList
from flare.core.preprocessing import Intensity, normalise, preprocess, resample, resampled_shape
from flare.core.volumes import read_image
from flare.inference.predictor import Predictor
from flare.inference.restore import Way, restore_labels
from flare.inference.settings import InferenceSettings
from flare.models.unet import UNet

SPACING, PATCH = (4.0, 2.4, 2.4), (32, 96, 96)
INTENSITY = {"lower": -900.0, "upper": 300.0, "mean": 20.0, "std": 150.0}
DENSE = ["inference=dense", "inference.average=logits", "inference.precision=32"]


def check() -> Iterator[Row]:
    """Compare logits and labels of all 15 outputs over the whole scan."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_network(folder / "ours.ckpt")
        export_folder(folder / "ours.ckpt", folder / "model", fold=0)
        case = preprocess(read_image(ABDOMEN), SPACING, "linear")
        array = normalise(case.array, Intensity.from_dict(INTENSITY))
        network = predictor(folder / "ours.ckpt", "tta=tta8")
        blended = network.average(network.plan(array, None), array.shape).whole()
        ours = blended.of_volume(blended.values)
        for half in (False, True):
            theirs = _theirs(folder / "model", array, half=half)
            same = float((ours.argmax(0) == theirs.argmax(0)).mean())
            difference = float(np.abs(ours - theirs).max())
            if half:
                yield stated(
                    "logits and labels, predictor as it is (half precision)",
                    NNUNET2,
                    f"{difference:.2g}; {same:.4%} of labels equal",
                )
            else:
                yield limited("logits of all voxels, float32", NNUNET2, difference, 1e-4)
                yield Row("labels equal, float32", NNUNET2, f"{same:.4%}", ">= 99.99 %", same >= 0.9999)
        yield from _command(folder)


def write_network(path: Path) -> None:
    """A small network with weights as after a training, in a checkpoint of ours."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["model=medium"])
    labels = ClassList.from_config(cfg.classes)
    torch.manual_seed(0)
    network = UNet(
        labels.to_config(),
        "organs_tumor",
        features=[8, 16, 32],
        convolutions_per_stage=2,
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        encoder_kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        decoder_kernels=[[3, 3, 3], [3, 3, 3]],
        transposed_bias=False,
        head_bias=False,
    )
    values = {
        "spacing_mm": list(SPACING),
        "patch_size": list(PATCH),
        "intensity": INTENSITY,
        "mirror_axes": [0, 1, 2],
        "interpolation": "linear",
    }
    foreign = Foreign(dict(network.state_dict()), {}, values)
    write_checkpoint(foreign, path, ConvertSettings(labels, "organs_tumor"))


def predictor(checkpoint: Path, *overrides: str) -> Predictor:
    """Ours, with nnU-Net's settings."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = InferenceSettings.from_config(
            compose("infer", [*DENSE, "input=x", "output=x", *overrides])
        )
    return Predictor.from_checkpoint(checkpoint, settings)


def in_float32() -> type[nnUNetPredictor]:
    """Their predictor, its code unchanged but for the type of sums and Gaussian."""
    name = "_internal_predict_sliding_window_return_logits"
    source = textwrap.dedent(inspect.getsource(getattr(nnUNetPredictor, name)))
    if source.count("dtype=torch.half") != 2:
        raise RuntimeError("nnU-Net's predictor has changed: expected two half-precision sums")

    def gaussian(*arguments: Any, **named: Any) -> torch.Tensor:
        return sliding_window_prediction.compute_gaussian(*arguments, **named, dtype=torch.float32)

    scope = {**vars(predict_from_raw_data), "compute_gaussian": gaussian}
    exec(source.replace("dtype=torch.half", "dtype=torch.float32"), scope)
    return type("InFloat32", (nnUNetPredictor,), {name: scope[name]})


def _theirs(model: Path, array: np.ndarray, *, half: bool) -> np.ndarray:
    made = (nnUNetPredictor if half else in_float32())(device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    logits = made.predict_logits_from_preprocessed_data(torch.from_numpy(array)[None])
    return logits.float().numpy()


def _command(folder: Path) -> Iterator[Row]:
    """`nnUNetv2_predict` itself, from file to file, on what we exported."""
    (folder / "images").mkdir()
    (folder / "images" / "case_0000.nii.gz").symlink_to(ABDOMEN)
    program = Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")
    arguments = ["-i", "images", "-o", "theirs", "-m", "model", "-f", "0", "-device", "cpu", "--disable_tta"]
    arguments += ["-npp", "1", "-nps", "1", "--disable_progress_bar"]
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    theirs = read_image(folder / "theirs" / "case.nii.gz").array
    ours = predictor(folder / "ours.ckpt", "tta=none")
    same = float((ours.predict(read_image(ABDOMEN)).segmentation == theirs).mean())
    yield stated(
        "nnUNetv2_predict on our folder, labels of the file (v2 clips before it resamples)",
        NNUNET2,
        f"{same:.2%} equal",
    )
    same = float((_in_their_order(ours) == theirs).mean())
    text = "the same, ours clipping first, too (theirs in half precision)"
    yield Row(text, NNUNET2, f"{same:.2%} equal", ">= 99.5 %", same >= 0.995)


def _in_their_order(ours: Predictor) -> np.ndarray:
    """Our segmentation of the scan, which is in RAS order, if intensities are clipped before resampling."""
    volume = read_image(ABDOMEN)
    shape = resampled_shape(volume.geometry.shape, volume.geometry.spacing_mm, SPACING)
    array = resample(normalise(volume.array, ours.intensity), shape, "linear")
    averages = ours.average(ours.plan(array, None), array.shape)
    way = Way((True, True, True), ours.outputs, memory_mb=1024)
    return restore_labels(averages, volume.geometry.shape, way)
