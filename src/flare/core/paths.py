"""Paths that a configuration names: what one may be, where a relative one starts, how it is quoted."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from flare.core.errors import FlareError

# keys of a path from where the command was typed; those of a cohort start at `data.root`
PATHS = (
    *("run", "paths.outputs", "paths.run", "paths.cache", "data.root", "data.cache"),
    *("input", "output", "checkpoint", "predictions", "references", "compare", "ground_truth", "pseudo"),
    *("round.checkpoint", "ckpt_path", "source", "sweep"),
)
COHORT = (
    *("data.labeled_images", "data.labels", "data.unlabeled_images"),
    *("data.validation_images", "data.validation_labels", "data.test_images", "data.test_labels"),
)
WORDS = {"ckpt_path": ("auto", "last")}  # values that are no path
ROOM = 1 << 20  # bytes for a configuration and a log, at most (ours)
HOME = re.compile(r"""^([\w.@/+]+=)(["']?)~(?=/|\2$)""")


def settle_paths(cfg: DictConfig) -> None:
    """Check every path of a configuration, in place: `~` is expanded, and no change of folder moves one.

    A value that is no path is refused, with how to quote what the command line took for something else.
    """
    start = Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()
    has_moved = start != Path.cwd()  # hydra.job.chdir
    for key in (*PATHS, *COHORT):
        value = _select(cfg, key)
        if value in (None, "", *WORDS.get(key, ())):
            continue
        paths = value if isinstance(value, list) and key in COHORT else [value]
        for path in paths:
            if not isinstance(path, str | Path):
                raise FlareError(
                    f"{key}={path}: expected a path; one that is read as something else needs quotes within "
                    f"quotes: {_quoted(key, str(path))}"
                )
        settled = [Path(path).expanduser() for path in paths]
        if has_moved and key in PATHS:
            settled = [start / path for path in settled]
        texts = [str(path) for path in settled]
        if texts != [str(path) for path in paths]:
            OmegaConf.update(cfg, key, texts if isinstance(value, list) else texts[0])


def _select(cfg: DictConfig, key: str) -> Any:
    """The plain value of a key; None if it is not there, not given or null."""
    try:
        value = OmegaConf.select(cfg, key)
    except InterpolationToMissingValueError:
        return None  # the key that it stands for is asked for where it is needed
    except OmegaConfBaseException as error:
        raise FlareError(f"{key}: {str(error).splitlines()[0]}") from None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def require_writable(key: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written to, before there is anything to write."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise FlareError(f"{key}={path}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FlareError(f"{key}={path}: {there} cannot be written to; expected a folder that can")
    if shutil.disk_usage(there).free < ROOM:
        raise FlareError(f"{key}={path}: the disk is full in {there}: make room and start again")


def expand_home(argument: str) -> str:
    """Expand `~` at the start of an override's value, which a shell leaves as it is behind a `=`."""
    return HOME.sub(lambda found: f"{found[1]}{found[2]}{Path.home()}", argument)


def tell_quoting(arguments: Sequence[str]) -> Iterator[str]:
    """Say of each override that Hydra cannot read, or takes for several values, how its value is quoted."""
    parser = OverridesParser.create()
    for argument in arguments:
        key, is_pair, value = argument.partition("=")
        if not is_pair or key.startswith("-"):
            continue
        try:
            is_read = not (parser.parse_override(argument).is_sweep_override() and "/" in value)
        except HydraException:
            is_read = False
        if not is_read:
            reason = "spaces, brackets, commas, =, # and letters other than a-z need quotes within quotes"
            yield f"{key}: {reason}: {_quoted(key, value)}"


def _quoted(key: str, value: str) -> str:
    """An override as a shell and Hydra both read it."""
    is_within = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    bare = (value[1:-1] if is_within else value).replace('"', r"\"")
    return shlex.quote(f'{key}="{bare}"')
