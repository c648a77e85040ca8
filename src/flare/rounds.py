"""The graph of rounds: which exist, who teaches whom, and each round's whole configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from flare.cases import Case, select_cases
from flare.cli import CONF
from flare.errors import FlareError
from flare.merging.settings import MergeRules
from flare.runs import RunFolder
from flare.teachers import require_teacher, unlabeled_teacher

SOURCES = ("ground_truth", "hybrid")


@dataclass(frozen=True)
class Round:
    """One round: its configuration as `train.py round=<name>` would compose it.

    Args:
        name: `mo` ... `mot3`.
        cfg: Configuration of `train` for this round, with the user's overrides.
    """

    name: str
    cfg: DictConfig

    @property
    def teacher(self) -> str | None:
        """The round whose last checkpoint makes the pseudo labels."""
        return self.cfg.round.teacher

    @property
    def unlabeled_teacher(self) -> str | None:
        """The round that labels its cases without ground truth, where that is not `teacher`."""
        return unlabeled_teacher(self.cfg)

    @property
    def teachers(self) -> list[str]:
        """The rounds that teach it, the main one first."""
        return [name for name in (self.teacher, self.unlabeled_teacher) if name is not None]

    def teacher_of(self, case: Case) -> str | None:
        """The round that makes a case's pseudo label."""
        return self.teacher if case.is_labeled else self.unlabeled_teacher or self.teacher

    @property
    def needs_teacher(self) -> bool:
        """Whether its labels or its weights come from a teacher."""
        return self.cfg.labels.source == "hybrid"


def compose_rounds(names: str | Sequence[str], overrides: Sequence[str]) -> list[Round]:
    """Compose each round's configuration and put teachers before their pupils.

    Args:
        names: Rounds of `conf/round`, or a single one.
        overrides: The user's command line; iterate's own keys in it are left out.

    Raises:
        FlareError: If a name is no round, or rounds teach each other in a circle.
    """
    names = [names] if isinstance(names, str) else list(names)
    own = set(OmegaConf.load(CONF / "iterate.yaml")) - {"defaults"}  # unknown to train
    forwarded = [o for o in overrides if o.lstrip("+~").split("=")[0] not in own]
    known = sorted(p.stem for p in (CONF / "round").glob("*.yaml"))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise FlareError(f"rounds: no round is named {', '.join(unknown)}; known: {', '.join(known)}")
    rounds = {name: Round(name, _compose([*forwarded, f"round={name}"])) for name in names}
    ordered: list[Round] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " <- ".join([*path, name])
            raise FlareError(f"round.teacher or round.unlabeled_teacher: {circle} is a circle")
        if rounds[name] in ordered:
            return
        for teacher in rounds[name].teachers:
            if teacher in rounds:
                visit(teacher, (*path, name))
        ordered.append(rounds[name])

    for name in rounds:
        visit(name, ())
    return ordered


def _compose(overrides: list[str]) -> DictConfig:
    """Compose `train`, inside a running Hydra application or outside of one."""
    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides)


def check_labels(cfg: DictConfig) -> None:
    """Refuse, before any work, what `labels` cannot be.

    Raises:
        FlareError: Naming the config key.
    """
    if cfg.labels.source not in SOURCES:
        raise FlareError(f"labels.source: expected one of {list(SOURCES)}, given {cfg.labels.source!r}")
    select_cases([], cfg.labels.cases)
    MergeRules.from_config(cfg.labels)


def check_rounds(rounds: Sequence[Round], run: RunFolder) -> None:
    """Refuse, before any work, rounds whose teachers are neither planned nor there.

    Raises:
        FlareError: With the command that makes the teacher.
    """
    if not rounds:
        raise FlareError("rounds: expected at least one, given none")
    for number, item in enumerate(rounds):
        check_labels(item.cfg)
        require_teacher(item.cfg, run, [r.name for r in rounds[:number]])
