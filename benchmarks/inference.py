"""Seconds a case and peak memory of our predictors and a peer's, on one network and one real CT.

    make bench-infer

The peer is nnU-Net v2's predictor where it is installed (`.venv-peers`, see peers.txt), else MONAI's
`sliding_window_inference`. All take turns; every run is a process of its own, whose peak memory is its own.
Timed are the network over all windows and the way back to the scan's grid; all start from one preprocessed
array. CPU seconds, those of both cores, hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flare.core.heap import keep_heap

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FLARE_DATA", ROOT.parent / "shared" / "data"))
SPACING, INTENSITY = (4.0, 1.2, 1.2), {"lower": -900.0, "upper": 300.0, "mean": 20.0, "std": 150.0}
# nnU-Net's own plans: linear in plane, nearest slice
NNUNET_RESTORE = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
OURS = {
    "ours, dense, float32": ["inference=dense", "inference.precision=32"],
    "ours, dense": ["inference=dense"],
    "ours, dense, OpenVINO": ["inference=dense", "engine=openvino"],
    "ours, paper": ["inference=paper"],
    "ours, fast": ["inference=fast"],
}
Timed = tuple[float, float, int]  # seconds of the network and of the way back, windows


def main() -> None:
    """Let all predictors take turns and print medians and ratios."""
    keep_heap()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=DATA / "torso_512" / "torso_0000.nii.gz")
    parser.add_argument("--slices", type=int, default=128, help="taken from the middle of the scan; 0: all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="medium")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only:
        print(json.dumps(run(chosen.only, chosen.folder, chosen.image, chosen.slices)))
        return
    peer = "nnU-Net v2" if importlib.util.find_spec("nnunetv2") else "MONAI"
    names = [peer, *OURS]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        same = ["--folder", folder, "--image", str(chosen.image), "--slices", str(chosen.slices)]
        write = [sys.executable, "-c", f"import inference; inference.write({chosen.model!r}, {folder!r})"]
        subprocess.run(write, cwd=Path(__file__).parent, check=True)
        for number in range(chosen.rounds):
            for name in names if number % 2 == 0 else reversed(names):
                command = [sys.executable, __file__, "--only", name, *same]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    report(found, peer)


def report(found: dict[str, list[dict[str, Any]]], peer: str) -> None:
    """Print medians, and ratios to the peer as medians over rounds."""
    totals = {name: [r["network_s"] + r["restore_s"] for r in runs] for name, runs in found.items()}
    print("| predictor | windows | network s | way back s | s a case | times as fast | CPU s | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        network, restore, cpu, peak = (
            statistics.median(r[key] for r in runs) for key in ("network_s", "restore_s", "cpu_s", "peak_mb")
        )
        total = statistics.median(totals[name])
        ratio = statistics.median(a / b for a, b in zip(totals[peer], totals[name], strict=True))
        cells = [name, runs[0]["windows"], f"{network:.1f}", f"{restore:.2f}", f"{total:.1f}", f"{ratio:.2f}"]
        print("| " + " | ".join(map(str, [*cells, f"{cpu:.0f}", f"{peak:.0f}"])) + " |")


def write(model: str, folder: str) -> None:
    """Write a network with random weights, as a checkpoint of ours and as a model folder of nnU-Net v2."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from flare.cli import CONF
    from flare.convert.foreign import ConvertSettings, write_checkpoint
    from flare.convert.layout import Foreign
    from flare.convert.nnunet import export_folder
    from flare.core.classes import ClassList

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={model}"])
    torch.manual_seed(0)
    values = {
        "spacing_mm": list(SPACING),
        "patch_size": [32, 128, 192],
        "intensity": INTENSITY,
        "mirror_axes": [0, 1, 2],
        "interpolation": "linear",
    }
    foreign = Foreign(dict(instantiate(cfg.model.net).state_dict()), {}, values)
    labels, path = ClassList.from_config(cfg.classes), Path(folder) / "ours.ckpt"
    write_checkpoint(foreign, path, ConvertSettings(labels, "organs_tumor"))
    export_folder(path, Path(folder) / "model", fold=0)
    plans = Path(folder) / "model" / "plans.json"
    content = json.loads(plans.read_text())
    for configuration in content["configurations"].values():
        configuration["resampling_fn_probabilities"] = "resample_data_or_seg_to_shape"
        configuration["resampling_fn_probabilities_kwargs"] = NNUNET_RESTORE
    plans.write_text(json.dumps(content))


