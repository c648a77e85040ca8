"""What is refused: errors of one line, rules of values, parts named by class."""

import csv
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

log = logging.getLogger(__name__)
PACKAGED = Path(__file__).parents[1] / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"  # of a checkout

NAMES = "(api_?key|access_?key|private_?key|password|passwd|passphrase|secret|token|credentials?)"
SECRET_KEY = re.compile(f"{NAMES}$", re.IGNORECASE)
# in a text: an override of such a key, to the next one, or an entry of a map, unless it names a variable
OVERRIDE = re.compile(
    rf"""({NAMES}=|[{{,]\s*["']?[\w.]*{NAMES}["']?:\s*)(?!.?\$)"""
    r"""("[^"]*"|'[^']*'|([^\s,"'{}]|\s(?!\S*=))+)""",
    re.IGNORECASE,
)
LOGIN = re.compile(r"""://[^/\s"']+@""")  # of a URL


def without_secrets(value: Any, key: str = "") -> Any:
    """Plain values, or a text, as they may be stored or shown; `${oc.env:KEY}`, a variable, is no secret."""
    if value and SECRET_KEY.search(key) and "${" not in str(value):
        return "***"
    if isinstance(value, Mapping):
        return {k: without_secrets(inner, str(k)) for k, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    return OVERRIDE.sub(r"\1***", LOGIN.sub("://***@", value)) if isinstance(value, str) else value


class FlareError(ValueError, CompactHydraException):
    """A refusal: says what, which case or config key, and what was expected; no secret.

    Hydra prints a `CompactHydraException` as one line and exits with code 1; callers expect a `ValueError`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class NoRoomError(FlareError):
    """A disk is full: whatever was being done stops, since the next case would meet the same."""


class CaseError(FlareError):
    """One case cannot be used, for a reason that says what was given and expected; the rest goes on."""

    def __init__(self, case_id: str, reason: str) -> None:
        super().__init__(f"case {case_id}: {reason}")
        self.case_id = case_id
        self.reason = reason

    def __reduce__(self) -> "tuple[type[CaseError], tuple[str, str]]":
        """Rebuild from both arguments when it comes back from a worker process."""
        return type(self), (self.case_id, self.reason)


class AwayError(CaseError):
    """A case's file is not there: no fault of its content, which may be as sound as ever."""


class BadFileError(ValueError):
    """What is wrong with a file, to be read behind its path; `read_image` adds the path and the case."""


def some(names: Sequence[str], most: int) -> str:
    """The first of many names for a message, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Rule:
    """What a value may be."""

    holds: Callable[[Any], bool]  # whether a value, of any type, is such
    expected: str  # the end of the sentence "expected ..."

    def require(self, key: str, value: Any) -> None:
        """Refuse a value of a config key that is not such, with what was expected."""
        if not self.holds(value):
            raise FlareError(f"{key}={value}: expected {self.expected}")


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number within limits, the lower one left out if it must lie `above` it."""

    def holds(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and low <= value <= high and not (above and value == low)

    return Rule(holds, "a number" + _limits(low, high, "above" if above else "from"))


def whole(low: int, high: float = math.inf) -> Rule:
    """A whole number within limits."""
    inside = number(low, high)
    return Rule(
        lambda value: isinstance(value, int) and inside.holds(value), "a whole number" + _limits(low, high)
    )


def _limits(low: float, high: float, word: str = "from") -> str:
    """Limits in words."""
    if high != math.inf:
        return f" {word} {low} to {high}"
    return "" if low == -math.inf else f" above {low}" if word == "above" else f", {low} or more"


def choice(*known: str) -> Rule:
    """One of some words; numbers count as they are written."""
    return Rule(lambda value: str(value) in known, f"one of {', '.join(known)}")


def several(count: int, rule: Rule) -> Rule:
    """A list of so many values."""

    def holds(value: Any) -> bool:
        return isinstance(value, Sequence) and len(value) == count and all(map(rule.holds, value))

    return Rule(holds, f"a list of {count}, each {rule.expected}")


def limits(low: float = -math.inf, high: float = math.inf, *, apart: bool = False) -> Rule:
    """Two numbers, the lower first; `apart` if they must differ."""
    both = several(2, number(low, high))
    return Rule(
        lambda value: both.holds(value) and (value[0] < value[1] or (value[0] == value[1] and not apart)),
        f"[lower, upper]{_limits(low, high)}",
    )


def optional(rule: Rule) -> Rule:
    """The same, or null."""
    return Rule(lambda value: value is None or rule.holds(value), f"null or {rule.expected}")


def parts(what: str) -> Rule:
    """A list of sections that name a class each."""

    def holds(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(x, dict) and "_target_" in x for x in value)

    return Rule(holds, f"a list of {what}")


FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
SHARE = number(0, 1)
COUNT = whole(1)
POSITIVE = number(0, above=True)
NOT_NEGATIVE = number(0)
NAMED = {"flag": FLAG, "share": SHARE, "count": COUNT, "positive": POSITIVE, "not_negative": NOT_NEGATIVE}


def rules_of(room: str) -> dict[str, Rule]:
    """The rules by config key that `rules.csv` has of a room, such as `whole 0 999` or `optional count`."""
    with Path(__file__).with_name("rules.csv").open(newline="", encoding="utf-8") as stream:
        return {row["key"]: _rule(row["rule"]) for row in csv.DictReader(stream) if row["room"] == room}


def _rule(text: str) -> Rule:
    """A rule by the name of its function or constant here, and the arguments behind it."""
    name, *given = text.split()
    if name in NAMED:
        return NAMED[name]
    if name == "optional":
        return optional(_rule(" ".join(given)))
    if name == "several":
        return several(int(given[0]), _rule(" ".join(given[1:])))
    if name == "choice":
        return choice(*given)
    numbers: Any = (float(n) if "." in n else int(n) for n in given)
    return {"whole": whole, "limits": limits, "number": number}[name](*numbers)


def check_values(cfg: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuse, before any work, a value of a configuration, or of plain values, that means nothing.

    In the key of a rule `*` stands for any key. A key that is absent or `???` is not asked for. The first
    such key is named, with what was given and what was expected.
    """
    for pattern, rule in rules.items():
        for key, value in _values(cfg, pattern.split(".")):
            rule.require(key, value)


def _values(node: Any, parts: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that a pattern stands for, and their plain values."""
    if not parts:
        yield path, OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        return
    if not isinstance(node, Mapping):
        raise FlareError(f"{path}={node}: expected a section with the key {parts[0]}")
    head, *rest = parts
    for key in list(node) if head == "*" else [head]:
        if key in node and not (OmegaConf.is_config(node) and OmegaConf.is_missing(node, key)):
            yield from _values(node[key], rest, f"{path}.{key}" if path else str(key))


def require_id(key: str, case: Any) -> str:
    """A case id of the configuration, if a file can be called so, else refused; YAML reads 007 as 7."""
    if not isinstance(case, str):
        raise FlareError(f"{key}: {case} is no text; an id that looks like a number, as 007, needs quotes")
    if case in ("", ".", "..") or "/" in case:
        raise FlareError(f"{key}: {case!r} is no id; expected what a file can be called")
    return case


def given_paths(cfg: Mapping[str, Any], *keys: str) -> list[Path]:
    """Paths that a command cannot do without; the first that is not given is refused."""
    for key in keys:
        if OmegaConf.is_missing(cfg, key) or not cfg[key]:
            raise FlareError(f"{key}: not given; expected {key}=<path>")
    return [Path(cfg[key]) for key in keys]


def build_part(part: Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """Build what a part of the configuration, found at a key, describes; refusals are as of `refusing`."""
    if "_target_" not in (part or {}):
        raise FlareError(f"{key}: expected a section with a _target_")
    with refusing(part, key):
        return instantiate(part, **arguments)


@contextmanager
def refusing(part: Mapping[str, Any], key: str) -> Iterator[None]:
    """Turn whatever is raised while a part is built into one line; a refusal of ours goes through as it is.

    The line has the key, and what the class does not take or why it refuses.
    """
    try:
        yield
    except Exception as error:  # the class may be anybody's
        cause = (error.__cause__ or error) if isinstance(error, InstantiationException) else error
        if isinstance(cause, FlareError):
            raise cause from None
        log.debug("%s", key, exc_info=error)
        reason = " ".join(str(cause).split()) or type(cause).__name__
        foreign = _foreign(part, key) if isinstance(cause, TypeError) else None
        refusal = foreign or f"{part.get('_target_')} refuses it: {reason}"
        raise FlareError(f"{key}: {refusal}") from None


def _foreign(part: Mapping[str, Any], key: str) -> str | None:
    """Say which keys of a part its class does not take, and which it does."""
    target = part["_target_"]
    accepted = inspect.signature(get_object(target)).parameters
    foreign = [str(name) for name in part if not str(name).startswith("_") and name not in accepted]
    if not foreign or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return None
    return (
        f"{target} does not take {', '.join(foreign)}, it takes {', '.join(accepted) or 'nothing'}; "
        f"leave out with {' '.join(f'~{key}.{name}' for name in foreign)}"
    )
