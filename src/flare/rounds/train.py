"""Train one round: prepare what is missing, build, fit, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flare.core.cases import Case
from flare.core.files import read_csv, told_if_full
from flare.core.preprocessing import Intensity
from flare.data.augment import Augmenter
from flare.data.loaders import CaseArrays, FlareDataModule
from flare.models.zoo import check_network
from flare.prepare.cohort import prepare_cohort
from flare.prepare.settings import PrepareSettings
from flare.rounds.label import build_training_set
from flare.rounds.score import finish_round
from flare.rounds.settings import RoundSettings, TrainingSet
from flare.rounds.teachers import read_teacher, require_teacher
from flare.runs.folders import RoundFolder, TrainingFolder, lock
from flare.runs.outcomes import report_failures
from flare.runs.records import record_environment
from flare.runs.work import build_executor
from flare.training.build import (
    build_loss,
    build_module,
    build_network,
    build_trainer,
    check_architecture,
    check_optimizer,
    check_teacher,
    start_from_teacher,
)
from flare.training.resuming import begin, find_start, is_trained, make_current, mark_trained, training_key

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Prepare what is missing and train the round that the configuration names.

    Args:
        cfg: Configuration of `train`.

    Returns:
        As `train_round`.

    Raises:
        FlareError: Before any work if the configuration cannot be trained; before the training if a step
            failed in general, see `outcomes.stop_on_faults`; after it if single cases were refused, with
            every such case and reason.
    """
    settings = RoundSettings.from_config(cfg)
    PrepareSettings.from_config(cfg)
    check_configuration(settings)
    cohort = prepare_cohort(cfg)
    intensity = cohort.require_intensity()
    failures = list(cohort.failures)
    is_first = _is_first()
    folder = settings.folder.root
    with closing(build_executor(cfg)) as executor, lock(folder) if is_first else nullcontext():
        training = build_training_set(settings, cohort.cases, executor)
        executor.close()  # its processes would wait through the whole training, with their memory
        result = train_round(settings, training, cohort.cases, intensity)
        failures += training.failures
        if is_first:
            failures += finish_round(settings, cohort.cases, executor)
    report_failures(list({f.case_id: f for f in failures}.values()), "train")
    return result


def _is_first() -> bool:
    """Whether this process is the first, or the only one, of a training's processes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def check_configuration(settings: RoundSettings, planned: Mapping[str, RoundSettings] | None = None) -> None:
    """Refuse, before any work, what cannot be trained: by the model, the machine or the teacher.

    Args:
        settings: The round.
        planned: The rounds that will have run before this one, by name.

    Raises:
        FlareError: Naming the config key.
    """
    training = settings.training
    patches = training.patches
    with torch.device("meta"):  # shapes alone: no memory, no initialisation
        network = build_network(training)
    check_network(
        network,
        batch_size=patches.batch_size,
        patch_size=patches.patch_size,
        outputs=len(patches.outputs),
    )
    build_loss(training)
    check_optimizer(training, network)
    Augmenter(patches.patch_size, patches.augmentation, patches.spacing_mm)
    build_trainer(training, TrainingFolder(settings.folder.checkpoints / "checked"), has_validation=True)
    planned = planned or {}
    require_teacher(settings, list(planned))
    teacher = read_teacher(settings, list(planned))
    if settings.init != "teacher":
        return
    if teacher is not None:
        check_teacher(network, teacher, classes=training.classes, targets=training.targets)
    elif (teaching := planned.get(str(settings.teacher))) is not None:
        with torch.device("meta"):
            taught = build_network(teaching.training)
        check_architecture(network, taught.state_dict(), f"round={settings.name}: round {settings.teacher}")


def train_round(
    settings: RoundSettings, training: TrainingSet, cases: Sequence[Case], intensity: Intensity
) -> dict[str, Any]:
    """Train a round whose labels are made.

    Args:
        settings: The round.
        training: What the round trains on.
        cases: The prepared cohort, for its validation split.
        intensity: Statistics of the cohort.

    Returns:
        `checkpoint` and `best` (paths; `best` is None without validation), `metrics`, the last epoch's, and
        `objective`, the last value of what `objective` names (None without validation or if it is
        not finite).

    Raises:
        FlareError: If the training cannot start or resume, or another process trains the round.
    """
    own, folder, cfg = settings.training, settings.folder, settings.config
    is_first = _is_first()  # the processes of one training share its folder
    with lock(folder.checkpoints) if is_first else nullcontext():
        start = find_start(cfg.ckpt_path, folder, training_key(own, training.key))
        if start.checkpoint is not None and is_trained(start.training):
            log.info(
                "%s is trained to its end; ckpt_path=null trains it afresh, beside it", start.training.root
            )
            if is_first:
                make_current(start.training)
            return _result(folder, own.objective)
        pl.seed_everything(own.patches.seed, verbose=False)
        validation = [case for case in cases if case.split == "validation" and case.is_labeled]
        if not validation:
            log.info("no labelled validation case: no validation, and no best checkpoint")
        trainer = build_trainer(
            own, start.training, has_validation=bool(validation), ckpt_path=start.checkpoint
        )
        # Lightning leaves validation out on a process without a case, and the others would wait for it
        validation *= math.ceil(trainer.world_size / max(len(validation), 1))
        items = {case: CaseArrays(*paths, training.weights[case]) for case, paths in training.items.items()}
        data = FlareDataModule(own.patches, items, validation=validation, intensity=intensity)
        module = build_module(own, intensity)
        is_taught = settings.init == "teacher" and start.checkpoint is None
        teacher = read_teacher(settings) if is_taught else None
        if teacher is not None:
            log.info("weights start from those of round %s", teacher.round)
            start_from_teacher(module.net, teacher, classes=own.classes, targets=own.targets)
        if is_first:  # everything that can refuse is built: only now files are touched
            begin(start)
            record_environment(folder.root, cfg)
        with told_if_full(folder.root):
            trainer.fit(module, datamodule=data, ckpt_path=start.checkpoint)
        if is_first:
            mark_trained(start.training)
    return _result(folder, own.objective)


def _result(folder: RoundFolder, objective: str | None) -> dict[str, Any]:
    """Give what a training has left as plain values."""
    rows = read_csv(folder.training_csv)
    last_row = rows[-1]
    values = [float(row[objective]) for row in rows if row[objective]] if objective else []
    return {
        "checkpoint": str(folder.last),
        "best": str(folder.best) if folder.best.exists() else None,
        "metrics": {name: float(value) for name, value in last_row.items() if value},
        # a search takes None for a failed trial, and ends at what is not finite
        "objective": values[-1] if values and math.isfinite(values[-1]) else None,
    }
