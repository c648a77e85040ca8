"""What became of cases: refused for their files, failed by no fault of theirs, and how both are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flare.errors import FlareError


@dataclass(frozen=True)
class Outcome:
    """What became of one case: a value, or the reason why not.

    Args:
        case_id: The case.
        value: What the function returned.
        error: Why there is no value.
        is_fault: Whether the case may be sound: not its files, but the machine or the program failed. It is
            tried again at the next start.
        is_general: Whether other cases would meet the same fault: a disk that is away, a wrong setting.
    """

    case_id: str
    value: Any = None
    error: str | None = None
    is_fault: bool = False
    is_general: bool = False


def report_failures(failures: Sequence[Outcome], what: str) -> None:
    """Name the cases that failed and why, after everything else is done.

    Raises:
        FlareError: If there are any; it makes the exit code 1.
    """
    if failures:
        faults = sum(f.is_fault for f in failures)
        again = f" ({faults} by no fault of the files: start again when mended)" if faults else ""
        raise FlareError(_listed(f"{what}: {len(failures)} failed, the rest is done{again}", failures))


def stop_on_faults(failures: Sequence[Outcome], what: str) -> None:
    """Start no training while a general fault keeps cases away: it would learn from a smaller cohort.

    A single case that kills its worker or meets an error of the program does not stop the others.

    Raises:
        FlareError: If there are any such; the others do not stop a training.
    """
    faults = [f for f in failures if f.is_general]
    if faults:
        raise FlareError(
            _listed(
                f"{what}: {len(faults)} failed by no fault of their files, so no training is started; "
                "start again when mended",
                faults,
            )
        )


def _listed(headline: str, failures: Sequence[Outcome]) -> str:
    """Name cases and reasons below a line."""
    lines = [f"  {f.case_id}: {f.error}" for f in sorted(failures, key=lambda f: f.case_id)]
    return "\n".join([headline, *lines])
