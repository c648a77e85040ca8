"""Shared by the tests of readers: images of a few voxels are no fault here."""

from collections.abc import Iterator

import pytest

from flare.core.checks import Checks, reading


@pytest.fixture(autouse=True)
def small_images() -> Iterator[None]:
    """The size is checked in tests of its own."""
    with reading(Checks(size="warn")):
        yield
