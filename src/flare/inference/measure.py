"""What a case costs: time by stage, and as the challenge samples it time, GPU memory, CPU and RAM."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import psutil

INTERVAL_S = 0.1  # the challenge's
MB = 2**20


@dataclass
class Stopwatch:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Close a stage."""
        now = time.perf_counter()
        self.seconds[stage] = now - self.started
        self.started = now


class Sample(NamedTuple):
    """One look: the clock and the CPU time spent so far, in seconds, and memory in MB; None without a GPU."""

    at_s: float
    cpu_s: float
    ram_mb: float
    gpu_mb: float | None


class ResourceSampler:
    """Samples this process and what it starts in a thread, for as long as the `with` block runs.

    The challenge looks at the whole machine. Here CPU and RAM are those of the process tree, so that nothing
    else on the machine counts; GPU memory is all that is taken on the current CUDA device, as there.

    Reference: FLARE challenge, `Efficiency.py` and `load_json.py`.
    """

    def __init__(self, *, gpu: bool, interval_s: float = INTERVAL_S) -> None:
        self.gpu, self.interval_s = gpu, interval_s
        self.samples: list[Sample] = []
        self._others: set[psutil.Process] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ResourceSampler:
        # workers that wait for other work are none of this case's
        self._others = set(psutil.Process().children(recursive=True))
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._look()

    def _look(self) -> None:
        me = psutil.Process()
        cpu_s = ram_mb = 0.0
        for process in {me, *me.children(recursive=True)} - self._others:
            with contextlib.suppress(psutil.Error), process.oneshot():  # it may have ended meanwhile
                times = process.cpu_times()
                cpu_s, ram_mb = cpu_s + times.user + times.system, ram_mb + process.memory_info().rss / MB
        self.samples.append(Sample(time.perf_counter(), cpu_s, ram_mb, _gpu_mb() if self.gpu else None))

    def usage(self) -> dict[str, float | None]:
        """Give what the challenge reports, by the columns of the tables of efficiency; None without a GPU.

        The share of all cores that the process may use, RAM and GPU memory are each the highest. The areas
        under the curves are in MB s and % s.
        """
        from scipy.integrate import trapezoid  # only where something was measured

        at_s, cpu_s, ram_mb, gpu_mb = np.array(self.samples, dtype=float).T  # NaN without a GPU
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        length, spent = np.diff([at_s, cpu_s])[:, np.diff(at_s) > 0]
        percent = 100 * spent.clip(0) / length / cores
        # the system counts in hundredths of a second, too coarse for the last moment
        whole = percent[length >= self.interval_s / 2] if (length >= self.interval_s / 2).any() else percent
        usage = {
            "time_s": at_s[-1] - at_s[0],
            "max_gpu_mb": gpu_mb.max(),
            "gpu_auc": trapezoid(gpu_mb, at_s),
            "cpu_percent": min(whole.max(), 100) if whole.size else np.nan,
            "cpu_auc": (length * percent).sum(),
            "ram_mb": ram_mb.max(),
            "ram_auc": trapezoid(ram_mb, at_s),
        }
        return {key: None if np.isnan(value) else round(float(value), 2) for key, value in usage.items()}


def _gpu_mb() -> float:
    """MB in use on the current CUDA device, by whomever."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / MB
