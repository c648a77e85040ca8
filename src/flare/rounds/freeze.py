"""Rounds that are kept as they were trained, though settings or cases have changed since."""

from collections.abc import Sequence
from dataclasses import replace

from omegaconf import OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.rounds.graph import require_rounds
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RunFolder
from flare.training.resuming import made_from, whole_training

# what a training has decided: of a frozen round these settings are those that it was trained with
TRAINED = ("round", "model", "loss", "optimizer", "scheduler", "trainer", "seed")
TRAINED_DATA = ("patch_size", "batch_size", "oversample_foreground", "tumor_fraction", "augmentation")


def freeze_rounds(
    names: str | Sequence[str], rounds: Sequence[RoundSettings], run: RunFolder
) -> dict[str, RoundSettings]:
    """Give the rounds that `freeze` names, as far as they are among `rounds`, as they were trained.

    Held-out cases are predicted and scored as the configuration says: the table compares all rounds alike. A
    name that is no round is refused, and a round that was never trained to its end, or on other classes.
    """
    given = require_rounds("freeze", names)
    for name in given:
        if whole_training(run.round(name)) is None:
            raise FlareError(
                f"freeze: round {name} was never trained to its end in {run.root}; "
                "leave it out of freeze, or train it first"
            )
    return {str(item.name): _as_trained(item) for item in rounds if item.name in given}


def _as_trained(item: RoundSettings) -> RoundSettings:
    """A round with the settings that its complete training was made with."""
    training = whole_training(item.folder)
    assert training is not None
    noted, cfg = made_from(training), item.config.copy()
    before, parts = noted["config"], noted.get("parts") or {"cases": ()}
    theirs = ClassList.from_config(before["classes"])
    if not theirs.agrees(item.classes):
        raise FlareError(
            f"freeze: round {item.name} was trained with the classes {theirs.told}; the configuration "
            f"(classes=) has {item.classes.told}"
        )
    OmegaConf.set_struct(cfg, False)
    for key in TRAINED:
        cfg[key] = before[key]
    for key in TRAINED_DATA:
        cfg.data[key] = before["data"].get(key)
    for key in ("source", "cases", "targets"):
        cfg.labels[key] = before["labels"][key]
    cases = len(parts["cases"]) or None
    found = replace(RoundSettings.from_config(cfg), run=item.run, named_run=item.named_run)
    return replace(found, prepared=item.prepared, is_frozen=True, trained_cases=cases)
