"""A damaged file of every kind among good cases, through `prepare.py`; `make soak` has thousands of them."""

from pathlib import Path

import pytest

from damaged_cohort import GOOD, IMAGES, LABELS
from damaged_files import FORMATS, SERIES
from damaged_prepare import prepare_damaged


@pytest.mark.slow
@pytest.mark.long  # two workers begin
def test_a_damaged_file_of_every_kind_is_named_and_good_cases_are_done(tmp_path: Path) -> None:
    counts, wrong = prepare_damaged(tmp_path, range(2), range(1))
    assert wrong == []
    assert counts["files"] == len(IMAGES) + len(LABELS) + 2 * len([*FORMATS, *SERIES]) + len(FORMATS)
    assert counts["good"] == counts["good cases"] == len(GOOD) + 2
    assert counts["refused"] > len(IMAGES) + len(LABELS)
