"""A cohort of four small cases, and a round on it that takes a second."""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from composed import composed
from flare.core.geometry import Geometry
from flare.core.volumes import write_image, write_labels
from flare.data.settings import CaseArrays
from flare.prepare.cohort import Cohort, prepare_cohort
from flare.rounds.settings import RoundSettings, TrainingSet
from flare.rounds.train import train_round
from flare.runs.folders import RoundFolder, prepared_folder

LIVER, SPLEEN, TUMOR = 1, 3, 14
SHAPE = (12, 24, 28)
TINY = [
    "model=tiny",
    "trainer=cpu",
    "tta=none",
    "model.net.features=[4,6,8]",
    "model.net.strides=[[1,1,1],[1,2,2],[2,2,2]]",
    "model.net.encoder_kernels=[[1,3,3],[3,3,3],[3,3,3]]",
    "model.net.decoder_kernels=[[3,3,3],[3,3,3]]",
    "optimizer.lr=0.05",
    "data=flare23",
    "data.spacing_mm=[3,2,2]",
    "data.patch_size=[8,16,16]",
    "data.workers=0",
    "executor.workers=0",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.check_val_every_n_epoch=1",
    "trainer.precision=32",
]
SMALL_DYNUNET = [
    "model.net.network.filters=[4,6,8]",
    "model.net.network.kernel_size=[[1,3,3],[3,3,3],[3,3,3]]",
    "model.net.network.strides=[[1,1,1],[1,2,2],[2,2,2]]",
    "model.net.network.upsample_kernel_size=[[1,2,2],[2,2,2]]",
    "model.net.network.deep_supr_num=1",
]


def write_case(root: Path, name: str, seed: int, *, split: str = "Tr2200") -> None:
    """A case with a bright liver, a dark spleen and a tumor in the liver."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    y, x = rng.integers(3, 7, size=2)
    labels[2:10, y : y + 12, x : x + 10] = LIVER
    labels[4:8, y + 2 : y + 6, x + 2 : x + 6] = TUMOR
    labels[3:9, y : y + 8, x + 12 : x + 18] = SPLEEN
    means = np.zeros(256)
    means[[LIVER, SPLEEN, TUMOR]] = (120, 40, 80)
    image = (means[labels] + rng.normal(0, 10, SHAPE)).astype(np.int16)
    geometry = Geometry(SHAPE, (3.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_image(root / f"images{split}" / f"{name}_0000.nii.gz", image, geometry)
    write_labels(root / f"labels{split}" / f"{name}.nii.gz", labels, geometry)


def write_cohort(root: Path) -> Cohort:
    """Three training cases and one for validation, prepared; the cache lies beside them."""
    for seed in range(3):
        write_case(root, f"case{seed}", seed)
    write_case(root, "held_out", 9, split="Val")
    return prepare_cohort(configuration(root, root))


def configuration(root: Path, outputs: Path, *overrides: str) -> DictConfig:
    """Compose `train` for the tiny cohort."""
    own = [f"data.root={root}", f"paths.outputs={outputs}", f"paths.cache={root / 'cache'}"]
    # stages of our own network are no other's
    is_ours = not any(o.startswith("model=") and o != "model=tiny" for o in overrides)
    tiny = TINY if is_ours else [o for o in TINY if not o.startswith("model.net.")]
    return composed("train", *tiny, *own, *overrides)


def train_tiny(
    cohort: Cohort,
    outputs: Path,
    *overrides: str,
    validate: bool = True,
    known: dict[str, tuple[int, ...]] | None = None,
) -> tuple[dict[str, Any], RoundFolder]:
    """Train on the ground truth of all training cases."""
    root = cohort.folder.root.parent
    cfg = configuration(root, outputs, *overrides)
    prepared = prepared_folder(cfg)
    train = [case.id for case in cohort.cases if case.split == "train"]
    told = known or {}
    items = {c: CaseArrays(prepared.image(c), prepared.labels(c), known=told.get(c)) for c in train}
    training = TrainingSet(items, key="data", failures=[], parts={})
    cases = cohort.cases if validate else [case for case in cohort.cases if case.split == "train"]
    assert cohort.intensity is not None
    settings = RoundSettings.from_config(cfg)
    return train_round(settings, training, cases, cohort.intensity), settings.folder