def run(name: str, folder: Path, image: Path, slices: int) -> dict[str, Any]:
    """Segment the scan once, without flips, and say how long it took and how much memory at most."""
    from flare.core.geometry import Volume
    from flare.core.preprocessing import Intensity, normalise, preprocess
    from flare.core.volumes import read_image

    volume = read_image(image)
    if slices:
        first = (len(volume.array) - slices) // 2
        array = volume.array[first : first + slices]
        geometry = replace(volume.geometry, shape=array.shape)
        volume = Volume(array, geometry)
    case = preprocess(volume, SPACING, "linear")
    array = normalise(case.array, Intensity.from_dict(INTENSITY))
    timed = {"nnU-Net v2": nnunet, "MONAI": monai}.get(name, ours)
    work = timed(name, folder, volume, array, case.ras)
    Path("/proc/self/clear_refs").write_text("5")  # peak memory from here on
    spent = time.process_time()
    network_s, restore_s, windows = work()
    cpu_s = time.process_time() - spent
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = int(status["VmHWM"].split()[0]) / 1024
    return {
        "network_s": round(network_s, 2),
        "restore_s": round(restore_s, 3),
        "cpu_s": round(cpu_s, 1),
        "windows": windows,
        "peak_mb": round(peak_mb),
    }


def ours(name: str, folder: Path, volume: Any, array: Any, ras: Any) -> Callable[[], Timed]:
    """Our predictor; it preprocesses again, which is not counted."""
    from hydra import compose, initialize_config_dir

    from flare.cli import CONF
    from flare.inference.predictor import Predictor
    from flare.inference.settings import InferenceSettings

    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = InferenceSettings.from_config(compose("infer", ["tta=none", *OURS[name]]))
    predictor = Predictor.from_checkpoint(folder / "ours.ckpt", settings)

    def work() -> Timed:
        done = predictor.predict(volume)
        # where the windows lie is part of the time: `fast` looks for the body first
        network_s = done.seconds["plan"] + done.seconds["network"]
        return network_s, done.seconds["restore"], done.windows

    return work


def nnunet(name: str, folder: Path, volume: Any, array: Any, ras: Any) -> Callable[[], Timed]:
    """nnU-Net v2's predictor and export, with its defaults but without flips."""
    import torch
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as to_labels,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder / "model"), use_folds=(0,))
    properties = {
        "spacing": ras.spacing_mm,
        "shape_before_cropping": ras.shape,
        "shape_after_cropping_and_before_resampling": ras.shape,
        "bbox_used_for_cropping": [[0, size] for size in ras.shape],
    }
    managers = (predictor.plans_manager, predictor.configuration_manager, predictor.label_manager)
    threads = len(os.sched_getaffinity(0))

    def work() -> Timed:
        started = time.perf_counter()
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array)[None])
        predicted = time.perf_counter()
        to_labels(logits, *managers, properties, num_threads_torch=threads)
        ended = time.perf_counter()
        slicers = predictor._internal_get_sliding_window_slicers(
            [
                max(sizes)
                for sizes in zip(array.shape, predictor.configuration_manager.patch_size, strict=True)
            ]
        )
        return predicted - started, ended - predicted, len(slicers)

    return work


def monai(name: str, folder: Path, volume: Any, array: Any, ras: Any) -> Callable[[], Timed]:
    """MONAI's sliding window with nnU-Net's settings, then interpolation and argmax of the whole volume."""
    import torch
    from monai.inferers import sliding_window_inference
    from torch.nn.functional import interpolate

    from flare.models.zoo import load_network

    network, checkpoint = load_network(folder / "ours.ckpt")
    calls = 0

    def counted(patch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return network(patch)

    @torch.inference_mode()
    def work() -> Timed:
        started = time.perf_counter()
        logits = sliding_window_inference(
            torch.from_numpy(array)[None, None],
            checkpoint.patch_size,
            1,
            counted,
            overlap=0.5,
            mode="gaussian",
        )
        predicted = time.perf_counter()
        interpolate(logits, size=ras.shape, mode="trilinear", align_corners=False).argmax(1)
        return predicted - started, time.perf_counter() - predicted, calls

    return work


if __name__ == "__main__":
    main()
