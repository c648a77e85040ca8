"""What a value may be, as rules that say so: numbers within limits, words, lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    Args:
        holds: Whether a value, of any type, is such.
        expected: The end of the sentence "expected ...".
    """

    holds: Callable[[Any], bool]
    expected: str


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
        return isinstance(value, list) and len(value) == count and all(map(rule.holds, value))

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


FLAG = Rule(lambda value: isinstance(value, bool), "true or false")
SHARE = number(0, 1)
COUNT = whole(1)
POSITIVE = number(0, above=True)
NOT_NEGATIVE = number(0)
