"""Engines by name: which one `auto` takes, what is refused, and that each gives torch's numbers."""

import ctypes
import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from flare.core.errors import FlareError
from flare.inference import engines, runtimes
from flare.inference.runtimes import build_engine, choose_engine, require_engine
from flare.inference.settings import InferenceSettings
from flare.models.unet import UNet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLASSES = {
    "liver": {"id": 1, "short": "L", "role": "organ", "tolerance_mm": 1, "slice_range": False},
    "tumor": {"id": 2, "short": "T", "role": "tumor", "tolerance_mm": 1, "slice_range": False},
}


def unet() -> nn.Module:
    """Anisotropic kernels and strides, transposed convolutions with a bias, instance norm."""
    torch.manual_seed(0)
    return UNet(
        CLASSES,
        "organs_tumor",
        features=[4, 6, 8],
        convolutions_per_stage=2,
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        encoder_kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        decoder_kernels=[[1, 3, 3], [3, 3, 3]],
        transposed_bias=True,
        head_bias=True,
    ).eval()


def grouped() -> nn.Module:
    """Group norm, whose groups have several channels, and upsampling by interpolation."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, stride=2, padding=1),
        nn.GroupNorm(2, 6),
        nn.GELU(),
        nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
        nn.Conv3d(6, 3, 1),
    ).eval()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend what the CPU's flags say and which packages are installed."""

    def pretend(flags: set[str], installed: set[str]) -> None:
        for module in (engines, runtimes):
            monkeypatch.setattr(module, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(runtimes, "find_spec", lambda name: name if name in installed else None)
        runtimes.say_once.cache_clear()

    return pretend


@pytest.mark.parametrize(
    ("flags", "installed", "device", "expected"),
    [
        ({"avx2", "avx512f", "amx_bf16"}, {"openvino", "onnx"}, CPU, "openvino"),
        ({"avx2"}, {"openvino", "onnx"}, CPU, "openvino"),
        ({"avx2"}, {"onnxruntime", "onnx"}, CPU, "torch"),  # slower than torch
        ({"sse4_2"}, {"openvino", "onnx"}, CPU, "torch"),
        (set(), {"openvino", "onnx"}, CPU, "torch"),  # no x86, or nobody says
        ({"avx2"}, {"openvino", "onnx"}, CUDA, "torch"),
    ],
)
def test_auto_goes_by_device_and_flags(machine, flags, installed, device, expected) -> None:
    machine(flags, installed)
    assert choose_engine("auto", device) == expected
    assert choose_engine("onnxruntime", device) == "onnxruntime"


def test_what_is_missing_is_said_once_and_torch_runs(machine, caplog) -> None:
    machine({"avx2"}, set())
    network = nn.Conv3d(1, 2, 1).eval()
    patch = torch.randn(1, 1, 2, 3, 4)
    for _ in range(2):
        engine = build_engine("auto", network, device=CPU, precision="32")
    torch.testing.assert_close(engine(patch), network(patch))
    (told,) = [r.getMessage() for r in caplog.records if "engine=auto" in r.getMessage()]
    assert told.endswith("pip install 'flare[openvino]' is faster on this CPU")


ALL = {"openvino", "onnxruntime", "onnx"}


@pytest.mark.parametrize(
    ("name", "precision", "device", "installed", "message"),
    [
        (
            "openvino",
            "32",
            CPU,
            set(),
            r"engine=openvino: needs openvino, onnx: pip install 'flare\[openvino\]'",
        ),
        ("onnxruntime", "32", CPU, {"onnx"}, r"engine=onnxruntime: needs onnxruntime: .*flare\[onnx\]'"),
        ("tensorrt", "auto", CUDA, set(), r"engine=tensorrt: needs onnxruntime, onnx: .*flare\[tensorrt\]'"),
        ("openvino", "32", CUDA, ALL, "engine=openvino: does not run on cuda; expected inference.device=cpu"),
        ("tensorrt", "32", CPU, ALL, "engine=tensorrt: does not run on cpu; expected inference.device=cuda"),
        ("onnxruntime", "bf16", CPU, ALL, "inference.precision=bf16: expected auto or 32 with engine=onnx"),
        (
            "tensorrt",
            "bf16",
            CUDA,
            ALL,
            "inference.precision=bf16: expected auto or 32 or 16 with",
        ),
        ("openvino", "bf16", CPU, ALL, "inference.precision=bf16: this CPU has no bfloat16; expected 32"),
        ("openvino", "16", CPU, ALL, "inference.precision=16: float16 is for GPUs"),
    ],
)
def test_what_cannot_run_is_refused_by_its_key(machine, name, precision, device, installed, message) -> None:
    machine({"avx2"}, installed)
    with pytest.raises(FlareError, match=f"^{message}"):
        require_engine(name, precision, device)


def test_a_refusal_comes_with_the_configuration(machine, config, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine({"avx2"}, set())
    with pytest.raises(FlareError, match=r"^engine=openvino: needs openvino"):
        InferenceSettings.from_config(config("infer", "engine=openvino"))
    assert InferenceSettings.from_config(config("infer", "engine=auto")).engine == "auto"
    with pytest.raises(FlareError, match=r"^inference.precision=bf16: this CPU has no bfloat16"):
        InferenceSettings.from_config(config("infer", "engine=auto", "inference.precision=bf16"))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("make", [unet, grouped])
def test_an_engine_gives_torchs_numbers_for_each_shape(name: str, make: Callable[[], nn.Module]) -> None:
    pytest.importorskip(name)
    network = make()
    engine = build_engine(name, network, device=CPU, precision="32")
    draw = torch.Generator().manual_seed(0)
    for shape in [(1, 1, 4, 16, 24), (1, 1, 8, 16, 16), (2, 1, 4, 16, 24)]:
        for _ in range(2):
            patches = torch.randn(shape, generator=draw)
            with torch.inference_mode():
                found, wanted = engine(patches), network(patches)
            torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_an_answer_outlives_the_next_one() -> None:
    """Runtimes hand out memory that they write to again."""
    names = [name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name)]
    if not names:
        pytest.skip("neither is installed")
    for name in names:
        engine = build_engine(name, grouped(), device=CPU, precision="32")
        first = engine(torch.zeros(1, 1, 4, 8, 8))
        kept = first.clone()
        engine(torch.ones(1, 1, 4, 8, 8))
        torch.testing.assert_close(first, kept, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("flags", "precision", "threads", "expected"),
    [
        ({"avx2", "avx512_bf16"}, "auto", 4, ("bf16", True)),
        ({"avx2", "amx_bf16"}, "32", 4, ("f32", True)),
        ({"avx2"}, "auto", 2, ("f32", False)),  # a worker that shares the cores with another
    ],
)
def test_openvino_is_told_precision_threads_and_latency(
    machine, monkeypatch, flags, precision, threads, expected
) -> None:
    pytest.importorskip("openvino")
    machine(flags, {"openvino", "onnx"})
    given = {}

    class Core:
        def read_model(self, model):
            return model

        def compile_model(self, model, device, hints):
            given.update(hints, device=device)
            return lambda array: [array]

    monkeypatch.setattr(runtimes, "openvino_core", Core)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(runtimes.os, "cpu_count", lambda: 4)
    runtimes.run_onnx("model", "openvino", CPU, precision)(torch.zeros(1))
    assert (given["INFERENCE_PRECISION_HINT"], given["ENABLE_CPU_PINNING"]) == expected
    assert (given["PERFORMANCE_HINT"], given["INFERENCE_NUM_THREADS"]) == ("LATENCY", threads)
    assert given["device"] == "CPU"


class SignalStack(ctypes.Structure):
    """C's `stack_t`."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack:
    found = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists a process's memory")
def test_engines_that_overlap_leave_a_signal_stack_that_exists() -> None:
    pytest.importorskip("openvino")
    network, patches = grouped(), torch.zeros(1, 1, 8, 8, 8)
    first, second = (build_engine("openvino", network, device=CPU, precision="32") for _ in range(2))
    first(patches), second(patches)
    del first
    gc.collect()
    del second
    gc.collect()
    left = signal_stack()
    if left.flags & 2:  # none: signals are handled on the thread's own stack
        return
    mapped = [
        [int(edge, 16) for edge in line.split(maxsplit=1)[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
    ]
    assert any(lower <= left.address < upper for lower, upper in mapped), "the next signal kills pytest"
