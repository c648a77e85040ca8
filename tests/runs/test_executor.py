"""Cases through processes: values, refusals, exceptions, and workers that die."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import executor_jobs
from executor_jobs import die, die_later, double, fail_at, misbehave, surroundings, threads
from flare.core.errors import FlareError, NoRoomError
from flare.runs.dask import DaskExecutor
from flare.runs.work import (
    THREADS,
    CheckedExecutor,
    Executor,
    LocalExecutor,
    Outcome,
    build_executor,
    failed_share,
    report_failures,
    run_cases,
    stop_on_faults,
)

pytestmark = pytest.mark.slow

ALWAYS = 10**6


@pytest.fixture
def pool() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(workers=2, retries=1)
    yield executor
    executor.close()


@pytest.fixture(scope="module", params=["here", "local", "dask"])
def any_executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Every executor that is shipped, used by one test after the other as by the steps of a run."""
    made = {"here": (LocalExecutor, 0), "local": (LocalExecutor, 2), "dask": (DaskExecutor, 2)}
    kind, workers = made[request.param]
    executor = kind(workers, retries=1)
    assert executor.workers == workers
    yield executor
    executor.close()


in_processes = pytest.mark.parametrize("any_executor", ["local", "dask"], indirect=True)


def collect(executor: Executor, function: object, jobs: dict) -> dict[str, Outcome]:
    outcomes = list(run_cases(function, jobs, executor=executor, description="test"))
    assert len(outcomes) == len({o.case_id for o in outcomes}) == len(jobs)  # each case once
    return {o.case_id: o for o in outcomes}


def test_values(any_executor: Executor) -> None:
    found = collect(any_executor, double, {f"case_{i}": {"number": i} for i in range(7)})
    assert {k: o.value for k, o in found.items()} == {f"case_{i}": 2 * i for i in range(7)}
    assert all(o.error is None for o in found.values())


def test_an_exception_is_the_outcome_of_its_case(any_executor: Executor) -> None:
    found = collect(any_executor, misbehave, {how: {"how": how} for how in ("case", "config", "key", "exit")})
    assert {how for how, outcome in found.items() if outcome.is_fault} == {"config", "key", "exit"}
    assert {how for how, outcome in found.items() if outcome.is_general} == {"config"}
    assert found["case"].error == "has one slice"  # the id is told by the outcome
    assert found["config"].error == "data.root: no such folder"
    assert "KeyError: 'missing' (misbehave, line" in str(found["key"].error)
    assert "a library gave up" in str(found["exit"].error)


def test_a_full_disk_stops_all_cases(any_executor: Executor) -> None:
    for how in ("full", "full raw"):
        with pytest.raises(NoRoomError, match="make room and start again"):
            collect(any_executor, misbehave, {"a": {"how": how}, "b": {"how": "case"}})


def test_a_case_alone_is_worked_on_in_this_process(any_executor: Executor, tmp_path: Path) -> None:
    alone = any_executor.alone()
    assert alone.workers == 0
    assert collect(alone, die, {"a": {"record": tmp_path / "a"}})["a"].value == f"process {os.getpid()}"


@in_processes
def test_what_a_caller_leaves_in_the_middle_is_not_begun(any_executor: Executor, tmp_path: Path) -> None:
    """A consumer that fails ends the others; the executor takes new work all the same."""
    jobs = {f"{n}": {"record": tmp_path / f"{n}"} for n in range(20)}
    for _ in any_executor.run(die, jobs):
        break
    assert len(list(tmp_path.iterdir())) < 10  # two at a time, and those that began as the first came back
    assert collect(any_executor, double, {"a": {"number": 4}})["a"].value == 8


def test_without_workers_all_runs_here(tmp_path: Path) -> None:
    found = collect(LocalExecutor(0, retries=0), die, {"a": {"record": tmp_path / "a"}})
    assert found["a"].value == f"process {os.getpid()}"


def test_nothing_to_do_starts_nothing(pool: LocalExecutor) -> None:
    dask = DaskExecutor(2, retries=1)
    for executor in (pool, dask):
        assert collect(executor, double, {}) == {}
    assert not pool._pools
    assert "_client" not in vars(dask)


