"""An executor of the user's own, named by `executor._target_`, carries whole scripts."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.inference.predict import infer
from flare.prepare.cohort import prepare
from flare.prepare.read import collected_warnings
from flare.runs.work import build_executor
from outside import Threads
from tiny_round import TINY, write_case

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint_0_1.ckpt"
OWN = ["executor._target_=outside.Threads", "executor.workers=2", "~executor.retries"]


def test_it_prepares_a_cohort_and_predicts_it(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    Threads.ran.clear()
    for seed in range(3):
        write_case(tmp_path, f"case{seed}", seed)
    (tmp_path / "imagesTr2200" / "bad_0000.nii.gz").write_bytes(b"no image")
    paths = [f"data.root={tmp_path}", f"paths.cache={tmp_path / 'cache'}", f"paths.outputs={tmp_path}"]
    tiny = [o for o in TINY if not o.startswith("executor")]
    with pytest.raises(FlareError, match=r"(?s)1 failed, the rest is done.*bad: "):
        prepare(config("prepare", *tiny, *paths, *OWN))
    assert Threads.ran.count(("read_case", 2)) == 3  # bad has no label, and is refused before

    given = [f"input={tmp_path / 'imagesTr2200'}", f"output={tmp_path / 'out'}", f"checkpoint={CHECKPOINT}"]
    line = [*given, "tta=none", "inference.precision=32", *OWN]
    with pytest.raises(FlareError, match=r"(?s)1 failed, the rest is done.*bad: "):
        infer(config("infer", *line))
    assert [row["case"] for row in read_csv(tmp_path / "out" / "inference.csv")] == [
        "case0",
        "case1",
        "case2",
    ]
    assert Threads.ran.count(("predict_case", 2)) == 4
    # a lone case is the executor's to place, as well
    (tmp_path / "out" / "case1.nii.gz").unlink()
    (tmp_path / "imagesTr2200" / "bad_0000.nii.gz").unlink()
    infer(config("infer", *line))
    assert Threads.ran[-1] == ("predict_case", 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "executor._target_=outside.Threads",
            r"executor: outside\.Threads does not take retries.*~executor\.",
        ),
        ("executor._target_=outside.Fibres", r"executor: outside\.Fibres refuses it"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(
    config: Callable[..., DictConfig], override: str, said: str
) -> None:
    with pytest.raises(FlareError, match=f"^{said}[^\n]*$"):
        build_executor(config("infer", override))


def test_cases_in_threads_do_not_get_each_others_warnings() -> None:
    log, both = logging.getLogger("flare.test"), Barrier(2)

    def warn(case: str) -> list[str]:
        with collected_warnings() as messages:
            both.wait(timeout=60)
            log.warning("case %s is odd", case)
            both.wait(timeout=60)
            return list(messages)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(warn, "ab")) == [["case a is odd"], ["case b is odd"]]
