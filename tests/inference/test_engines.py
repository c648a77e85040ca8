import pytest
import torch

from flare.inference import engines
from flare.inference.engines import autocast_type, choose_device

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


def test_a_named_precision_is_taken_as_it_is():
    assert autocast_type("32", CUDA) is None
    assert autocast_type("bf16", CPU) is torch.bfloat16
    assert autocast_type("16", CUDA) is torch.float16
    assert autocast_type("auto", CUDA) is torch.float16


def test_auto_is_a_gpu_only_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CUDA
    assert choose_device("cpu") == CPU


def test_cpu_flags_are_words():
    assert all(flag and " " not in flag for flag in engines.cpu_flags())
