"""Read files of others without running what is in them: tensors, numbers, arrays and plain containers.

Both readers accept a closed list of names. Any other name in a pickle is refused before it is looked up, so
nothing is imported or called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flare.core.errors import FlareError
from flare.runs.checkpoints import read_weights_file

NUMBERS = "biufc"  # kinds of numpy types that are taken: no objects, strings or records


# Callables without a __dict__: a pickle may set attributes of what it has been given.
class _MakeType:
    __slots__ = ()

    def __call__(self, code: str, *_: Any) -> np.dtype:
        """`numpy.dtype`, of numbers alone."""
        made = np.dtype(code) if isinstance(code, str) else None
        if made is None or made.kind not in NUMBERS:
            raise pickle.UnpicklingError(f"numpy type {code!r}: expected numbers")
        return made


class _MakeScalar:
    __slots__ = ()

    def __call__(self, dtype: np.dtype, data: bytes) -> Any:
        """`numpy._core.multiarray.scalar`, as a plain python number."""
        if not isinstance(dtype, np.dtype) or dtype.kind not in NUMBERS or not isinstance(data, bytes):
            raise pickle.UnpicklingError("numpy scalar: expected a number")
        return np.frombuffer(data, dtype, count=1)[0].item()


class _MakeArray:
    __slots__ = ()

    def __call__(self, kind: type, *_: Any) -> np.ndarray:
        """`numpy._core.multiarray._reconstruct`: an empty array, which the pickle then fills."""
        if kind is not np.ndarray:
            raise pickle.UnpicklingError(f"numpy array of {kind!r}: expected numpy.ndarray")
        return np.empty(0)


class _Encode:
    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        """`_codecs.encode`, in which old pickles hold bytes."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"encoding {encoding!r}: expected latin1")
        return text.encode(encoding)


NUMPY: dict[str, Any] = {
    "numpy.dtype": _MakeType(),
    "numpy.ndarray": np.ndarray,
    # numpy 1 calls its inner package `core`, numpy 2 `_core`
    **{f"numpy.{core}.multiarray.scalar": _MakeScalar() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _MakeArray() for core in ("core", "_core")},
}
PLAIN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "_codecs.encode": _Encode(),
}
# the types of which a pickle may set the state: numpy's number types (their byte order)
_TYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDG"]


class _Unpickler(pickle.Unpickler):
    """Knows the names of `NUMPY` and `PLAIN`, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """Give what a name stands for."""
        module = {"__builtin__": "builtins"}.get(module, module)
        known = NUMPY | PLAIN
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"refuses {module}.{name}")
        return known[f"{module}.{name}"]


def read_pickle(path: Path) -> Any:
    """Read a pickle of numbers, text, arrays of numbers and plain containers.

    Raises:
        FlareError: If it is damaged or names anything else, with that name.
    """
    try:
        with Path(path).open("rb") as stream:
            return _Unpickler(stream).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise FlareError(f"{path}: not a pickle of plain values: {' '.join(str(error).split())}") from None


def read_torch(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` with tensors, numbers, arrays of numbers and plain containers.

    Raises:
        FlareError: If it is damaged or names anything else, with that name.
    """
    allowed = [(made, name) for name, made in NUMPY.items()]
    types = [(kind, f"numpy.dtypes.{kind.__name__}") for kind in dict.fromkeys(_TYPES)]
    with torch.serialization.safe_globals([*allowed, *types]):
        return read_weights_file(path)
