"""The one seam through which everything done per case goes; what became of cases, when that stops a run."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from itertools import count
from multiprocessing.context import BaseContext
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from rich import progress as bars
from rich.console import Console

from flare.core.checks import Checks, DoubtfulFileError, reading
from flare.core.errors import SHARE, AwayError, CaseError, FlareError, NoRoomError, build_part, whole
from flare.core.files import GENERAL_FAULTS, says_no_room
from flare.runs.door import Stopped, place

log = logging.getLogger(__name__)
Job = dict[str, Any]
MAX_FAILED = 0.05  # where an executor's configuration does not say (ours)
FEW = 3  # fewer cases never stop a run, however small the cohort (ours)
# what tells numerical libraries, when they are loaded, how many threads they may have
THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
# libraries that take seconds to import: workers are forked from one process that has them
HEAVY = ["blosc2", "nibabel", "scipy.ndimage", "SimpleITK", "torch"]
DIED = "its worker process died, tried again as well (out of memory? fewer executor.workers leave each more)"


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    case_id: str
    value: Any = None  # what the function returned
    error: str | None = None  # why there is no value
    # whether the case may be sound: the machine or the program failed, not the content of its files. It is
    # tried again at the next start, and nothing made from it is removed
    is_fault: bool = False
    is_general: bool = False  # whether others will meet the same: a disk that is away, a wrong setting
    kind: str = ""  # what cases that failed for one reason share, whatever the numbers and paths in `error`


class Executor(Protocol):
    """Runs a function on many cases, in any order, anywhere; `executor._target_` names its class.

    The function is importable and takes and returns plain values and paths, so that any scheduler of
    futures fits behind it: submit `attempt(case, function, job)` for each case and yield the results.
    """

    @property
    def workers(self) -> int:
        """Cases that are worked on at the same time; 0 in this process, one after the other."""

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        """Yield one outcome a case, as they complete; only a `NoRoomError` of one case ends the others."""

    def alone(self) -> "Executor":
        """Give an executor that works on one case at a time, which then has all cores and the GPU."""

    def close(self) -> None:
        """Let go of the workers; a later `run` takes new ones."""


def build_executor(cfg: DictConfig) -> Executor:
    """Build the executor of a configuration, which reads files as `data.checks` says, or refuse a value."""
    # what the steps judge by is no executor's matter
    own = OmegaConf.masked_copy(cfg.executor, [str(key) for key in cfg.executor if key != "max_failed"])
    return CheckedExecutor(build_part(own, "executor"), Checks.from_config(cfg))


@dataclass(frozen=True)
class CheckedExecutor:
    """Another executor, whose jobs read files under the checks of this configuration, wherever they run."""

    inner: Executor
    checks: Checks

    @property
    def workers(self) -> int:
        """See `Executor`."""
        return self.inner.workers

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        """See `Executor`."""
        return self.inner.run(around(function, under_checks, self.checks), jobs)

    def alone(self) -> "CheckedExecutor":
        """See `Executor`."""
        return CheckedExecutor(self.inner.alone(), self.checks)

    def close(self) -> None:
        """See `Executor`."""
        self.inner.close()


def around(function: Callable[..., Any], outer: Callable[..., Any], *given: Any) -> Callable[..., Any]:
    """Put `outer(function, *given, **job)` around an importable function of a case, under its name."""
    return update_wrapper(partial(outer, function, *given), function, assigned=("__name__",), updated=())


def under_checks(function: Callable[..., Any], checks: Checks, /, **job: Any) -> Any:
    """Do the work of a case, which reads files under these checks, in whichever process it is called."""
    with reading(checks):
        return function(**job)


def failed_share(cfg: DictConfig) -> float:
    """Read `executor.max_failed`: the share of a step's cases that may fail by no fault of their files."""
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

    With null `workers` there is one per core; 0 runs in this process (on a GPU, or to debug). A worker that
    dies (out of memory, killed) costs its case a retry, not the run. The others go on; when they are done the
    case is run again, alone, so that memory is its own, and tried again `retries` times. With several workers
    that is done once at least, whatever `retries` is.
    """

    def __init__(self, workers: int | None, retries: int) -> None:
        for key, value in (("workers", workers), ("retries", retries)):
            if value is not None:
                whole(0).require(f"executor.{key}", value)
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self.retries = retries
        # one process each, whose death is its own case's. A pool of several does not watch a process that it
        # starts while it waits: a death there is not seen before another case is done
        self._pools: dict[int, ProcessPoolExecutor] = {}

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        """See `Executor`."""
        if self.workers == 0:
            for case_id, job in jobs.items():
                yield attempt(case_id, function, job)
            return
        waiting, idle = deque(jobs.items()), list(range(self.workers))
        flying: dict[Future, tuple[int, tuple[str, Job]]] = {}
        died = []
        while waiting or flying:
            while waiting and idle:
                worker, case = idle.pop(), waiting.popleft()
                flying[self._submit(worker, *case, function)] = worker, case
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                worker, case = flying.pop(future)
                idle.append(worker)
                if isinstance(future.exception(), BrokenProcessPool):
                    died.append(case)
                else:
                    yield future.result()
        yield from self._one_at_a_time(function, died)

    def alone(self) -> "LocalExecutor":
        """Give one that works in this process."""
        return LocalExecutor(workers=0, retries=0)

    def close(self) -> None:
        """End the worker processes."""
        while self._pools:
            self._pools.popitem()[1].shutdown(wait=True, cancel_futures=True)

    def _submit(self, worker: int, case_id: str, job: Job, function: Callable[..., Any]) -> Future:
        if worker in self._pools:
            try:
                return self._pools[worker].submit(attempt, case_id, function, job)
            except BrokenProcessPool:  # its process died, with a case or with nothing to do
                self._pools.pop(worker).shutdown()
        threads = max(1, len(os.sched_getaffinity(0)) // self.workers)
        self._pools[worker] = one_process(_context(threads), threads)
        return self._pools[worker].submit(attempt, case_id, function, job)

    def _one_at_a_time(
        self, function: Callable[..., Any], died: Sequence[tuple[str, Job]]
    ) -> Iterator[Outcome]:
        """Run cases alone after their workers died; one whose worker dies `retries` times more has failed."""
        # beside others it may have died for the memory that they took
        attempts = max(self.retries, 1) if self.workers > 1 else self.retries
        for case_id, job in died:
            for _ in range(attempts):
                self.close()
                log.warning("case %s: a worker process died, running it alone", case_id)
                try:
                    yield self._submit(0, case_id, job, function).result()
                    break
                except BrokenProcessPool:
                    continue
            else:
                yield Outcome(case_id, error=DIED, is_fault=True, kind=DIED)


def _context(threads: int) -> BaseContext:
    """How worker processes start: forked from a process without threads, or anew where none can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")  # forking a process with threads hangs
    from multiprocessing import forkserver  # not on every system

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # of Slurm, to all processes: this one decides
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        os.environ.clear()
        os.environ.update(before)
    return context


