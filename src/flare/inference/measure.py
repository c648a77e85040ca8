"""What a case costs: memory as predicted, time by stage, and all that the challenge measures."""

import math
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil

from flare.core.geometry import Shape
from flare.core.preprocessing import Preprocessed
from flare.runs.work import one_process

INTERVAL_S = 0.1  # the challenge's
GUARD_S = 0.1  # what its script adds to the CPU time between two samples
RARE = 0.02  # a level of GPU memory that no more of the samples have is no peak to the challenge
MB = 2**20
# what a pass takes for a voxel of a window: the medium network in float32 by torch, measured (ours)
PASS_BYTES = 1000


@dataclass
class Stopwatch:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str, within: str = "", seconds: float = 0.0) -> None:
        """Close a stage; so many of its seconds were spent on another one, `within`."""
        now = time.perf_counter()
        if within:
            self.seconds[within] = seconds
        self.seconds[stage] = now - self.started - seconds
        self.started = now


class Sample(NamedTuple):
    """One look at the machine: share of CPU time used (%), memory in MB; None without a GPU."""

    cpu_percent: float
    ram_mb: float
    gpu_mb: float | None


class ResourceSampler:
    """Samples the whole machine in a thread, for as long as the `with` block runs, as the challenge does.

    So whatever else runs on the machine counts as well. The share of CPU time is `100 - 100 idle / (total +
    0.1)` over user, system and idle seconds of all cores since the last sample. The 0.1 is the challenge's
    guard; on few cores it makes an idle machine look busy (a third of two cores). `gpu` is the number of the
    CUDA device whose memory is sampled, of all its processes; None for none.

    Reference: FLARE23, `Efficiency.py` and `load_json.py`.
    """

    def __init__(self, *, gpu: int | None, interval_s: float = INTERVAL_S) -> None:
        self.gpu, self.interval_s = gpu, interval_s
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "ResourceSampler":
        self.started = time.perf_counter()
        self._before = _cpu_times()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.time_s = time.perf_counter() - self.started
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            now = _cpu_times()
            spent = [after - before for after, before in zip(now, self._before, strict=True)]
            self._before = now
            used = 100 - 100 * spent[-1] / (sum(spent) + GUARD_S)
            gpu_mb = None if self.gpu is None else _gpu_mb(self.gpu)
            self.samples.append(Sample(used, psutil.virtual_memory().used / MB, gpu_mb))
            if self._stop.wait(self.interval_s):
                return

    def usage(self) -> dict[str, float | None]:
        """Give what the challenge reports, by the columns of the tables of efficiency; None without a GPU.

        CPU use and RAM are the highest of all samples, GPU memory the highest that more than 2 % of the
        samples have. An area under a curve is the sum of the samples times 0.1 s, in % s and MB s.
        """
        cpu, ram, gpu = zip(*self.samples, strict=True)
        usage: dict[str, float | None] = {"time_s": self.time_s, "max_gpu_mb": None, "gpu_auc": None}
        if self.gpu is not None:
            lasting = [level for level, count in Counter(gpu).items() if count > RARE * len(gpu)]
            usage |= {"max_gpu_mb": max(lasting or gpu), "gpu_auc": sum(gpu) * self.interval_s}
        usage |= {"cpu_percent": max(cpu), "cpu_auc": sum(cpu) * self.interval_s}
        usage |= {"ram_mb": max(ram), "ram_auc": sum(ram) * self.interval_s}
        return {key: None if value is None else round(value, 2) for key, value in usage.items()}


def measured(function: Callable[..., Any], job: dict[str, Any], *, gpu: int | None) -> dict[str, Any]:
    """Run `function(**job)` in a Python of its own, from its start to its end, with all cores; add its usage.

    As in the challenge, where a container is started for each case, nothing is warm: start of Python, imports
    and the network's loading count. `function` is importable.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cold = multiprocessing.get_context("spawn")
    # the process ends before the sampling
    with ResourceSampler(gpu=gpu) as sampler, one_process(cold, cores) as pool:
        row = pool.submit(function, **job).result()
    return row | sampler.usage()


def expected_bytes(
    case: Preprocessed, patch: Shape, sums: int, kept: int, *, is_whole: bool = False, is_open: bool = False
) -> float:
    """Predict what a case adds at most to the process, but for the block of slices restored at a time.

    As the scan is resampled it is there, 16 bits a voxel, and the network's grid in float32. As the network
    runs, the grid is there as 16 and 32 bits, its body and coverage as a byte each, one pass of a window, the
    sums of two windows' depth, and what is given back.
    `patch` is a window's voxels along Z, Y, X. So many `sums` are maps that are summed up in this process's
    memory, weights included, 0 if passes are on a GPU; with `is_whole` those of all of the grid are kept. Of
    each voxel of the scan so many bytes are `kept`: 1 of labels, 2 of a probability. Open decisions
    (`is_open`) take 8 bytes a voxel, and maps of windows that are held.
    """
    scan = math.prod(case.geometry.shape)
    depth, *sides = (max(pair) for pair in zip(case.array.shape, patch, strict=True))
    plane, slices = math.prod(sides), depth if is_whole else min(depth, 2 * patch[0])
    passes = PASS_BYTES * math.prod(patch) if sums else 0
    predicting = 8 * plane * depth + 4 * sums * plane * slices + passes + kept * scan
    if is_open and sums:
        predicting += 8 * plane * depth + 4 * sums * plane * patch[0]
    return max(2 * scan + 4 * plane * depth, predicting)


def _cpu_times() -> tuple[float, float, float]:
    """Seconds that all cores have spent on users' and the system's work, and idle, in that order."""
    now = psutil.cpu_times()
    return now.user, now.system, now.idle


def _gpu_mb(device: int) -> float:
    """MB in use on a CUDA device, by whomever; asked of the driver, which takes no memory there."""
    import torch

    return torch.cuda.device_memory_used(device) / MB
