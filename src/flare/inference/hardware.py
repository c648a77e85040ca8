"""Where a network runs and in which precision, from what the machine can do."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

# without these a CPU emulates bfloat16, a hundred times slower than float32
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`; `auto` is a GPU if this process sees one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Choose the type of mixed precision.

    Args:
        precision: `32`, `bf16`, `16` or `auto`.
        device: Where the network runs.

    Returns:
        The type for autocast, or None for float32 throughout.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if cpu_flags() & CPU_BF16_FLAGS else None
    return {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[precision]


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """List what the CPU says it can do; empty where Linux does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))
