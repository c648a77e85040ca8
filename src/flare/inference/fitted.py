"""The plan that was fitted to a checkpoint: what `inference=fast` predicts with, in a file beside it.

`flare.plan` measures and writes it. It names the checkpoint by hash: a plan is of one network, not of a name.
An exported file carries the plan that was best at the patch of the training, which is all that it takes.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from flare.core.errors import FlareError
from flare.core.files import read_json
from flare.inference.settings import InferenceSettings

if TYPE_CHECKING:
    from flare.runs.checkpoints import Checkpoint  # torch: only where there is work

log = logging.getLogger(__name__)
OWN = ("name", "window", "overlap", "plane_overlap", "adaptive", "flips_where", "open_margin", "open_share")
PLANNED = {"tta": "tta", **{field: f"inference.{field}" for field in OWN}}  # what a plan chooses -> its key
ANY_WINDOW, AT_PATCH = "plan", "plan_at_patch"  # entries of the file, each with `name` and `settings`
BY = "checkpoint_sha256"


def plan_path(checkpoint: Path) -> Path:
    """Where the plan of a checkpoint lies."""
    return checkpoint.with_suffix(".plan.json")


def stored_plan(checkpoint: "Checkpoint") -> dict[str, Any] | None:
    """Read the plan that an exported file carries, or that lies beside a checkpoint.

    None without one. One of other weights is left out with a warning, and what is none is refused.
    """
    path, content = plan_path(checkpoint.path), checkpoint.plan
    if content is None and not path.is_file():
        return None
    try:
        found: dict[str, Any] = content or read_json(path)
        of_other = content is None and found[BY] != checkpoint.sha256
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise _unread(checkpoint, error) from None
    if of_other:
        told = "is the plan of other weights, so it is not used; run `python -m flare.plan` again"
        log.warning("%s %s", path, told)
        return None
    return found


def _unread(checkpoint: "Checkpoint", error: Exception) -> FlareError:
    """What is said of a plan that is none."""
    path = plan_path(checkpoint.path) if checkpoint.plan is None else checkpoint.path
    return FlareError(f"{path}: is no plan of inference ({error!r}); run `python -m flare.plan` again")


def given_keys() -> set[str]:
    """The keys that stand on the command line, if there is one."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {override.lstrip("+~").partition("=")[0] for override in overrides}


def with_plan(settings: InferenceSettings, checkpoint: "Checkpoint", given: set[str]) -> InferenceSettings:
    """Settings of `fast` as the plan of a checkpoint has them, and say so; others stay, as without a plan.

    The keys of `given` win over the plan, which is refused where it holds a value that means nothing.
    """
    content = stored_plan(checkpoint) if settings.name == "fast" else None
    if content is None:
        return settings
    kept = [key for key in PLANNED.values() if key in given]
    try:
        chosen = content[ANY_WINDOW if checkpoint.plan is None else AT_PATCH]
        fields = {field: chosen["settings"][field] for field, key in PLANNED.items() if key not in kept}
        told = ", ".join([str(chosen["name"]), *(f"{key} as given" for key in kept)])
        found = replace(settings, **fields, plan=told)
    except (LookupError, TypeError, FlareError) as error:
        raise _unread(checkpoint, error) from None
    log.info("inference=fast: by the plan fitted to %s: %s", checkpoint.path, told)
    return found
