"""What a case costs, by the challenge's own formulas; a measured case has a process of its own."""

import mmap
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flare.core.errors import CaseError
from flare.inference import measure
from flare.inference.measure import ResourceSampler, Sample, measured


def test_figures_of_known_samples():
    watch = ResourceSampler(gpu=0)
    watch.time_s = 0.4567
    watch.samples = [Sample(10.0, 100.0, 500.0), Sample(90.0, 300.0, 2000.0), Sample(20.0, 200.0, 2000.0)]
    assert watch.usage() == {
        "time_s": 0.46,
        "max_gpu_mb": 2000.0,
        "gpu_auc": 450.0,  # (500 + 2000 + 2000) * 0.1
        "cpu_percent": 90.0,
        "cpu_auc": 12.0,
        "ram_mb": 300.0,
        "ram_auc": 60.0,
    }


@pytest.mark.parametrize(("others", "peak"), [(48, 3000.0), (49, 1000.0)])
def test_a_peak_of_gpu_memory_is_more_than_two_percent_of_the_samples(others, peak):
    watch = ResourceSampler(gpu=0)
    watch.time_s = 1.0
    watch.samples = [Sample(0.0, 1.0, 1000.0)] * others + [Sample(0.0, 1.0, 3000.0)]
    assert watch.usage()["max_gpu_mb"] == peak  # 1 of 49 samples is 2.04 %, 1 of 50 is 2 %


def test_a_gpu_of_no_lasting_level_has_its_peak_all_the_same():
    watch = ResourceSampler(gpu=0)
    watch.time_s = 1.0
    watch.samples = [Sample(0.0, 1.0, float(level)) for level in range(60)]
    assert watch.usage()["max_gpu_mb"] == 59.0


def test_the_share_of_cpu_time_has_the_challenges_guard(monkeypatch):
    times = iter([(1.0, 1.0, 8.0, 5.0), (1.5, 1.1, 8.3, 9.0), (1.5, 1.1, 8.5, 9.0)])
    monkeypatch.setattr(measure.psutil, "cpu_times", lambda: SimpleNamespace(**dict(zip(
        ("user", "system", "idle", "iowait"), next(times), strict=True))))  # fmt: skip
    watch = ResourceSampler(gpu=None, interval_s=60)
    with watch:
        while not watch.samples:
            time.sleep(0.01)
    # 0.5 s of users and 0.1 s of the system against 0.3 s idle: 100 - 100 * 0.3 / (0.9 + 0.1)
    assert watch.samples[0].cpu_percent == pytest.approx(70)
    assert watch.samples[0].gpu_mb is None
    assert watch.usage()["max_gpu_mb"] is watch.usage()["gpu_auc"] is None


def machine_mb():
    """What the kernel says is in use, by `free`'s formula."""
    kb = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    return (kb["MemTotal"] - kb["MemAvailable"]) / 1024


def test_the_whole_machine_is_seen():
    """Other processes come and go meanwhile, so the kernel is asked beside."""
    with ResourceSampler(gpu=None, interval_s=0.02) as watch:
        block = mmap.mmap(-1, 400 << 20)  # pages that nobody had before
        block.write(bytes(400 << 20))
        seen = []
        for _ in range(20):
            seen.append(machine_mb())
            time.sleep(0.02)
        block.close()
    assert min(seen) > 400
    assert watch.usage()["ram_mb"] >= min(seen) - 50
    assert max(sample.ram_mb for sample in watch.samples) <= max(seen) + 1000
    assert len(watch.samples) >= 4


def test_an_error_inside_ends_the_sampling():
    watch = ResourceSampler(gpu=None, interval_s=0.01)
    with pytest.raises(KeyError), watch:
        raise KeyError
    count = len(watch.samples)
    time.sleep(0.05)
    assert len(watch.samples) == count


def process(case: str) -> dict[str, object]:
    """Say in which process a case is worked on; refuse the case `bad`."""
    if case == "bad":
        raise CaseError("bad", "not readable")
    return {"case": case, "process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def test_a_measured_case_has_a_process_of_its_own_with_all_cores():
    rows = [measured(process, {"case": case}, gpu=None) for case in ("a", "b")]
    assert len({os.getpid(), *(row["process"] for row in rows)}) == 3
    assert {row["threads"] for row in rows} == {str(len(os.sched_getaffinity(0)))}
    assert all(row["time_s"] > 0 and row["ram_mb"] > 10 for row in rows)


def test_a_refused_case_is_refused_in_its_own_words():
    with pytest.raises(CaseError, match="case bad: not readable"):
        measured(process, {"case": "bad"}, gpu=None)
