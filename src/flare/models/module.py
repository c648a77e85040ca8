"""The LightningModule of a round: loss, optimizer, validation, and what its checkpoints carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flare.cases import Case
from flare.checkpoints import KEY
from flare.data.loaders import Batch
from flare.errors import FlareError
from flare.labels import LabelSet
from flare.losses import DeepSupervision
from flare.messages import hide_messages
from flare.models.validation import CasePredictor, Scores, Segmented, mean_scores, score_case, segment_case
from flare.models.zoo import unsupervised


class SegmentationModule(pl.LightningModule):
    """Trains a network on patches and validates it on whole cases.

    Heads to which the loss gives no weight, and whatever else it does not reach, are frozen: nnU-Net never
    touches them either, and processes that train together need every other parameter to have a gradient.

    Args:
        net: The bare network.
        loss: Compares the logits of all resolutions with the target.
        optimizer: Makes the optimizer of the parameters.
        scheduler: Makes the schedule of the optimizer, stepped once an epoch.
        predictor: Makes the predictor of whole cases, with the current weights and on the given device.
        carried: What a checkpoint carries beside the weights, see `checkpoints.Checkpoint`; plain values.
        label_map: `data.label_map`, for the annotations of validation cases.
        nsd: Whether validation scores surfaces as well.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: DeepSupervision,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        predictor: Callable[[nn.Module, torch.device], CasePredictor],
        carried: Mapping[str, Any],
        label_map: Mapping[Any, int] | None = None,
        nsd: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.make_predictor = predictor
        self.carried = dict(carried)
        self.label_map = label_map
        self.nsd = nsd
        self.labels = LabelSet.from_config(carried["classes"])
        self.outputs = self.labels.outputs(carried["targets"])
        self.scores: dict[str, Scores] = {}
        for parameter in unsupervised(net, carried["patch_size"], loss.weights):
            parameter.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Hide Lightning's messages in every process that trains."""
        hide_messages()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer and its schedule."""
        optimizer = self.make_optimizer(self.net.parameters())
        scheduler = self.make_scheduler(optimizer)
        # a schedule that waits for a plateau waits for the loss's
        schedule: LRSchedulerConfigType = {
            "scheduler": scheduler,
            "interval": "epoch",
            "monitor": "train/loss",
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        """Tell the loggers which configuration this is, without paths."""
        for logger in self.loggers:
            logger.log_hyperparams(self.carried["config"])

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Compute the loss of a batch and log it and its parts."""
        parts = self.loss(self.net(batch["image"]), batch["target"])
        self.log_dict(
            {f"train/{name}": value for name, value in parts._asdict().items() if value is not None},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch["image"]),
            sync_dist=True,
        )
        return parts.loss

    def on_train_epoch_start(self) -> None:
        """Log the learning rate of the epoch, before the schedule moves it."""
        rate = cast(Optimizer, self.optimizers()).param_groups[0]["lr"]
        self.log("lr", rate, on_step=False, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        """Stop a training that has gone wrong, before its weights become a checkpoint."""
        loss = float(self.trainer.callback_metrics["train/loss"])
        if not math.isfinite(loss):
            raise FlareError(
                f"the loss of epoch {self.current_epoch + 1} is {loss}; the last checkpoint is from before. "
                "Lower optimizer.lr, or set trainer.precision=32"
            )

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of earlier weights."""
        self.scores = {}
        self.predictor = self.make_predictor(self.net, self.device)

    def validation_step(self, case: Case, batch_index: int) -> Segmented:
        """Segment a whole case with the current weights and score it on its original grid.

        Returns:
            The case, for callbacks that show it.
        """
        found = segment_case(self.predictor, case, labels=self.labels, label_map=self.label_map)
        self.scores[case.id] = score_case(found, labels=self.labels, outputs=self.outputs, nsd=self.nsd)
        return found

    def on_validation_epoch_end(self) -> None:
        """Log the mean scores; with several processes each has had a share of the cases."""
        if self.trainer.world_size > 1:
            shares: list[dict[str, Scores]] = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(shares, self.scores)
            self.scores = {case: scores for share in shares for case, scores in share.items()}
        means = mean_scores(self.scores, self.labels)
        # every rank has the same means: nothing to synchronise
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what inference needs to know of the training."""
        checkpoint[KEY] = self.carried
