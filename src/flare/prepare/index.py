"""Which images and labels a cohort has: any folders, any nesting, each case once."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from flare.core.cases import CASE_RULES, UNDECLARED, Entry, Source, source_of
from flare.core.errors import FlareError
from flare.core.files import searched
from flare.core.series import is_there
from flare.core.volumes import case_id, find_scans, spread_series, told_paths, way_out
from flare.prepare.settings import FOLDERS, REFUSED, REQUIRED, SKIPPED, CohortFiles
from flare.runs.work import Outcome, naming

TWICE = "of the same id"
Found = Mapping[str, Mapping[Path, tuple[list[Path], dict[Path, str]]]]  # key -> folder -> as `find_scans`


@dataclass(frozen=True)
class Finding:
    """What became of a case: one row of `integrity.csv`."""

    case: str
    path: Path  # its image, or the file at fault
    reason: str = ""  # what was found, empty if nothing
    # `ok`, `warning` (used all the same), `refused`, `failed` (by no fault of its files: it is tried again),
    # or `skipped` (a localizer or scout, which is no case)
    status: str = REFUSED


@dataclass
class Index:
    """What was found."""

    entries: list[Entry] = field(default_factory=list)  # cases that can be looked into
    problems: list[Finding] = field(default_factory=list)  # cases refused for their names alone
    skipped: list[Finding] = field(default_factory=list)  # localizers and scouts
    # ids of the cases of each folder and declared source, by a name with its config key
    groups: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def failures(self) -> list[Outcome]:
        """The cases refused for their names, once each."""
        reasons = {p.case: p.reason for p in self.problems}
        return [Outcome(case, error=reason, kind=reason.split(":")[0]) for case, reason in reasons.items()]


def build_index(files: CohortFiles) -> Index:
    """List the cases of a cohort: entries ordered by split and id, and the cases that are refused.

    Those are two of the same id, an image without its label, a label without its image. A required folder or
    a path of `data.cases` that is missing is refused itself, and so is what `data.split` names and cannot.
    """
    keys = [key for *pair, _ in FOLDERS for key in pair if key]
    scans: Found = {key: {folder: find_scans(folder) for folder in files.existing(key)} for key in keys}
    found, doubles = _name(files, scans)
    if doubles:
        others = [(rule, *_name(replace(files, case_id=rule), scans)) for rule in CASE_RULES]
        free = sorted((len(other.problems), rule) for rule, other, twice in others if not twice)
        hint = way_out(free[0][1] if free else None)
        found.problems = [
            replace(p, reason=f"{p.reason}; {hint}") if TWICE in p.reason else p for p in found.problems
        ]
    with naming(found.failures):
        held_out = files.split.assign(found.entries, {p.case for p in found.problems})
    found.entries = [replace(e, split=held_out.get(e.id, e.split)) for e in found.entries]
    found.entries.sort(key=lambda e: (e.split != "train", e.split, e.id))
    found.problems.sort(key=lambda p: p.case)
    _declare(found, files)
    return found


def _name(files: CohortFiles, scans: Found) -> tuple[Index, list[Finding]]:
    """Cases by the rule of `data.case_id`, and the refusals of those that have one id."""
    found = Index()
    for group in FOLDERS:
        _add_group(found, files, scans, *group)
    found.entries += _explicit(files)
    _refuse_duplicates(found)
    return found, [p for p in found.problems if TWICE in p.reason]


def source_group(source: Source) -> str:
    """What the cases of a source are called among an index's groups."""
    return f"data.sources ({source.match})"


def _declare(found: Index, files: CohortFiles) -> None:
    """Give each case its source and what that declares, and each source its cases, the refused included."""
    sources = files.sources
    declared = {e.id: source_of(sources, e.id, e.files.values()) for e in found.entries}
    for number, e in enumerate(found.entries):
        source = declared[e.id]
        name = "" if e.label is None else files.source_of(e.label)
        if source is not UNDECLARED:
            name = f"data.sources[{sources.index(source)}]"
        found.entries[number] = replace(e, annotates=source.annotates, source=name)
    refused = [(p.case, source_of(sources, p.case, [p.path])) for p in found.problems]
    for case, source in [*declared.items(), *refused]:
        if source is not UNDECLARED:
            found.groups[source_group(source)].add(case)


