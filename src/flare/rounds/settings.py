"""What the functions of a round take from its configuration, read and checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flare.core.cases import SELECTIONS, SPLITS, Case, by_hash, select_cases
from flare.core.classes import ClassList
from flare.core.errors import FlareError, Rule, build_part, check_values, choice, rules_of
from flare.data.settings import CaseArrays
from flare.inference.settings import InferenceSettings
from flare.merging.settings import MergeSettings, PseudoSource
from flare.prepare.settings import RULES as OF_COHORTS
from flare.runs import folders
from flare.runs.work import Outcome, failed_share
from flare.training.settings import TrainingSettings

if TYPE_CHECKING:
    from flare.evaluation.metrics import ScoreSettings

HYBRID = "hybrid"
FIT = "components"  # folder of a round: predictions of cases that are held out for the fit alone
FOLDS = 5  # of complete training cases, of which one is held out for it (as nnU-Net's folds)
VIEWS = ("previous", "earlier", "unflipped")
EVIDENCE = ("pseudo", "confidence", "thresholds", *VIEWS)  # what a selection may ask for
RULES = rules_of("rounds") | {
    "labels.cases": choice(*SELECTIONS),
    "data.components_split": Rule(
        lambda v: v in ("auto", *SPLITS) or (isinstance(v, list) and all(isinstance(c, str) for c in v)),
        "auto, train, validation, test, or a list of case ids",
    ),
    "round.teacher_kind": Rule(
        lambda value: isinstance(value, str) and value.isidentifier(),
        "the name of a checkpoint, such as last",
    ),
}


@dataclass(frozen=True)
class LabelSettings:
    """How a round's labels are made; plain values, for jobs as well."""

    source: str  # `ground_truth` as it is, or `hybrid`: merged with a teacher's pseudo labels
    cases: str  # which training cases, see `select_cases`
    interpolation: str  # how labels get to the training grid: `nearest`, or `nnunet` as in `resample_classes`
    merge: MergeSettings
    inference: InferenceSettings  # how teachers predict
    # what weighs, drops or masks the labels of cases, a section with a `_target_`; None keeps all
    select: dict[str, Any] | None
    trusted: tuple[int, ...]  # ids of the classes whose pseudo labels count as known
    # which of `EVIDENCE` it asks for, by its arguments' names or its attribute `needs`
    needs: frozenset[str] = frozenset()

    @property
    def views(self) -> list[str]:
        """Which maps of a case are needed beside its teacher's, to select, or to tell where organs are."""
        is_cut = self.merge.rules.tumor_inside == "voxel" and self.targets == "organs_tumor"
        return [*(name for name in VIEWS if name in self.needs), *["organs"] * is_cut]

    @property
    def targets(self) -> str:
        """What the round's network learns: `organs`, `tumor` or `organs_tumor`."""
        return self.merge.rules.targets


@dataclass(frozen=True)
class Labeller:
    """What makes the pseudo labels of a case: a network, its hash, and its round, if that is known.

    Of the classes with the ids `components` only the largest component is kept, as was fitted on it. It
    `knows` the classes with those ids.
    """

    checkpoint: Path
    digest: str
    round: str | None
    components: tuple[int, ...]
    knows: tuple[int, ...] = ()

    @property
    def source(self) -> PseudoSource:
        """How provenance names it."""
        return PseudoSource(self.round, self.digest)


