"""What happens to the weights beside the optimizer's steps: a moving average of them, and a second start."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flare.models.zoo import build
from flare.runs.checkpoints import KEY, write_weights_file
from flare.runs.folders import TrainingFolder
from flare.training.module import score_case

log = logging.getLogger(__name__)
AVERAGE = "average"  # entry of a checkpoint
MOMENTUM = 0.95  # of a second start (nnU-Net)


class Average(Callback):
    """Leaves an exponential moving average of the weights as `ema.ckpt`, with each checkpoint; null: none.

    After a step it is `decay` times itself and the rest the new weights; it begins as those of the first
    step. Lightning's `WeightAveraging` would put it into `last.ckpt`, which is the paper's teacher.

    Reference: Tarvainen and Valpola 2017, Mean teachers are better role models.
    """

    def __init__(self, decay: float | None) -> None:
        self.decay = decay
        self.past: dict[str, Any] | None = None
        self.model: AveragedModel | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the average, as it was where the training resumes."""
        if self.decay is not None:
            self.model = AveragedModel(pl_module.net, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
            if self.past is not None:
                self.model.load_state_dict(self.past)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Take in the weights of a step."""
        if self.model is not None:
            self.model.update_parameters(pl_module.net)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *given: Any) -> None:
        """Score the average as well, by DSC: `ema_dsc/<class>` of a case beside what the weights have."""
        if self.model is not None:
            predictor, own = pl_module.predictor_of(self.model.module.eval()), pl_module.settings
            segmented: Any = {**outputs, "segmentation": predictor.predict(outputs["image"]).segmentation}
            found = score_case(segmented, classes=own.classes, outputs=own.patches.outputs, nsd=False)
            pl_module.scores[given[0].id] |= {f"ema_{key}": score for key, score in found.items()}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the weights alone, before the checkpoint from which the training can resume."""
        if self.model is not None:
            checkpoint[AVERAGE] = self.model.state_dict()
            state = {f"net.{name}": tensor for name, tensor in self.model.module.state_dict().items()}
            if trainer.is_global_zero:
                path = TrainingFolder(Path(trainer.default_root_dir)).ema
                write_weights_file(path, {KEY: pl_module.carried, "state_dict": state})

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take up where the saved training was."""
        self.past = checkpoint.get(AVERAGE)


class Rescue(Callback):
    """Starts a network anew, with less momentum, that names no voxel of a class rightly in a whole epoch.

    It is judged at the end of `epoch`, from 0 (null: never), by the patches that it learns from; nnU-Net asks
    at epoch 100 whether the Dice of validation patches is 0. Epochs, rate and the optimizer's buffers go on,
    as in nnU-Net, which draws the weights of convolutions anew; here all are.

    Reference: nnU-Net 1.7.0 (92d5f23), nnunet/training/network_training/nnUNetTrainerV2.py, lines 416-425.
    """

    def __init__(self, epoch: int | None) -> None:
        self.epoch = epoch
        self.state = {"has_found": False, "is_rescued": False}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *given: Any) -> None:
        """Look, in that epoch, for the first foreground voxel that is right."""
        if trainer.current_epoch == self.epoch and not self.state["has_found"]:
            _, batch, _ = given
            with torch.no_grad():
                named = pl_module.net.eval()(batch["image"]).argmax(1)
            pl_module.net.train()
            self.state["has_found"] = bool(((named == batch["target"]) & (named > 0)).any())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start anew if no process has found one; the epoch's checkpoints come after."""
        is_due, decide = trainer.current_epoch == self.epoch, trainer.strategy.reduce_boolean_decision
        if not is_due or decide(self.state["has_found"], all=False):
            return
        own = pl_module.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own.patches.seed + 1)  # not those that failed; in all processes the same
            fresh = build(own.net, classes=own.classes.to_config(), targets=own.targets)
        pl_module.net.load_state_dict(fresh.state_dict())
        for group in trainer.optimizers[0].param_groups:
            group["momentum"] = MOMENTUM
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Average) and callback.model is not None:
                callback.model.n_averaged.zero_()  # begins with the next step
        self.state["is_rescued"] = True
        told = "no voxel of a class was right in epoch %d: new weights, momentum %g (callbacks.rescue)"
        log.warning(told, trainer.current_epoch + 1, MOMENTUM)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must remember."""
        return {} if self.epoch is None else dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the saved training was."""
        self.state = state_dict