def _add_group(
    found: Index, files: CohortFiles, scans: Found, images_key: str, labels_key: str | None, split: str
) -> None:
    """Add the images of one group, each with its label; several of one id become several entries."""
    images = _collect(found, files, scans, images_key)
    labels = _collect(found, files, scans, labels_key, images) if labels_key else {}
    for case, paths in images.items():
        targets = labels.get(case, [])
        if len(targets) > 1:
            reason = f"{len(targets)} labels {TWICE}: {told_paths(targets)}"
            found.problems.append(Finding(case, targets[0], reason))
        elif images_key in REQUIRED and not (targets or files.takes_unlabeled) and len(paths) == 1:
            reason = "image without a label under data.labels; should it be under data.unlabeled_images?"
            found.problems.append(Finding(case, paths[0], reason))
        else:
            found.entries += [Entry(case, split, path, targets[0] if targets else None) for path in paths]
    for case in labels.keys() - images.keys():
        found.problems.append(Finding(case, labels[case][0], "label without an image"))


def _collect(
    found: Index, files: CohortFiles, scans: Found, key: str, images: Collection[str] = ()
) -> dict[str, list[Path]]:
    """Paths below the folders of a key, by case id; a file reached twice counts once."""
    by_id: dict[str, dict[str, Path]] = defaultdict(dict)
    real = cache(os.path.realpath)  # of a folder once, not for each of its files
    for folder, (paths, skipped) in scans[key].items():
        root = searched(folder)[0]
        for path in paths:
            case = case_id(path, images, rule=files.case_id, root=root)
            place = os.path.realpath(path) if path.is_symlink() else f"{real(path.parent)}/{path.name}"
            by_id[case].setdefault(place, path)
            found.groups[f"data.{key} ({folder})"].add(case)
        for path, reason in skipped.items():
            case = case_id(path, rule=files.case_id, root=root)
            found.skipped.append(Finding(case, path, reason, SKIPPED))
    return {case: list(paths.values()) for case, paths in by_id.items()}


def _explicit(files: CohortFiles) -> Iterator[Entry]:
    """Entries of `data.cases`."""
    for case, given in files.cases.items():
        split = str(given.get("split", "train"))
        if split not in {s for _, _, s in FOLDERS}:
            raise FlareError(f"data.cases.{case}.split: expected train, validation or test, given {split!r}")
        paths = {}
        for key in ("image", "label"):
            if given.get(key) is not None:
                paths[key] = files.root / Path(str(given[key])).expanduser()
                if not is_there(paths[key]):
                    raise FlareError(f"data.cases.{case}.{key}: there is no {paths[key]}")
        if "image" not in paths:
            raise FlareError(f"data.cases.{case}.image: missing")
        yield Entry(case, split, paths["image"], paths.get("label"))


def _refuse_duplicates(found: Index) -> None:
    """Move every case whose series or id occurs twice, in any split, to the problems, all paths named."""
    spread = spread_series(e.image for e in found.entries)
    found.problems += [Finding(e.id, e.image, spread[e.image]) for e in found.entries if e.image in spread]
    found.entries = [e for e in found.entries if e.image not in spread]
    by_id: dict[str, list[Path]] = defaultdict(list)
    for entry in found.entries:
        by_id[entry.id].append(entry.image)
    for case, paths in by_id.items():
        if len(paths) > 1:
            reason = f"{len(paths)} cases {TWICE}: {told_paths(paths)}"
            found.problems += [Finding(case, path, reason) for path in paths]
    found.entries = [e for e in found.entries if len(by_id[e.id]) == 1]
