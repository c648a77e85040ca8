"""Train one round: prepare what is missing, build, fit, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flare.cases import Case
from flare.checkpoints import Checkpoint, load_checkpoint
from flare.data.datamodule import FlareDataModule
from flare.data.loaders import CaseArrays
from flare.errors import FlareError
from flare.executor import report_failures
from flare.files import read_csv
from flare.inference.settings import InferenceSettings
from flare.labelling import TrainingSet, build_training_set
from flare.labels import LabelSet
from flare.models.building import build_loss, build_module, build_network
from flare.models.transfer import check_teacher, start_from_teacher
from flare.models.unet import check_patch_size
from flare.prepare import prepare_cohort
from flare.preprocessing import Intensity
from flare.resuming import mark_trained, start_afresh, starting_point, training_key
from flare.rounds import require_teacher, teacher_checkpoint
from flare.runs import RoundFolder, RunFolder, lock, record_environment, run_folder
from flare.trainer import build_trainer, choose_precision

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Prepare what is missing and train the round that the configuration names.

    Args:
        cfg: Configuration of `train`.

    Returns:
        As `train_round`.

    Raises:
        FlareError: Before any work if the configuration cannot be trained; at the end, after the training,
            if single cases were refused, with every such case and reason.
    """
    run = run_folder(cfg)
    check_configuration(cfg, run)
    cohort = prepare_cohort(cfg)
    if cohort.intensity is None:
        raise FlareError("data.labels: no labelled training case, so there are no intensity statistics")
    executor = instantiate(cfg.executor)
    try:
        training = build_training_set(cfg, cohort.cases, run, executor)
    finally:
        executor.close()
    result = train_round(cfg, run, training=training, cases=cohort.cases, intensity=cohort.intensity)
    report_failures([*cohort.failures, *training.failures], "train")
    return result


def check_configuration(cfg: DictConfig, run: RunFolder) -> None:
    """Refuse, before any work, what cannot be trained: by the model, the machine or the teacher.

    Args:
        cfg: Configuration of `train`.
        run: The run's folder.

    Raises:
        FlareError: Naming the config key.
    """
    with torch.device("meta"):  # shapes alone: no memory, no initialisation
        network = build_network(cfg)
    check_patch_size(list(cfg.data.patch_size), network.divisors)
    build_loss(cfg)
    choose_precision(str(cfg.trainer.precision), str(cfg.trainer.accelerator))
    InferenceSettings.from_config(cfg)
    if cfg.round.init not in ("fresh", "teacher"):
        raise FlareError(f"round.init={cfg.round.init}: expected fresh or teacher")
    require_teacher(cfg, run)
    teacher = weights_teacher(cfg, run)
    if teacher is not None:
        check_teacher(network, teacher, labels=LabelSet.from_config(cfg.classes), targets=cfg.labels.targets)


def train_round(
    cfg: DictConfig,
    run: RunFolder,
    *,
    training: TrainingSet,
    cases: Sequence[Case],
    intensity: Intensity,
) -> dict[str, Any]:
    """Train a round whose labels are made.

    Args:
        cfg: Configuration of `train`.
        run: The run's folder.
        training: What the round trains on.
        cases: The prepared cohort, for its validation split.
        intensity: Statistics of the cohort.

    Returns:
        `checkpoint` and `best` (paths; `best` is None without validation) and `metrics`, the last epoch's.

    Raises:
        FlareError: If the training cannot start or resume, or another process trains the round.
    """
    folder = run.round(cfg.round.name)
    is_first = getattr(rank_zero_only, "rank", 0) == 0  # the processes of one training share its folder
    with lock(folder.checkpoints) if is_first else nullcontext():
        ckpt_path = _begin(cfg, folder, training, write=is_first)
        pl.seed_everything(int(cfg.seed), verbose=False)
        validation = [case for case in cases if case.split == "validation" and case.is_labeled]
        if not validation:
            log.info("no labelled validation case: no validation, and no best checkpoint")
        trainer = build_trainer(cfg, folder, has_validation=bool(validation))
        # Lightning leaves validation out on a process without a case, and the others would wait for it
        validation *= math.ceil(trainer.world_size / max(len(validation), 1))
        items = {case: CaseArrays(*paths) for case, paths in training.items.items()}
        data = FlareDataModule(cfg, items, validation=validation, intensity=intensity)
        module = build_module(cfg, intensity)
        teacher = weights_teacher(cfg, run) if ckpt_path is None else None
        if teacher is not None:
            log.info("weights start from those of round %s", teacher.round)
            start_from_teacher(module.net, teacher, labels=module.labels, targets=cfg.labels.targets)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        if is_first:
            mark_trained(folder, training_key(cfg, training.key))
    return _result(folder)


def weights_teacher(cfg: DictConfig, run: RunFolder) -> Checkpoint | None:
    """Read the checkpoint that a round's weights start from; None for fresh weights.

    Args:
        cfg: Configuration of `train`; with `round.init=teacher` a round without a teacher starts fresh too.
        run: The run's folder.

    Raises:
        FlareError: If it is missing, of another round or spacing.
    """
    path = teacher_checkpoint(cfg, run) if cfg.round.init == "teacher" else None
    if path is None:
        return None
    teacher = load_checkpoint(Path(path))
    if cfg.round.checkpoint is None and teacher.round != cfg.round.teacher:
        raise FlareError(
            f"round.teacher={cfg.round.teacher}: {path} is a checkpoint of round {teacher.round}"
        )
    if list(teacher.spacing_mm) != [float(size) for size in cfg.data.spacing_mm]:
        raise FlareError(
            f"data.spacing_mm={list(cfg.data.spacing_mm)}: the teacher {path} has {list(teacher.spacing_mm)}"
        )
    return teacher


def _begin(cfg: DictConfig, folder: RoundFolder, training: TrainingSet, *, write: bool) -> Path | None:
    """Decide where the training starts and, if this process may, note which one it is."""
    key = training_key(cfg, training.key)
    ckpt_path = starting_point(cfg.ckpt_path, folder, key)
    if write:
        if ckpt_path is None:
            start_afresh(folder, key)
        record_environment(folder.root, cfg)
    return ckpt_path


def _result(folder: RoundFolder) -> dict[str, Any]:
    """Give what a training has left as plain values."""
    last_row = read_csv(folder.training_csv)[-1]
    return {
        "checkpoint": str(folder.last),
        "best": str(folder.best) if folder.best.exists() else None,
        "metrics": {name: float(value) for name, value in last_row.items() if value},
    }
