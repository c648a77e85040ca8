"""Why something is done again, in words: what differs from what was noted, by case and configuration key."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flare.core.errors import some
from flare.core.files import read_csv
from flare.runs.folders import is_public

NEW = "not done before"
NAMED = 3  # keys, cases and reasons that a line names
LONGEST = 60  # characters of a value
ABSENT = "none"
CHOICES = ("data.checks.", "data.scoring.")  # of `data`, what has words for values that name no file

# what the journals call a setting, with its key in the configuration, or in words where it has no key, or a
# digest for a value; of several keys that fit the longest counts
NOTED = read_csv(Path(__file__).with_name("noted.csv"))
KEYS = {row["noted"]: row["key"] for row in NOTED if not row["told"]}
SPOKEN = {row["noted"]: row["told"] for row in NOTED if row["told"]}


def differing(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk two plain values and give the dotted key, the old and the new value of all that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{path}.{key}" if path else str(key)
            yield from differing(before.get(key, ABSENT), now.get(key, ABSENT), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and path == "rounds":
        for one, other in zip(before, now, strict=True):
            yield from differing(one, other, path)
    elif json.dumps(before) != json.dumps(now):  # 3 and 3.0 are noted differently
        yield path, before, now


def settings_told(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name each setting that differs, as `key: old -> new`, without values that name files or folders."""
    plain = json.loads(json.dumps([before, now], default=str))  # as it reads back
    told: dict[str, None] = {}
    for path, old, new in differing(*plain):
        spoken = next((SPOKEN[part] for part in (path, path.partition(".")[0]) if part in SPOKEN), None)
        key = _key(path)
        if spoken is not None:
            told[f"{spoken} changed"] = None
        elif _may_be_told(key, old) and _may_be_told(key, new):
            told[f"{key}: {_text(old)} -> {_text(new)}"] = None
        else:
            told[f"{key} changed"] = None
    return list(told)


def _may_be_told(key: str, value: Any) -> bool:
    """Whether a value may stand in a log: numbers may, texts unless they are of files or folders."""
    if isinstance(value, Mapping):
        return all(_may_be_told(f"{key}.{name}", inner) for name, inner in value.items())
    if isinstance(value, list):
        return all(_may_be_told(key, inner) for inner in value)
    is_choice = value == ABSENT or key.startswith(CHOICES)
    return not isinstance(value, str) or is_choice or is_public(key, value)


def _key(path: str) -> str:
    """The key of the configuration that a noted setting comes from."""
    fits = [name for name in KEYS if path == name or path.startswith(f"{name}.")]
    if not fits:
        return path
    longest = max(fits, key=len)
    return f"{KEYS[longest]}{path[len(longest) :]}".lstrip(".")


def _text(value: Any) -> str:
    """A value in a few characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def members_told(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what was added, removed (None) or changed of files or cases, by name -> what it was and is."""
    verbs: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys([*before, *now]):
        if name not in now or now[name] is None:
            verbs["removed"].append(name)
        elif name not in before:
            verbs["added"].append(name)
        elif before[name] != now[name]:
            verbs["changed"].append(name)
    return [f"{some([SPOKEN.get(n, n) for n in names], NAMED)} {verb}" for verb, names in verbs.items()]


def joined(reasons: list[str]) -> str:
    """Several reasons in one line."""
    more = len(reasons) - NAMED
    return "; ".join(reasons[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def cases_told(reasons: Mapping[str, str], of: int) -> str:
    """Say why cases of a step are done, by case id -> why: how many of all for each reason, and which."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case, reason in reasons.items():
        groups[reason].append(case)
    told = []
    for reason, cases in sorted(groups.items(), key=lambda item: -len(item[1])):
        one_of = f"{len(cases)} of {of} cases ({some(cases, NAMED)})"
        told.append(f"{f'all {of} cases' if len(cases) == of > 1 else one_of}: {reason}")
    return joined(told)
