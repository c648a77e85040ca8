"""Cases and the index of a cohort: which image, which label, how complete it is, which split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flare.errors import FlareError
from flare.files import read_csv, write_csv

SPLITS = ("train", "validation", "test")
KINDS = ("organs_complete", "tumor", "partial", "unlabeled")
SELECTIONS = ("organs_complete", "tumor", "labeled", "all")
COLUMNS = ("case", "split", "kind", "present", "annotated", "image", "label")


@dataclass(frozen=True)
class Case:
    """One CT scan.

    Args:
        id: Unique in the cohort.
        image: Image file or DICOM folder.
        label: Its annotation, if it has one.
        split: `train`, `validation` (model selection, component fit) or `test` (scored once, at the end).
        kind: Label completeness, see method section 2.
        present: Class ids with at least one annotated voxel.
        annotated: Class ids that its annotation covers: `present`, or what its source declares.
    """

    id: str
    image: Path
    label: Path | None
    split: str
    kind: str
    present: tuple[int, ...]
    annotated: tuple[int, ...]

    @property
    def is_labeled(self) -> bool:
        """Whether it has an annotation file."""
        return self.label is not None


def write_index(path: Path, cases: Sequence[Case]) -> None:
    """Write a cohort's index, one row a case."""
    rows = [
        {
            "case": c.id,
            "split": c.split,
            "kind": c.kind,
            "present": " ".join(map(str, c.present)),
            "annotated": " ".join(map(str, c.annotated)),
            "image": c.image,
            "label": c.label,
        }
        for c in cases
    ]
    write_csv(path, rows, COLUMNS)


def read_index(path: Path) -> list[Case]:
    """Read a cohort's index.

    Raises:
        FlareError: If the cohort was not prepared.
    """
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
    """The training cases of a round, in index order (method section 3).

    Args:
        cases: The cohort.
        which: `organs_complete`, `tumor`, `labeled` (every case with an annotation) or `all`.
    """
    train = [c for c in cases if c.split == "train"]
    if which == "all":
        return train
    if which == "labeled":
        return [c for c in train if c.is_labeled]
    if which in ("organs_complete", "tumor"):
        return [c for c in train if c.kind == which]
    raise FlareError(f"labels.cases: expected one of {list(SELECTIONS)}, given {which!r}")
