"""The work of `merge_labels.py`: hybrid labels of a round, or of plain folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flare.core.cases import annotated_by, read_index, read_label_map, read_sources, select_cases
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.limits import check_values
from flare.core.volumes import find_images, strip_extension, unique_cases
from flare.merging.merge import Maps, MergedCohort, merge_cohort
from flare.merging.provenance import TABLE
from flare.merging.rules import MergeRules
from flare.rounds.teachers import read_teacher, require_teacher
from flare.runs.folders import lock, prepared_folder, run_folder
from flare.runs.journal import Journal
from flare.runs.outcomes import Outcome, report_failures
from flare.runs.work import build_executor, console

FOLDERS = ("ground_truth", "pseudo", "output")


def merge(cfg: DictConfig) -> dict[str, Any]:
    """Merge ground truth and pseudo labels, of a round's cases or of three plain folders.

    Args:
        cfg: Configuration of `merge_labels`: either `round`, or `ground_truth`, `pseudo` and `output`.

    Returns:
        `output` and `provenance` (paths), `merged` and `unchanged` (case ids), `summary` (Markdown).

    Raises:
        FlareError: If both or neither is given, before any work; at the end, if a case failed, naming it.
    """
    check_values(cfg)
    given = [key for key in FOLDERS if cfg[key] is not None]
    if (cfg.round.name is None) == (not given):
        what = f"given round={cfg.round.name} and {', '.join(given)}" if given else "given neither"
        raise FlareError(f"expected either round, or all of {', '.join(FOLDERS)}; {what}")
    if given and len(given) < len(FOLDERS):
        missing = ", ".join(key for key in FOLDERS if key not in given)
        raise FlareError(f"expected all of {', '.join(FOLDERS)}; missing: {missing}")
    output, done = _merge_folders(cfg) if given else _merge_round(cfg)
    console.print(done.summary, markup=False, soft_wrap=True)
    report_failures(done.failures, "merge_labels")
    return {
        "output": output,
        "provenance": output / TABLE,
        "merged": done.processed,
        "unchanged": [case for case in done.labels if case not in set(done.processed)],
        "summary": done.summary,
    }


def _merge_round(cfg: DictConfig) -> tuple[Path, MergedCohort]:
    """Label the training cases of the round that `cfg.round` names: predict what is missing, merge."""
    if cfg.labels.source != "hybrid":
        raise FlareError(
            f"round={cfg.round.name} trains on the ground truth alone (labels.source={cfg.labels.source}): "
            "there is nothing to merge"
        )
    from flare.rounds.label import label_cases  # torch: only where a teacher predicts

    rules = MergeRules.from_config(cfg)
    run = run_folder(cfg)
    require_teacher(cfg, run)
    read_teacher(cfg, run)
    cases = select_cases(read_index(prepared_folder(cfg).index), cfg.labels.cases)
    folder = run.round(cfg.round.name)
    executor = build_executor(cfg)
    try:
        with lock(folder.root):
            done = label_cases(cfg, cases, run, executor, rules)
    finally:
        executor.close()
    return folder.labels, done


def _merge_folders(cfg: DictConfig) -> tuple[Path, MergedCohort]:
    """Merge two plain folders, matched by case id, into a third."""
    rules = MergeRules.from_config(cfg)
    classes = ClassList.from_config(cfg.classes)
    label_map = read_label_map(_plain(cfg.data.label_map), classes)
    sources = read_sources(_plain(cfg.data.sources), classes)
    output = Path(str(cfg.output)).expanduser().absolute()
    paths: dict[str, list[Path]] = {}
    for key in ("ground_truth", "pseudo"):
        root = Path(str(cfg[key])).expanduser().absolute()
        if not root.exists():
            raise FlareError(f"{key}={cfg[key]}: no such folder")
        if root == output or root in output.parents:
            raise FlareError(f"output={cfg.output}: expected a folder outside of {key}={cfg[key]}")
        paths[key] = find_images(root)
    names = {key: {strip_extension(path.name) for path in of_key} for key, of_key in paths.items()}
    truths, bad_truths = unique_cases(paths["ground_truth"], known=names["pseudo"])
    pseudos, bad_pseudos = unique_cases(paths["pseudo"], known=names["ground_truth"])
    refused = {case: f"pseudo: {reason}" for case, reason in bad_pseudos.items()}
    refused |= {case: f"ground_truth: {reason}" for case, reason in bad_truths.items()}
    maps = {
        case: Maps(
            ground_truth=(truth := truths.get(case)),
            pseudo=pseudos.get(case),
            declared=annotated_by(sources, case, [truth]),
        )
        for case in sorted({*truths, *pseudos} - refused.keys())
    }
    if not maps and not refused:
        raise FlareError(f"ground_truth={cfg.ground_truth} and pseudo={cfg.pseudo} hold no label map")
    executor = build_executor(cfg)
    try:
        with lock(output):
            done = merge_cohort(
                maps,
                output,
                journal=Journal(output / "journal" / "merge.jsonl"),
                classes=classes,
                label_map=label_map,
                rules=rules,
                executor=executor,
                refused=[Outcome(case, error=reason) for case, reason in refused.items()],
            )
    finally:
        executor.close()
    return output, done


def _plain(value: Any) -> Any:
    """Plain values of a config node; None stays None."""
    return None if value is None else OmegaConf.to_container(value, resolve=True)
