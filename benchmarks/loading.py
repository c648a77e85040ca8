"""Processor time, workers and memory of the whole data loading at the paper's patch, by the shipped settings.

    PYTHONPATH=src .venv/bin/python benchmarks/loading.py --batches 2000

Cached cases of random HU in a temporary folder; two workers draw, read and augment. Memory is what a worker
does not share with others (USS). `--device gpu`: what `data.augmentation.device=gpu` leaves to the workers.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from omegaconf import OmegaConf

from flare.core.heap import keep_heap
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.cache import sample_foreground, store_array
from flare.data.loaders import PatchDataset, StepLoader, StepSampler
from flare.data.settings import CaseArrays, PatchSettings

CONFIG = Path(__file__).parents[1] / "conf" / "data" / "default.yaml"
SHAPE = (110, 300, 300)
CASES, WORKERS, TURNS = 8, 2, 8
STEP_S = 0.15  # of a training step on a GPU (ours)


def write_cases(folder: Path) -> list[tuple[str, CaseArrays]]:
    """Cases of smooth noise with a few boxes for organs."""
    cases = []
    for number in range(CASES):
        rng = np.random.default_rng(number)
        image = rng.normal(40, 30, SHAPE).astype(np.int16)
        label = np.zeros(SHAPE, dtype=np.uint8)
        for class_id in range(1, 15):
            label[20:90, 20 * class_id : 20 * class_id + 15, 60:240] = class_id
        arrays = CaseArrays(folder / f"{number}-image.b2nd", folder / f"{number}-label.b2nd")
        store_array(arrays.image, image)
        store_array(arrays.label, label, foreground=sample_foreground(label, 10_000))
        cases.append((f"{number}", arrays))
    return cases


def main() -> None:
    keep_heap()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--interpolation", choices=("cubic", "linear"), default="cubic")
    given = parser.parse_args()
    data = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=False)
    values = {**data["augmentation"], "device": given.device, "image_interpolation": given.interpolation}
    patch, size = tuple(data["patch_size"]), data["batch_size"]
    settings = PatchSettings(patch, (4, 1.2, 1.2), size, 0.33, 0.0, WORKERS, values, tuple(range(15)), 14, 0)
    with tempfile.TemporaryDirectory() as folder:
        cases, intensity = write_cases(Path(folder)), Intensity(lower=-200, upper=300, mean=50, std=100)
        dataset = PatchDataset(cases, settings, intensity, Augmenter(patch, values))
        sampler = StepSampler(batch_size=size, epoch_length=given.batches, step=lambda: 0, rank=0)
        loader = StepLoader(dataset, sampler, workers=WORKERS, pin_memory=False)
        started = time.perf_counter()
        for done, _ in enumerate(loader, start=1):
            if done % (given.batches // TURNS) == 0:
                workers = psutil.Process().children()
                spent = sum(sum(worker.cpu_times()[:2]) for worker in workers) / (done * size)
                memory = " ".join(f"{worker.memory_full_info().uss / 2**20:.0f}" for worker in workers)
                clock, need = time.perf_counter() - started, math.ceil(spent * size / STEP_S)
                print(f"{done} batches, {clock:.0f} s, {1e3 * spent:.1f} ms of a core a patch")
                print(
                    f"    {need} workers for a step of {1e3 * STEP_S:.0f} ms; each has {memory} MiB",
                    flush=True,
                )
        loader.close()


if __name__ == "__main__":
    main()
