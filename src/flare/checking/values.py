"""The check of a configuration against the table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flare.checking.table import RULES
from flare.errors import FlareError


def check_values(cfg: Mapping[str, Any], groups: Collection[str] | None = None) -> None:
    """Refuse, before any work, a value that means nothing.

    Args:
        cfg: Configuration of any script, or plain values.
        groups: First parts of the keys to look at; by default all.

    Raises:
        FlareError: Naming the first such key, what was given and what was expected.
    """
    for pattern, rule in RULES.items():
        parts = pattern.split(".")
        if groups is not None and parts[0] not in groups:
            continue
        for key, value in _values(cfg, parts):
            if not rule.holds(value):
                raise FlareError(f"{key}={value}: expected {rule.expected}")
    phantom = cfg.get("data", {}).get("phantom") if groups is None else None
    if phantom is not None and "grids" in phantom and phantom["size"] not in phantom["grids"]:
        raise FlareError(
            f"data.phantom.size={phantom['size']}: expected one of {', '.join(phantom['grids'])}"
        )


def _values(node: Any, parts: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that a pattern stands for, and their plain values; what is absent or `???` is left out."""
    if not parts:
        yield path, OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        return
    if not isinstance(node, Mapping):
        raise FlareError(f"{path}={node}: expected a section with the key {parts[0]}")
    head, *rest = parts
    for key in list(node) if head == "*" else [head]:
        if key in node and not OmegaConf.is_missing(node, key):
            yield from _values(node[key], rest, f"{path}.{key}" if path else str(key))


def given_paths(cfg: Mapping[str, Any], *keys: str) -> list[Path]:
    """Paths that a command cannot do without.

    Raises:
        FlareError: Naming the first that is not given.
    """
    for key in keys:
        if OmegaConf.is_missing(cfg, key) or not cfg[key]:
            raise FlareError(f"{key}: not given; expected {key}=<path>")
    return [Path(cfg[key]) for key in keys]
