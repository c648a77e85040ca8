"""Refusals: a ValueError for callers, one line for users, whole after a trip between processes."""

from __future__ import annotations

import pickle

from hydra.errors import CompactHydraException

from flare.core.errors import CaseError, FlareError


def test_a_refusal_is_both_a_value_error_and_hydras() -> None:
    assert issubclass(FlareError, ValueError)
    assert issubclass(FlareError, CompactHydraException)


def test_a_case_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CaseError("case_3", "has one slice")))
    assert (error.case_id, error.reason, str(error)) == (
        "case_3",
        "has one slice",
        "case case_3: has one slice",
    )
