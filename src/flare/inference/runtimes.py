"""Engines by name: torch, OpenVINO, ONNX Runtime, and TensorRT through it; which one `engine=auto` takes.

Each needs an extra of the package, and is imported where there is work.
"""

import io
import os
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_method
from torch import nn

from flare.core.errors import FlareError
from flare.inference.engines import Engine, autocast_type, cpu_flags, torch_engine
from flare.inference.settings import say_once


class Runtime(NamedTuple):
    """What an engine needs."""

    packages: tuple[str, ...]
    extra: str  # of flare, which brings them
    device: str
    precisions: tuple[str, ...] = ()  # that it offers; empty: those of torch


RUNTIMES = {
    "openvino": Runtime(("openvino", "onnx"), "openvino", "cpu"),
    "onnxruntime": Runtime(("onnxruntime", "onnx"), "onnx", "cpu", ("auto", "32")),
    "tensorrt": Runtime(("onnxruntime", "onnx"), "tensorrt", "cuda", ("auto", "32", "16")),
}


def choose_engine(name: str, device: torch.device) -> str:
    """Resolve `auto`: OpenVINO on CPUs with AVX2 or more if it is installed, else torch (ours, measured)."""
    if name != "auto":
        return name
    if device.type != "cpu" or "avx2" not in cpu_flags():
        return "torch"
    if not all(map(find_spec, RUNTIMES["openvino"].packages)):
        say_once("engine=auto: torch runs it; pip install 'flare[openvino]' is faster on this CPU")
        return "torch"
    return "openvino"


def require_engine(name: str, precision: str, device: torch.device) -> None:
    """Refuse an engine of ours that is not installed, or does not run on the device in this precision."""
    needs = RUNTIMES.get(name, Runtime((), "", device.type))
    if missing := [package for package in needs.packages if find_spec(package) is None]:
        raise FlareError(f"engine={name}: needs {', '.join(missing)}: pip install 'flare[{needs.extra}]'")
    if device.type != needs.device:
        expected = f"inference.device={needs.device}"
        raise FlareError(f"engine={name}: does not run on {device.type}; expected {expected}")
    if not needs.precisions:
        autocast_type(precision, device)
    elif precision not in needs.precisions:
        expected = " or ".join(needs.precisions)
        raise FlareError(f"inference.precision={precision}: expected {expected} with engine={name}")


def build_engine(name: str, network: nn.Module, *, device: torch.device, precision: str) -> Engine:
    """Build the engine of a name, or of a factory's dotted name; refuse what `require_engine` does."""
    name = choose_engine(name, device)
    if name == "torch" or name not in RUNTIMES:
        build = torch_engine if name == "torch" else get_method(name)
        return build(network, device=device, precision=precision)
    require_engine(name, precision, device)

    @cache  # of all windows the shape is the same
    def converted(shape: torch.Size) -> Engine:
        return run_onnx(to_onnx(network, torch.zeros(shape)), name, device, precision)

    return lambda patches: converted(patches.shape)(patches)


def to_onnx(network: nn.Module, patches: torch.Tensor) -> bytes:
    """Convert a network for patches of one shape to an ONNX model in float32.

    OpenVINO gets it too: its own converter of torch reports each use to its makers over the network. Torch's
    newer exporter gives the same numbers, but takes several times as long (ours, measured).
    """
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of its age, and that shapes become constants
        torch.onnx.export(network, (patches,), stream, dynamo=False)  # type: ignore[arg-type]
    return stream.getvalue()


def to_openvino(network: nn.Module, patches: torch.Tensor) -> Any:
    """Convert a network as `to_onnx` does, to a model of OpenVINO."""
    return openvino_core().read_model(to_onnx(network, patches))


@cache
def openvino_core() -> Any:
    """Start OpenVINO, once a process.

    The end of each start unmaps its stack for signals and restores the one before, which with two starts may
    be gone by then: the next signal kills the process.
    """
    import openvino

    return openvino.Core()


def run_onnx(model: Any, name: str, device: torch.device, precision: str) -> Engine:
    """Open an ONNX model, of bytes or a file, with an engine of ours; of OpenVINO any model that it reads.

    TensorRT is refused if ONNX Runtime is installed without it.
    """
    threads = torch.get_num_threads()
    if name == "openvino":
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # a worker that has some of the cores would be pinned to the same ones as its neighbours
            "ENABLE_CPU_PINNING": threads >= (os.cpu_count() or 1),
            "INFERENCE_PRECISION_HINT": "f32" if autocast_type(precision, device) is None else "bf16",
        }
        core = openvino_core()
        compiled = core.compile_model(core.read_model(model), "CPU", hints)
        return lambda patches: torch.from_numpy(compiled(patches.numpy())[0])
    import onnxruntime

    provider, settings = "CPUExecutionProvider", {}
    if name == "tensorrt":
        provider = "TensorrtExecutionProvider"
        settings = {"device_id": device.index or 0, "trt_fp16_enable": precision != "32"}
    if provider not in onnxruntime.get_available_providers():
        raise FlareError(f"engine={name}: this ONNX Runtime lacks it: pip install 'flare[tensorrt]'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    given = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(given, options, providers=[(provider, settings)])
    feed = session.get_inputs()[0].name
    return lambda patches: torch.from_numpy(session.run(None, {feed: patches.cpu().numpy()})[0]).to(device)
