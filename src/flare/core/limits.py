"""Which rule holds for which key, of all scripts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flare.core import checks
from flare.core.checks import (
    FLAG,
    NOT_NEGATIVE,
    SHARE,
    Rule,
)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# key -> rule; `*` stands for any key; a key that a configuration lacks is not asked for
RULES: dict[str, Rule] = {
    "allow": Rule(_are_names, "a list of dotted names"),
    "dry_run": FLAG,
    "labels.dilation_mm": NOT_NEGATIVE,
    "labels.tumor_inside_fraction": SHARE,
    "labels.constrain_unlabeled": FLAG,
    "dilation_mm": NOT_NEGATIVE,  # of merge_labels
    "tumor_inside_fraction": SHARE,
    "constrain_unlabeled": FLAG,
}


def check_values(cfg: Mapping[str, Any], groups: Collection[str] | None = None) -> None:
    """Refuse a value that means nothing, see `checks.check_values`; of `groups` alone, if given."""
    rules = {k: rule for k, rule in RULES.items() if groups is None or k.split(".")[0] in groups}
    checks.check_values(cfg, rules)
