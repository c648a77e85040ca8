"""4. One optimizer step, and the learning rate: our module under Lightning against nnU-Net's own pieces.

Networks start from equal weights and see an equal batch, in float32 on the CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from hydra import compose, initialize_config_dir
from nnunet.training.data_augmentation.downsampling import downsample_seg_for_ds_transform2
from nnunet.training.learning_rate.poly_lr import poly_lr
from nnunet.training.loss_functions import deep_supervision as deep_supervision1
from nnunet.training.loss_functions import dice_loss
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from peers import PATCH, SIZES, generic_unet, plain_conv_unet, trained
from rows import NNUNET1, NNUNET2, Row, counted, limited, relative
from torch import nn
from torch.utils.data import DataLoader

from flare.cli import CONF
from flare.convert.layout import from_nnunet
from flare.core.preprocessing import Intensity
from flare.models.losses import PolyLR
from flare.training.build import build_module
from flare.training.settings import TrainingSettings

LIMIT = 1e-5
EPOCHS = (0, 500, 999, 1000, 1001, 1499)
V2 = ["model.net.transposed_bias=true", "model.net.head_bias=true"]
Named = dict[str, np.ndarray]


def check() -> Iterator[Row]:
    """The step of both networks against both nnU-Nets, then the curve."""
    for size in SIZES:
        yield from _step(size, NNUNET1, trained(generic_unet(size), 1), from_nnunet, loss_of_1, [])
    first = f"model.net.decoder_kernels={[[1, 3, 3], *[[3, 3, 3]] * 3]}".replace(" ", "")
    yield from _step(
        "medium", NNUNET2, trained(plain_conv_unet("medium"), 2), from_nnunet, loss_of_2, [*V2, first]
    )
    yield from _learning_rate()


def batch() -> dict[str, torch.Tensor]:
    """Two patches of noise; labels in blocks, one class absent."""
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(0, 14, (2, 4, 8, 12), generator=generator)
    target = blocks.repeat_interleave(4, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = torch.randn(2, 1, *PATCH, generator=generator)
    return {"image": image, "target": target.to(torch.uint8), "known": torch.ones(2, 15, dtype=torch.bool)}


def scales(size: str) -> list[list[float]]:
    """Resolution of each head against the first."""
    steps = np.cumprod([[1, 1, 1], *SIZES[size]["strides"][:-1]], axis=0)
    return (1 / steps).tolist()


def weights(count: int) -> np.ndarray:
    """nnU-Net's weights of the heads, the lowest left out."""
    raw = np.array([1 / 2**i for i in range(count)])
    raw[-1] = 0
    return raw / raw.sum()


def loss_of_1(outputs: list[torch.Tensor], target: torch.Tensor, size: str) -> torch.Tensor:
    """nnU-Net 1.7's."""
    loss = dice_loss.DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False}, {})
    whole = deep_supervision1.MultipleOutputLoss2(loss, weights(len(outputs)))
    reduced = downsample_seg_for_ds_transform2(target[:, None].float().numpy(), scales(size), 0)
    return whole(outputs, [torch.from_numpy(r) for r in reduced])


def loss_of_2(outputs: list[torch.Tensor], target: torch.Tensor, size: str) -> torch.Tensor:
    """nnU-Net v2's."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    transform = DownsampleSegForDSTransform(scales(size))
    reduced = [transform(segmentation=one[None], image=None)["segmentation"] for one in target]
    return DeepSupervisionWrapper(loss, weights(len(outputs)))(
        outputs, [torch.stack(r) for r in zip(*reduced, strict=True)]
    )


class Recorder(pl.Callback):
    """Keeps the loss and the clipped gradients of the step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.loss = float(outputs["loss"])
        self.gradients = {
            n: p.grad.numpy() for n, p in pl_module.net.named_parameters() if p.grad is not None
        }


