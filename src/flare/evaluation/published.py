"""The paper's figures, and beside which runs they stand."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError, choice

PHANTOM = "phantom"  # `data.name` of the embedded cohort


@cache
def published() -> dict[str, Any]:
    """All tables by name, `table4` to `table8`, as plain values; layout and units are in the file."""
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("published.yaml")))  # type: ignore[return-value]


def public_validation(measure: str) -> dict[str, Any]:
    """The paper's MOT3 on the 50 public validation cases (Table 4), organ mean too, as a row of Table 5."""
    table, classes = published()["table4"], published()["classes"]
    theirs = {name: table[name][f"public_{measure}"] for name in classes}
    organs = [theirs[name] for name, (_, _, role, *_) in classes.items() if role == "organ"]
    theirs["organ_mean"] = round(sum(organs) / len(organs), 2)
    return {"round": "mot3, public", "cases": None, **{f"paper_{k}_{measure}": v for k, v in theirs.items()}}


def is_flare23(classes: ClassList) -> bool:
    """Whether these are the classes that the paper's figures are of, scored by the same tolerances."""
    rules = {c.short: [c.id, c.name, c.role, c.tolerance_mm, c.slice_range] for c in classes.entries}
    return rules == published()["classes"]


def shows_published(cfg: DictConfig, classes: ClassList, protocol: str | None = None) -> bool:
    """Whether `report.published` sets the paper's figures beside those of a run.

    By `auto` they stand where class list and protocol are FLARE23's, and beside the embedded phantom's, which
    every table names as such. What scores nothing has no protocol. Beside other classes they are refused.
    """
    wanted, is_same = cfg.report.published, is_flare23(classes)
    choice("auto", "none", "flare23").require("report.published", wanted)
    if wanted == "flare23" and not is_same:
        reason = "the paper's figures are of FLARE23's 14 classes and tolerances, and classes= has others"
        raise FlareError(f"report.published=flare23: {reason}; expected auto or none")
    is_known = protocol in (None, "flare23") or cfg.data.name == PHANTOM
    return wanted == "flare23" or (wanted == "auto" and is_same and is_known)
