"""What is already done: one append-only journal a step, so that a killed run resumes where it stopped."""

import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flare.core.class_files import CLASSES
from flare.core.errors import FlareError, some, without_secrets
from flare.core.files import BLOCK, config_hash, is_whole, sha256, stat_key, told_if_full
from flare.runs.changes import NEW, cases_told, joined, members_told, settings_told
from flare.runs.door import where
from flare.runs.work import Executor, Job, Outcome, around, run_cases

log = logging.getLogger(__name__)
Inputs = Mapping[str, "Path | str"]
Noted = dict[str, dict[str, Any]]
GUARDED = (".nii.gz", ".json")  # what people make or correct as well; what lies in a store is ours alone
NAMED = 5  # files that a message names


def _keys(inputs: Inputs) -> dict[str, Any]:
    """A file that a user may touch counts by size and time, an own output by its hash."""
    return {k: stat_key(v) if isinstance(v, Path) else v for k, v in inputs.items()}


@lru_cache(maxsize=2)  # every round asks for the cohort's, and each of its steps for the round's
def _read(path: Path, size: int, written: int) -> tuple[Noted, Noted]:
    """The entries of a journal by case, and its whole configs by digest; a file is known by its state."""
    entries: Noted = {}
    configs: Noted = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            entries[entry["case"]] = entry
            if "whole_config" in entry:
                configs[entry["config"]] = entry.pop("whole_config")
    return entries, configs


