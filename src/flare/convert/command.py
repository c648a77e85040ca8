"""The command line of the converter: which way, and what the user adds to what the files say.

python -m flare.convert source=model_final_checkpoint.model output=teacher.ckpt
python -m flare.convert source=nnUNetTrainer__nnUNetPlans__3d_fullres output=teacher.ckpt fold=0
python -m flare.convert source=outputs/flare23/rounds/mot3/checkpoints/last.ckpt output=<model folder>
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flare.cli import CONF
from flare.convert.export import export_folder
from flare.convert.foreign import VALUES, Foreign, write_checkpoint
from flare.convert.nnunet1 import find_model, read_nnunet1
from flare.convert.nnunet2 import read_nnunet2
from flare.errors import FlareError
from flare.labels import LabelSet

log = logging.getLogger(__name__)

KEYS = ("source", "output", "classes", "targets", "round", "fold", *VALUES)


def main(arguments: Sequence[str]) -> int:
    """Convert as the command line says; a refusal is one line.

    Args:
        arguments: `key=value`, values as in Hydra: `spacing_mm=[4,1.2,1.2]`, `intensity.mean=80`.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(**parse(arguments))
    except FlareError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` arguments into plain values.

    Raises:
        FlareError: If a key is unknown, or `source` or `output` is missing.
    """
    given = OmegaConf.create()
    try:
        for override in OverridesParser.create().parse_overrides(list(arguments)):
            OmegaConf.update(given, override.key_or_group, override.value())
    except (HydraException, OmegaConfBaseException) as error:
        raise FlareError(
            f"expected key=value with one of {', '.join(KEYS)}: {str(error).splitlines()[0]}"
        ) from None
    unknown = [str(key) for key in given if key not in KEYS]
    if unknown:
        raise FlareError(f"{unknown[0]}: no such key; expected {', '.join(KEYS)}")
    for key in ("source", "output"):
        if not given.get(key):
            raise FlareError(f"{key}: not given; expected {key}=<path>")
    return {str(key): value for key, value in OmegaConf.to_container(given).items()}  # type: ignore[union-attr]


def convert(
    *,
    source: str,
    output: str,
    classes: str = "flare23",
    targets: str | None = None,
    round: str | None = None,  # noqa: A002 (the key's name in every script)
    fold: str | int | None = None,
    **values: Any,
) -> Path:
    """Convert a checkpoint; what it is decides which way.

    Args:
        source: An nnU-Net 1.x `.model` file or its folder, an nnU-Net v2 model folder, or a `.ckpt` of ours.
        output: The `.ckpt` to write, or for a `.ckpt` of ours the model folder.
        classes: A file of `conf/classes`, or the path of one, for networks that come in.
        targets: What the network's outputs are: `organs`, `tumor` or `organs_tumor`; by default what has as
            many outputs. Given, it also vouches for names in the source that are not those of the classes.
        round: Name of the round that the checkpoint stands for.
        fold: Which `fold_*` of an nnU-Net v2 folder, where there are several.
        **values: What the source does not say, or says wrongly: see `foreign.VALUES`.

    Returns:
        What was written.

    Raises:
        FlareError: If the source cannot be converted, with the reason.
    """
    path, target = Path(source), Path(output)
    if not path.exists():
        raise FlareError(f"source={source}: no such file or folder")
    if path.suffix == ".ckpt":
        inapplicable = [k for k, v in {"targets": targets, "round": round, **values}.items() if v is not None]
        if inapplicable:
            raise FlareError(f"{inapplicable[0]}: the checkpoint says it itself; leave it out for an export")
        export_folder(path, target, fold=0 if fold is None else fold)
    else:
        labels = LabelSet.from_config(_classes(classes))
        write_checkpoint(_read(path, fold), target, labels=labels, targets=targets, name=round, given=values)
    log.info("wrote %s", target)
    return target


def _read(path: Path, fold: str | int | None) -> Foreign:
    """Read a network of nnU-Net of either generation."""
    if path.is_dir() and (path / "plans.json").is_file():
        return read_nnunet2(path, fold)
    return read_nnunet1(find_model(path))


def _classes(name: str) -> Any:
    """The class list of a name in `conf/classes`, or of a file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONF / "classes" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONF / "classes").glob("*.yaml")))
        raise FlareError(f"classes={name}: no such class list; expected one of {known}, or a .yaml file")
    return OmegaConf.to_container(OmegaConf.load(path))
