"""An executor that has begun and takes its time, for tests that stop a command in the middle of its work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flare.runs.work import Job, Outcome


class Slow:
    """Makes the file `begun` with its first case and never ends."""

    def __init__(self, begun: str, workers: int, retries: int) -> None:
        self.begun, self.workers, self.retries = Path(begun), workers, retries

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        self.begun.touch()
        time.sleep(600)
        yield Outcome("never")

    def alone(self) -> Slow:
        return self

    def close(self) -> None:
        pass


def wait(begun: str, number: int) -> None:
    """What a worker process does: begin, and take its time."""
    Path(begun).with_name(f"{number}.begun").touch()
    time.sleep(600)
