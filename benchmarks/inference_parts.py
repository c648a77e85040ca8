"""Parts of a case: passes of a network beside the CPU's peak, labels from maps beside nnU-Net v2's export.

    .venv-peers/bin/python benchmarks/inference_parts.py FOLDER [--image SCAN] [--turns 5]

FOLDER is what `benchmarks/inference.py --folder` wrote. The peak is the best of large matrix products in
torch, NumPy and OpenVINO: one library alone may not reach what the CPU can. All take turns in one process. It
keeps its heap, as `infer.py` does; `--default-heap` leaves it as glibc has it.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("FLARE_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIDE = 4096  # of the matrices


def main() -> None:
    """Print a table of passes and one of the way from maps to labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", type=Path, default=DATA / "torso_512" / "torso_0000.nii.gz")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--default-heap", action="store_true")
    chosen = parser.parse_args()
    if not chosen.default_heap:
        from flare.core.heap import keep_heap

        keep_heap()
    passes(chosen.folder, chosen.turns)
    way_back(chosen.folder, chosen.image, chosen.turns)


def take_turns(work: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, tuple[float, float]]:
    """Run all in alternating order, once before; give medians of wall and CPU seconds."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for turn in range(-1, turns):
        for name in work if turn % 2 else reversed(list(work)):
            wall, cpu = time.perf_counter(), time.process_time()
            work[name]()
            if turn >= 0:
                found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: tuple(map(statistics.median, zip(*f, strict=True))) for name, f in found.items()}  # type: ignore[misc]


def passes(folder: Path, turns: int) -> None:
    """Compare one pass by each engine with the largest rate of products of matrices."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from flare.inference.runtimes import build_engine
    from flare.models.zoo import load_network

    network, checkpoint = load_network(folder / "ours.ckpt")
    patch, cpu = torch.randn(1, 1, *checkpoint.patch_size), torch.device("cpu")
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    x, y, half = a.numpy(), b.numpy(), torch.bfloat16
    a16, b16 = a.to(half), b.to(half)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(patch)
    gflop = {"product": 2 * SIDE**3 / 1e9, "pass": counter.get_total_flops() / 1e9}
    products = {
        "product, float32, torch": lambda: a @ b,
        "product, float32, NumPy": lambda: np.matmul(x, y),
        "product, float32, OpenVINO": openvino_product(x, y, "f32"),
        "product, bfloat16, torch": lambda: a16 @ b16,
        "product, bfloat16, OpenVINO": openvino_product(x, y, "bf16"),
    }
    engines = {}
    for name in ("torch", "openvino"):
        for precision in ("32", "bf16"):
            engine = build_engine(name, network, device=cpu, precision=precision)
            told = {"32": "float32", "bf16": "bfloat16"}[precision]
            engines[f"pass, {told}, {name}"] = lambda engine=engine: engine(patch)
    with torch.inference_mode():
        found = take_turns({**products, **engines}, turns)
    rates = {name: gflop[name.split(",")[0]] / wall for name, (wall, _) in found.items()}
    print(f"\none pass: {gflop['pass']:.0f} GFLOP\n")
    print("| work | s | CPU s | GFLOP/s | of the best product in the same precision |\n|---|---|---|---|---|")
    for name, (wall, cpu_s) in found.items():
        precision = name.split(", ")[1]
        peak = max(rates[product] for product in products if precision in product)
        print(f"| {name} | {wall:.3f} | {cpu_s:.3f} | {rates[name]:.0f} | {100 * rates[name] / peak:.0f} % |")


def openvino_product(x: Any, y: Any, precision: str) -> Callable[[], Any]:
    """Compile a product of two matrices for OpenVINO; the second is a constant, as weights are."""
    from openvino import Model, Type, opset13

    from flare.inference.runtimes import openvino_core

    left = opset13.parameter(list(x.shape), Type.f32)
    model = Model([opset13.matmul(left, opset13.constant(y), False, False)], [left])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino_core().compile_model(model, "CPU", hints)
    return lambda: compiled(x)


def way_back(folder: Path, image: Path, turns: int) -> None:
    """Compare the way from the same logits to labels on the scan's grid."""
    import numpy as np
    import torch
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as to_labels,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from flare.core.preprocessing import preprocess
    from flare.core.volumes import read_image
    from flare.inference.predictor import Predictor
    from flare.inference.restore import Way, interpolated_axes, restore_labels

    choices = {"name": "dense", "average": "logits", "restore": "nnunet", "engine": "openvino"}
    predictor = Predictor.from_checkpoint(folder / "ours.ckpt", tta="none", **choices)
    case = preprocess(read_image(image), predictor.spacing_mm, predictor.interpolation)
    with torch.inference_mode():
        placed = predictor._place(case)[0]
        blended = predictor.average(placed, case.array.shape).whole()
    logits = torch.from_numpy(blended.of_volume(blended.values))
    peer = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    peer.initialize_from_trained_model_folder(str(folder / "model"), use_folds=(0,))
    shape, spacing = case.ras.shape, case.ras.spacing_mm
    properties = {
        "spacing": spacing,
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, size] for size in shape],
    }
    managers = (peer.plans_manager, peer.configuration_manager, peer.label_manager)
    linear = interpolated_axes("nnunet", predictor.spacing_mm, spacing)
    kept: dict[str, Any] = {}

    def theirs() -> None:
        threads = len(os.sched_getaffinity(0))
        kept["nnU-Net v2"] = to_labels(logits.clone(), *managers, properties, num_threads_torch=threads)

    def ours() -> None:
        kept["ours"] = restore_labels(blended, shape, Way(linear, predictor.outputs, memory_mb=1000))

    found = take_turns({"nnU-Net v2": theirs, "ours": ours}, turns)
    a, b = (np.asarray(kept[name]) for name in ("nnU-Net v2", "ours"))
    foreground = (a != 0) | (b != 0)
    print(
        f"\n{tuple(logits.shape)} to {shape}\n\n| to labels | s | CPU s | times as fast |\n|---|---|---|---|"
    )
    for name, (wall, cpu_s) in found.items():
        print(f"| {name} | {wall:.2f} | {cpu_s:.2f} | {found['nnU-Net v2'][0] / wall:.1f} |")
    print(
        f"\nequal labels: {100 * np.mean(a == b):.4f} % of {math.prod(shape)} voxels, "
        f"{100 * np.mean(a[foreground] == b[foreground]):.3f} % of the foreground"
    )


if __name__ == "__main__":
    main()
