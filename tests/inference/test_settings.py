from dataclasses import replace

import pytest
import torch

from flare.core.errors import FlareError
from flare.inference.settings import BodyRule, InferenceSettings


@pytest.mark.parametrize(
    ("name", "centre", "extend"),
    [
        ("paper", "image", False),
        ("flare22", "image", False),
        ("fast", "body", True),
        ("dense", "image", False),
    ],
)
def test_every_variant_is_read_from_its_config(config, name, centre, extend):
    settings = InferenceSettings.from_config(config("infer", f"inference={name}"))
    assert (settings.name, settings.centre, settings.extend) == (name, centre, extend)
    assert (settings.overlap, settings.average, settings.tta, settings.restore) == (
        0.5,
        "probabilities",
        "tta4",
        "trilinear",
    )
    assert settings.body.threshold_hu == -500
    assert hash(settings) == hash(replace(settings))


@pytest.mark.parametrize(
    "override",
    [
        "inference.name=quick",
        "inference.average=votes",
        "inference.centre=head",
        "inference.precision=64",
        "tta=tta5",
        "restore=cubic",
        "engine=steam",
        "inference.overlap=1",
        "inference.overlap=-0.1",
        "inference.memory_mb=0",
        "inference.overlap=abc",
        "inference.memory_mb=big",
        "inference.extend=1",
        "inference.measure=yes",
        "inference.body.threshold_hu=a",
        "inference.body.opening_mm=-1",
        "inference.body=5",
        "inference.device=gpu",
        "engine=outside.Vapour",
    ],
)
def test_a_value_that_is_no_choice_is_refused_by_its_key(config, override):
    with pytest.raises(FlareError, match=f"^{override}: expected [^\n]*$"):
        InferenceSettings.from_config(config("infer", override))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(config, device):
    with pytest.raises(
        FlareError, match=f"^inference.device={device}: this process sees no such GPU; [^\n]*$"
    ):
        InferenceSettings.from_config(config("infer", f"inference.device={device}"))


@pytest.mark.parametrize("key", ["inference.devise", "inference.body.threshold", "inference.tta"])
def test_a_key_that_nothing_reads_is_refused(config, key):
    with pytest.raises(FlareError, match=f"^{key}: no such key, nothing would read it[^\n]*$"):
        InferenceSettings.from_config(config("infer", f"+{key}=1"))


def test_the_defaults_of_the_library_are_those_of_the_script(config):
    assert replace(InferenceSettings.from_config(config("infer")), networks=()) == InferenceSettings()


def test_plain_arguments_are_checked_as_the_keys_are():
    with pytest.raises(FlareError, match=r"^tta=tta5: expected one of none, tta4, tta8$"):
        InferenceSettings(tta="tta5")
    with pytest.raises(FlareError, match=r"^inference\.body\.minimum_ml=-1: expected a number, 0 or more$"):
        BodyRule(minimum_ml=-1)


def test_memory_and_device_make_no_other_result(config):
    settings = InferenceSettings.from_config(config("infer"))
    assert settings.identity() == replace(settings, memory_mb=1, device="cpu", measure=True).identity()
    assert settings.identity() != replace(settings, tta="none").identity()
    assert settings.identity() != replace(settings, body=replace(settings.body, opening_mm=1)).identity()
