"""Cases: what a cohort's index holds, and what a source of labels declares to annotate."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from flare.core.classes import ClassList
from flare.core.errors import FlareError, choice
from flare.core.files import read_csv, write_csv

SPLITS = ("train", "validation", "test")
KINDS = ("organs_complete", "tumor", "partial", "unlabeled")
SELECTIONS = ("organs_complete", "tumor", "labeled", "all")  # labeled: every case with an annotation
SOURCES = "[{match: <glob>, annotates: all, or [<class>, ...]}, ...]"
CASE_RULES = ("leaf", "parent", "path", "dicom_series_uid")  # of `data.case_id`; `file` stands for leaf
COLUMNS = ("case", "split", "kind", "present", "annotated", "image", "label")


@dataclass(frozen=True)
class Case:
    """One CT scan."""

    id: str  # unique in the cohort
    image: Path  # image file or DICOM folder
    label: Path | None  # its annotation, if it has one
    split: str  # `train`, `validation` (model selection, component fit) or `test` (scored once, at the end)
    kind: str  # label completeness, see method section 2
    present: tuple[int, ...]  # class ids with at least one annotated voxel
    annotated: tuple[int, ...]  # class ids that its annotation covers: `present`, or what its source declares

    @property
    def is_labeled(self) -> bool:
        """Whether it has an annotation file."""
        return self.label is not None


@dataclass(frozen=True)
class Entry:
    """A case as found on disk, nothing opened yet."""

    id: str
    split: str
    image: Path  # file, or DICOM series folder
    label: Path | None = None
    annotates: tuple[int, ...] | None = None  # class ids that its source declares; None where no source says
    source: str = ""  # of its label: the key of its source in `data.sources`, else of its folder

    @property
    def files(self) -> dict[str, Path]:
        """What a cohort's journal calls the files: `image`, and `label` if there is one."""
        return {"image": self.image} if self.label is None else {"image": self.image, "label": self.label}


def write_index(path: Path, cases: Sequence[Case]) -> None:
    """Write a cohort's index, one row a case."""
    ids = ("present", "annotated")
    rows = [{**vars(c), "case": c.id, **{k: " ".join(map(str, getattr(c, k))) for k in ids}} for c in cases]
    write_csv(path, rows, COLUMNS)


def read_index(path: Path) -> list[Case]:
    """Read a cohort's index; a cohort that was not prepared is refused."""
    if not Path(path).exists():
        raise FlareError(f"{path} does not exist: run `python prepare.py` with the same data first")
    return [
        Case(
            id=row["case"],
            image=Path(row["image"]),
            label=Path(row["label"]) if row["label"] else None,
            split=row["split"],
            kind=row["kind"],
            present=tuple(map(int, row["present"].split())),
            annotated=tuple(map(int, row["annotated"].split())),
        )
        for row in read_csv(path)
    ]


def select_cases(cases: Sequence[Case], which: str) -> list[Case]:
    """The training cases of a round, in index order: one of `SELECTIONS`, see method section 3."""
    if which not in SELECTIONS:
        raise FlareError(f"labels.cases: expected one of {list(SELECTIONS)}, given {which!r}")
    train = [c for c in cases if c.split == "train"]
    return [c for c in train if which in (c.kind, "all") or (which == "labeled" and c.is_labeled)]


def by_hash(ids: Iterable[str]) -> list[str]:
    """Sort case ids by a hash, so that neither names nor the cohort's order decide which come first."""
    return sorted(ids, key=lambda case: hashlib.sha256(case.encode()).digest())


def case_rule(given: Any) -> str:
    """Read `data.case_id`: by which of `CASE_RULES` scans are named; another is refused."""
    choice(*CASE_RULES, "file").require("data.case_id", given)
    return "leaf" if given == "file" else str(given)


@dataclass(frozen=True)
class Source:
    """Where labels come from."""

    match: str  # glob that a case id or one of the case's paths matches
    # ids of the classes that this source annotates wherever they exist, so that an absent one is absent from
    # the patient; None where nothing is declared
    annotates: tuple[int, ...] | None


UNDECLARED = Source("", None)


def read_sources(given: Sequence[Mapping[str, Any]] | None, classes: ClassList) -> tuple[Source, ...]:
    """Read `data.sources`: a list of `{match: <glob>, annotates: all, or [<class>, ...]}`, or refuse it."""
    if not isinstance(given or [], Sequence):
        raise FlareError(f"data.sources={given}: expected {SOURCES}")
    sources = []
    for number, item in enumerate(given or ()):
        is_one = isinstance(item, Mapping) and set(item) == {"match", "annotates"}
        named = item["annotates"] if is_one else None
        named = [c.name for c in classes.entries] if named == "all" else named
        if isinstance(named, str) or not isinstance(named, Sequence):
            raise FlareError(
                f"data.sources[{number}]: expected the keys match and annotates, as {SOURCES}; given {item}"
            )
        if not isinstance(item["match"], str):  # YAML reads 007 as the number 7
            raise FlareError(f"data.sources[{number}].match: {item['match']} is no text; it needs quotes")
        try:
            annotates = tuple(sorted(classes.id_of(str(name)) for name in named))
        except FlareError as error:
            raise FlareError(f"data.sources[{number}].annotates: {error}") from None
        sources.append(Source(item["match"], annotates))
    return tuple(sources)


def source_of(sources: Iterable[Source], case: str, paths: Iterable[Path | None]) -> Source:
    """The first source whose glob fits a case id, or a path's end or whole; `UNDECLARED` if none does."""
    texts = [p.as_posix() for p in paths if p is not None]
    for source in sources:
        globs = (source.match, f"*/{source.match}")
        if fnmatch(case, source.match) or any(fnmatch(t, g) for t in texts for g in globs):
            return source
    return UNDECLARED


def read_label_map(given: Mapping[Any, Any] | None, classes: ClassList) -> dict[str, int] | None:
    """Read `data.label_map`: `{<id in the file>: <class id or name>, ..., rest: <class id or name>}`.

    Gives text of the id (or `rest`) to class id, as `volumes.read_labels` takes it; None if nothing is
    mapped. The name `ignore` is `classes.ignore`. Keys of no whole number and values of no class are refused.
    """
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise FlareError(f"data.label_map={given}: expected {{<from>: <to>, ..., rest: 0}}")
    table = {}
    for key, value in given.items():
        text = str(key).strip()
        if text != "rest" and not text.lstrip("-").isdigit():
            raise FlareError(f"data.label_map: expected whole numbers or `rest` as keys, given {key!r}")
        name = str(value).strip()
        if name == "ignore" and classes.ignore is None:
            raise FlareError(
                f"data.label_map.{text}=ignore: classes.ignore is null; expected a value of no class there, "
                "such as classes.ignore=255"
            )
        is_number = name.lstrip("-").isdigit()
        target = classes.ignore if name == "ignore" else int(name) if is_number else classes.id_of(name)
        known = [0, *classes.ids, *([classes.ignore] if classes.ignore else [])]
        if target not in known:
            raise FlareError(
                f"data.label_map.{text}: expected one of {known}, a class name or ignore, given {value!r}"
            )
        table[text] = target
    return table
