"""The converter: a network of nnU-Net as a checkpoint of ours, or a checkpoint of ours as a model folder."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from flare.convert.layout import Foreign, architecture
from flare.convert.nnunet import export_folder, read_network
from flare.core import class_files, paths
from flare.core.classes import TARGETS, ClassList
from flare.core.errors import FlareError, Rule, check_values, given_paths, rules_of
from flare.core.preprocessing import Intensity
from flare.models.unet import UNet, check_patch_size
from flare.runs import checkpoints, folders

log = logging.getLogger(__name__)

# what a checkpoint carries beside weights and classes, and how it is written on the command line
VALUES = {
    "spacing_mm": "[z,y,x]",
    "patch_size": "[z,y,x]",
    "intensity": "{lower:HU,upper:HU,mean:HU,std:HU}",
    "mirror_axes": "[0,1,2]",
    "interpolation": "nnunet",
}
RULES = rules_of("convert") | {
    "mirror_axes": Rule(
        lambda axes: isinstance(axes, list) and all(axis in (0, 1, 2) for axis in axes),
        "a list of some of 0, 1, 2 (z, y, x)",
    ),
}


@dataclass(frozen=True)
class ConvertSettings:
    """What `conf/convert.yaml` and the command line say of a conversion."""

    classes: ClassList  # the class list, for networks that come in
    # what the outputs are, whatever the source calls them; None: told by their number
    targets: str | None = None
    round: str | None = None
    fold: str | int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)  # not in the source, or wrong there: see `VALUES`

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "ConvertSettings":
        """Read the configuration of a conversion."""
        plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(VALUES)))
        plain["intensity"] = {k: v for k, v in plain["intensity"].items() if v is not None}
        values = {k: v for k, v in plain.items() if v not in (None, {})}
        return cls(ClassList.from_config(cfg.classes), cfg.targets, cfg.round.name, cfg.fold, values)


def main(cfg: DictConfig) -> None:
    """Convert as `conf/convert.yaml` and the command line say."""
    paths.settle_paths(cfg)
    source, output = given_paths(cfg, "source", "output")
    convert(source, output, ConvertSettings.from_config(class_files.own_classes(cfg)))


def convert(source: Path, output: Path, settings: ConvertSettings) -> None:
    """Convert a checkpoint, or refuse it with the reason; what it is decides which way."""
    if not source.exists():
        raise FlareError(f"source={source}: no such file or folder")
    if source.suffix == ".ckpt":
        given = {"targets": settings.targets, "round": settings.round, **settings.values}
        for key, value in given.items():
            if value is not None:
                raise FlareError(f"{key}: the checkpoint says it itself; leave it out for an export")
        export_folder(source, output, fold=0 if settings.fold is None else settings.fold)
    else:
        write_checkpoint(read_network(source, settings.fold), output, settings)
    log.info("wrote %s", output)


def write_checkpoint(network: Foreign, path: Path, settings: ConvertSettings) -> None:
    """Write a checkpoint of ours, which `infer.py` and rounds take like one that was trained here."""
    arguments = architecture(network.weights)
    if arguments.pop("input_channels") != 1:
        raise FlareError("source: a network of several input channels; expected one, CT")
    targets = _targets(network, settings)
    values = _values(network.values, settings.values)
    plain = settings.classes.to_config()
    with torch.device("meta"):
        net = UNet(plain, targets, **arguments)
    try:
        net.load_state_dict(network.weights, assign=True)
    except RuntimeError as error:
        raise FlareError(f"source: its weights do not fit together: {' '.join(str(error).split())}") from None
    check_patch_size(values["patch_size"], net.divisors, key="patch_size")
    model = {"_target_": f"{UNet.__module__}.{UNet.__qualname__}", **arguments}
    carried = {
        **values,
        "classes": plain,
        "targets": targets,
        "round": settings.round,
        "config": {"model": {"name": "converted", "net": model}, "converted_from": network.origin},
        "git_revision": folders.git_revision(),
    }
    state = {f"net.{key}": tensor for key, tensor in network.weights.items()}
    checkpoints.write_weights_file(path, {"state_dict": state, checkpoints.KEY: carried})


def _targets(network: Foreign, settings: ConvertSettings) -> str:
    """Find what the outputs are; unless the user says, names in the source must be those of the classes."""
    classes, outputs = settings.classes, len(network.weights["heads.0.weight"])
    if settings.targets is not None:
        count = len(classes.outputs(settings.targets))
        if count != outputs:
            raise FlareError(f"targets={settings.targets}: {count} outputs, the network has {outputs}")
        return settings.targets
    counts = {}
    for targets in TARGETS:
        with suppress(FlareError):  # a class list without organs or without tumor
            counts[targets] = len(classes.outputs(targets))
    fitting = [targets for targets, count in counts.items() if count == outputs]
    if len(fitting) != 1:
        told = ", ".join(f"{count} for {targets}" for targets, count in counts.items())
        told = f"the network has {outputs} outputs; the class list gives {told}"
        raise FlareError(f"targets: {told}; choose another class list with classes=")
    entries = [classes.by_id(number) for number in classes.outputs(fitting[0])[1:]]
    expected = ["background", *(entry.name for entry in entries)]
    if not network.channel_names:
        log.warning("outputs taken in the order of the class list: %s", ", ".join(expected))
    # names under which a class may stand in another project's files
    shorts = ["background", *(entry.short.lower() for entry in entries)]
    for name, wanted, short in zip(network.channel_names, expected, shorts, strict=False):
        known = (wanted, short, wanted.replace("inferior_vena_cava", "ivc"))
        if name.strip().lower().replace(" ", "_").replace("-", "_") not in known:
            told = f"an output is named {name!r} where the class list has {wanted!r}"
            hint = f"if its outputs are those of the class list all the same, give targets={fitting[0]}"
            raise FlareError(f"targets: {told}; {hint}")
    return fitting[0]


def _values(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Combine the files' values with the user's, which count first; refuse what is missing."""
    values = {**{k: v for k, v in found.items() if v is not None}, **given}
    if "intensity" in values:
        values["intensity"] = {**found.get("intensity", {}), **given.get("intensity", {})}
    statistics = [f.name for f in fields(Intensity)]
    missing = [key for key in VALUES if key not in values]
    missing += [f"intensity.{k}" for k in statistics if k not in values.get("intensity", statistics)]
    if missing:
        hints = " ".join(f"{key}={VALUES.get(key, 'HU')}" for key in missing)
        raise FlareError(f"{', '.join(missing)}: not in the source's files; give {hints}")
    check_values(values, RULES)
    numbers = {k: float(values["intensity"][k]) for k in statistics}
    return {**values, "spacing_mm": [float(v) for v in values["spacing_mm"]], "intensity": numbers}
