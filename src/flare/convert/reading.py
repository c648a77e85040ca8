"""Read files of others without running what is in them: tensors, numbers, arrays and plain containers.

Both accept a closed list of names. Any other is refused before it is looked up; nothing is imported or run.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flare.core.errors import FlareError
from flare.runs.checkpoints import read_weights_file, tell_unread

NUMBERS = "biufc"  # kinds of numpy types that are taken: no objects, strings or records


class _Allowed(NamedTuple):
    """A callable that cannot be changed: a pickle may set attributes of what it has been given."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def _dtype(code: str, *_: Any) -> np.dtype:
    """`numpy.dtype`, of numbers alone."""
    made = np.dtype(code) if isinstance(code, str) else None
    if made is None or made.kind not in NUMBERS:
        raise pickle.UnpicklingError(f"numpy type {code!r}: expected numbers")
    return made


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """`numpy._core.multiarray.scalar`, as a plain python number."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in NUMBERS or not isinstance(data, bytes):
        raise pickle.UnpicklingError("numpy scalar: expected a number")
    return np.frombuffer(data, dtype, count=1)[0].item()


def _array(kind: type, *_: Any) -> np.ndarray:
    """`numpy._core.multiarray._reconstruct`: an empty array, which the pickle then fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"numpy array of {kind!r}: expected numpy.ndarray")
    return np.empty(0)


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, in which old pickles hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}: expected latin1")
    return text.encode(encoding)


NUMPY: dict[str, Any] = {
    "numpy.dtype": _Allowed(_dtype),
    "numpy.ndarray": np.ndarray,
    # numpy 1 calls its inner package `core`, numpy 2 `_core`
    **{f"numpy.{core}.multiarray.scalar": _Allowed(_scalar) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _Allowed(_array) for core in ("core", "_core")},
}
PLAIN = {"collections.OrderedDict": OrderedDict, "builtins.set": set, "_codecs.encode": _Allowed(_encode)}
KNOWN = NUMPY | PLAIN
# the types of which a pickle may set the state: numpy's number types (their byte order)
TYPES = "?bBhHiIlLqQefdgFDG"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Give what a name stands for, if it is one of `KNOWN`."""
        module = {"__builtin__": "builtins"}.get(module, module)
        if f"{module}.{name}" not in KNOWN:
            raise pickle.UnpicklingError(f"refuses {module}.{name}")
        return KNOWN[f"{module}.{name}"]


def read_pickle(path: Path) -> Any:
    """Read a pickle of numbers, text, arrays of numbers and plain containers; refuse others, by name."""
    try:
        with Path(path).open("rb") as stream:
            return _Unpickler(stream).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise FlareError(f"{path}: {tell_unread(path, error, 'a pickle of plain values')}") from None


def read_torch(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` with tensors and what `read_pickle` takes; others are refused as there."""
    types = {f"numpy.dtypes.{type(np.dtype(code)).__name__}": type(np.dtype(code)) for code in TYPES}
    with torch.serialization.safe_globals([(made, name) for name, made in (NUMPY | types).items()]):
        return read_weights_file(path)
