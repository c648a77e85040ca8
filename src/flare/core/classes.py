"""The class list: names, ids, roles and scoring rules, and the output channels of a round's targets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

from flare.core.errors import FlareError, check_values, optional, rules_of, whole

RULES = rules_of("classes")
IGNORED = optional(whole(1, 255))  # label maps are written in uint8
TARGETS = ("organs", "tumor", "organs_tumor")  # method: MO has 14 outputs, MT 2, MOT 15
IGNORE = 255  # in a label map: the voxel is of no known class and counts in no loss and no score


@dataclass(frozen=True)
class LabelClass:
    """One class of a label map."""

    id: int  # value in the label files
    name: str  # in configs and logs
    short: str  # in tables, as the challenge's script has it
    role: str  # `organ` or `tumor`
    tolerance_mm: float  # of the normalised surface distance
    slice_range: bool  # whether only slices between the reference's first and last are scored
    # whether it is a long vessel or the esophagus (method section 8, `flare22`); old checkpoints lack the key
    tube: bool = False


@dataclass(frozen=True)
class ClassList:
    """The classes of a project, ordered by id, without the background; at most one of them is a tumor."""

    entries: tuple[LabelClass, ...]
    # value in label files of voxels that nobody has judged, as nnU-Net's label `ignore`; in arrays `IGNORE`
    ignore: int | None = None

    def __post_init__(self) -> None:
        ids = [c.id for c in self.entries]
        if len(set(ids)) != len(ids):
            raise FlareError(f"classes: ids must be distinct, given {ids}")
        if self.ignore in ids:
            raise FlareError(f"classes.ignore={self.ignore}: is the id of a class; expected a value of none")
        shorts = [c.short for c in self.entries]
        if len(set(shorts)) != len(shorts):
            raise FlareError(f"classes: short names must be distinct, they name columns; given {shorts}")
        if sum(c.role == "tumor" for c in self.entries) > 1:
            raise FlareError("classes: at most one class may have the role tumor")

    @classmethod
    def from_config(cls, classes: Mapping[str, Any]) -> "ClassList":
        """Build from `cfg.classes`: name -> {id, short, role, tolerance_mm, slice_range, tube}, and `ignore`.

        A class that lacks a key other than `tube`, and a value that is not as it must be, are refused.
        """
        sections = {name: given for name, given in classes.items() if name != "ignore"}
        ignore = classes.get("ignore")
        IGNORED.require("classes.ignore", ignore)
        check_values({"classes": sections}, RULES)
        types, found = get_type_hints(LabelClass), []
        for name, given in sections.items():
            values = {**given, "name": name}
            missing = types.keys() - values.keys() - {"tube"}
            if missing:
                raise FlareError(f"classes.{name}: lacks {', '.join(f for f in types if f in missing)}")
            found.append(
                LabelClass(**{key: kind(values[key]) for key, kind in types.items() if key in values})
            )
        return cls(tuple(sorted(found, key=lambda c: c.id)), ignore)

    def to_config(self) -> dict[str, Any]:
        """Plain values from which `from_config` gives back the same set."""
        sections = {c.name: {k: v for k, v in asdict(c).items() if k != "name"} for c in self.entries}
        return sections if self.ignore is None else {**sections, "ignore": self.ignore}

    @property
    def ids(self) -> tuple[int, ...]:
        """All class ids, ascending, without background."""
        return tuple(c.id for c in self.entries)

    @property
    def organs(self) -> tuple[int, ...]:
        """Ids of the organ classes, ascending."""
        return tuple(c.id for c in self.entries if c.role == "organ")

    @property
    def tubes(self) -> tuple[int, ...]:
        """Ids of the long vessels and the esophagus, ascending."""
        return tuple(c.id for c in self.entries if c.tube)

    @property
    def tumor(self) -> int | None:
        """Id of the tumor class, if there is one."""
        return next((c.id for c in self.entries if c.role == "tumor"), None)

    @property
    def told(self) -> str:
        """Ids and names, as messages list them."""
        return ", ".join(f"{c.id} {c.name}" for c in self.entries)

    def agrees(self, other: "ClassList") -> bool:
        """Whether ids and names are the same, which is all that segmentations depend on."""
        return self.told.lower() == other.told.lower()

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of `ids`."""
        return tuple(c.name for c in self.entries)

    def by_id(self, class_id: int) -> LabelClass:
        """The class with this id."""
        for c in self.entries:
            if c.id == class_id:
                return c
        raise FlareError(f"classes: no class has id {class_id}; known: {list(self.ids)}")

    def name_of(self, class_id: int) -> str:
        """The name of the class with this id."""
        return self.by_id(class_id).name

    def id_of(self, name: str) -> int:
        """The id of the class with this name."""
        for c in self.entries:
            if c.name == name:
                return c.id
        raise FlareError(f"classes: no class is named {name!r}; known: {list(self.names)}")

    def outputs(self, targets: str) -> tuple[int, ...]:
        """Class id of each output channel of a network for one of `TARGETS`, background first."""
        tumor = () if self.tumor is None else (self.tumor,)
        chosen = {"organs": self.organs, "tumor": tumor, "organs_tumor": self.ids}
        if targets not in chosen:
            raise FlareError(f"labels.targets: expected one of {list(TARGETS)}, given {targets!r}")
        if not chosen[targets]:
            raise FlareError(f"labels.targets={targets}: the class list has no such class")
        return (0, *chosen[targets])
