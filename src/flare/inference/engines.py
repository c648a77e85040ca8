"""What runs a network on patches: torch, or an engine of the user's own; device, precision, and flips.

An engine maps patches `(B, 1, Z, Y, X)` float32 on its device to logits `(B, C, Z, Y, X)`. A factory builds
it from the network in `eval()` mode, the device and the precision; `engine` names one by its dotted name.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path

import torch
from torch import nn

from flare.core.errors import FlareError

Engine = Callable[[torch.Tensor], torch.Tensor]
Axes = tuple[int, ...]

# without these a CPU emulates bfloat16, a hundred times slower than float32
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`; `auto` is a GPU if this process sees one, else `cuda` is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FlareError(f"inference.device={name}: this process sees no such GPU; expected auto or cpu")
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """Choose the type for autocast, None for float32 throughout; what is emulated is refused."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if cpu_flags() & CPU_BF16_FLAGS else None
    kind = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[precision]
    require_native(f"inference.precision={precision}", kind, device)
    return kind


def require_native(given: str, kind: torch.dtype | None, device: torch.device) -> None:
    """Refuse, as a `given` key=value, a type that a device would emulate, many times slower than float32.

    CPUs that compute in float16 have bfloat16 as well, and are faster in that (ours, measured).
    """
    problem = None
    if device.type == "cpu" and kind is torch.float16:
        problem = "float16 is for GPUs, most CPUs emulate it"
    elif device.type == "cpu" and kind is torch.bfloat16 and not cpu_flags() & CPU_BF16_FLAGS:
        problem = "this CPU has no bfloat16"
    elif device.type == "cuda" and kind is torch.bfloat16:
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        problem = None if has_it else "this GPU has no bfloat16"
    if problem:
        raise FlareError(f"{given}: {problem}; expected 32 or auto")


def torch_engine(network: nn.Module, *, device: torch.device, precision: str) -> Engine:
    """Run a network by torch, in mixed precision where that is asked for and the device computes in it."""
    network = network.to(device)
    kind = autocast_type(precision, device)

    def run(patches: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None):
            return network(patches)

    return run


@cache
def cpu_flags() -> frozenset[str]:
    """List what the CPU says it can do; empty where Linux does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def flips(variant: str, mirror_axes: Axes) -> tuple[Axes, ...]:
    """List flips as tuples of axes of a `(Z, Y, X)` array, one per map to average, the identity first.

    `tta4` flips along each axis alone, `tta8` along every combination, of the axes that training flipped.

    Reference: paper, section 2.3 (four maps); nnU-Net (eight maps).
    """
    most = {"none": 0, "tta4": 1, "tta8": len(mirror_axes)}[variant]
    counts = range(min(most, len(mirror_axes)) + 1)
    return tuple(axes for count in counts for axes in combinations(sorted(mirror_axes), count))


def average_over_flips(
    predict: Callable[[torch.Tensor], torch.Tensor], patch: torch.Tensor, axes_of_flips: tuple[Axes, ...]
) -> torch.Tensor:
    """Average the maps of a patch of intensities, `(1, 1, Z, Y, X)`, over flips, each turned back first.

    `predict` gives logits or probabilities, `(1, C, Z, Y, X)`. Their sum is divided by the number of flips.
    """
    total: torch.Tensor | None = None
    # the identity last: a flip copies, so that the sum is never written into the network's own output
    for axes in reversed(axes_of_flips):
        dims = [axis + 2 for axis in axes]
        maps = predict(patch.flip(dims)).flip(dims) if dims else predict(patch)
        total = maps if total is None else total.add_(maps)
    if total is None:
        raise ValueError("no flip to average over; expected at least the identity")
    return total.div_(len(axes_of_flips)) if len(axes_of_flips) > 1 else total
