"""The embedded cohort: made once, recognised in milliseconds, completed when a start was cut short."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.files import remove_partial, write_json
from flare.phantom.plan import FOLDERS, VERSION, case_files, plan_cohort
from flare.runs.journal import Journal, resume_cases
from flare.runs.outcomes import report_failures
from flare.runs.work import Executor

SUMMARY = "cohort.json"
JOURNAL = "cohort.jsonl"


class Phantom:
    """Makes the embedded cohort in the challenge's layout, or what is missing of it: a `data.generator`.

    Args:
        root: Folder of the cohort.
        settings: `data.phantom`, the arguments of `plan_cohort`.

    Raises:
        FlareError: If a setting means nothing.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(root).expanduser()
        self.settings = json.loads(json.dumps(settings, default=str))  # as it reads back
        self.plan = plan_cohort(**self.settings)

    def make(self, executor: Executor) -> None:
        """Make each case that is new, that has changed, or whose files are not as they were made.

        More cases can be asked for later. Cases that are no longer asked for are deleted.

        Raises:
            FlareError: If a case failed.
        """
        journal = Journal(self.root / JOURNAL)
        for case_id in journal.cases() - self.plan.keys():
            for path in case_files(self.root, case_id, journal.values(case_id)["kind"]).values():
                path.unlink(missing_ok=True)
        done = resume_cases(
            _generate,
            {
                case_id: {"root": str(self.root), "case_id": case_id, "spec": s}
                for case_id, s in self.plan.items()
            },
            inputs={case_id: {} for case_id in self.plan},
            config=lambda case_id: {**self.plan[case_id], "version": VERSION},
            outputs=lambda case_id: case_files(self.root, case_id, self.plan[case_id]["kind"]),
            journal=journal,
            executor=executor,
            description="phantom",
            before=self._remove_partial,
        )
        report_failures(done.failures, "phantom cohort")
        summary = {"settings": {"version": VERSION, **self.settings}, "cases": done.values}
        path = self.root / SUMMARY
        if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != summary:
            write_json(path, summary)

    def planned_cases(self) -> list[Case]:
        """List the cases that `make` makes, of the kinds that were asked for, without making them.

        Returns:
            The cases; which classes each will have is not known.
        """
        cases = []
        for case_id, spec in self.plan.items():
            files = case_files(self.root, case_id, spec["kind"])
            split = spec["kind"] if spec["kind"] in ("validation", "test") else "train"
            split = "test" if spec["kind"] == "extra" else split
            kind = spec["kind"] if split == "train" else "organs_complete"
            cases.append(Case(case_id, files["image"], files.get("label"), split, kind, (), ()))
        return cases

    def _remove_partial(self, _: Collection[str]) -> None:
        """Remove what a killed start left half written."""
        for name in {name for row in FOLDERS.values() for name in row if name}:
            remove_partial(self.root / name)


def _generate(**job: Any) -> dict[str, Any]:
    """Make one case; array libraries are imported where there is one to make."""
    from flare.phantom.case import generate_case

    return generate_case(**job)
