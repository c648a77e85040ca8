"""The embedded cohort: made once, recognised in milliseconds, completed when a start was cut short."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare.core.cases import Case
from flare.core.files import config_hash, read_json, remove_partial, write_json
from flare.phantom.plan import VERSION, plan_cohort

if TYPE_CHECKING:
    from flare.runs.work import Executor

log = logging.getLogger(__name__)
SUMMARY = "cohort.json"
RECORDS = ".cases"  # one small file a case, written after its last file


class Phantom:
    """The phantom cohort in the challenge's layout; `data.generator` names it.

    Args:
        root: Folder of the cohort.
        settings: `data.phantom`, as for `plan_cohort`.

    Raises:
        FlareError: If settings mean nothing.
    """

    def __init__(self, root: Path | str, settings: Mapping[str, Any]) -> None:
        self.root = Path(root).expanduser()
        extra = settings["extra_anatomy"]
        settings = {**settings, "extra_anatomy": str(extra) if extra else None}
        self._plan = plan_cohort(**settings)
        self._settings = json.loads(json.dumps({"version": VERSION, **settings}))  # as it reads back

    def make(self, executor: Executor) -> None:
        """Make the cohort, or what is missing of it.

        A case whose specification and files are unchanged is left alone, so more cases can be asked for
        later; a case that is no longer asked for is removed, as is one of other settings.

        Args:
            executor: Runs the cases.

        Raises:
            FlareError: If a case failed.
        """
        root, plan = self.root, self._plan
        if _is_finished(root, self._settings, plan):
            return
        _remove_strangers(root, plan)
        missing = {case_id: spec for case_id, spec in plan.items() if not _is_whole(root, case_id, spec)}
        _make(root, missing, executor)
        cases = {case_id: read_json(_record(root, case_id)) for case_id in plan}
        write_json(root / SUMMARY, {"settings": self._settings, "cases": cases})

    def planned_cases(self) -> list[Case]:
        """List the cases that `make` makes, of the kinds that were asked for, without making them.

        Which classes each will have is not known.
        """
        from flare.phantom.case import FOLDERS

        cases = []
        for case_id, spec in self._plan.items():
            images, labels, _ = FOLDERS[spec["kind"]]
            split = {"imagesVal": "validation", "imagesTs": "test"}.get(images, "train")
            label = self.root / labels / f"{case_id}.nii.gz" if labels else None
            kind = spec["kind"] if split == "train" else "organs_complete"
            image = self.root / images / f"{case_id}_0000.nii.gz"
            cases.append(Case(case_id, image, label, split, kind, (), ()))
        return cases


def _record(root: Path, case_id: str) -> Path:
    """File that says that a case is whole."""
    return root / RECORDS / f"{case_id}.json"


def _files_are_there(root: Path, files: Mapping[str, int]) -> bool:
    """Whether all files exist with their sizes."""
    try:
        return all((root / name).stat().st_size == size for name, size in files.items())
    except FileNotFoundError:
        return False


def _is_finished(root: Path, settings: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether the folder holds exactly this cohort."""
    try:
        summary = read_json(root / SUMMARY)
    except FileNotFoundError:
        return False
    if summary["settings"] != settings or list(summary["cases"]) != list(plan):
        return False
    return all(_files_are_there(root, case["files"]) for case in summary["cases"].values())


def _is_whole(root: Path, case_id: str, spec: Mapping[str, Any]) -> bool:
    """Whether a case of this specification is there."""
    path = _record(root, case_id)
    if not path.exists():
        return False
    made = read_json(path)
    return made["spec"] == config_hash({**spec, "version": VERSION}) and _files_are_there(root, made["files"])


def _remove_strangers(root: Path, plan: Mapping[str, Any]) -> None:
    """Remove cases of this generator that the plan does not hold; nothing else is ever removed."""
    (root / SUMMARY).unlink(missing_ok=True)
    for path in (root / RECORDS).glob("*.json"):
        if path.stem not in plan:
            for name in read_json(path)["files"]:
                (root / name).unlink(missing_ok=True)
            path.unlink()


def _make(root: Path, plan: Mapping[str, Any], executor: Executor) -> None:
    """Make the cases of a plan."""
    if not plan:
        return
    from flare.phantom.case import FOLDERS, generate_case
    from flare.runs.outcomes import report_failures
    from flare.runs.work import run_cases

    for name in {RECORDS, *(name for row in FOLDERS.values() for name in row if name)}:
        remove_partial(root / name)
    for case_id in plan:
        _record(root, case_id).unlink(missing_ok=True)

    log.info("making %d phantom cases", len(plan))
    jobs = {
        case_id: {
            "root": str(root),
            "case_id": case_id,
            "record": str(_record(root, case_id)),
            "spec": {**spec, "version": VERSION},
        }
        for case_id, spec in plan.items()
    }
    outcomes = run_cases(generate_case, jobs, executor=executor, description="phantom")
    report_failures([o for o in outcomes if o.error], "phantom cohort")
