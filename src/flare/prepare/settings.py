"""What every step of one preparation shares, read from the configuration once."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from flare.core.cases import SPLITS, Case, Source, case_rule, read_label_map, read_sources
from flare.core.checks import Checks
from flare.core.class_files import classes_at, own_classes, require_agreement
from flare.core.classes import ClassList
from flare.core.errors import FlareError, build_part, check_values, choice, limits, require_id, rules_of
from flare.core.files import searched
from flare.prepare.splits import NO_SPLIT, Split
from flare.runs.folders import PreparedFolder, prepared_folder
from flare.runs.work import Executor, build_executor, failed_share

log = logging.getLogger(__name__)

STORE_FORMAT = 2  # raised when what is cached or noted of a case changes, so that old caches are redone
RULES = rules_of("prepare") | {
    "data.percentiles": limits(0, 100, apart=True),
    "data.scoring.split": choice(*SPLITS),
}
# of a case, see `index.Finding`
STATUSES = REFUSED, FAILED, WARNING, OK, SKIPPED = "refused", "failed", "warning", "ok", "skipped"
Values = Mapping[str, Mapping[str, Any]]  # case id -> as `read.count_labels` gives them
# config keys of the folders of each group of cases: images, labels, split
FOLDERS = (
    ("labeled_images", "labels", "train"),
    ("unlabeled_images", None, "train"),
    ("validation_images", "validation_labels", "validation"),
    ("test_images", "test_labels", "test"),
)
REQUIRED = ("labeled_images", "labels")  # the others may be absent from a copy of the challenge's data


class Generator(Protocol):
    """Makes a cohort's files before they are listed; `data.generator._target_` names its class."""

    def make(self, executor: Executor) -> None:
        """Make what is missing of the cohort."""

    def planned_cases(self) -> list[Case]:
        """List the cases that `make` would make, without making them."""


@dataclass(frozen=True)
class CohortFiles:
    """Where the files of a cohort are."""

    root: Path  # what relative paths start from
    folders: Mapping[str, tuple[Path, ...]]  # by config key of `FOLDERS`; searched recursively
    cases: Mapping[str, Mapping[str, Any]]  # {image, label, split} by id, where folders and names do not pair
    sources: tuple[Source, ...]  # what the sources of labels annotate
    split: Split = NO_SPLIT  # which labelled training cases are held out
    takes_unlabeled: bool = False  # is an image of `labeled_images` without a label an unlabelled case?
    case_id: str = "leaf"  # the rule by which scans are named

    @classmethod
    def from_config(cls, data: Mapping[str, Any], classes: ClassList) -> "CohortFiles":
        """Read `cfg.data`: `root`, folders (null, a path or several), `cases`, `sources`, `split`, ..."""
        root = Path(str(data.get("root") or ".")).expanduser().absolute()
        cases = {require_id("data.cases", case): given for case, given in (data.get("cases") or {}).items()}
        folders = {}
        for key in [key for *keys, _ in FOLDERS for key in keys if key]:
            given = data.get(key) or ()
            paths = [given] if isinstance(given, str | Path) else list(given)
            folders[key] = tuple(root / Path(str(path)).expanduser() for path in paths)
        return cls(
            root,
            folders,
            cases,
            read_sources(data.get("sources"), classes),
            Split.from_config(data.get("split"), root),
            data.get("missing_labels") == "unlabeled",
            case_rule(data.get("case_id", "leaf")),
        )

    @property
    def label_folders(self) -> list[tuple[str, Path]]:
        """The folders of labels that are there, each with its config key."""
        return [(key, f) for _, key, _ in FOLDERS if key for f in self.folders[key] if f.is_dir()]

    def source_of(self, label: Path) -> str:
        """The key of the folder that holds a label, with a number where the key has several."""
        for key, folder in self.label_folders:
            if folder in label.parents:
                several = len(self.folders[key]) > 1
                return f"data.{key}" + (f"[{self.folders[key].index(folder)}]" if several else "")
        return "data.cases"

    def existing(self, key: str) -> list[Path]:
        """The folders of a key that exist; those of a required key must."""
        found = []
        for folder in self.folders[key]:
            if folder.is_dir() or searched(folder)[1] not in ([], [folder]):
                found.append(folder)
            elif key in REQUIRED:
                raise FlareError(
                    f"data.{key}: no folder {folder}; set data.root, or the key to null if there is none"
                )
            else:
                log.warning("data.%s: its folder does not exist, so the cohort goes without", key)
        return found


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of one preparation."""

    files: CohortFiles
    classes: ClassList
    label_map: dict[str, int] | None  # renumbering of foreign label files
    checks: Checks  # what becomes of doubtful files
    folder: PreparedFolder
    interpolation: str
    label_interpolation: str
    percentiles: tuple[float, float]  # of foreground intensities, lower and upper, in percent
    accept_removed: bool  # whether files that the last start saw were removed on purpose
    generator: Generator | None  # makes the files; None where they are given
    executor: Executor
    max_failed: float  # share of a step's cases that may fail by no fault of their files

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "PrepareSettings":
        """Read the groups `classes`, `data` and `executor`, and nnU-Net's `dataset.json` if there is one.

        Before any work, values that mean nothing, missing folders and labels of other classes are refused.
        """
        cfg = own_classes(cfg)
        check_values(cfg, RULES)
        data: dict[str, Any] = OmegaConf.to_container(cfg.data, resolve=True)  # type: ignore[assignment]
        classes = ClassList.from_config(cfg.classes)
        files = CohortFiles.from_config(data, classes)
        generator = data.get("generator") and build_part(cfg.data.generator, "data.generator")
        for key in REQUIRED if generator is None else ():
            files.existing(key)
        label_map = read_label_map(data.get("label_map"), classes)
        if generator is None and label_map is None:
            for key, folder in files.label_folders:
                if carried := classes_at(folder):
                    require_agreement(f"data.{key}", carried, classes, "the configuration (classes=)")
        lower, upper = map(float, data["percentiles"])
        return cls(
            files=files,
            classes=classes,
            label_map=label_map,
            checks=Checks.from_config(cfg),
            folder=prepared_folder(cfg),
            interpolation=data["interpolation"],
            label_interpolation=data["label_interpolation"],
            percentiles=(lower, upper),
            accept_removed=bool(data.get("accept_removed")),
            generator=generator,
            executor=build_executor(cfg),
            max_failed=failed_share(cfg),
        )

    @property
    def resampling(self) -> dict[str, Any]:
        """How images and labels come to the training grid, as `read_case` takes it."""
        return {
            "spacing_mm": self.folder.spacing_mm,
            "interpolation": self.interpolation,
            "label_interpolation": self.label_interpolation,
        }

    def decisive(self, *, is_cached: bool) -> dict[str, Any]:
        """What decides, beside the files, what a case comes to, and what is cached of it."""
        found: dict[str, Any] = {"classes": self.classes.ids, "label_map": self.label_map}
        found |= {"checks": asdict(self.checks), **({"ignore": i} if (i := self.classes.ignore) else {})}
        if is_cached:
            found |= self.resampling
        return {**found, "format": STORE_FORMAT}
