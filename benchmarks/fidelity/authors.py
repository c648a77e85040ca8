"""7. The preset `authors` composes everywhere and differs from the paper where it should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rows import Row, counted

from flare.cli import CONF

SCRIPTS = ("train", "infer", "merge_labels", "prepare", "evaluate", "iterate")
ROUNDS = ("mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3")
PEER = "method, typed by hand"
# key -> the authors' value; all else is the paper's
DIFFERENT = {
    "name": "authors",
    "labels.rule": "gt_first",
    "data.interpolation": "nnunet",
    "data.augmentation.label_interpolation": "linear",
    "data.augmentation.low_resolution.probability": 0.25,
    "data.label_interpolation": "nnunet",
    "inference.interpolation": "linear",
    "inference.components": "none",
    "restore": "nearest",
    "callbacks.rescue.epoch": 100,
}
IN_ROUND = {
    **{name: {"loss.supervise_lowest": True} for name in ROUNDS[:-1]},
    "mot3": {},
    "mot2": {"loss.supervise_lowest": True, "round.unlabeled_teacher": "mot"},
}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Plain values by dotted key."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}".strip(".")).items()
    }


def composed(script: str, *overrides: str) -> dict[str, Any]:
    """A script's whole configuration."""
    cfg = compose(script, list(overrides))
    return flat(OmegaConf.to_container(cfg, resolve=True))


def check() -> Iterator[Row]:
    """Compare whole configurations."""
    wrong = 0
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for script in SCRIPTS:
            composed(script, "experiment=authors")
        for name in ROUNDS:
            paper, authors = (
                composed("train", f"round={name}"),
                composed("train", f"round={name}", "experiment=authors"),
            )
            changed = {
                k: v for k, v in authors.items() if k in paper and paper[k] != v and not _path(v, paper[k])
            }
            wrong += changed != DIFFERENT | IN_ROUND[name]
    yield counted(
        f"rounds whose keys differ from the paper in other than {len(DIFFERENT) + 2} keys", PEER, wrong, 8
    )


def _path(one: Any, other: Any) -> bool:
    """Whether two values differ in the run's name within a path alone."""
    return isinstance(one, str) and "/" in one and one.replace("authors", "default") == other