def one_process(context: BaseContext, threads: int) -> ProcessPoolExecutor:
    """A pool of one process with this one's environment and level of messages, see `prepare_worker`."""
    how = threads, logging.getLogger().getEffectiveLevel(), dict(os.environ)
    return ProcessPoolExecutor(1, context, initializer=prepare_worker, initargs=how)


def prepare_worker(threads: int, level: int, environment: Mapping[str, str]) -> None:
    """Prepare a worker process: its parent's environment, but its share of the cores for any library.

    The process that it is forked from has the environment of the first worker's time.
    """
    os.environ.clear()
    os.environ.update({**environment, **dict.fromkeys(THREADS, str(threads))})
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    logging.basicConfig(level=level)
    for number in (signal.SIGINT, signal.SIGUSR2):  # of a terminal and of Slurm go to all: the parent ends us
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent is killed: a pool's workers would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def attempt(case_id: str, function: Callable[..., Any], job: Job) -> Outcome:
    """Run one case and turn an exception into text, which always survives the way back.

    Only a `CaseError` that is no `AwayError` says that the case is to blame; a `NoRoomError` goes through.
    """
    try:
        return Outcome(case_id, function(**job))
    except (NoRoomError, Stopped):
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
    if isinstance(error, DoubtfulFileError):
        return f"data.checks.{error.check}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {place.filename}:{place.lineno}"


_shown: list[bars.Progress] = []  # the bars of this process, outermost first
console = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[bars.Progress]:
    """Show a bar of `total` cases while the block runs; `advance(bar.task_ids[0])` moves it from `done`."""
    what = bars.TextColumn("{task.description:<28}"), bars.BarColumn(bar_width=30), bars.MofNCompleteColumn()
    times = bars.TimeElapsedColumn(), bars.TextColumn("left"), bars.TimeRemainingColumn()
    with bars.Progress(*what, *times, console=console, refresh_per_second=4) as bar:
        bar.add_task(description, total=total, completed=done)
        task = bar.tasks[0]
        _shown.append(bar)
        try:
            with place(lambda: f"{description}, {task.completed:.0f} of {total} done"):
                yield bar
        finally:
            _shown.remove(bar)


