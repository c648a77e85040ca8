"""The exporter: a checkpoint as a file that other runtimes take, with all that inference needs inside."""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from flare.core.errors import FLAG, POSITIVE, FlareError, check_values, choice, given_paths
from flare.core.files import PARTIAL
from flare.core.paths import require_writable, settle_paths
from flare.core.volumes import find_scans, read_scan
from flare.inference.exported import FORMATS, TRUST, Format, carried_by, open_exported
from flare.inference.predict import find_checkpoint
from flare.inference.predictor import Predictor
from flare.inference.settings import InferenceSettings
from flare.models import names, zoo
from flare.runs.checkpoints import Checkpoint

log = logging.getLogger(__name__)
SCANS, PATCHES, CHECKED = 16, 8, 4  # most scans, patches of each, and patches for the check (ours)
RULES = {"format": choice(*FORMATS), "int8": FLAG, "tolerance": POSITIVE}


def main(cfg: DictConfig) -> dict[str, Any]:
    """Export as `conf/export.yaml` and the command line say; returns what `write_exported` does.

    It refuses what that does, and before any work a value that means nothing.
    """
    settle_paths(cfg)
    check_values(cfg, RULES)
    (output,) = given_paths(cfg, "output")
    kind = FORMATS[cfg.format]
    if output.suffix != kind.suffix:
        raise FlareError(f"output={output}: expected a name in {kind.suffix} for format={cfg.format}")
    if cfg.int8 and (cfg.format != "openvino" or cfg.scans is None):
        raise FlareError("int8=true: expected format=openvino, and scans=<folder> to calibrate it on")
    require_writable("output", output.parent)
    network, checkpoint = zoo.load_network(find_checkpoint(cfg), names.chosen_networks(cfg))
    patches = artificial(checkpoint) if cfg.scans is None else patches_of(checkpoint, Path(cfg.scans))
    found = write_exported(network, checkpoint, output, kind, patches, int8=cfg.int8, tolerance=cfg.tolerance)
    log.info("wrote %s: %s", output, found["told"])
    return found


def write_exported(
    network: nn.Module,
    checkpoint: Checkpoint,
    output: Path,
    kind: Format,
    patches: Sequence[torch.Tensor],
    *,
    int8: bool = False,
    tolerance: float,
) -> dict[str, Any]:
    """Convert a network and write it, once the written file gives on patches what torch gives.

    `patches` are `(1, 1, Z, Y, X)` normalised intensities; by all of them int8 is calibrated, on some of them
    the numbers are compared, in float32. A missing package, a network that cannot be converted, and numbers
    that differ from torch's by more than `tolerance` are refused, and nothing is written.
    Gives what `compare` does, and what it was held to; the file carries it as `check`.
    """
    settings = InferenceSettings(engine=kind.engines[0], precision="32", networks=(TRUST,))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=output.parent) as folder:
        written, carried = Path(folder) / output.name, carried_by(checkpoint)
        try:
            model = kind.convert(network, patches[0])
            if int8:
                os.environ.setdefault("NNCF_CI", "1")  # or it reports its use over the network
                import nncf

                model = nncf.quantize(model, nncf.Dataset([patch.numpy() for patch in patches]))
            kind.save(model, written, carried)
        except ModuleNotFoundError as error:
            extra = "int8" if int8 else "openvino,onnx"
            raise FlareError(f"format: needs {error.name}: pip install 'flare[{extra}]'") from None
        except RuntimeError as error:  # what converters raise; of networks that they do not take
            told = " ".join(str(error).split())[:300]
            raise FlareError(f"format: the network cannot be converted: {told}") from error
        engine = open_exported(written, kind, settings, torch.device("cpu"))
        check = {**compare(network, engine, patches[:: -(-len(patches) // CHECKED)]), "tolerance": tolerance}
        if not check["max_difference"] <= tolerance:
            raise FlareError(f"tolerance={tolerance}: {check['told']}; nothing is written")
        kind.save(model, written, carried | {"check": check | {"int8": int8}})
        for path in sorted(Path(folder).iterdir()):  # of two files the weights first
            os.replace(path, output.parent / path.name)
    return check


@torch.inference_mode()
def compare(network: nn.Module, engine: Any, patches: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Give the largest difference of logits, the share of voxels of the same class, and both in words."""
    pairs = [(network(patch), engine(patch)) for patch in patches]
    furthest = float(torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max())
    same = [(ours.argmax(1) == theirs.argmax(1)).float().mean() for ours, theirs in pairs]
    share = float(torch.stack(same).mean())
    told = f"logits differ from torch's by {furthest:.2g} at most, {share:.2%} of voxels have the same class"
    return {"patches": len(patches), "max_difference": furthest, "same_class": share, "told": told}


def artificial(checkpoint: Checkpoint) -> list[torch.Tensor]:
    """Make patches of noise, of the intensities that the network is given."""
    carried, draw = checkpoint.intensity, torch.Generator().manual_seed(0)
    low, high = ((carried[key] - carried["mean"]) / carried["std"] for key in ("lower", "upper"))
    noise = torch.rand(CHECKED, 1, 1, *checkpoint.patch_size, generator=draw)
    return list(low + (high - low) * noise)


def patches_of(checkpoint: Checkpoint, root: Path) -> list[torch.Tensor]:
    """Cut patches from scans as inference does, from windows with body, evenly over some of the scans."""
    seen: list[torch.Tensor] = []

    def note(patches: torch.Tensor) -> torch.Tensor:
        seen.append(patches.clone())
        return patches.new_zeros((1, len(checkpoint.outputs), *patches.shape[2:]))

    how = InferenceSettings(name="fast", centre="body", extend=True, tta="none", device="cpu")
    predictor = Predictor.from_carried(note, vars(checkpoint), how)
    paths, found = find_scans(root)[0], []
    if not paths:
        raise FlareError(f"scans={root}: holds no scan")
    for path in paths[:: -(-len(paths) // SCANS)]:
        predictor.predict(read_scan(path, path.name)[0])
        found += seen[:: -(-len(seen) // PATCHES) or 1]
        seen.clear()
    return found
