"""1. Weights in and out: both nnU-Nets' networks in ours, and ours in nnU-Net v2's predictor."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from omegaconf import OmegaConf
from peers import PATCH, SIZES, configuration, generic_unet, plain_conv_unet, plans, trained, write_nnunet1
from rows import NNUNET1, NNUNET2, ROOT, Row, counted, limited

from flare.convert.foreign import ConvertSettings, convert
from flare.convert.nnunet import export_folder
from flare.core.classes import ClassList
from flare.models.zoo import load_network

LIMIT = 1e-5
LABELS = ClassList.from_config(OmegaConf.load(ROOT / "conf" / "classes" / "flare23.yaml"))
PARAMETERS = {"medium": 22_560_704, "large": 84_935_424}  # of the paper's networks with 15 outputs


def check() -> Iterator[Row]:
    """Compare every head of both networks, in and out."""
    image = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            yield from _in_1(Path(folder), size, image)
            yield from _in_2(Path(folder), size, image)
            yield from _out(Path(folder), size, image)


def heads(network: torch.nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Logits of all heads, highest resolution first; instance norms have no other mode."""
    return list(network.train()(image))


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def _in_1(folder: Path, size: str, image: torch.Tensor) -> Iterator[Row]:
    theirs = trained(generic_unet(size), seed=1)
    path = write_nnunet1(theirs, size, folder / "nnunet1")
    convert(path, folder / "in.ckpt", ConvertSettings(LABELS))
    ours, _ = load_network(folder / "in.ckpt")
    wrong = int(sum(p.numel() for p in ours.parameters()) != PARAMETERS[size])
    wrong += int(sum(p.numel() for p in theirs.parameters()) != PARAMETERS[size])
    yield counted(f"{size}: number of parameters", NNUNET1, wrong, 2)
    yield limited(
        f"{size}: Generic_UNet in, all heads",
        NNUNET1,
        _difference(heads(ours, image), heads(theirs, image)),
        LIMIT,
    )


def _in_2(folder: Path, size: str, image: torch.Tensor) -> Iterator[Row]:
    theirs = trained(plain_conv_unet(size), seed=2)
    source = folder / "nnunet2"
    (source / "fold_0").mkdir(parents=True)
    (source / "plans.json").write_text(json.dumps(plans(configuration(size))))
    names = OmegaConf.load(ROOT / "conf" / "classes" / "flare23.yaml")
    labels = {"background": 0, **{str(name): number + 1 for number, name in enumerate(names)}}
    (source / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    content = {
        "network_weights": theirs.state_dict(),
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, source / "fold_0" / "checkpoint_final.pth")
    convert(source, folder / "in2.ckpt", ConvertSettings(LABELS))
    ours, _ = load_network(folder / "in2.ckpt")
    yield limited(
        f"{size}: PlainConvUNet in, all heads",
        NNUNET2,
        _difference(heads(ours, image), heads(theirs, image)),
        LIMIT,
    )


def _out(folder: Path, size: str, image: torch.Tensor) -> Iterator[Row]:
    """Ours, as read from nnU-Net 1.7: (1,3,3) in the encoder, (3,3,3) in the decoder, no biases."""
    export_folder(folder / "in.ckpt", folder / "out", fold=0)
    ours, _ = load_network(folder / "in.ckpt")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder / "out"), use_folds=(0,))
    theirs = predictor.network.eval()(image)
    yield limited(
        f"{size}: ours out, loaded by nnU-Net", NNUNET2, _difference([ours.eval()(image)], [theirs]), LIMIT
    )
    convert(folder / "out", folder / "back.ckpt", ConvertSettings(LABELS))
    back, _ = load_network(folder / "back.ckpt")
    before, after = ours.state_dict(), back.state_dict()
    wrong = sum(key not in after or not torch.equal(w, after[key]) for key, w in before.items())
    yield counted(f"{size}: ours out and in again, tensors", NNUNET2, wrong, len(before))