@contextmanager
def steps(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Show the steps of a case below the bar of its process, if it has one, in a block; a call begins one."""
    if not _shown:
        yield lambda: None
        return
    bar, done = _shown[-1], count(0)
    task = bar.add_task(description, total=total)
    try:
        yield lambda: bar.update(task, completed=next(done))
    finally:
        bar.remove_task(task)


def report_failures(failures: Sequence[Outcome], what: str) -> None:
    """Name the cases that failed, once each, and why, after all else is done: a `FlareError`, exit code 1."""
    if failures:
        last = {f.case_id: f for f in failures}
        faults = sum(f.is_fault for f in last.values())
        again = f" ({faults} by no fault of the files: start again when mended)" if faults else ""
        told = f"{what}: {len(last)} failed, the rest is done{again}"
        raise FlareError("\n".join([told, *_reasons(failures)]))


def _reasons(failures: Sequence[Outcome]) -> list[str]:
    """A line for each case that failed; of several failures of one the last counts."""
    last = {f.case_id: f.error for f in failures}
    return [f"  {case}: {last[case]}" for case in sorted(last)]


@contextmanager
def naming(failures: Sequence[Outcome]) -> Iterator[None]:
    """Name the cases that failed until then in a refusal that the block raises: it may follow from them."""
    try:
        yield
    except FlareError as error:
        text = str(error)
        told = set(text.split("\n"))
        lines = [line for line in _reasons(failures) if not told.issuperset(line.split("\n"))]
        if type(error) is not FlareError or not lines:
            raise
        raise FlareError("\n".join([text, "failed before:", *lines])) from None


def stop_on_faults(
    failures: Sequence[Outcome],
    step: str,
    cases: Collection[str],
    max_failed: float,
    groups: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Stop the run after a step that failed in general: a network would learn from a smaller cohort.

    That is so if a fault was met that every case would meet; if more than `max_failed` of the step's cases,
    and at least 3, failed for another reason than the content of their files; or if more than half of the
    step's cases, or of a folder or source, and at least 3, were refused for one and the same reason. The
    refusal names the step, how many failed, the most frequent reason with one case, and the key.

    Failures include cases that were refused before the step, `cases` those that needed no work. With a
    `max_failed` of 1 only a fault that every case would meet stops the run. `groups` are the cases of folders
    and sources, by a name with its config key.
    """
    cases = set(cases)
    faults = [f for f in failures if f.is_fault and f.case_id in cases]
    is_general = any(f.is_general for f in faults)
    if is_general or _is_more_than(max_failed, faults, cases):
        worst = _most_frequent([f for f in faults if f.is_general] or faults)
        allowed = "" if is_general else f", more than executor.max_failed={max_failed:g}"
        way_out = "" if is_general else ", or give executor.max_failed=1 to go on without them"
        raise FlareError(
            f"{step}: {len(faults)} of {len(cases)} cases failed by no fault of their files{allowed}, "
            f"so the run stops before it trains on the rest; {_told(worst)}. Start again when mended{way_out}"
        )
    refused = [f for f in failures if not f.is_fault]
    for name, members in {**(groups or {}), "this step": cases}.items():
        worst = _most_frequent([f for f in refused if f.case_id in members])
        if _is_more_than(max(max_failed, 0.5), worst, members):
            raise FlareError(
                f"{step}: {len(worst)} of {len(members)} cases of {name} were refused for one reason, so "
                f"the run stops before it trains on the rest; {_told(worst)}. Mend the files or the setting, "
                "or give executor.max_failed=1 to go on without them"
            )


def _is_more_than(share: float, failed: Sequence[Outcome], cases: Collection[str]) -> bool:
    """Whether so many cases failed that it is no matter of a few."""
    return len(failed) >= FEW and len(failed) > share * len(cases)


def _most_frequent(failures: Sequence[Outcome]) -> list[Outcome]:
    """The failures of the commonest reason."""
    kinds = Counter(f.kind or str(f.error) for f in failures).most_common(1)
    return [f for f in failures if (f.kind or str(f.error)) == kinds[0][0]] if kinds else []


def _told(failures: Sequence[Outcome]) -> str:
    """A reason, by one of its cases."""
    example = min(failures, key=lambda f: f.case_id)
    return f"{len(failures)} x {example.error} (case {example.case_id})"
