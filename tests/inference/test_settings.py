from dataclasses import replace

import pytest

from flare.core.errors import FlareError
from flare.inference.settings import InferenceSettings


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
    ],
)
def test_a_value_that_is_no_choice_is_refused_by_its_key(config, override):
    with pytest.raises(FlareError, match=override.split("=")[0]):
        InferenceSettings.from_config(config("infer", override))


def test_memory_and_device_make_no_other_result(config):
    settings = InferenceSettings.from_config(config("infer"))
    assert settings.identity() == replace(settings, memory_mb=1, device="cpu", measure=True).identity()
    assert settings.identity() != replace(settings, tta="none").identity()
    assert settings.identity() != replace(settings, body=replace(settings.body, opening_mm=1)).identity()
