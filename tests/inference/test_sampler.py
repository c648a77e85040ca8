"""What a case costs: sampled curves, and the figures taken from them."""

import mmap
import os
import subprocess
import sys
import time

import pytest

from flare.inference import measure as sampler
from flare.inference.measure import ResourceSampler, Sample

WAIT = "import sys; block = bytearray(64 << 20); print(flush=True); sys.stdin.read()"


def test_figures_of_a_known_curve(monkeypatch):
    monkeypatch.setattr(sampler.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    watch = ResourceSampler(gpu=True)
    watch.samples = [
        Sample(10.0, 5.0, 100.0, 0.0),
        Sample(10.1, 5.1, 300.0, 2000.0),  # one of two cores
        Sample(10.2, 5.3, 300.0, 1000.0),  # both
    ]
    assert watch.usage() == {
        "time_s": 0.2,
        "max_gpu_mb": 2000.0,
        "gpu_auc": 250.0,  # 0.1 * 1000 + 0.1 * 1500
        "cpu_percent": 100.0,
        "cpu_auc": 15.0,  # 0.1 * 50 + 0.1 * 100
        "ram_mb": 300.0,
        "ram_auc": 50.0,  # 0.1 * 200 + 0.1 * 300
    }


def test_the_last_moment_is_too_short_to_be_the_peak(monkeypatch):
    monkeypatch.setattr(sampler.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    watch = ResourceSampler(gpu=False)
    watch.samples = [Sample(0.0, 0.0, 1.0, None), Sample(0.1, 0.1, 1.0, None), Sample(0.101, 0.11, 1.0, None)]
    assert watch.usage()["cpu_percent"] == 50.0
    assert watch.usage()["cpu_auc"] == 5.5


def test_work_and_memory_of_this_process_are_seen():
    with ResourceSampler(gpu=False, interval_s=0.02) as watch:
        block = mmap.mmap(-1, 100 << 20)  # pages that nobody had before
        block.write(bytes(100 << 20))
        spent, until = time.process_time(), time.perf_counter() + 0.4
        while time.perf_counter() < until:
            sum(range(1000))
        spent = time.process_time() - spent
        block.close()
        time.sleep(0.1)
    usage = watch.usage()
    assert 0.5 <= usage["time_s"] < 30
    assert len(watch.samples) >= 5
    assert usage["ram_mb"] - watch.samples[0].ram_mb > 90
    cores = len(os.sched_getaffinity(0))
    assert usage["cpu_auc"] == pytest.approx(100 * spent / cores, rel=0.5, abs=10)
    assert 0 < usage["cpu_percent"] <= 100
    assert usage["max_gpu_mb"] is usage["gpu_auc"] is None


def test_only_processes_started_meanwhile_count():
    def start():
        child = subprocess.Popen([sys.executable, "-c", WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()  # the block is there
        return child

    with start() as earlier:
        with ResourceSampler(gpu=False, interval_s=0.02) as watch, start() as own:
            time.sleep(0.1)
            own.communicate()
        earlier.communicate()
    added = watch.usage()["ram_mb"] - watch.samples[0].ram_mb
    assert 64 <= added < 120


def test_an_error_inside_ends_the_sampling():
    watch = ResourceSampler(gpu=False, interval_s=0.01)
    with pytest.raises(KeyError), watch:
        raise KeyError
    count = len(watch.samples)
    time.sleep(0.05)
    assert len(watch.samples) == count
