"""What a run has left in its folder, read once for the page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import Case, read_label_map
from flare.core.classes import ClassList
from flare.core.files import read_csv, read_json
from flare.evaluation import metrics, published
from flare.evaluation.summary import Row, only_learned, read_scores
from flare.rounds.score import Results, Trained, held_out
from flare.rounds.settings import RoundSettings
from flare.runs.folders import public_config
from flare.runs.journal import Journal

Plan = dict[str, str]  # a round's row of `plan.csv`


@dataclass(frozen=True)
class RoundFacts:
    """What one round came to."""

    name: str
    teachers: list[str]  # the rounds that made its pseudo labels, the main one first
    plan: Plan
    curve: list[Row] = field(default_factory=list)  # `training.csv`: numbers by epoch
    # rows of the scored split's `metrics.csv`, one a case; None for classes that it does not learn
    scores: list[Row] = field(default_factory=list)
    provenance: list[dict[str, str]] = field(default_factory=list)  # `provenance.csv`; none on ground truth
    seconds: list[Row] = field(default_factory=list)  # of the journal of prediction, a held-out case each
    revision: str = "unknown"
    unlabeled_teacher: str | None = None  # labelled its cases without ground truth, where it is another one


@dataclass(frozen=True)
class ReportSettings:
    """What the page tells of the configuration, and needs of it."""

    name: str
    data: str
    split: str  # the split that is scored, by `protocol`
    protocol: str
    classes: ClassList
    label_map: dict[Any, int] | None  # renumbering of the annotations' ids
    # folder of complete labels of the training cases, which only a made-up cohort has; never trained on
    truth: Path | None
    public: dict[str, Any]  # the configuration, without a path of the machine
    has_paper: bool = True  # whether the paper's figures stand beside those of the run

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "ReportSettings":
        """Read the configuration of `iterate`."""
        classes = ClassList.from_config(cfg.classes)
        truth = None if cfg.data.root is None else Path(str(cfg.data.root)).expanduser() / "truth"
        return cls(
            name=cfg.name,
            data=cfg.data.name,
            split=cfg.data.scoring.split,
            protocol=cfg.data.scoring.protocol,
            classes=classes,
            label_map=read_label_map(cfg.data.label_map, classes),
            truth=truth if truth is not None and truth.is_dir() else None,
            public=public_config(cfg),
            has_paper=published.shows_published(cfg, classes, cfg.data.scoring.protocol),
        )


@dataclass(frozen=True)
class Facts:
    """Everything the page tells, less pictures."""

    settings: ReportSettings
    cases: list[Case]  # the prepared cohort
    scored: list[Case]
    rounds: list[RoundFacts]  # in the order in which they ran
    results: Results
    environment: dict[str, Any] = field(default_factory=dict)  # `environment.json`

    @property
    def last(self) -> RoundFacts:
        """The round that the run ends with."""
        return self.rounds[-1]

    @property
    def failed(self) -> list[str]:
        """Ids of the cases that failed somewhere."""
        return sorted({f.case_id for f in self.results.failures})

    @property
    def names(self) -> list[str]:
        """The rounds by name; other rows of the table are baselines."""
        return [r.name for r in self.rounds]

    @property
    def tumor_column(self) -> str:
        """The tumor's DSC in the table; empty where the class list has no tumor."""
        classes = self.settings.classes
        return "" if classes.tumor is None else f"{classes.by_id(classes.tumor).short}_DSC"

    @property
    def ranked(self) -> dict[str, float]:
        """Scored cases with their mean DSC over the last round's classes that were scored, the best first."""
        columns = [f"{c.short}_DSC" for c in self.settings.classes.entries]
        means = {row["Name"]: metrics.mean(row.get(column) for column in columns) for row in self.last.scores}
        known = [(case, value) for case, value in means.items() if value is not None]
        return dict(sorted(known, key=lambda item: (-item[1], item[0])))

    def best_baseline(self, column: str) -> Row | None:
        """The baseline's row with the highest value of a column."""
        rows = [r for r in self.results.table if r["round"] not in self.names and r.get(column) is not None]
        return max(rows, key=lambda row: row[column], default=None)


def gather(settings: ReportSettings, trained: Trained, results: Results) -> Facts:
    """Read what the page tells from the run's folder."""
    run, cases = trained.run, trained.cohort.cases
    scored = held_out(cases, settings.split)
    plan = {row["round"]: row for row in read_csv(run.root / "plan.csv")}
    rounds = [_round(r, plan[str(r.name)], scored, settings) for r in trained.rounds]
    return Facts(settings, cases, scored, rounds, results, _json(run.root / "environment.json"))


def _round(item: RoundSettings, plan: Plan, scored: Sequence[Case], settings: ReportSettings) -> RoundFacts:
    folder = item.folder
    journal = Journal(folder.journal(f"predict-{settings.split}"))
    scores = read_scores(folder.root / settings.split / "metrics.csv", may_lack=True)
    return RoundFacts(
        name=str(item.name),
        teachers=item.teachers if item.is_hybrid else [],
        plan=plan,
        curve=read_scores(folder.training_csv, may_lack=True),
        scores=only_learned(scores, settings.classes, plan["targets"]),
        provenance=read_csv(folder.labels / "provenance.csv", may_lack=True),
        seconds=[journal.values(c.id) for c in scored if c.id in journal],
        revision=_json(folder.root / "environment.json").get("git_revision", "unknown"),
        unlabeled_teacher=item.unlabeled_teacher,
    )


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
