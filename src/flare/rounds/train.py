"""One training: refuse what cannot be trained, build, fit, and tell what came of it."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed, nn

from flare.core.cases import Case
from flare.core.errors import FlareError
from flare.core.files import read_csv, told_if_full
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.loaders import FlareDataModule
from flare.models.zoo import check_network, count_network
from flare.rounds.graph import read_teacher, require_teacher
from flare.rounds.settings import RoundSettings, TrainingSet
from flare.runs.checkpoints import load_checkpoint, read_weights_file
from flare.runs.folders import RoundFolder, TrainingFolder, record_environment
from flare.runs.locks import lock
from flare.training import build, resuming
from flare.training.loggers import WandbRun
from flare.training.module import DEVICES, SegmentationModule
from flare.training.settings import TrainingSettings, option

log = logging.getLogger(__name__)


class Team:
    """The processes that Slurm started for the trainings of a run: the first leads, the others follow it."""

    channel: distributed.ProcessGroup | None = None  # None where this process is alone

    @classmethod
    @contextmanager
    def of(cls, rounds: Sequence[RoundSettings]) -> Iterator[bool]:
        """Meet the others; whether this process leads: it does all the work around the trainings.

        Another one trains each round that the first comes to, and has done so when the block begins.
        """
        place = TrainingFolder(rounds[0].folder.checkpoints / "checked")
        strategy = build.build_trainer(rounds[0].training, place, has_validation=True).strategy
        strategy.setup_environment()
        # beside the group that trains, whose members wait half an hour for each other: labels take longer
        cls.channel = distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        by_name, leads = {item.name: item for item in rounds}, strategy.is_global_zero
        try:
            while not leads and (work := cls.tell()) is not None:
                logging.getLogger("flare").setLevel(logging.ERROR)  # the first one tells
                trainer, module, data = build_fit(by_name[work[0]], *work[1:])
                trainer.fit(module, datamodule=data, ckpt_path=work[1].checkpoint)
            yield leads
        finally:
            with suppress(FlareError):  # the others have ended
                if leads:
                    cls.tell()
            cls.channel = None

    @classmethod
    def tell(cls, work: tuple | None = None) -> Any:
        """Give all what the first one tells: a round's name and what `build_fit` takes; None at the end."""
        told = [work]
        try:
            if cls.channel is not None:
                distributed.broadcast_object_list(told, src=0, group=cls.channel)
        except RuntimeError as error:
            raise FlareError("another process of this training has ended; it has said why") from error
        return told[0]


def check_configuration(settings: RoundSettings, planned: Mapping[str, RoundSettings] | None = None) -> None:
    """Refuse before any work, with the key, what cannot be trained after the rounds that are `planned`."""
    training = settings.training
    patches = training.patches
    with torch.device("meta"):  # shapes alone: no memory, no initialisation
        network = build.build_network(training)
    check_network(
        network, batch_size=patches.batch_size, patch_size=patches.patch_size, outputs=len(patches.outputs)
    )
    build.build_loss(training)
    build.check_optimizer(training, network)
    Augmenter(patches.patch_size, patches.augmentation, patches.spacing_mm)
    checked = TrainingFolder(settings.folder.checkpoints / "checked")
    for logger in build.build_trainer(training, checked, has_validation=True).loggers:
        if isinstance(logger, WandbRun):
            logger.require_login()
    check_start(settings, network)
    planned = planned or {}
    require_teacher(settings, list(planned))
    teacher = read_teacher(settings, list(planned))
    if training.init != "teacher":
        return
    if teacher is not None:
        build.check_architecture(network, teacher.state_dict, f"round.init=teacher: {teacher.path}")
    elif (teaching := planned.get(str(settings.teacher))) is not None:
        with torch.device("meta"):
            taught = build.build_network(teaching.training)
        between = f"round.init=teacher: round={settings.name}: round {settings.teacher}"
        build.check_architecture(network, taught.state_dict(), between)


def check_start(settings: RoundSettings, network: nn.Module) -> None:
    """Refuse a `ckpt_path` that is missing, of other classes or another network, or at its last epoch."""
    given, training = settings.config.ckpt_path, settings.training
    if given in (None, "auto"):
        return
    path = resuming.named_checkpoint(given, settings.folder)
    found = load_checkpoint(path)
    sides = (found.class_list, found.targets), (training.classes, training.targets)
    theirs, ours = (f"{classes.told} ({targets})" for classes, targets in sides)
    if ours != theirs:
        raise FlareError(
            f"ckpt_path={given}: its classes are {theirs}; classes and labels.targets say {ours}"
        )
    build.check_architecture(network, found.state_dict, f"ckpt_path={given}")
    check_epochs(path, training, is_own=True)  # known once the labels are


