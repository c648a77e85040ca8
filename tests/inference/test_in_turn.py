"""Cases one after the other in a process: the next one is read while the network runs."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flare.core.checks import Checks, current_checks
from flare.core.errors import NoRoomError
from flare.core.geometry import Geometry, Volume
from flare.core.volumes import read_image, write_image
from flare.inference import predict as module
from flare.inference.predict import Predicted, predict_cases
from flare.inference.predictor import Predictor
from flare.runs.journal import Journal
from flare.runs.work import CheckedExecutor, LocalExecutor
from small_predictor import DENSE, predictor

WAIT_S = 20  # for what goes on beside: far more than it takes
CHECKS = Checks(tolerance_mm=0.123)


def network(patch: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(patch), patch], 1)


def put(path: Path, seed: int) -> Volume:
    array = np.random.default_rng(seed).integers(-100, 100, (9, 20, 18)).astype(np.int16)
    axes = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    scan = Volume(array, Geometry(array.shape, (3.0, 1.0, 1.25), (1.0, 2.0, 3.0), axes))
    write_image(path, array, scan.geometry)
    return scan


def segment(ours: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch, labels: Any) -> Predicted:
    """Predict the scans of a folder in this process, by a predictor in place of a checkpoint's."""
    (folder / "last.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(module, "load_predictor", lambda *_: ours)
    return predict_cases(
        folder / "last.ckpt",
        {path.name[0]: path for path in sorted(folder.glob("*.nii.gz"))},
        folder / "out",
        settings=ours.settings,
        executor=CheckedExecutor(LocalExecutor(workers=0, retries=0), CHECKS),
        journal=Journal(folder / "journal.jsonl"),
        classes=labels,
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Which case was read, and whether in the main thread; under the executor's checks."""
    found: list[tuple[str, bool]] = []
    read_case = module.read_case

    def read(case: str, *given: Any) -> Any:
        assert current_checks() == CHECKS
        found.append((case, threading.current_thread() is threading.main_thread()))
        return read_case(case, *given)

    monkeypatch.setattr(module, "read_case", read)
    return found


def test_the_next_case_is_read_while_the_network_runs(labels, tmp_path, monkeypatch, reads) -> None:
    """One that cannot be read is blamed alone; what is done is passed over, and the others are as ever."""
    scans = {name: put(tmp_path / f"{name}.nii.gz", n) for n, name in enumerate("abde")}
    (tmp_path / "c.nii.gz").write_bytes(b"no image")
    following, predicted = {"a": "b", "b": "c", "d": "e", "e": None}, iter("abde")
    predict = Predictor.predict

    def slow(self: Predictor, *given: Any, **chosen: Any) -> Any:
        after = following[next(predicted)]
        reading = None if after is None else module._ahead[tmp_path / f"{after}.nii.gz"]
        assert reading is None or reading.exception(WAIT_S) is None or after == "c"
        return predict(self, *given, **chosen)

    ours = predictor(network, labels, replace(DENSE, memory_mb=1e5), (0, 1))
    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "predict", slow)
        done = segment(ours, tmp_path, monkeypatch, labels)
    assert reads == [("a", True), ("b", False), ("c", True), ("d", True), ("e", False)]
    assert [row["case"] for row in done.rows] == ["a", "b", "d", "e"]
    assert [(failed.case_id, failed.is_fault) for failed in done.failures] == [("c", False)]
    for name, scan in scans.items():
        found = read_image(tmp_path / "out" / f"{name}.nii.gz").array
        np.testing.assert_array_equal(found, ours.predict(scan).segmentation)
        assert all(row["read_s"] > 0 and row["preprocess_s"] >= 0 for row in done.rows)
    reads.clear()
    (tmp_path / "out" / "a.nii.gz").unlink()
    (tmp_path / "out" / "e.nii.gz").unlink()
    (tmp_path / "c.nii.gz").unlink()
    assert len(segment(ours, tmp_path, monkeypatch, labels).rows) == 4
    assert reads == [("a", True), ("e", False)]
    assert not module._ahead


def test_a_scan_for_which_there_is_no_memory_is_read_in_its_turn(
    labels, tmp_path, monkeypatch, reads
) -> None:
    for n, name in enumerate("ab"):
        put(tmp_path / f"{name}.nii.gz", n)
    ours = predictor(network, labels, replace(DENSE, memory_mb=1), (0, 1))
    assert len(segment(ours, tmp_path, monkeypatch, labels).rows) == 2
    assert reads == [("a", True), ("b", True)]


def test_nothing_that_was_read_outlives_a_step_that_an_error_ended(
    labels, tmp_path, monkeypatch, reads
) -> None:
    for n, name in enumerate("ab"):
        put(tmp_path / f"{name}.nii.gz", n)
    ours = predictor(network, labels, replace(DENSE, memory_mb=1e5), (0, 1))

    def full(*_: Any, **__: Any) -> Any:
        raise NoRoomError("make room")

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "predict", full)
        with pytest.raises(NoRoomError):
            segment(ours, tmp_path, monkeypatch, labels)
    changed = put(tmp_path / "b.nii.gz", 7)
    segment(ours, tmp_path, monkeypatch, labels)
    found = read_image(tmp_path / "out" / "b.nii.gz").array
    np.testing.assert_array_equal(found, ours.predict(changed).segmentation)