def our_step(size: str, state: dict[str, torch.Tensor], overrides: list[str]) -> tuple[float, Named, Named]:
    """Loss, clipped gradients and new weights after one step of Lightning's trainer."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={size}", *overrides])
    module = build_module(TrainingSettings.from_config(cfg), Intensity(-900, 300, 80, 120))
    module.net.load_state_dict(state)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        precision="32",
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch()], batch_size=None))
    return (
        recorder.loss,
        recorder.gradients,
        {n: p.detach().numpy() for n, p in module.net.named_parameters()},
    )


def their_step(network: nn.Module, size: str, loss: Callable[..., torch.Tensor]) -> tuple[float, Named]:
    """One step of nnU-Net's trainer, written from `nnUNetTrainerV2.run_iteration`; leaves new weights."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True)
    data = batch()
    optimizer.zero_grad()
    value = loss(network.train()(data["image"]), data["target"], size)
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    return float(value.detach()), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def _step(
    size: str, peer: str, network: nn.Module, renamed: Callable[..., Any], loss: Any, overrides: list[str]
) -> Iterator[Row]:
    before = {name: w.clone() for name, w in renamed(network.state_dict()).items()}
    value, gradients, after = our_step(size, before, overrides)
    their_value, raw = their_step(network, size, loss)
    theirs = renamed(network.state_dict())
    # parameters that a state dict holds under several names have one gradient
    first = {id(p): n for n, p in network.named_parameters()}
    named = network.named_parameters(remove_duplicate=False)
    their_gradients = renamed({n: raw[first[id(p)]] for n, p in named if first[id(p)] in raw})
    missing = set(their_gradients) ^ set(gradients)
    yield counted(f"{size}: parameters with a gradient", peer, len(missing), len(gradients))
    yield limited(f"{size}: loss, relative", peer, abs(value - their_value) / abs(their_value), LIMIT)
    keys = sorted(set(gradients) & set(their_gradients))
    joined = [np.concatenate([np.ravel(g[k]) for k in keys]) for g in (gradients, their_gradients)]
    yield limited(f"{size}: clipped gradients, relative", peer, relative(*joined), LIMIT)
    moved = [
        np.concatenate([np.ravel(w[k] - before[k].numpy()) for k in keys]) for w in (after, _numpy(theirs))
    ]
    # float32 weights are 7500 times as large as their change: their rounding is up to 2e-4 of it
    yield limited(f"{size}: change of the weights, relative", peer, relative(*moved), 10 * LIMIT)
    joined = [np.concatenate([np.ravel(w[k]) for k in before]) for w in (after, _numpy(theirs))]
    yield limited(f"{size}: new weights, relative", peer, relative(*joined), LIMIT)


def _numpy(values: dict[str, torch.Tensor]) -> Named:
    return {name: tensor.numpy() for name, tensor in values.items()}


def _learning_rate() -> Iterator[Row]:
    """Our schedule at the epochs of the issue, against both nnU-Nets where theirs is a real number."""
    for decay in (1500, 1000):
        ours, parameter = [], nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], 0.01)
        schedule = PolyLR(optimizer, decay_epochs=decay, power=0.9)
        for _ in range(1500):
            ours.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        theirs = PolyLRScheduler(torch.optim.SGD([parameter], 0.01), 0.01, decay)
        known = [epoch for epoch in EPOCHS if epoch <= decay]
        differences = []
        for epoch in known:
            theirs.step(epoch)
            differences += [
                abs(ours[epoch] - theirs.get_last_lr()[0]),
                abs(ours[epoch] - poly_lr(epoch, decay, 0.01)),
            ]
        text = f"learning rate, E = {decay}, epochs {', '.join(map(str, known))}"
        yield limited(text, NNUNET2, max(differences), 1e-12)
        late = [epoch for epoch in EPOCHS if epoch > decay]
        if late:
            wrong = sum(not (math.isfinite(ours[epoch]) and ours[epoch] == 0) for epoch in late)
            wrong += sum(not isinstance(poly_lr(epoch, decay, 0.01), complex) for epoch in late)
            text = f"E = {decay}, epochs {', '.join(map(str, late))}: ours 0, theirs complex"
            yield counted(text, NNUNET1, wrong, 2 * len(late))


logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
