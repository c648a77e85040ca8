"""Cases over Dask, beyond what every executor does (test_executor.py): where, by whom, what is refused."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import distributed
import pytest
from omegaconf import DictConfig, OmegaConf

from executor_jobs import die, double, surroundings, threads
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json
from flare.evaluation.scores import evaluate
from flare.inference.predict import infer
from flare.prepare.cohort import prepare
from flare.rounds.label import merge
from flare.runs import dask as ours
from flare.runs.dask import DaskExecutor
from flare.runs.work import build_executor
from tiny_round import TINY, write_case

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "data" / "checkpoint_0_1.ckpt"
HERE = {
    "_target_": "distributed.LocalCluster",
    "processes": False,
    "threads_per_worker": 1,
    "dashboard_address": None,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler that others started, with two threads in this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def run(executor: DaskExecutor, function: Callable, count: int = 1, **job: object) -> list[object]:
    return [o.value for o in executor.run(function, {f"{n}": job for n in range(count)})]


def test_a_scheduler_that_runs_is_used_and_left_as_it_was(scheduler: str) -> None:
    executor = DaskExecutor(2, retries=1, address=scheduler)
    before = dict(os.environ)
    for _ in range(2):
        assert run(executor, double, count=5, number=4) == [8] * 5
        executor.close()
    with distributed.Client(scheduler) as client:
        assert len(client.nthreads()) == 2
    assert dict(os.environ) == before  # its workers are threads of this process


def test_no_more_cases_are_submitted_than_workers_are_asked_for(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flying, most = set(), []
    submit = distributed.Client.submit

    def watched(self: distributed.Client, *args: object, **kwargs: object) -> distributed.Future:
        future = submit(self, *args, **kwargs)
        flying.add(future)
        most.append(sum(f.status == "pending" for f in flying))
        return future

    monkeypatch.setattr(distributed.Client, "submit", watched)
    executor = DaskExecutor(3, retries=1, address=scheduler)
    assert run(executor, double, count=30, number=1) == [2] * 30
    executor.close()
    assert len(flying) == 30
    assert max(most) <= 3


def test_functions_go_by_reference(scheduler: str) -> None:
    """Dask sends what it cannot import by its code; a start must not rely on that."""
    executor = DaskExecutor(1, retries=1, address=scheduler)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        run(executor, lambda: 1)
    executor.close()


def test_a_worker_that_does_not_share_the_folder_is_named(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = DaskExecutor(1, retries=1, address=scheduler)
    monkeypatch.setattr(ours.Path, "cwd", lambda: tmp_path / "elsewhere")
    (outcome,) = executor.run(double, {"a": {"number": 1}})
    executor.close()
    assert outcome.is_general  # every case would meet it: the run stops
    assert outcome.error.startswith("executor: a worker on ")
    assert f"has no {tmp_path}/elsewhere, the start's folder" in outcome.error


def test_a_cluster_is_a_section_with_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = OmegaConf.load(ROOT / "conf" / "executor" / "dask.yaml")
    cfg.cluster, cfg.workers = HERE, 2
    executor = build_executor(OmegaConf.create({"executor": cfg})).inner
    assert "_client" not in vars(executor)  # nothing is started before there is work
    assert run(executor, double, count=3, number=2) == [4] * 3
    cluster = executor._client.cluster
    assert len(cluster.workers) == 2
    assert cluster.scheduler.allowed_failures == 1  # a case is tried twice
    executor.close()
    assert cluster.status == distributed.core.Status.closed


def test_jobs_that_a_cluster_lost_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As at the end of their time. Those that wait in a queue keep their place."""
    monkeypatch.setattr(ours, "LOST_S", 0.1)
    executor = DaskExecutor(1, retries=1, cluster=HERE)
    client, asked = executor._client, []
    there = iter(
        [False, False, True, True, False, False, True]
    )  # in a queue, at work, lost, in a queue again

    def nthreads() -> dict[str, int]:
        now = next(there, None)
        if now is None:
            (tmp_path / "go").touch()
        return {"worker": 1} if now else {}

    monkeypatch.setattr(client, "nthreads", nthreads)
    monkeypatch.setattr(client.cluster, "scale", asked.append)
    assert run(executor, die, record=tmp_path / "a", beside=tmp_path / "go") == [f"process {os.getpid()}"]
    assert asked[:7] == [1, 1, 1, 1, 0, 1, 1]
    monkeypatch.undo()
    executor.close()


def test_a_scheduler_that_goes_ends_the_run_in_a_line() -> None:
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    )
    with dask.config.set({"distributed.comm.timeouts.connect": "1s", "distributed.comm.retry.count": 0}):
        executor = DaskExecutor(1, retries=1, address=cluster.scheduler_address)
        found = executor.run(time.sleep, {"a": {}, "b": {}})
        assert next(found).error.startswith("TypeError")
        cluster.close()
        with pytest.raises(FlareError, match=r"^executor: Dask's scheduler is gone, start again"):
            list(found)
        executor.close()


