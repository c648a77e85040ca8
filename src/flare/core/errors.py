"""The errors a user is meant to read: one line, no traceback, exit code 1."""

from __future__ import annotations

from hydra.errors import CompactHydraException


class FlareError(ValueError, CompactHydraException):
    """A refusal: says what, which case or config key, and what was expected.

    Hydra prints a `CompactHydraException` as one line and exits with code 1; as a `ValueError` it is also
    what library callers expect.
    """


class NoRoomError(FlareError):
    """A disk is full: whatever was being done stops, since the next case would meet the same."""


class CaseError(FlareError):
    """One case cannot be used; the rest of the cohort goes on.

    Args:
        case_id: The case.
        reason: What was given and what was expected.
    """

    def __init__(self, case_id: str, reason: str) -> None:
        super().__init__(f"case {case_id}: {reason}")
        self.case_id = case_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[CaseError], tuple[str, str]]:
        """Rebuild from both arguments when it comes back from a worker process."""
        return type(self), (self.case_id, self.reason)


class AwayError(CaseError):
    """A case's file is not there: no fault of its content, which may be as sound as ever."""
