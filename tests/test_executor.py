"""Cases through processes: values, refusals, exceptions, and workers that die."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from executor_jobs import die, die_later, double, misbehave, threads
from flare.errors import FlareError, NoRoomError
from flare.executor import LocalExecutor, Outcome, report_failures, run_cases, stop_on_faults

ALWAYS = 10**6


@pytest.fixture
def pool() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(workers=2, retries=1)
    yield executor
    executor.close()


def collect(executor: LocalExecutor, function: object, jobs: dict) -> dict[str, Outcome]:
    outcomes = list(run_cases(function, jobs, executor=executor, description="test"))
    assert len(outcomes) == len({o.case_id for o in outcomes}) == len(jobs)  # each case once
    return {o.case_id: o for o in outcomes}


def test_values(pool: LocalExecutor) -> None:
    found = collect(pool, double, {f"case_{i}": {"number": i} for i in range(7)})
    assert {k: o.value for k, o in found.items()} == {f"case_{i}": 2 * i for i in range(7)}
    assert all(o.error is None for o in found.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_is_the_outcome_of_its_case(workers: int) -> None:
    executor = LocalExecutor(workers, retries=1)
    found = collect(executor, misbehave, {how: {"how": how} for how in ("case", "config", "key", "exit")})
    executor.close()
    assert {how for how, outcome in found.items() if outcome.is_fault} == {"config", "key", "exit"}
    assert {how for how, outcome in found.items() if outcome.is_general} == {"config"}
    assert found["case"].error == "has one slice"  # the id is told by the outcome
    assert found["config"].error == "data.root: no such folder"
    assert "KeyError: 'missing' (misbehave, line" in str(found["key"].error)
    assert "a library gave up" in str(found["exit"].error)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_stops_all_cases(workers: int) -> None:
    executor = LocalExecutor(workers, retries=1)
    for how in ("full", "full raw"):
        with pytest.raises(NoRoomError, match="make room and start again"):
            collect(executor, misbehave, {"a": {"how": how}, "b": {"how": "case"}})
    executor.close()


def test_without_workers_all_runs_here(tmp_path: Path) -> None:
    found = collect(LocalExecutor(0, retries=0), die, {"a": {"record": tmp_path / "a"}})
    assert found["a"].value == f"process {os.getpid()}"


def test_nothing_to_do_starts_nothing(pool: LocalExecutor) -> None:
    assert collect(pool, double, {}) == {}
    assert pool._pool is None


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
def test_innocents_in_flight_are_not_blamed(tmp_path: Path) -> None:
    executor = LocalExecutor(workers=2, retries=0)
    guilty = tmp_path / "guilty"
    jobs = {
        "slow": {"record": tmp_path / "slow", "after_s": 2.5, "beside": guilty},
        "guilty": {"record": guilty, "times": ALWAYS, "after_s": 0.1},
        "late": {"record": tmp_path / "late"},
    }
    found = collect(executor, die, jobs)
    executor.close()
    assert found["slow"].error is None
    assert found["late"].error is None
    assert "worker process died" in str(found["guilty"].error)
    assert found["guilty"].is_fault  # the case may be sound
    assert not found["guilty"].is_general  # the others trained without it
    assert guilty.read_text() == "xx"  # once beside the slow one, once alone


def test_a_worker_that_dies_while_the_caller_is_busy(pool: LocalExecutor, tmp_path: Path) -> None:
    """The pool is found broken when the next case is handed to it."""
    jobs = {
        "quick": {"record": tmp_path / "quick"},
        "guilty": {"record": tmp_path / "guilty", "times": ALWAYS, "after_s": 0.2},
        "late": {"record": tmp_path / "late"},
    }
    found = {}
    for outcome in pool.run(die, jobs):
        found[outcome.case_id] = outcome
        if outcome.case_id == "quick":
            time.sleep(1.0)
    assert found["quick"].error is None
    assert found["late"].error is None
    assert "worker process died" in str(found["guilty"].error)


def test_a_worker_that_dies_with_nothing_to_do() -> None:
    executor = LocalExecutor(workers=1, retries=0)
    found = []
    for outcome in executor.run(die_later, {"a": {"after_s": 0.1}, "b": {"after_s": 99.0}}):
        found.append(outcome)
        time.sleep(0.5)
        if outcome.case_id == "b":
            break
    assert [(o.case_id, o.value, o.error) for o in found] == [("a", "well", None), ("b", "well", None)]
    for process in executor._pool._processes.values():
        process.kill()  # its timer would hold it up
    executor.close()


def test_cores_are_shared_out(pool: LocalExecutor) -> None:
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert collect(pool, threads, {"a": {}})["a"].value == str(share)


def test_all_cores_by_default() -> None:
    assert LocalExecutor(None, retries=1).workers == len(os.sched_getaffinity(0))


def test_from_its_config(pytestconfig: pytest.Config) -> None:
    cfg = OmegaConf.load(pytestconfig.rootpath / "conf" / "executor" / "local.yaml")
    executor = instantiate(cfg, workers=0)
    assert isinstance(executor, LocalExecutor)
    assert (executor.workers, executor.retries) == (0, 1)


def test_what_the_machine_failed_at_stops_a_training_and_refused_cases_do_not() -> None:
    refused = Outcome("a", error="has one slice")
    lonely = Outcome("c", error="its worker process died", is_fault=True)
    stop_on_faults([refused, lonely], "train")
    with pytest.raises(FlareError) as report:
        stop_on_faults([refused, lonely, Outcome("b", error="died", is_fault=True, is_general=True)], "train")
    assert str(report.value).splitlines() == [
        "train: 1 failed by no fault of their files, so no training is started; start again when mended",
        "  b: died",
    ]


def test_failures_are_named_with_their_reasons() -> None:
    report_failures([], "prepare")
    with pytest.raises(FlareError) as report:
        report_failures([Outcome("b", error="is empty"), Outcome("a", error="has one slice")], "prepare")
    lines = str(report.value).splitlines()
    assert "2 failed" in lines[0]
    assert [line.strip() for line in lines[1:]] == ["a: has one slice", "b: is empty"]
