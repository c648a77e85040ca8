import pytest
import torch

from flare.core.errors import FlareError
from flare.inference import engines
from flare.inference.engines import autocast_type, choose_device, torch_engine
from flare.inference.settings import InferenceSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512f"}, None),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16"}, torch.bfloat16),
        (set(), None),
    ],
)
def test_auto_takes_bf16_only_where_the_cpu_computes_in_it(monkeypatch, flags, expected):
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset(flags))
    assert autocast_type("auto", CPU) is expected


def test_a_named_precision_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert autocast_type("32", CUDA) is None
    assert autocast_type("bf16", CPU) is torch.bfloat16
    assert autocast_type("16", CUDA) is torch.float16
    assert autocast_type("auto", CUDA) is torch.float16


@pytest.mark.parametrize(
    ("precision", "why"),
    [("16", "float16 is for GPUs, most CPUs emulate it"), ("bf16", "this CPU has no bfloat16")],
)
def test_a_precision_that_the_cpu_emulates_is_refused_before_any_work(monkeypatch, config, precision, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engines, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    line = f"inference.precision={precision}"
    message = f"^{line}: {why}; expected 32 or auto$"
    for script in ("infer", "iterate", "train"):
        with pytest.raises(FlareError, match=message):
            InferenceSettings.from_config(config(script, line))
    with pytest.raises(FlareError, match=message):  # by the library alone
        torch_engine(torch.nn.Identity(), device=CPU, precision=precision)
    # what another engine computes in is its own affair
    other = InferenceSettings.from_config(config("infer", "engine=outside.bright_engine", line))
    assert other.precision == precision


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_that_emulates_bfloat16_is_refused(monkeypatch, has_bf16):
    def answer(including_emulation=True):
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    if has_bf16:
        assert autocast_type("bf16", CUDA) is torch.bfloat16
    else:
        with pytest.raises(FlareError, match=r"^inference.precision=bf16: this GPU has no bfloat16"):
            autocast_type("bf16", CUDA)


def test_auto_is_a_gpu_only_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CUDA
    assert choose_device("cpu") == CPU


def test_cpu_flags_are_words():
    assert all(flag and " " not in flag for flag in engines.cpu_flags())