@dataclass(frozen=True)
class RoundSettings:
    """One round."""

    # `mo` ... `mot3`; None for `round=all`, which trains on the ground truth of all labelled cases
    name: str | None
    run: folders.RunFolder
    # the folder of the run that `name` names, where a job of a sweep finds earlier rounds
    named_run: folders.RunFolder
    # the round whose checkpoint makes the pseudo labels, and from whose weights it may start
    teacher: str | None
    # the round that labels its cases without ground truth, where that is not `teacher`
    unlabeled_teacher: str | None
    teacher_kind: str  # which of a teacher's checkpoints: `last`, `best`, or another that its training left
    checkpoint: Path | None  # a file instead of `teacher`'s checkpoint
    labels: LabelSettings
    training: TrainingSettings
    prepared: folders.PreparedFolder
    split: str  # the held-out cases of the ablation table
    # on which cases largest components are fitted: a split, of `train` a fold, or ids
    components_split: str | tuple[str, ...]
    score: "ScoreSettings"
    max_failed: float  # share of a step's cases that may fail by no fault of their files
    config: DictConfig  # the whole configuration, for records
    # whether it is kept as it was trained; then its other settings are those of that time
    is_frozen: bool = False
    trained_cases: int | None = None  # how many cases a frozen round was trained on, if that is known

    @classmethod
    def from_config(cls, cfg: DictConfig, rules: DictConfig | None = None) -> "RoundSettings":
        """Read the configuration of `train`, or of a script whose merging `rules` are not in `labels`."""
        from flare.evaluation.metrics import ScoreSettings  # scipy: only where a round is read

        check_values(cfg, OF_COHORTS | RULES)
        own, labels = cfg.round, cfg.labels
        needs, is_hybrid = frozenset[str](), labels.source == HYBRID
        if labels.select is not None:
            rule = build_part(labels.select, "labels.select")
            named = getattr(rule, "needs", None) or (signature(rule).parameters if callable(rule) else ())
            needs = frozenset(named) & frozenset(EVIDENCE)
        is_idle = not is_hybrid and "pseudo" in needs  # it judges a teacher's labels, and there are none
        sure = is_hybrid and (labels.confidence or "confidence" in needs)
        training = TrainingSettings.from_config(cfg)
        has_unlabeled = labels.source == HYBRID and labels.cases == "all"
        is_same = own.unlabeled_teacher == own.teacher and own.checkpoint is None
        return cls(
            name=own.name,
            run=folders.run_folder(cfg),
            named_run=folders.named_run(cfg),
            teacher=own.teacher,
            unlabeled_teacher=own.unlabeled_teacher if has_unlabeled and not is_same else None,
            teacher_kind=own.teacher_kind,
            checkpoint=None if own.checkpoint is None else Path(str(own.checkpoint)),
            labels=LabelSettings(
                source=labels.source,
                cases=labels.cases,
                interpolation=cfg.data.label_interpolation,
                merge=MergeSettings.from_config(cfg, labels if rules is None else rules),
                # what a teacher costs is not measured: that takes one case at a time, from its file
                inference=replace(training.inference, measure=False, confidence=sure),
                select=None if is_idle else folders.plain_config(labels.select),
                trusted=_trusted(labels.trust_pseudo, training.classes),
                needs=frozenset() if is_idle else needs,
            ),
            training=training,
            prepared=folders.prepared_folder(cfg),
            split=cfg.data.scoring.split,
            components_split=named if isinstance(named := cfg.data.components_split, str) else tuple(named),
            score=ScoreSettings.from_config(cfg, "data.scoring.protocol"),
            max_failed=failed_share(cfg),
            config=cfg,
        )

    @property
    def folder(self) -> folders.RoundFolder:
        """Everything that the round leaves."""
        return self.run.round(self.name)

    @property
    def classes(self) -> ClassList:
        """The class list."""
        return self.labels.merge.classes

    @property
    def fits_components(self) -> bool:
        """Whether it decides of which organs the largest component is kept in pseudo labels."""
        learned = self.classes.outputs(self.labels.targets)
        return self.labels.inference.components == "fitted" and bool({*self.classes.organs} & {*learned})

    def fit_cases(self, cases: Sequence[Case]) -> tuple[str, list[Case]]:
        """The folder of the predictions that the fit is made on, and their cases, no training cases of it.

        By `auto` that are validation cases, or without a labelled one a fold of the complete training cases.
        """
        named, labeled = self.components_split, [c for c in cases if c.is_labeled]
        if not isinstance(named, str):
            if unknown := sorted({*named} - {c.id for c in labeled}):
                raise FlareError(f"data.components_split: no labelled case is named {', '.join(unknown)}")
            return FIT, [c for c in labeled if c.id in named]
        split = "validation" if named == "auto" else named
        found = [c for c in labeled if c.split == split]
        if split != "train" and (found or named != "auto" or self.name is None):
            return split, found
        complete = {c.id: c for c in labeled if (c.split, c.kind) == ("train", "organs_complete")}
        return FIT, [complete[case] for case in by_hash(complete)[: len(complete) // FOLDS]]

    def train_cases(self, cases: Sequence[Case]) -> list[Case]:
        """Its training cases, in index order, without those that its fit of largest components needs."""
        held_out = {c.id for c in self.fit_cases(cases)[1]} if self.fits_components else set()
        return [c for c in select_cases(cases, self.labels.cases) if c.id not in held_out]

    @property
    def is_hybrid(self) -> bool:
        """Whether its labels come from a teacher, too."""
        return self.labels.source == HYBRID

    @property
    def teachers(self) -> list[str]:
        """The rounds that teach it, the main one first."""
        return [name for name in (self.teacher, self.unlabeled_teacher) if name is not None]

    def teacher_of(self, case: Case) -> str | None:
        """The round that makes a case's pseudo label."""
        return self.teacher if case.is_labeled else self.unlabeled_teacher or self.teacher


def _trusted(given: Any, classes: ClassList) -> tuple[int, ...]:
    """Read `labels.trust_pseudo`: `all`, or a list of class names."""
    names = classes.names if given == "all" else given
    if isinstance(names, str) or not isinstance(names, Sequence) or not set(names) <= set(classes.names):
        raise FlareError(
            f"labels.trust_pseudo={given}: expected all, or a list of {', '.join(classes.names)}"
        )
    return tuple(map(classes.id_of, names))


@dataclass(frozen=True)
class TrainingSet:
    """What a round trains on."""

    items: dict[str, CaseArrays]  # by case id, in index order
    key: str  # digest of all of it: equal keys train equal networks
    failures: list[Outcome]  # cases that could not be labelled
    # what the key is made of, to tell later what has changed: `cases`, `start` and `statistics`
    parts: dict[str, Any]
