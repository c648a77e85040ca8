"""What a case costs: time by stage, and as the challenge samples it time, GPU memory, CPU and RAM."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType

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


@dataclass(frozen=True)
class Sample:
    """One look: the clock and the CPU time spent so far, in seconds, and memory in MB; None without a GPU."""

    at_s: float
    cpu_s: float
    ram_mb: float
    gpu_mb: float | None


class ResourceSampler:
    """Samples this process and what it starts in a thread, for as long as the `with` block runs.

    The challenge looks at the whole machine. Here CPU and RAM are those of the process tree, so that nothing
    else on the machine counts; GPU memory is all that is taken on the device, as there.

    Args:
        gpu: Whether the work is on the current CUDA device.
        interval_s: Time between samples.

    Reference: FLARE challenge, `Efficiency.py` and `load_json.py`.
    """

    def __init__(self, *, gpu: bool, interval_s: float = INTERVAL_S) -> None:
        self.gpu, self.interval_s = gpu, interval_s
        self.samples: list[Sample] = []
        self._others: set[psutil.Process] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ResourceSampler:
        self._others = set(
            psutil.Process().children(recursive=True)
        )  # workers that wait for other work are none of this case's
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Give what the challenge reports, by the columns of the tables of efficiency.

        Returns:
            `time_s`; `max_gpu_mb`, `ram_mb` and `cpu_percent` (of all cores that the process may use), each
            the highest; `gpu_auc` and `ram_auc` (MB s) and `cpu_auc` (% s), the areas under the curves.
            None where there is no GPU.
        """
        cpu = _cpu_percent(self.samples)
        usage: dict[str, float | None] = {"time_s": self.samples[-1].at_s - self.samples[0].at_s}
        usage["max_gpu_mb"], usage["gpu_auc"] = _peak_and_area([(s.at_s, s.gpu_mb) for s in self.samples])
        usage["cpu_percent"] = _cpu_peak(cpu, self.interval_s)
        usage["cpu_auc"] = sum(length * percent for length, percent in cpu)
        usage["ram_mb"], usage["ram_auc"] = _peak_and_area([(s.at_s, s.ram_mb) for s in self.samples])
        return {key: None if value is None else round(value, 2) for key, value in usage.items()}


def _gpu_mb() -> float:
    """MB in use on the current CUDA device, by whomever."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / MB


def _peak_and_area(curve: list[tuple[float, float | None]]) -> tuple[float | None, float | None]:
    """Give the highest value and the area (trapezoids) of a curve; None if a value is not known."""
    known = [(at, value) for at, value in curve if value is not None]
    if len(known) < len(curve):
        return None, None
    area = sum((late - early) * (a + b) / 2 for (early, a), (late, b) in pairwise(known))
    return max(value for _, value in known), area


def _cpu_percent(samples: list[Sample]) -> list[tuple[float, float]]:
    """Give the length of each interval in seconds and the share of the cores used in it, in percent."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        (length, 100 * max(late.cpu_s - early.cpu_s, 0) / length / cores)
        for early, late in pairwise(samples)
        if (length := late.at_s - early.at_s) > 0
    ]


def _cpu_peak(cpu: list[tuple[float, float]], interval_s: float) -> float | None:
    """Give the highest share; the system counts in hundredths of a second, too coarse for the last moment."""
    whole = [percent for length, percent in cpu if length >= interval_s / 2] or [p for _, p in cpu]
    return min(max(whole), 100.0) if whole else None