class Journal:
    """Which cases of one step are done, from what and with which config.

    One JSON line a case in `path`, the last line of a case wins; a truncated last line (a killed process)
    is ignored. Recorded are the inputs (a `Path`: size and time; a `str`: the hash of an output of ours),
    a digest of the config, the outputs with their hash, size and time, and free values. The first line of a
    config holds it whole, so that it can be told later what has changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._entries: Noted = {}
        self._configs: Noted = {}
        if self.path.exists():
            size, written = stat_key(self.path)
            read = _read if size > BLOCK else _read.__wrapped__  # a small one would push out a large one
            self._entries, self._configs = map(dict, read(self.path, size, written))

    def is_current(self, case_id: str, inputs: Inputs, config: Mapping[str, Any] | None) -> bool:
        """Whether the case was done from exactly these inputs (and config), and its outputs still stand."""
        return not self.why(case_id, inputs, config)

    def why(self, case_id: str, inputs: Inputs, config: Mapping[str, Any] | None) -> str:
        """Say why a case must be done: what differs from what is noted; empty if nothing does."""
        entry = self._entries.get(case_id)
        if entry is None:
            return NEW
        told: list[str] = []
        if config is not None and entry["config"] != config_hash(config):
            before = self.config(case_id)
            changed = [] if before is None else settings_told(before, without_secrets(config))
            told += changed or ["the settings changed"]
        now: dict[str, Any] = dict.fromkeys(inputs)
        for name, given in inputs.items():
            with suppress(OSError):
                now |= _keys({name: given})
        told += members_told(entry["inputs"], now)
        if not told:
            left = [name for name, output in entry["outputs"].items() if not self._stands(output)]
            told += [f"what it left is gone or was changed: {', '.join(left)}"] if left else []
        return joined(told)

    def _stands(self, output: Mapping[str, Any]) -> bool:
        """Whether an output is as it was recorded."""
        try:
            return stat_key(os.path.join(self.path.parent, output["path"])) == output["stat"]
        except OSError:
            return False

    def record(
        self,
        case_id: str,
        inputs: Inputs,
        config: Mapping[str, Any],
        outputs: Mapping[str, Path],
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Note that the case is done. Call after its outputs have their final names."""
        entry: dict[str, Any] = {
            "case": case_id,
            "config": config_hash(config),
            "inputs": _keys(inputs),
            "outputs": {},
            "values": dict(values or {}),
        }
        for name, path in outputs.items():
            relative = os.path.relpath(path, self.path.parent)  # so that a run's folder can be moved
            entry["outputs"][name] = {"path": relative, "stat": stat_key(path), "sha256": sha256(path)}
        self._entries[case_id] = entry
        if entry["config"] not in self._configs:
            self._configs[entry["config"]] = without_secrets(json.loads(json.dumps(config, default=str)))
            entry = {**entry, "whole_config": self._configs[entry["config"]]}
        with told_if_full(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as stream:
                line = json.dumps(entry) + "\n"
                if stream.tell():
                    stream.seek(-1, os.SEEK_END)
                    # a process killed in mid-line leaves no newline: ours must not be glued to its half line
                    line = line if stream.read() == b"\n" else f"\n{line}"
                stream.write(line.encode())
        self.mark(case_id).unlink(missing_ok=True)

    def mark(self, case_id: str) -> Path:
        """A file that is there while a case is worked on, and once that was killed: what it left is ours."""
        return self.path.with_name(f".{self.path.stem}-{config_hash(case_id)}.begun")

    def is_foreign(self, case_id: str, path: Path) -> bool:
        """Whether somebody else made, or changed, what lies under the name of an output.

        What this journal noted is ours, also copied; so is what a killed process left, and what is damaged.
        """
        if not path.exists() or self.mark(case_id).exists():
            return False
        name = os.path.relpath(path, self.path.parent)
        for noted in self._entries.get(case_id, {"outputs": {}})["outputs"].values():
            if noted["path"] == name:
                is_same = stat_key(path) == noted["stat"] or sha256(path) == noted["sha256"]
                return not is_same and is_whole(path)
        return True

    def __contains__(self, case_id: str) -> bool:
        return case_id in self._entries

    def cases(self) -> set[str]:
        """Every case that was ever noted."""
        return set(self._entries)

    def config(self, case_id: str) -> dict[str, Any] | None:
        """The config that a case was done with; None where a version that did not keep it has noted it."""
        return self._configs.get(self._entries[case_id]["config"])

    def values(self, case_id: str) -> dict[str, Any]:
        """The values recorded with a case."""
        return self._entries[case_id]["values"]

    def output_hash(self, case_id: str, name: str) -> str:
        """SHA-256 of a recorded output."""
        return self._entries[case_id]["outputs"][name]["sha256"]


def touch(mark: Path) -> None:
    """Make an empty file, and its folder."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def require_own(journal: Journal, outputs: Mapping[str, Mapping[str, Path]]) -> None:
    """Refuse to overwrite what somebody else made or changed: segmentations and sidecars, by case id."""
    # a case with the class list's name is refused alone, where its sidecar would be written
    paths = [(c, p) for c, files in outputs.items() for p in files.values() if p.name != CLASSES]
    refuse_foreign([p for case, p in paths if p.name.endswith(GUARDED) and journal.is_foreign(case, p)])


def refuse_foreign(paths: Sequence[Path]) -> None:
    """Refuse to overwrite files, if there are any."""
    if paths:
        named = some([path.name for path in paths], NAMED)
        raise FlareError(
            f"{paths[0].parent}: holds {len(paths)} files that this step did not make, or that were changed "
            f"since: {named}. None is overwritten: choose another folder (output=, name=), or move them away"
        )


def _marked(function: Callable[..., Any], mark: Path, job: Job) -> Any:
    """Make a file, see `Journal.mark`, and do the work of a case."""
    touch(mark)
    return function(**job)


@dataclass(frozen=True)
class Resumed:
    """What a step came to."""

    values: dict[str, dict[str, Any]]  # case id -> what the function returned, now or earlier
    processed: list[str]  # cases that were done in this call; the others were unchanged
    failures: list[Outcome]


def tell_again(step: str, why: str) -> None:
    """Say in the log that a step is done again, and why, unless there is no reason."""
    if why:
        place = where()
        log.info("%s again: %s", f"{place}: {step}" if place else step, why)


def resume_cases(
    function: Callable[..., Mapping[str, Any] | None],
    jobs: Mapping[str, Job],
    *,
    inputs: Mapping[str, Inputs],
    config: Mapping[str, Any] | Callable[[str], Mapping[str, Any]],
    outputs: Callable[[str], Mapping[str, Path]],
    journal: Journal,
    executor: Executor,
    description: str,
    again: Mapping[str, str] | None = None,
    alone: Callable[[int], bool] | None = None,
    before: Callable[[Collection[str]], None] | None = None,
) -> Resumed:
    """Do what is new or changed among a step's cases, and note each case as it is done.

    A case that its files' content refuses loses what an earlier state of them gave; a case that failed by no
    fault of its files keeps it, since that may be as good as ever. Before any work it is refused to overwrite
    a segmentation or sidecar that is not ours.

    The `function` is importable, takes a job and returns plain values. Jobs and `inputs`, what a case is made
    from, are by case id, for every case of the step; `config` is what else decides the result, of all cases
    or by case, and `outputs` gives the files that a case leaves. Cases of `again` are done although they are
    current, with the reason. `alone` says whether so many cases are done one at a time, see `Executor.alone`.
    If there are cases to do, `before` is called once with them.
    """
    configs = {case: config(case) if callable(config) else config for case in jobs}
    again = again or {}
    why = {case: again.get(case) or journal.why(case, inputs[case], configs[case]) for case in jobs}
    todo = {case: jobs[case] for case, reason in why.items() if reason}
    require_own(journal, {case: outputs(case) for case in todo})
    tell_again(description, cases_told({case: why[case] for case in todo if case in journal}, len(jobs)))
    if todo and before is not None:
        before(todo.keys())
    failures: list[Outcome] = []
    if todo and alone is not None and alone(len(todo)):
        executor = executor.alone()
    marked = {case: {"mark": journal.mark(case), "job": job} for case, job in todo.items()}
    for outcome in run_cases(around(function, _marked), marked, executor=executor, description=description):
        case = outcome.case_id
        if outcome.error is None:
            journal.record(case, inputs[case], configs[case], outputs(case), outcome.value)
            continue
        failures.append(outcome)
        if not outcome.is_fault:
            for path in outputs(case).values() if case in journal else ():
                path.unlink(missing_ok=True)
            journal.mark(case).unlink(missing_ok=True)
    failed = {outcome.case_id for outcome in failures}
    values = {case: journal.values(case) for case in jobs if case not in failed}
    return Resumed(values, [case for case in todo if case not in failed], failures)
