"""The one seam through which everything done per case goes: local processes now, a cluster later."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flare.core.errors import SHARE, AwayError, CaseError, FlareError, NoRoomError, build_part
from flare.core.files import GENERAL_FAULTS, says_no_room
from flare.runs.outcomes import Outcome

log = logging.getLogger(__name__)
Job = dict[str, Any]
MAX_FAILED = 0.05  # where an executor's configuration does not say (ours)
DIED = "its worker process died, alone as well (out of memory? fewer executor.workers leave each more)"


class Executor(Protocol):
    """Runs a function on many cases, in any order, anywhere; `executor._target_` names its class.

    The function is importable and takes and returns plain values and paths, so that any scheduler of
    futures fits behind it: submit `attempt(case, function, job)` for each case and yield the results.
    """

    @property
    def workers(self) -> int:
        """Cases that are worked on at the same time; 0 in this process, one after the other."""
        ...

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        """Yield one outcome a case, as they complete; an exception of one case never ends the others.

        Raises:
            NoRoomError: As soon as a disk is full, which would fail the others, too.
        """
        ...

    def alone(self) -> Executor:
        """Give an executor that works on one case at a time, which then has all cores and the GPU."""
        ...

    def close(self) -> None:
        """Let go of the workers; a later `run` takes new ones."""
        ...


def build_executor(cfg: DictConfig) -> Executor:
    """Build the executor that a script's configuration names.

    Raises:
        FlareError: If a value of `executor` is out of range, or unknown to the class.
    """
    # what the steps judge by is no executor's matter
    own = OmegaConf.masked_copy(cfg.executor, [str(key) for key in cfg.executor if key != "max_failed"])
    return build_part(own, "executor")


def failed_share(cfg: DictConfig) -> float:
    """Read `executor.max_failed`: the share of a step's cases that may fail by no fault of their files.

    Raises:
        FlareError: If it is no share.
    """
    share = cfg.executor.get("max_failed", MAX_FAILED)
    SHARE.require("executor.max_failed", share)
    return float(share)


def run_cases(
    function: Callable[..., Any], jobs: Mapping[str, Job], *, executor: Executor, description: str
) -> Iterator[Outcome]:
    """Run `function(**job)` for every case under a progress bar, yielding outcomes as they complete."""
    if not jobs:
        return
    with progress(description, total=len(jobs)) as bar:
        for outcome in executor.run(function, jobs):
            bar.advance(bar.task_ids[0])
            yield outcome


class LocalExecutor:
    """Processes on this machine.

    A worker that dies (out of memory, killed) costs its case a retry, not the run: cases that were in
    flight are then run again one at a time, so that the guilty one is known and memory is its own. The
    others lose nothing by it, whatever `retries` is.

    Args:
        workers: Processes; null takes one per core; 0 runs in this process (on a GPU, or to debug).
        retries: How often a case whose worker died is tried again.
    """

    def __init__(self, workers: int | None, retries: int) -> None:
        for key, value in (("workers", workers), ("retries", retries)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise FlareError(f"executor.{key}={value}: expected a whole number, 0 or more")
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self.retries = retries
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        """Yield one outcome a case, as they complete."""
        if self.workers == 0:
            for case_id, job in jobs.items():
                yield attempt(case_id, function, job)
            return
        waiting = deque(jobs.items())
        flying: dict[Future, tuple[str, Job]] = {}
        while waiting or flying:
            try:
                # only as many as there are workers: then what flies when one dies is what it was running
                while waiting and len(flying) < self.workers:
                    flying[self._submit(*waiting[0], function)] = waiting[0]
                    waiting.popleft()
            except BrokenProcessPool:  # a worker died since the last look; what flies says so below
                if not flying:
                    self.close()
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                done, _ = wait(flying)  # all of them went with the pool, or were done before
            suspects = []
            for future in done:
                case_id, job = flying.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    suspects.append((case_id, job))
            yield from self._one_at_a_time(function, suspects)

    def alone(self) -> LocalExecutor:
        """Give one that works in this process."""
        return LocalExecutor(workers=0, retries=0)

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _submit(self, case_id: str, job: Job, function: Callable[..., Any]) -> Future:
        if self._pool is None:
            threads = max(1, len(os.sched_getaffinity(0)) // self.workers)
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),  # forking a process with threads hangs
                initializer=_limit_threads,
                initargs=(threads, logging.getLogger().getEffectiveLevel()),
            )
        return self._pool.submit(attempt, case_id, function, job)

    def _one_at_a_time(
        self, function: Callable[..., Any], suspects: Sequence[tuple[str, Job]]
    ) -> Iterator[Outcome]:
        """Run cases alone after a worker died; one whose worker dies `retries` times more has failed."""
        # of several only one is guilty, and only running them alone tells which
        attempts = max(self.retries, 1) if len(suspects) > 1 else self.retries
        for case_id, job in suspects:
            for _ in range(attempts):
                self.close()
                log.warning("case %s: a worker process died, running it alone", case_id)
                try:
                    yield self._submit(case_id, job, function).result()
                    break
                except BrokenProcessPool:
                    continue
            else:
                self.close()
                yield Outcome(case_id, error=DIED, is_fault=True, kind=DIED)


def _limit_threads(threads: int, level: int) -> None:
    """Prepare a worker: its share of the cores, before any numerical library is loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"):
        os.environ[name] = str(threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    logging.basicConfig(level=level)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is killed: a pool's workers would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def attempt(case_id: str, function: Callable[..., Any], job: Job) -> Outcome:
    """Run one case and turn an exception into text, which always survives the way back.

    Only a `CaseError` that is no `AwayError` says that the case is to blame.

    Raises:
        NoRoomError: If a disk is full.
    """
    try:
        return Outcome(case_id, function(**job))
    except NoRoomError:
        raise
    except CaseError as error:
        return Outcome(case_id, error=error.reason, is_fault=isinstance(error, AwayError), kind=_kind(error))
    except FlareError as error:
        return Outcome(case_id, error=str(error), is_fault=True, is_general=True, kind=_kind(error))
    except (Exception, SystemExit) as error:
        if says_no_room(error):
            raise NoRoomError(f"a disk is full ({error}): make room and start again") from None
        log.debug("%s", traceback.format_exc())
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
        is_general = isinstance(error, OSError) and error.errno in GENERAL_FAULTS
        return Outcome(case_id, error=text, is_fault=True, is_general=is_general, kind=_kind(error))


def _kind(error: BaseException) -> str:
    """What errors of one and the same reason share: their texts hold numbers and paths of their case."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"error {error.errno}"
    if isinstance(error, MemoryError):  # met wherever memory happens to end
        return "memory"
    if isinstance(error, CaseError) and error.__cause__ is not None:  # what it was said of is told there
        error = error.__cause__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {place.filename}:{place.lineno}"


console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Progress]:
    """Show a bar of `total` cases while the block runs; `advance(bar.task_ids[0])` moves it from `done`."""
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=30), MofNCompleteColumn(), *times)
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        bar.add_task(description, total=total, completed=done)
        yield bar
