"""Cases over dask.distributed: processes of this machine, a scheduler that runs, or jobs of a cluster.

Retries, lost workers, dashboard are Dask's. Who reaches its port runs code as its user: docs/operations.md.
"""

import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from flare.core.errors import COUNT, FlareError, build_part, optional, whole
from flare.runs.work import DIED, Job, LocalExecutor, Outcome, attempt, prepare_worker

try:
    import dask
    import distributed
except ImportError:
    raise FlareError("executor=dask: pip install 'flare[dask]'") from None

log = logging.getLogger(__name__)
logging.getLogger("distributed").setLevel(logging.WARNING)
logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)  # what a case raises is told by its start
HERE = {"_target_": "distributed.LocalCluster", "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
LOST_S = 10  # after which workers that are lost are asked for again (ours)


@dataclass
class DaskExecutor:
    """Worker processes of Dask, each of which has this code and sees this folder under the same path."""

    workers: Any  # processes, and cases that are submitted at once; null: one per core of this machine
    retries: int  # of a case whose worker died, one at least with several workers; an `address` has its own
    threads: int | None = None  # of numerical libraries in each; null: cores / workers here, 1 elsewhere
    address: str | None = None  # of a scheduler that runs
    cluster: Mapping[str, Any] | None = None  # a section with a `_target_` of Dask's deployments
    security: Any = None  # a section of `distributed.Security`, or true for certificates of the moment

    def __post_init__(self) -> None:
        cores, is_here = len(os.sched_getaffinity(0)), not (self.address or self.cluster)
        (optional(COUNT) if is_here else COUNT).require("executor.workers", self.workers)
        optional(COUNT).require("executor.threads", self.threads)
        whole(0).require("executor.retries", self.retries)
        if self.address and self.cluster:
            raise FlareError(f"executor.address={self.address}: expected null beside executor.cluster")
        self._is_alive = False  # whether there were workers when last looked
        self.workers = self.workers or cores
        self.threads = self.threads or (max(1, cores // self.workers) if is_here else 1)

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        """See `Executor`; a scheduler that is lost is refused."""
        client, waiting = self._client, iter(jobs.items())
        flying: dict[distributed.Future, str] = {}
        try:
            while True:
                for case, job in islice(waiting, self.workers - len(flying)):
                    # Dask would send a function that cannot be imported by its code
                    work = {"folder": Path.cwd(), "work": pickle.dumps((function, job))}
                    key = f"{function.__name__}-{os.urandom(16).hex()}"
                    flying[client.submit(attempt, case, _unpacked, work, key=key)] = case
                if not flying:
                    return
                try:
                    done = distributed.wait(list(flying), LOST_S, "FIRST_COMPLETED").done
                except distributed.TimeoutError:
                    if not self.address:  # what the cluster lost, as at a job's end, is asked for again
                        was_alive, self._is_alive = self._is_alive, bool(client.nthreads())
                        # Dask forgets a lost job of several processes only while none is asked for
                        client.cluster.scale(0 if was_alive and not self._is_alive else self.workers)
                    continue
                self._is_alive = True
                for future in done:
                    case = flying.pop(future)
                    try:
                        yield future.result()
                    except distributed.KilledWorker:
                        yield Outcome(case, error=DIED, is_fault=True, kind=DIED)
        except (distributed.CancelledError, OSError) as error:
            raise FlareError(f"executor: Dask's scheduler is gone, start again ({error})") from None

    def alone(self) -> LocalExecutor:
        """Give one that works in this process."""
        return LocalExecutor(workers=0, retries=0)

    def close(self) -> None:
        """Leave the scheduler at `executor.address`, or end the cluster and its workers."""
        client = self.__dict__.pop("_client", None)
        if client is not None:
            client.close() if self.address else client.shutdown()

    @cached_property
    def _client(self) -> distributed.Client:
        """Connect, and start a cluster that is ours, whose scheduler is in this process."""
        place: Any = self.address
        given: dict[str, Any] = {"security": self.security} if self.security else {}
        if not place:
            # no case waits at a worker: it would die with the one at work there
            own = {"allowed-failures": max(self.retries, int(self.workers > 1)), "worker-saturation": 1.0}
            part = {**(self.cluster or HERE), "n_workers": self.workers, "_convert_": "all"}
            with dask.config.set({f"distributed.scheduler.{key}": value for key, value in own.items()}):
                place, given = build_part(part, "executor.cluster", **given), {}
        part = {"_target_": "distributed.Client"}
        client = build_part(part, f"executor.address={self.address}", address=place, **given)
        client.register_plugin(Prepared(self.threads), name="flare")
        log.info("Dask's dashboard: %s", client.dashboard_link)
        return client


@dataclass
class Prepared(distributed.WorkerPlugin):
    """Prepares each process of a cluster, also those that join later, as `prepare_worker` does."""

    threads: int  # of numerical libraries

    def setup(self, worker: "distributed.Worker") -> None:
        """Prepare a process before its first case, unless it is the start's own."""
        if threading.current_thread() is threading.main_thread():
            prepare_worker(self.threads, logging.INFO, dict(os.environ))
        # a process keeps what a large case took, and would wait for that memory without end
        worker.memory_manager.memory_pause_fraction = False


def _unpacked(folder: Path, work: bytes) -> Any:
    """Do the work of a case, which its own start pickled, in the folder that relative paths start from."""
    if not folder.is_dir():
        raise FlareError(f"executor: a worker on {os.uname().nodename} has no {folder}, the start's folder")
    os.chdir(folder)
    function, job = pickle.loads(work)
    return function(**job)