def check_epochs(path: Path, training: TrainingSettings, *, is_own: bool, devices: int | None = None) -> None:
    """Refuse a checkpoint of other `devices`, or with no epoch left, unless this training has done all."""
    found = read_weights_file(path)
    if not (loops := found.get("loops")):
        raise FlareError(f"ckpt_path: {path} holds weights and no training to go on with")
    done, wanted = loops["fit_loop"]["epoch_progress"]["current"]["processed"], training.trainer["max_epochs"]
    if done > wanted or (done == wanted and not is_own):
        raise FlareError(
            f"ckpt_path: {path} has done {done} epochs; expected trainer.max_epochs above it, given {wanted}"
        )
    before = found.get(DEVICES, devices)  # earlier versions did not note it
    if devices is not None and before != devices:
        raise FlareError(
            f"trainer.devices: {path} was trained on {before}, here are {devices}; expected as many, or "
            "beside it another training: ckpt_path=last with trainer.devices and data.batch_size written"
        )


def train_round(
    settings: RoundSettings, training: TrainingSet, cases: Sequence[Case], intensity: Intensity
) -> dict[str, Any]:
    """Train a round whose labels are made; gives what `tell_training` does.

    The cohort's cases validate it. A training that cannot start or resume, or runs elsewhere, is refused.
    """
    own, folder, cfg = settings.training, settings.folder, settings.config
    with lock(folder.checkpoints):
        start = resuming.find_start(cfg.ckpt_path, folder, resuming.training_key(own, training.key))
        if start.checkpoint is not None and resuming.is_trained(start.training):
            told = "%s is trained to its end; ckpt_path=null trains it afresh, beside it"
            log.info(told, start.training.root)
            resuming.make_current(start.training)
            return tell_training(folder, own.objective)
        work = start, training, list(cases), intensity
        trainer, module, data = build_fit(settings, *work)
        # everything that can refuse is built: only now files are touched
        resuming.begin(start)
        network = count_network(lambda: build.build_network(own), own.patches.patch_size)
        used = {"device": trainer.strategy.root_device.type, "devices": trainer.world_size}
        record_environment(folder.root, cfg, network=network, **used)
        Team.tell((settings.name, *work))
        with told_if_full(folder.root):
            trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint)
        noted: dict[str, Any] = {"config": own.public, "parts": training.parts}
        if option(own.callbacks, "rescue", "epoch") is not None:  # of processes that are gone
            noted["rescued"] = read_weights_file(start.training.last)["callbacks"]["Rescue"]["is_rescued"]
        resuming.mark_trained(start.training, noted)
    return tell_training(folder, own.objective)


def build_fit(
    settings: RoundSettings, start: resuming.Start, training: TrainingSet, cases: list[Case], known: Intensity
) -> tuple[pl.Trainer, SegmentationModule, FlareDataModule]:
    """Build all that trains a round in one process; what cannot start or resume is refused."""
    own = settings.training
    pl.seed_everything(own.patches.seed, verbose=False)
    validation = [case for case in cases if case.split == "validation" and case.is_labeled]
    if not validation:
        log.info("no labelled validation case: no validation, and no best checkpoint")
    trainer = build.build_trainer(
        own, start.training, has_validation=bool(validation), ckpt_path=start.checkpoint
    )
    if start.checkpoint is not None:
        is_own = start.checkpoint == start.training.last
        check_epochs(start.checkpoint, own, is_own=is_own, devices=trainer.world_size if is_own else None)
    # Lightning leaves validation out on a process without a case, and the others would wait for it
    validation *= math.ceil(trainer.world_size / max(len(validation), 1))
    data = FlareDataModule(own.patches, training.items, validation=validation, intensity=known)
    module = build.build_module(own, known)
    is_taught = own.init == "teacher" and start.checkpoint is None
    teacher = read_teacher(settings) if is_taught else None
    if teacher is not None:
        log.info("weights start from those of round %s", teacher.round or "all")
        build.start_from_teacher(module.net, teacher, classes=own.classes, targets=own.targets)
    return trainer, module, data


def tell_training(folder: RoundFolder, objective: str | None) -> dict[str, Any]:
    """Tell what the round's current training has left in plain values.

    They are `checkpoint` and `best` (paths; `best` is None without validation), `metrics`, the last epoch's,
    and `objective`, the last value of what `objective` names (None without validation, or if not finite).
    """
    rows = read_csv(folder.training_csv)
    values = [float(row[objective]) for row in rows if row[objective]] if objective else []
    return {
        "checkpoint": str(folder.last),
        "best": str(folder.best) if folder.best.exists() else None,
        "metrics": {name: float(value) for name, value in rows[-1].items() if value},
        # a search takes None for a failed trial, and ends at what is not finite
        "objective": values[-1] if values and math.isfinite(values[-1]) else None,
    }
