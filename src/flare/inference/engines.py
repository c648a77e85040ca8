"""What runs a network on patches: torch, or an engine of the user's own; on which device, how precisely.

An engine maps patches `(B, 1, Z, Y, X)` float32 on its device to logits `(B, C, Z, Y, X)`. A factory builds
it from the network in `eval()` mode, the device and the precision; `engine` names one by its dotted name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from hydra.utils import get_method
from torch import nn

Engine = Callable[[torch.Tensor], torch.Tensor]

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


def build_engine(name: str, network: nn.Module, *, device: torch.device, precision: str) -> Engine:
    """Build the engine that the settings name.

    Args:
        name: `torch`, or the dotted name of a factory that takes the other three as `torch_engine` does.
        network: In `eval()` mode.
        device: Where patches will be, and maps are wanted.
        precision: `32`, `bf16`, `16` or `auto`.
    """
    factory = torch_engine if name == "torch" else get_method(name)
    return factory(network, device=device, precision=precision)


def torch_engine(network: nn.Module, *, device: torch.device, precision: str) -> Engine:
    """Run a network by torch, in mixed precision where that is asked for and the device computes in it."""
    network = network.to(device)
    kind = autocast_type(precision, device)

    def run(patches: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None):
            return network(patches)

    return run


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """List what the CPU says it can do; empty where Linux does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))
