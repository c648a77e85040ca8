"""Parts that a configuration names by class, built before any work, or refused in one line."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from flare.core.errors import FlareError

log = logging.getLogger(__name__)
PACKAGED = Path(__file__).parents[1] / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"  # of a checkout


def build_part(part: Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """Build what a part of the configuration describes.

    Args:
        part: With a `_target_`.
        key: Where it stands in the configuration.
        **arguments: Further ones of its class.

    Raises:
        FlareError: As `refusing`.
    """
    if "_target_" not in (part or {}):
        raise FlareError(f"{key}: expected a section with a _target_")
    with refusing(part, key):
        return instantiate(part, **arguments)


@contextmanager
def refusing(part: Mapping[str, Any], key: str) -> Iterator[None]:
    """Turn whatever is raised while a part is built into one line; a refusal of ours goes through as it is.

    Args:
        part: With a `_target_`.
        key: Where it stands in the configuration.

    Raises:
        FlareError: With the key, and what the class does not take or why it refuses.
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
