"""Files that the last start saw and this one does not: a fault of the machine, unless somebody says no."""

from __future__ import annotations

import logging
from pathlib import Path

from flare.core.errors import FlareError
from flare.core.files import read_json, write_json
from flare.prepare.index import Index

log = logging.getLogger(__name__)
NAMED = 10  # paths that a message names


def require_present(index: Index, seen: Path, *, accept_removed: bool) -> None:
    """Refuse a cohort of which files are gone since the last start, and note what is there now.

    A case that the configuration no longer names is not gone, nor is one that was moved.

    Args:
        index: What was found now.
        seen: File of the paths that the last start saw; it need not exist.
        accept_removed: Whether files were removed on purpose.

    Raises:
        FlareError: Naming the paths; the note stays as it was, so that the next start refuses as well.
    """
    now: dict[str, dict[str, str]] = {}
    for entry in index.entries:
        paths = {"image": entry.image, "label": entry.label}
        now[entry.id] = {role: str(path) for role, path in paths.items() if path is not None}
    known: dict[str, dict[str, str]] = read_json(seen) if seen.exists() else {}
    # where a file has another place now, only that one counts
    wanted = {case: {**paths, **now.get(case, {})} for case, paths in known.items()}
    gone = [p for case, paths in wanted.items() for role, p in paths.items() if role in known[case]]
    gone = sorted(path for path in gone if not _is_there(Path(path)))
    if gone and not accept_removed:
        more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        raise FlareError(
            f"data: {len(gone)} files that the last start saw are gone: {', '.join(gone[:NAMED])}{more}. Is "
            "a disk or share away? Start again when it is back; if they were removed on purpose, say so once "
            "with data.accept_removed=true. Nothing in the cache was removed"
        )
    if gone:
        log.warning("%d files are gone since the last start, and the cohort goes without them", len(gone))
    there = {c: {role: p for role, p in paths.items() if _is_there(Path(p))} for c, paths in now.items()}
    if there != known:
        write_json(seen, there)


def _is_there(path: Path) -> bool:
    """Whether a file, or anything in a folder of slices, can be seen."""
    try:
        return any(p.exists() for p in path.iterdir()) if path.is_dir() else path.exists()
    except OSError:
        return False
