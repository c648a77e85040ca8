"""The embedded cohort: made once, recognised in milliseconds, completed when a start was cut short."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flare.core.cases import Case
from flare.core.files import read_json, remove_partial, write_json
from flare.phantom.plan import KINDS, VERSION, case_files, plan_cohort
from flare.runs.journal import Journal, resume_cases
from flare.runs.work import Executor, report_failures


class Phantom:
    """Makes what is missing of the embedded cohort, as a `data.generator`; refuses wrong settings."""

    def __init__(self, root: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(root).expanduser()
        self.settings = json.loads(json.dumps(settings, default=str))  # as it reads back
        self.plan = plan_cohort(self.settings)

    def make(self, executor: Executor) -> None:
        """Make each new or changed case and delete those not asked for; refuse at the end if one failed."""
        root, journal = str(self.root), Journal(self.root / "cohort.jsonl")
        for case_id in journal.cases() - self.plan.keys():
            for path in case_files(self.root, case_id, journal.values(case_id)["kind"]).values():
                if not journal.is_foreign(case_id, path):
                    path.unlink(missing_ok=True)
        remove_partial(self.root, below=True)
        done = resume_cases(
            _generate,
            {case: {"root": root, "case_id": case, "spec": spec} for case, spec in self.plan.items()},
            inputs={case: {} for case in self.plan},
            config=self._config,
            outputs=lambda case: case_files(self.root, case, self.plan[case]["kind"]),
            journal=journal,
            executor=executor,
            description="phantom",
        )
        report_failures(done.failures, "phantom cohort")
        summary = {"settings": {"version": VERSION, **self.settings}, "cases": done.values}
        path = self.root / "cohort.json"
        if not path.exists() or read_json(path) != summary:
            write_json(path, summary)

    def explain(self) -> dict[str, str]:
        """Say which of the cases that are there `make` makes again, and why."""
        journal = Journal(self.root / "cohort.jsonl")
        known = [case for case in self.plan if case in journal]
        return {case: why for case in known if (why := journal.why(case, {}, self._config(case)))}

    def planned_cases(self) -> list[Case]:
        """List the cases that `make` makes, without making them; their classes are not known before."""
        cases = []
        for case_id, spec in self.plan.items():
            files = case_files(self.root, case_id, spec["kind"])
            split = KINDS[spec["kind"]]["split"]
            kind = spec["kind"] if split == "train" else "organs_complete"
            cases.append(Case(case_id, files["image"], files.get("label"), split, kind, (), ()))
        return cases

    def _config(self, case: str) -> dict[str, Any]:
        """What decides a case."""
        return {**self.plan[case], "version": VERSION}


def _generate(**job: Any) -> dict[str, Any]:
    """Make one case; array libraries are imported where there is one to make."""
    from flare.phantom.case import generate_case

    return generate_case(**job)
