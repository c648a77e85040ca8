"""Validation while training: whole cases on their original grid, each class only where it is defined."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, TypedDict, cast

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flare.core.cases import Case
from flare.core.checks import reading
from flare.core.classes import ClassList
from flare.core.errors import CaseError, FlareError
from flare.core.geometry import Volume
from flare.core.preprocessing import without_ignored
from flare.core.volumes import match_grid, read_image, read_labels
from flare.data.loaders import Batch
from flare.evaluation.metrics import score_case as surface_scores
from flare.inference.components import dice
from flare.inference.engines import torch_engine
from flare.inference.predictor import Predictor
from flare.models.counting import ranks
from flare.models.losses import DeepSupervision
from flare.models.zoo import unsupervised
from flare.runs.checkpoints import KEY
from flare.training.settings import MEASURES, TrainingSettings

Scores = dict[str, float]
EPOCH_LOSS, DEVICES = "epoch_loss", "devices"  # entries of a checkpoint
# what a schedule that waits for a plateau knows of past losses
PLATEAU = {"best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr"}


class Segmented(TypedDict):
    """A validation case on its original grid: CT, annotation, segmentation; class ids `(Z, Y, X)` uint8."""

    image: Volume
    reference: np.ndarray
    segmentation: np.ndarray


def segment_case(
    predictor: Predictor, case: Case, *, classes: ClassList, label_map: Mapping[Any, int] | None
) -> Segmented:
    """Segment a case and read its annotation, of which it needs one; `label_map` makes values class ids."""
    if case.label is None:
        raise CaseError(case.id, "no annotation to validate against")
    with reading(predictor.settings.checks):
        image = read_image(case.image, case.id)
        reference = match_grid(read_labels(case.label, classes, label_map, case.id), image, case.id).array
    segmentation = predictor.predict(image).segmentation
    return Segmented(image=image, reference=reference, segmentation=segmentation)


def score_case(segmented: Segmented, *, classes: ClassList, outputs: Sequence[int], nsd: bool) -> Scores:
    """Compare a segmentation with its annotation; voxels that it ignores are background in both.

    Gives `dsc/<class>`, and with `nsd` `nsd/<class>` as `protocol=present` has it, of the trained classes
    (`outputs`, class ids, 0 first) that the annotation has.
    """
    reference, segmentation = without_ignored(segmented["reference"], segmented["segmentation"])
    there = np.flatnonzero(np.bincount(reference.ravel(), minlength=256))
    present = [class_id for class_id in outputs[1:] if class_id in there]
    scores = {f"dsc/{classes.name_of(c)}": dice(segmentation == c, reference == c) for c in present}
    if nsd:
        grid = segmented["image"].geometry
        found = surface_scores(
            reference, segmentation, spacing_mm=grid.spacing_mm, classes=classes, protocol="present"
        )
        by_class = {f"nsd/{classes.name_of(c)}": found[classes.by_id(c).short].nsd for c in present}
        scores |= {name: score for name, score in by_class.items() if score is not None}
    return scores


def mean_scores(scores: Mapping[str, Scores], classes: ClassList) -> Scores:
    """Average what `score_case` gives of each case over the cases that have a class, then over the organs.

    Gives `val/dsc/<class>` of every class that some case has, and `val/dsc_mean`: the mean of the organs, or
    of the tumor where no organ is trained; the same for `nsd` and `ema_dsc`. Empty if no class is scored.
    """
    organs = {classes.name_of(class_id) for class_id in classes.organs}
    by_key: dict[str, list[float]] = {}
    for case in sorted(scores):  # the same order of summation on every rank
        for key, value in scores[case].items():
            by_key.setdefault(key, []).append(value)
    means: Scores = {}
    for measure in MEASURES:
        keys = {name: f"{measure}/{name}" for name in classes.names}
        found = {name: fmean(by_key[key]) for name, key in keys.items() if key in by_key}
        if found:
            averaged = [value for name, value in found.items() if name in organs] or list(found.values())
            means |= {f"val/{keys[name]}": value for name, value in found.items()}
            means[f"val/{measure}_mean"] = fmean(averaged)
    return means


class SegmentationModule(pl.LightningModule):
    """Trains a network on patches and validates it on whole cases.

    Heads to which the loss gives no weight, and whatever else it does not reach, are frozen: nnU-Net never
    touches them either, and processes that train together need every other parameter to have a gradient.
    `carried` are plain values that a checkpoint has beside the weights, see `checkpoints.Checkpoint`.
    """

    def __init__(
        self, settings: TrainingSettings, net: nn.Module, loss: DeepSupervision, carried: dict[str, Any]
    ) -> None:
        super().__init__()
        self.settings, self.carried = settings, carried
        self.net, self.loss = net, loss
        self.classes = settings.classes
        self.scores: dict[str, Scores] = {}
        self.past: dict[str, Any] | None = None  # the schedule's state in the checkpoint that is resumed
        self.epoch_loss: float | None = None
        self.means: Scores = {}  # of this epoch's validation; Lightning keeps older ones among its metrics
        for parameter in unsupervised(net, settings.patches.patch_size, loss.weights):
            parameter.requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Make the optimizer and its schedule, stepped once an epoch."""
        optimizer = instantiate(self.settings.optimizer)(self.net.parameters())
        scheduler = instantiate(self.settings.scheduler)(optimizer)
        # a schedule that waits for a plateau waits for the loss's
        schedule: Any = {"scheduler": scheduler, "interval": "epoch", "monitor": "train/loss"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_fit_start(self) -> None:
        """Tell the loggers which configuration this is, without paths."""
        for logger in self.loggers:
            logger.log_hyperparams(self.carried["config"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the schedule's state from Lightning, which would go on with the schedule that it is of."""
        (self.past,) = checkpoint["lr_schedulers"]
        checkpoint["lr_schedulers"] = []
        self.epoch_loss = checkpoint.get(EPOCH_LOSS)

    def on_train_start(self) -> None:
        """Let the rate follow this configuration's schedule, from the first step after a checkpoint.

        With its optimizer a checkpoint restores the rate of the training that it is of. So the schedule is
        stepped anew to the epoch at hand, which gives the same bits where it is the same one. A rate that
        waits for a plateau depends on past losses, and goes on as it was.
        """
        if self.past is None:
            return
        schedule = cast(LRScheduler, self.lr_schedulers())
        if not isinstance(schedule, ReduceLROnPlateau):
            self._renew(schedule, epochs=self.current_epoch)
        elif self.past.keys() >= PLATEAU:
            schedule.load_state_dict({key: self.past[key] for key in PLATEAU})
            if self.epoch_loss is not None:  # Lightning saves before such a schedule has seen it
                schedule.step(self.epoch_loss)
        else:  # the checkpoint is of another schedule
            self._renew(schedule, epochs=0)

    def _renew(self, schedule: LRScheduler, *, epochs: int) -> None:
        """Bring schedule and optimizer to where they would be after so many epochs from the beginning."""
        # with an optimizer of its own, of numbers that nobody trains
        shapes = [(torch.zeros(()).expand(p.shape), p.requires_grad) for p in self.net.parameters()]
        other = instantiate(self.settings.optimizer)([nn.Parameter(*shape) for shape in shapes])
        before = [dict(group) for group in other.param_groups]
        renewed = instantiate(self.settings.scheduler)(other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no step of the optimizer came before
            for _ in range(epochs):
                renewed.step()
        schedule.load_state_dict(renewed.state_dict())
        for group, old, new in zip(schedule.optimizer.param_groups, before, other.param_groups, strict=True):
            # some schedules move more than the rate, such as the momentum
            moved = {key for key in new if key != "params" and new[key] != old.get(key)}
            group.update({key: new[key] for key in {"lr", *moved}})

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Compute the loss of a batch; log it, its parts, and the rate before the schedule moves it."""
        rate = cast(Optimizer, self.optimizers()).param_groups[0]["lr"]
        self.log("lr", rate, on_step=False, on_epoch=True, reduce_fx="max", batch_size=1)
        parts = self.loss(self.net(batch["image"]), batch["target"], batch["known"])
        told = {f"train/{name}": value for name, value in parts._asdict().items() if value is not None}
        size = len(batch["image"])
        self.log_dict(told, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return parts.loss

    def on_train_epoch_start(self) -> None:
        """Forget earlier scores and the last epoch's loss."""
        self.means, self.epoch_loss = {}, None

    def on_train_epoch_end(self) -> None:
        """Stop a training that has gone wrong, before its weights become a checkpoint."""
        loss = float(self.trainer.callback_metrics["train/loss"])
        if not math.isfinite(loss):
            raise FlareError(
                f"the loss of epoch {self.current_epoch + 1} is {loss}; the last checkpoint is from before. "
                "Lower optimizer.lr, or set trainer.precision=32"
            )
        self.epoch_loss = loss

    def on_validation_epoch_start(self) -> None:
        """Forget earlier scores, and make the predictor that later predicts from the checkpoint, too."""
        self.scores = {}
        self.predictor = self.predictor_of(self.net)

    def predictor_of(self, net: nn.Module) -> Predictor:
        """The predictor of a network that has been trained as this one."""
        how = replace(self.settings.inference, device=str(self.device))
        engine = torch_engine(net, device=self.device, precision=how.precision)
        return Predictor.from_carried(engine, self.carried, how, getattr(net, "divisors", None))

    def validation_step(self, case: Case, batch_index: int) -> Segmented:
        """Segment and score a whole case on its original grid; callbacks show what is returned."""
        found = segment_case(self.predictor, case, classes=self.classes, label_map=self.settings.label_map)
        outputs, nsd = self.settings.patches.outputs, self.settings.nsd
        self.scores[case.id] = score_case(found, classes=self.classes, outputs=outputs, nsd=nsd)
        return found

    def on_validation_epoch_end(self) -> None:
        """Log the mean scores; with several processes each has had a share of the cases."""
        if self.trainer.world_size > 1:
            shares: list[dict[str, Scores]] = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(shares, self.scores)
            self.scores = {case: scores for share in shares for case, scores in share.items()}
        self.means = mean_scores(self.scores, self.classes)
        # every rank has the same means: nothing to synchronise
        self.log_dict(self.means, on_step=False, on_epoch=True, batch_size=1, sync_dist=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what inference needs to know of the training, devices, and the loss of an epoch just ended."""
        checkpoint[KEY] = self.carried
        checkpoint[EPOCH_LOSS], checkpoint[DEVICES] = self.epoch_loss, ranks()
