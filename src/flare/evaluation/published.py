"""The paper's Tables 4 to 8, to print beside our own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

PATH = Path(__file__).with_name("published.yaml")


@cache
def published() -> dict[str, Any]:
    """All tables by name, `table4` to `table8`, as plain values; layout and units are in the file."""
    return OmegaConf.to_container(OmegaConf.load(PATH))  # type: ignore[return-value]


def published_round(name: str) -> dict[str, Any]:
    """The paper's Table 5 for one round: `training_images`, `DSC` and `NSD` (short -> percent).

    Returns:
        Empty for a name that the paper's table does not have.
    """
    return published()["table5"].get(name, {})
