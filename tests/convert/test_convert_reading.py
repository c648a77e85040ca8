"""The restricted readers: what they refuse, and that nothing of it runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flare.convert.reading import read_pickle, read_torch
from flare.core.errors import FlareError
from nnunet_files import write_model


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_model_that_would_run_a_command(tmp_path: Path) -> None:
    mark = tmp_path / "was_here"
    path = write_model(tmp_path, {"tu.0.weight": Shell(mark)})
    with pytest.raises(FlareError, match=r"refuses (posix|os)\.system"):
        read_torch(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_plans_that_would_run_a_command(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "was_here"
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps({"plans": Shell(mark)}, protocol=protocol))
    with pytest.raises(FlareError, match=r"refuses (posix|os)\.system"):
        read_pickle(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n(tR.", "builtins.getattr"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"cflare.convert.reading\nread_torch\n.", "flare.convert.reading.read_torch"),
        (b"ctorch\nload\n.", "torch.load"),
        (b"cpathlib\nPosixPath\n(S'/'\ntR.", "pathlib.PosixPath"),
    ],
)
def test_any_other_name_is_refused_by_name(tmp_path: Path, text: bytes, name: str) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(text)
    with pytest.raises(FlareError, match=f"refuses {name}$"):
        read_pickle(path)


@pytest.mark.parametrize(
    "value", [np.array([{}], dtype=object), np.array(["a"]), np.zeros(1, [("a", "i4")]), np.str_("a")]
)
def test_arrays_of_anything_but_numbers(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(FlareError, match="expected numbers"):
        read_pickle(path)


def test_what_is_allowed_cannot_be_changed(tmp_path: Path) -> None:
    """BUILD may set attributes of what a name gives."""
    path = tmp_path / "plans.pkl"
    attributes = b"}S'__call__'\nNs", b"(N}S'function'\nNst"  # of `__dict__`; of slots and properties
    for state in attributes:
        path.write_bytes(b"cnumpy\ndtype\n" + state + b"b.")
        with pytest.raises(FlareError, match="attribute"):
            read_pickle(path)
    path.write_bytes(pickle.dumps(np.arange(3)))
    assert read_pickle(path).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value", [np.float64(1.5), np.float32(1.5), np.int64(3), np.bool_(True), np.uint8(7)]
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_numpy_numbers_come_as_plain_ones(tmp_path: Path, value: Any, protocol: int) -> None:
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps([value, {"a": value}], protocol=protocol))
    assert read_pickle(path) == [value.item(), {"a": value.item()}]
    assert type(read_pickle(path)[0]) is type(value.item())