def test_workers_are_forked_from_a_process_that_has_imported_what_they_need():
    code = (
        "import json, os, sys\n"
        f"sys.path.insert(0, {str(Path(executor_jobs.__file__).parent)!r})\n"
        "import executor_jobs\n"
        "from flare.runs.work import LocalExecutor, run_cases\n"
        "if __name__ == '__main__':\n"
        "    executor = LocalExecutor(2, 0)\n"
        "    jobs = {n: {'name': 'torch'} for n in 'ab'}\n"
        "    found = run_cases(executor_jobs.look, jobs, executor=executor, description='')\n"
        "    found = [outcome.value for outcome in found]\n"
        "    executor.close()\n"
        "    print(json.dumps({'found': found, 'own': os.getpid(), 'here': 'torch' in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    each = max(1, len(os.sched_getaffinity(0)) // 2)
    for worker in told["found"]:
        assert worker["loaded"]
        assert worker["parent"] != told["own"]  # the process that imported
        assert worker["threads"] == int(worker["OMP_NUM_THREADS"]) == each
    assert len(told["found"]) == 2
    assert not told["here"]  # what workers need, the process that waits for them does not load


def test_a_worker_that_dies_costs_its_case_a_retry(
    pool: LocalExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = {name: {"record": tmp_path / name} for name in ("a", "b", "c", "d")}
    jobs["b"]["times"] = 1
    with caplog.at_level(logging.WARNING):
        found = collect(pool, die, jobs)
    assert all(o.error is None for o in found.values())
    assert (tmp_path / "b").read_text() == "xx"
    assert "case b: a worker process died" in caplog.text
    assert str(tmp_path) not in caplog.text  # privacy: no path in a log


@pytest.mark.slow
def test_a_death_is_seen_while_others_work_and_costs_them_nothing(tmp_path: Path) -> None:
    """`slow` waits for `late`, which gets a worker only when the death of `guilty` is seen."""
    executor = LocalExecutor(workers=2, retries=0)
    jobs = {name: {"record": tmp_path / name} for name in ("slow", "guilty", "late")}
    jobs["slow"]["beside"], jobs["guilty"]["times"] = tmp_path / "late", ALWAYS
    found = collect(executor, die, jobs)
    executor.close()
    assert found["slow"].error is None
    assert found["late"].error is None
    assert "worker process died" in str(found["guilty"].error)
    assert found["guilty"].is_fault  # the case may be sound
    assert not found["guilty"].is_general  # the others trained without it
    runs = {name: len((tmp_path / name).read_text()) for name in jobs}
    assert runs == {"slow": 1, "guilty": 2, "late": 1}  # the guilty one once beside others, once alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "retries", "runs"), [(1, 0, 1), (1, 2, 3), (2, 0, 2), (2, 1, 2), (2, 2, 3)]
)
def test_how_often_a_case_that_always_dies_is_run(
    workers: int, retries: int, runs: int, tmp_path: Path
) -> None:
    executor = LocalExecutor(workers, retries)
    found = collect(executor, die, {"a": {"record": tmp_path / "a", "times": ALWAYS}})
    executor.close()
    assert "worker process died" in str(found["a"].error)
    assert (tmp_path / "a").read_text() == "x" * runs


def wait_for_a_death(executor: LocalExecutor) -> None:
    """Be as busy as a caller may be: until a worker has died and is known to be dead."""
    until = time.monotonic() + 60
    while not any(pool._broken for pool in executor._pools.values()):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_a_worker_that_dies_while_the_caller_is_busy(pool: LocalExecutor, tmp_path: Path) -> None:
    jobs = {name: {"record": tmp_path / name} for name in ("quick", "guilty", "late")}
    jobs["guilty"] |= {"times": ALWAYS, "beside": tmp_path / "quick"}
    found = {}
    for outcome in pool.run(die, jobs):
        found[outcome.case_id] = outcome
        if outcome.case_id == "quick":
            wait_for_a_death(pool)
    assert found["quick"].error is None
    assert found["late"].error is None
    assert "worker process died" in str(found["guilty"].error)


@pytest.mark.slow
def test_a_worker_that_dies_with_nothing_to_do() -> None:
    executor = LocalExecutor(workers=1, retries=0)
    found = []
    for outcome in executor.run(die_later, {"a": {"after_s": 0.1}, "b": {"after_s": 99.0}}):
        found.append((outcome.case_id, outcome.value, outcome.error))
        if outcome.case_id == "a":
            wait_for_a_death(executor)
    assert found == [("a", "well", None), ("b", "well", None)]
    for process in executor._pools[0]._processes.values():
        process.kill()  # its timer would hold it up
    executor.close()


def test_workers_have_the_environment_and_the_folder_of_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever those were when the process began that workers are forked from."""
    executor = LocalExecutor(workers=1, retries=0)
    for value in ("one", "other", None):
        if value is None:
            monkeypatch.delenv("FLARE_TEST")
        else:
            monkeypatch.setenv("FLARE_TEST", value)
        folder = tmp_path / str(value)
        folder.mkdir()
        monkeypatch.chdir(folder)
        environment, cwd = collect(executor, surroundings, {"a": {}})["a"].value
        executor.close()
        assert Path(cwd) == folder
        assert environment.get("FLARE_TEST") == value
        assert {k: v for k, v in environment.items() if k not in THREADS} == {
            k: v for k, v in os.environ.items() if k not in THREADS
        }


@in_processes
def test_cores_are_shared_out(any_executor: Executor) -> None:
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert collect(any_executor, threads, {"a": {}})["a"].value == str(share)
    look = collect(any_executor, executor_jobs.look, {"a": {"name": "torch"}})["a"].value
    assert look["threads"] == share


@in_processes
def test_a_case_that_always_dies_is_run_twice_and_costs_the_others_nothing(
    any_executor: Executor, tmp_path: Path
) -> None:
    jobs = {name: {"record": tmp_path / name} for name in ("a", "b", "c", "guilty", "d", "e")}
    jobs["guilty"]["times"], jobs["a"]["times"] = ALWAYS, 1
    found = collect(any_executor, die, jobs)
    assert {name for name, outcome in found.items() if outcome.error} == {"guilty"}
    assert "worker process died" in str(found["guilty"].error)
    assert found["guilty"].is_fault  # the case may be sound
    assert not found["guilty"].is_general
    assert (tmp_path / "guilty").read_text() == (tmp_path / "a").read_text() == "xx"


@pytest.mark.parametrize("kind", [LocalExecutor, DaskExecutor])
def test_all_cores_by_default(kind: type) -> None:
    assert kind(None, retries=1).workers == len(os.sched_getaffinity(0))


def test_from_its_config(pytestconfig: pytest.Config) -> None:
    cfg = OmegaConf.create(
        {"executor": OmegaConf.load(pytestconfig.rootpath / "conf" / "executor" / "local.yaml")}
    )
    cfg.executor.workers = 0
    executor = build_executor(cfg)
    assert isinstance(executor, CheckedExecutor)
    assert isinstance(executor.inner, LocalExecutor)
    assert (executor.workers, executor.inner.retries) == (0, 1)
    assert failed_share(cfg) == 0.05
    cfg.executor.max_failed = 2
    with pytest.raises(FlareError, match=r"^executor\.max_failed=2: expected a number from 0 to 1$"):
        failed_share(cfg)


def fault(case: str, error: str = "MemoryError: no 4 GiB", kind: str = "memory", **more: bool) -> Outcome:
    return Outcome(case, error=error, is_fault=True, kind=kind, **more)


def refused(case: str, kind: str) -> Outcome:
    return Outcome(case, error=f"{case}.nii.gz is {kind}", kind=kind)


def names(count: int, prefix: str = "c") -> list[str]:
    return [f"{prefix}{number:03d}" for number in range(count)]


@pytest.mark.parametrize(
    ("cases", "failed", "share", "stops"),
    [
        (4, 2, 0.05, False),  # few never stop a run
        (4, 3, 0.05, True),
        (60, 3, 0.05, False),  # as many as allowed
        (59, 3, 0.05, True),
        (60, 4, 0.05, True),
        (60, 4, 0.1, False),
        (60, 60, 1.0, False),
    ],
)
def test_more_faults_than_allowed_stop_a_run(cases: int, failed: int, share: float, stops: bool) -> None:
    faults = [fault(case) for case in names(failed)]
    if not stops:
        return stop_on_faults(faults, "round=mo, predicting", names(cases), share)
    with pytest.raises(FlareError) as report:
        stop_on_faults(faults, "round=mo, predicting", names(cases), share)
    (line,) = str(report.value).splitlines()
    assert line.startswith(
        f"round=mo, predicting: {failed} of {cases} cases failed by no fault of their files"
    )
    for said in (f"executor.max_failed={share:g}", f"{failed} x MemoryError: no 4 GiB (case c000)"):
        assert said in line


def test_the_most_frequent_reason_is_told() -> None:
    """Whatever the reasons are, they count together; the commonest is named with its first case."""
    rare = fault("a", "KeyError: 'b' (merge_case, line 3)", "KeyError merge:3")
    common = [fault(case, f"OSError: /data/{case} is away", "error 2") for case in ("z", "y")]
    with pytest.raises(FlareError, match=r"3 of 4 cases .* 2 x OSError: /data/y is away \(case y\)"):
        stop_on_faults([rare, *common], "prepare", ["a", "x", "y", "z"], 0.05)


def test_faults_of_other_steps_do_not_count() -> None:
    stop_on_faults([fault(case) for case in names(5)], "caching", names(5, "other"), 0.05)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_one_fault_that_all_would_meet_stops_a_run(share: float) -> None:
    away = fault("b", "OSError: stale", "error 116", is_general=True)
    with pytest.raises(FlareError, match=r"2 of 100 cases .* 1 x OSError: stale \(case b\)"):
        stop_on_faults([fault("a"), away], "train", [*names(98), "a", "b"], share)


def test_a_folder_refused_for_one_reason_stops_a_run() -> None:
    groups = {"data.labels (l)": names(6), "data.sources (k*)": names(90, "k")}
    bad = [refused(case, "turned") for case in names(3)]
    stop_on_faults(bad, "prepare", names(100), 0.05, groups)  # half is not more than half
    bad.append(refused("c003", "cut"))
    stop_on_faults(bad, "prepare", names(100), 0.05, groups)  # more than half, for two reasons
    bad.append(refused("c004", "turned"))
    said = r"4 of 6 cases of data\.labels \(l\) .* 4 x c000\.nii\.gz is turned \(case c000\).*max_failed=1"
    with pytest.raises(FlareError, match=said):
        stop_on_faults(bad, "prepare", names(100), 0.05, groups)
    stop_on_faults(bad, "prepare", names(100), 1.0, groups)


def test_a_few_refused_files_never_stop_a_run() -> None:
    bad = [refused(case, "turned") for case in names(2)]
    stop_on_faults(bad, "prepare", names(2), 0.05, {"data.labels (l)": names(2)})


def test_what_failures_of_one_reason_share(any_executor: Executor) -> None:
    """The texts differ by numbers and paths; the kind does not, and it comes back from a worker."""
    hows = ("memory", "gone", "key", "case", "other case")
    jobs = {f"{how} {number}": {"how": how, "number": number} for how in hows for number in (1, 2)}
    found = collect(any_executor, fail_at, jobs)
    assert len({outcome.error for outcome in found.values()}) == len(jobs)
    kinds = {how: {found[f"{how} {number}"].kind for number in (1, 2)} for how in hows}
    assert all(len(kind) == 1 for kind in kinds.values())
    assert len(set.union(*kinds.values())) == len(hows)
    assert {case.rstrip(" 12") for case, o in found.items() if o.is_fault} == {"memory", "gone", "key"}


def test_failures_are_named_with_their_reasons() -> None:
    report_failures([], "prepare")
    with pytest.raises(FlareError) as report:
        report_failures([Outcome("b", error="is empty"), Outcome("a", error="has one slice")], "prepare")
    lines = str(report.value).splitlines()
    assert "2 failed" in lines[0]
    assert [line.strip() for line in lines[1:]] == ["a: has one slice", "b: is empty"]


def test_a_case_that_fails_in_two_steps_is_named_once() -> None:
    failed = [Outcome("a", error="has no image", is_fault=True), Outcome("a", error="has no labels")]
    with pytest.raises(FlareError, match=r"^train: 1 failed, the rest is done\n  a: has no labels$"):
        report_failures(failed, "train")
