"""Reads what W&B wrote offline, as W&B's own tool sees it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class OfflineRun:
    """A run as its file holds it.

    Args:
        folder: `offline-run-...`.
        records: All records, in order.
    """

    folder: Path
    records: list[Record]

    @property
    def run(self) -> Record:
        return next(r["run"] for r in self.records if r["type"] == "run")

    @property
    def history(self) -> list[Record]:
        """Rows of what was logged; of pictures and tables `<key>.<part>`."""
        return [r["history"]["item"] for r in self.records if r["type"] == "history"]

    @property
    def keys(self) -> set[str]:
        found = {key for row in self.history for key in row if not key.startswith("_")}
        return found | {key.removesuffix("._type") for key in found}

    @property
    def config(self) -> Record:
        found: Record = {}
        for record in self.records:
            if record["type"] == "config":
                found |= record["config"]["update"]
        return found

    @property
    def artifacts(self) -> list[Record]:
        return [r["artifact"] for r in self.records if r["type"] == "artifact"]

    @property
    def content(self) -> bytes:
        return next(self.folder.glob("*.wandb")).read_bytes()


def read_offline(logs: Path) -> list[OfflineRun]:
    """All offline runs below a folder, by time."""
    found = []
    for folder in sorted(logs.glob("wandb/offline-run-*")):
        tool = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(next(folder.glob("*.wandb")))]
        done = subprocess.run(tool, capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found.append(OfflineRun(folder, [json.loads(line) for line in lines]))
    return found
