"""The command of the converter: which way, and what the user adds to what the files say.

python -m flare.convert source=model_final_checkpoint.model output=teacher.ckpt
python -m flare.convert source=nnUNetTrainer__nnUNetPlans__3d_fullres output=teacher.ckpt fold=0
python -m flare.convert source=outputs/flare23/rounds/mot3/checkpoints/last.ckpt output=<model folder>
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.checking import given_paths
from flare.convert.export import export_folder
from flare.convert.foreign import VALUES, Foreign, write_checkpoint
from flare.convert.nnunet1 import find_model, read_nnunet1
from flare.convert.nnunet2 import read_nnunet2
from flare.errors import FlareError
from flare.labels import LabelSet

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Convert as `conf/convert.yaml` and the command line say."""
    source, output = given_paths(cfg, "source", "output")
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(VALUES)))
    plain["intensity"] = {k: v for k, v in plain["intensity"].items() if v is not None}
    convert(
        source,
        output,
        labels=LabelSet.from_config(cfg.classes),
        targets=cfg.targets,
        round=cfg.round.name,
        fold=cfg.fold,
        **{k: v for k, v in plain.items() if v not in (None, {})},
    )


def convert(
    source: Path,
    output: Path,
    *,
    labels: LabelSet,
    targets: str | None = None,
    round: str | None = None,  # noqa: A002 (the key's name in every script)
    fold: str | int | None = None,
    **values: Any,
) -> None:
    """Convert a checkpoint; what it is decides which way.

    Args:
        source: An nnU-Net 1.x `.model` file or its folder, an nnU-Net v2 model folder, or a `.ckpt` of ours.
        output: The `.ckpt` to write, or for a `.ckpt` of ours the model folder.
        labels: The class list, for networks that come in.
        targets: What the network's outputs are: `organs`, `tumor` or `organs_tumor`; by default what has as
            many outputs. Given, it also vouches for names in the source that are not those of the classes.
        round: Name of the round that the checkpoint stands for.
        fold: Which `fold_*` of an nnU-Net v2 folder, where there are several.
        **values: What the source does not say, or says wrongly: see `foreign.VALUES`.

    Raises:
        FlareError: If the source cannot be converted, with the reason.
    """
    if not source.exists():
        raise FlareError(f"source={source}: no such file or folder")
    if source.suffix == ".ckpt":
        inapplicable = [k for k, v in {"targets": targets, "round": round, **values}.items() if v is not None]
        if inapplicable:
            raise FlareError(f"{inapplicable[0]}: the checkpoint says it itself; leave it out for an export")
        export_folder(source, output, fold=0 if fold is None else fold)
    else:
        network = _read(source, fold)
        write_checkpoint(network, output, labels=labels, targets=targets, name=round, given=values)
    log.info("wrote %s", output)


def _read(path: Path, fold: str | int | None) -> Foreign:
    """Read a network of nnU-Net of either generation."""
    if path.is_dir() and (path / "plans.json").is_file():
        return read_nnunet2(path, fold)
    return read_nnunet1(find_model(path))
