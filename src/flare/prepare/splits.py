"""The split of a cohort without moving files: by list, by fraction, or nnU-Net's `splits_final.json`."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flare.core.cases import Case, Entry
from flare.core.errors import FlareError, require_id, some
from flare.core.files import read_json

NAMED = 5  # ids that a message names
HELD_OUT = ("validation", "test")
EXPECTED = (
    "expected {validation: [<case>, ...] or a share, test: the same, seed: 0}, or nnU-Net's "
    "splits_final.json, as <path> or {file: <path>, fold: 0}"
)


@dataclass(frozen=True)
class Split:
    """Which labelled training cases are held out, of `data.split`."""

    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)  # split -> case ids
    # split -> share of the labelled training cases, drawn by a hash of `seed` and id: so a case that joins or
    # leaves the cohort moves no other but at the border
    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    whole: frozenset[str] | None = None  # ids that must be all there are; None where others stay in training
    origin: str = "data.split"  # what names the ids, for messages

    @classmethod
    def from_config(cls, given: Any, root: Path) -> "Split":
        """Read `data.split`, of which a file is in the cohort's folder; refuse what means nothing."""
        given = {"file": given} if isinstance(given, str) else given
        if not isinstance(given or {}, Mapping):
            raise FlareError(f"data.split={given}: {EXPECTED}")
        given = {key: value for key, value in (given or {}).items() if value is not None}
        seed, fold = given.pop("seed", 0), given.pop("fold", 0)
        if type(seed) is not int:
            raise FlareError(f"data.split.seed={seed}: expected a whole number")
        if given.keys() == {"file"}:
            return cls._from_nnunet(root / Path(str(given["file"])).expanduser(), fold)
        lists: dict[str, list[str]] = {}
        shares: dict[str, float] = {}
        for key, value in given.items():
            if key in HELD_OUT and isinstance(value, float) and 0 < value < 1:
                shares[key] = value
            elif key in HELD_OUT and isinstance(value, list):
                lists[key] = [require_id(f"data.split.{key}", case) for case in value]
            else:
                raise FlareError(f"data.split.{key}={value}: {EXPECTED}")
        if sum(shares.values()) >= 1:
            raise FlareError(f"data.split: shares of {shares} leave no training case")
        return cls(lists, shares, seed)

    @classmethod
    def _from_nnunet(cls, path: Path, fold: Any) -> "Split":
        """One fold of `splits_final.json`: its `val` cases are for validation."""
        try:
            folds = read_json(path)
            pairs = [[[require_id(key, c) for c in f[key]] for key in ("train", "val")] for f in folds]
        except OSError as error:
            raise FlareError(f"data.split: {path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise FlareError(f"data.split: {path} is no splits_final.json of nnU-Net: {error!r}") from None
        if type(fold) is not int or not 0 <= fold < len(pairs):
            raise FlareError(f"data.split.fold={fold}: {path} has the folds 0 to {len(pairs) - 1}")
        train, held_out = pairs[fold]
        if both := sorted(set(train) & set(held_out)):
            raise FlareError(f"data.split: fold {fold} of {path} has {some(both, NAMED)} in train and val")
        origin = f"data.split: fold {fold} of {path.name}"
        return cls({"validation": held_out}, whole=frozenset([*train, *held_out]), origin=origin)

    def assign(self, cases: Sequence[Case | Entry], refused: Collection[str] = ()) -> dict[str, str]:
        """Say which labelled cases leave the training split, and for which other; `cases` are of all splits.

        Ids of `refused` may be named although their case is none. A named case that is none that can be held
        out, or is named twice, is refused, and a split that leaves none to train on.
        """
        free = {c.id for c in cases if c.split == "train" and c.label is not None}
        found: dict[str, str] = {}
        for split, ids in self.lists.items():
            for case in ids:
                if case in found:
                    raise FlareError(f"{self.origin}: {case} is named twice")
                found[case] = split
        foreign = sorted(({*found} | (self.whole or set())) - free - set(refused))
        if foreign:
            there = next((c for c in cases if c.id == foreign[0]), None)
            why = "the cohort has no such case"
            if there is not None:
                why = f"its folder puts it into {there.split}" if there.label else "it has no label"
            raise FlareError(f"{self.origin}: {some(foreign, NAMED)} cannot be held out or trained on: {why}")
        if self.whole is not None and (left := sorted(free - self.whole)):
            raise FlareError(f"{self.origin}: has {some(left, NAMED)} neither in train nor in val")
        rest = sorted(
            free - found.keys(), key=lambda case: hashlib.sha256(f"{self.seed}:{case}".encode()).hexdigest()
        )
        for split, share in self.shares.items():
            count = max(1, round(share * len(free)))
            found |= dict.fromkeys(rest[:count], split)
            rest = rest[count:]
        if found and not rest:
            raise FlareError(f"{self.origin}: no labelled case is left to train on")
        return {case: split for case, split in found.items() if case in free}


NO_SPLIT = Split()
