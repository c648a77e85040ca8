"""What became of cases: refused for their files, failed by no fault of theirs, and when that stops a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flare.core.errors import FlareError

FEW = 3  # fewer cases never stop a run, however small the cohort (ours)


@dataclass(frozen=True)
class Outcome:
    """What became of one case: a value, or the reason why not.

    Args:
        case_id: The case.
        value: What the function returned.
        error: Why there is no value.
        is_fault: Whether the case may be sound: the machine or the program failed, not the content of its
            files. It is tried again at the next start, and nothing made from it is removed.
        is_general: Whether one such case is enough to know that others meet the same: a disk that is away, a
            wrong setting.
        kind: What cases that failed for one and the same reason have in common, whatever the numbers and
            paths in `error`: the type of the exception, or the place that refused the file.
    """

    case_id: str
    value: Any = None
    error: str | None = None
    is_fault: bool = False
    is_general: bool = False
    kind: str = ""


def report_failures(failures: Sequence[Outcome], what: str) -> None:
    """Name the cases that failed and why, after everything else is done.

    Raises:
        FlareError: If there are any; it makes the exit code 1.
    """
    if failures:
        faults = sum(f.is_fault for f in failures)
        again = f" ({faults} by no fault of the files: start again when mended)" if faults else ""
        lines = [f"  {f.case_id}: {f.error}" for f in sorted(failures, key=lambda f: f.case_id)]
        raise FlareError("\n".join([f"{what}: {len(failures)} failed, the rest is done{again}", *lines]))


def stop_on_faults(
    failures: Sequence[Outcome],
    step: str,
    cases: Collection[str],
    max_failed: float,
    groups: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Stop the run after a step that failed in general: a network would learn from a smaller cohort.

    That is so if a fault was met that every case would meet; if more than `max_failed` of the step's cases,
    and at least 3, failed for another reason than the content of their files; or if more than half of the
    step's cases, or of a folder or source, and at least 3, were refused for one and the same reason.

    Args:
        failures: Cases that failed in the step, or were refused before it.
        step: Its name, for the message.
        cases: All cases of the step, those that needed no work included.
        max_failed: `executor.max_failed`, a share of the cases; with 1 only a fault that every case would
            meet stops the run.
        groups: Name of a folder or source, with its config key -> the cases it holds.

    Raises:
        FlareError: Naming the step, how many failed, the most frequent reason with one case, and the key.
    """
    faults = [f for f in failures if f.is_fault and f.case_id in cases]
    is_general = any(f.is_general for f in faults)
    if is_general or _is_more_than(max_failed, faults, cases):
        worst = _most_frequent([f for f in faults if f.is_general] or faults)
        allowed = "" if is_general else f", more than executor.max_failed={max_failed:g}"
        raise FlareError(
            f"{step}: {len(faults)} of {len(cases)} cases failed by no fault of their files{allowed}, "
            f"so the run stops before it trains on the rest; {_told(worst)}. Start again when mended"
        )
    refused = [f for f in failures if not f.is_fault]
    for name, members in {**(groups or {}), "this step": cases}.items():
        worst = _most_frequent([f for f in refused if f.case_id in members])
        if _is_more_than(max(max_failed, 0.5), worst, members):
            raise FlareError(
                f"{step}: {len(worst)} of {len(members)} cases of {name} were refused for one reason, so "
                f"the run stops before it trains on the rest; {_told(worst)}. Mend the files or the setting, "
                "or give executor.max_failed=1 to go on without them"
            )


def _is_more_than(share: float, failed: Sequence[Outcome], cases: Collection[str]) -> bool:
    """Whether so many cases failed that it is no matter of a few."""
    return len(failed) >= FEW and len(failed) > share * len(cases)


def _most_frequent(failures: Sequence[Outcome]) -> list[Outcome]:
    """The failures of the commonest reason."""
    kinds = Counter(f.kind or str(f.error) for f in failures).most_common(1)
    return [f for f in failures if (f.kind or str(f.error)) == kinds[0][0]] if kinds else []


def _told(failures: Sequence[Outcome]) -> str:
    """A reason, by one of its cases."""
    example = min(failures, key=lambda f: f.case_id)
    return f"{len(failures)} x {example.error} (case {example.case_id})"
