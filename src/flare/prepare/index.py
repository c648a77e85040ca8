"""Which images and labels a cohort has: any folders, any nesting, each case once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flare.core.cases import Source, source_of
from flare.core.errors import FlareError
from flare.core.volumes import case_id, find_images, strip_extension
from flare.prepare.settings import FOLDERS, REQUIRED, CohortFiles

OK, WARNING, REFUSED, FAILED = "ok", "warning", "refused", "failed"


@dataclass(frozen=True)
class Entry:
    """A case as found on disk, nothing opened yet.

    Args:
        id: The case.
        split: `train`, `validation` or `test`.
        image: File, or DICOM series folder.
        label: Label file, if there is one.
        annotates: Class ids that its source declares to annotate; None where no source says.
    """

    id: str
    split: str
    image: Path
    label: Path | None = None
    annotates: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Finding:
    """What became of a case: one row of `integrity.csv`.

    Args:
        case: The case.
        path: Its image, or the file at fault.
        reason: What was found, empty if nothing.
        status: `ok`, `warning` (used all the same), `refused`, or `failed` (by no fault of its files: it is
            tried again).
    """

    case: str
    path: Path
    reason: str = ""
    status: str = REFUSED


@dataclass
class Index:
    """What was found.

    Args:
        entries: Cases that can be looked into.
        problems: Cases refused for their names alone.
        groups: Ids of the cases of each folder and declared source, by a name with its config key.
    """

    entries: list[Entry] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    groups: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def build_index(files: CohortFiles) -> Index:
    """List the cases of a cohort.

    Returns:
        Entries ordered by split and id, and the refused cases: two of the same id, an image without its
        label, a label without its image.

    Raises:
        FlareError: If a required folder is missing, or a path of `data.cases`.
    """
    found = Index()
    for images_key, labels_key, split in FOLDERS:
        images = _collect(found, files, images_key)
        targets = _collect(found, files, labels_key, images) if labels_key else {}
        _pair(found, images, targets, split, must_have_label=images_key in REQUIRED)
    found.entries += _explicit(files)
    _refuse_duplicates(found)
    found.entries.sort(key=lambda e: (e.split != "train", e.split, e.id))
    found.problems.sort(key=lambda p: p.case)
    _declare(found, files.sources)
    return found


def _declare(found: Index, sources: Sequence[Source]) -> None:
    """Give each case what its source declares, and each source its cases, the refused ones included."""
    places = [(e.id, (e.image, e.label)) for e in found.entries] + [
        (p.case, (p.path,)) for p in found.problems
    ]
    for number, (case, paths) in enumerate(places):
        source = source_of(sources, case, paths)
        if source is not None:
            found.groups[f"data.sources ({source.match})"].add(case)
            if number < len(found.entries):
                found.entries[number] = replace(found.entries[number], annotates=source.annotates)


def _collect(
    found: Index, files: CohortFiles, key: str, images: Mapping[str, Any] | None = None
) -> dict[str, list[Path]]:
    """Paths below the folders of a key, by case id; a file reached twice counts once.

    With `images`, the paths are labels: one whose whole name is an image's id is that image's label, so
    that the label of a case called `x_0000` is not taken for one of a case `x`.
    """
    by_id: dict[str, dict[Path, Path]] = defaultdict(dict)
    for folder in files.existing(key):
        for path in find_images(folder):
            whole = strip_extension(path.name)
            case = whole if images is not None and whole in images else case_id(path)
            by_id[case].setdefault(path.resolve(), path)
            found.groups[f"data.{key} ({folder})"].add(case)
    return {case: list(paths.values()) for case, paths in by_id.items()}


def _pair(
    found: Index,
    images: Mapping[str, list[Path]],
    labels: Mapping[str, list[Path]],
    split: str,
    *,
    must_have_label: bool,
) -> None:
    """Add the images of one group, each with its label; several of one id become several entries."""
    for case, paths in images.items():
        targets = labels.get(case, [])
        if len(targets) > 1:
            found.problems.append(Finding(case, targets[0], f"two labels of the same id: {_both(targets)}"))
        elif must_have_label and not targets and len(paths) == 1:
            reason = "image without a label under data.labels; should it be under data.unlabeled_images?"
            found.problems.append(Finding(case, paths[0], reason))
        else:
            found.entries += [Entry(case, split, path, targets[0] if targets else None) for path in paths]
    for case in labels.keys() - images.keys():
        found.problems.append(Finding(case, labels[case][0], "label without an image"))


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
                if not paths[key].exists():
                    raise FlareError(f"data.cases.{case}.{key}: there is no {paths[key]}")
        if "image" not in paths:
            raise FlareError(f"data.cases.{case}.image: missing")
        yield Entry(str(case), split, paths["image"], paths.get("label"))


def _refuse_duplicates(found: Index) -> None:
    """Move every case whose id occurs more than once, in any split, to the problems, all paths named."""
    by_id: dict[str, list[Entry]] = defaultdict(list)
    for entry in found.entries:
        by_id[entry.id].append(entry)
    for case, entries in by_id.items():
        if len(entries) > 1:
            paths = [e.image for e in entries]
            reason = f"{len(entries)} cases of the same id: {_both(paths)}"
            found.problems += [Finding(case, path, reason) for path in paths]
    found.entries = [e for e in found.entries if len(by_id[e.id]) == 1]


def _both(paths: Iterable[Path]) -> str:
    """Several paths as a message names them."""
    return " and ".join(str(p) for p in paths)