def test_workers_have_the_environment_and_folder_of_their_start_and_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With certificates of the moment: nobody else on this machine speaks to scheduler and workers."""
    monkeypatch.setenv("FLARE_TEST", "one")
    executor = DaskExecutor(1, retries=0, threads=3, security=True)
    monkeypatch.chdir(tmp_path)
    ((environment, folder),) = run(executor, surroundings)
    assert environment["FLARE_TEST"] == "one"
    assert Path(folder) == tmp_path
    assert run(executor, threads) == ["3"]
    address = executor._client.scheduler.address
    assert address.startswith("tls://127.0.0.1")
    with pytest.raises(OSError, match="certificate"):
        distributed.Client(address, timeout=2, security=distributed.Security.temporary())
    executor.close()


def certificates(folder: Path) -> dict[str, object]:
    """Certificates as a site has them in files."""
    found = distributed.Security.temporary()
    own: dict[str, object] = {"_target_": "distributed.Security", "require_encryption": True}
    files = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
    for key, name in files.items():
        (folder / name).write_text(getattr(found, key))
    return own | {key: str(folder / name) for key, name in files.items()}


def test_tls_by_files(tmp_path: Path) -> None:
    own = certificates(tmp_path)
    both = {
        key.replace("client", side): path
        for key, path in own.items()
        for side in ("client", "scheduler", "worker")
    }
    cluster = HERE | {"protocol": "tls"}
    executor = DaskExecutor(1, retries=0, cluster=cluster, security=both)
    assert run(executor, double, number=2) == [4]
    guest = DaskExecutor(1, retries=0, address=executor._client.scheduler.address, security=own)
    assert run(guest, double, number=3) == [6]
    for each in (guest, executor):
        each.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 0}, r"executor\.workers=0: expected null or a whole number, 1 or more"),
        ({"retries": -1}, r"executor\.retries=-1: expected a whole number, 0 or more"),
        ({"threads": 0}, r"executor\.threads=0: expected null or a whole number, 1 or more"),
        ({"cluster": HERE}, r"executor\.workers=None: expected a whole number, 1 or more"),
        ({"address": "tcp://h:1"}, r"executor\.workers=None: expected a whole number, 1 or more"),
        (
            {"address": "tcp://h:1", "workers": 1, "cluster": HERE},
            r"executor\.address=tcp://h:1: expected null beside executor\.cluster",
        ),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(FlareError, match=f"^{said}[^\n]*$"):
        DaskExecutor(**{"workers": None, "retries": 1, **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"address": "tcp://127.0.0.1:9"},
            r"executor\.address=tcp://127\.0\.0\.1:9: distributed\.Client refuses it: ",
        ),
        (
            {"cluster": {"_target_": "distributed.LocalCluster", "cores": [1]}},
            r"executor\.cluster: distributed\.Local",
        ),
        ({"cluster": {"_target_": "distributed.Nothing"}}, r"executor\.cluster: .*Nothing"),
        ({"security": {"key": 1}}, r"executor\.cluster: .*[sS]ecurity"),
    ],
)
def test_what_cannot_be_had_is_refused_as_the_work_begins(given: dict[str, object], said: str) -> None:
    executor = DaskExecutor(1, retries=1, **given)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(FlareError, match=f"^{said}"),
    ):
        run(executor, double, number=1)
    executor.close()


def test_the_scripts_do_over_dask_what_they_do_alone(
    config: Callable[..., DictConfig], tmp_path: Path, scheduler: str
) -> None:
    """Prepare, infer, merge and evaluate, with a case that is refused; labels and tables are equal."""
    over = ["executor=dask", "executor.workers=2", f"executor.address={scheduler}"]
    told = {}
    for name, executor in (("alone", ["executor.workers=0"]), ("dask", over)):
        root = tmp_path / name
        for seed in range(3):
            write_case(root, f"case{seed}", seed)
        (root / "imagesTr2200" / "bad_0000.nii.gz").write_bytes(b"no image")
        tiny = [o for o in TINY if not o.startswith("executor")]
        paths = [f"data.root={root}", f"paths.cache={root / 'cache'}", f"paths.outputs={root}"]
        said = []
        with pytest.raises(FlareError, match=r"(?s)1 failed, the rest is done.*bad: ") as refused:
            prepare(config("prepare", *tiny, *paths, *executor))
        said.append(str(refused.value))
        given = [f"input={root / 'imagesTr2200'}", f"output={root / 'out'}", f"checkpoint={CHECKPOINT}"]
        with pytest.raises(FlareError, match=r"(?s)1 failed, the rest is done.*bad: ") as refused:
            infer(config("infer", *given, "tta=none", "inference.precision=32", *executor))
        said.append(str(refused.value))
        folders = [
            f"ground_truth={root / 'labelsTr2200'}",
            f"pseudo={root / 'out'}",
            f"output={root / 'merged'}",
        ]
        merge(config("merge_labels", *folders, *executor))
        evaluate(
            config(
                "evaluate", f"predictions={root / 'out'}", f"references={root / 'labelsTr2200'}", *executor
            )
        )
        files = [*(root / "merged").glob("*.nii.gz"), *(root / "out").glob("*.nii.gz")]
        told[name] = (
            [text.replace(str(root), "") for text in said],
            {path.relative_to(root): path.read_bytes() for path in files},
            read_csv(root / "out" / "metrics.csv"),
            [read_json(next((root / "cache").rglob("statistics.json")))],
        )
    assert len(told["alone"][1]) == 6
    assert told["dask"] == told["alone"]
    assert threading.active_count() < 100
