"""The work of `merge_labels.py`: hybrid labels of a round, or of plain folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from flare.cases import read_index, select_cases
from flare.errors import FlareError
from flare.executor import Outcome, report_failures
from flare.files import sha256
from flare.images import case_id, find_images
from flare.journal import Journal
from flare.labels import LabelSet
from flare.merging.cohort import Maps, MergedCohort, merge_cohort, merge_round
from flare.merging.provenance import TABLE
from flare.merging.settings import MergeRules, PseudoSource
from flare.prepare.layout import prepared_folder
from flare.prepare.sources import annotated_by, read_label_map, read_sources
from flare.progress import console
from flare.rounds import require_teacher, teacher_checkpoint
from flare.runs import lock, run_folder

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
    """Merge the training cases of the round that `cfg.round` names."""
    if cfg.labels.source != "hybrid":
        raise FlareError(
            f"round={cfg.round.name} trains on the ground truth alone (labels.source={cfg.labels.source}): "
            "there is nothing to merge"
        )
    rules = MergeRules.from_config(cfg)
    labels = LabelSet.from_config(cfg.classes)
    run = run_folder(cfg)
    require_teacher(cfg, run)
    checkpoint = Path(str(teacher_checkpoint(cfg, run)))
    if not checkpoint.is_file():
        raise FlareError(f"round.checkpoint={checkpoint}: no such file")
    cases = select_cases(read_index(prepared_folder(cfg).index), cfg.labels.cases)
    folder = run.round(cfg.round.name)
    if not any((folder.predictions / f"{c.id}.nii.gz").is_file() for c in cases):
        raise FlareError(
            f"round={cfg.round.name}: no prediction of its {len(cases)} cases in {folder.predictions}; run "
            f"`python iterate.py rounds=[{cfg.round.name}]` with the same overrides first"
        )
    teacher = PseudoSource(cfg.round.teacher if cfg.round.checkpoint is None else None, sha256(checkpoint))
    executor = instantiate(cfg.executor)
    try:
        with lock(folder.root):
            done = merge_round(
                cases,
                folder,
                labels=labels,
                label_map=read_label_map(_plain(cfg.data.label_map), labels),
                rules=rules,
                teacher=teacher,
                executor=executor,
            )
    finally:
        executor.close()
    return folder.labels, done


def _merge_folders(cfg: DictConfig) -> tuple[Path, MergedCohort]:
    """Merge two plain folders, matched by case id, into a third."""
    rules = MergeRules.from_config(cfg)
    labels = LabelSet.from_config(cfg.classes)
    label_map = read_label_map(_plain(cfg.data.label_map), labels)
    sources = read_sources(_plain(cfg.data.sources), labels)
    output = Path(str(cfg.output)).expanduser().absolute()
    found, refused = {}, []
    for key in ("ground_truth", "pseudo"):
        root = Path(str(cfg[key])).expanduser().absolute()
        if not root.exists():
            raise FlareError(f"{key}={cfg[key]}: no such folder")
        if root == output or root in output.parents:
            raise FlareError(f"output={cfg.output}: expected a folder outside of {key}={cfg[key]}")
        found[key], twice = _by_case(root, key)
        refused += twice
    bad = {r.case_id for r in refused}
    maps = {
        case: Maps(
            ground_truth=(truth := found["ground_truth"].get(case)),
            pseudo=found["pseudo"].get(case),
            declared=annotated_by(sources, case, [truth]),
        )
        for case in sorted({*found["ground_truth"], *found["pseudo"]} - bad)
    }
    if not maps and not refused:
        raise FlareError(f"ground_truth={cfg.ground_truth} and pseudo={cfg.pseudo} hold no label map")
    executor = instantiate(cfg.executor)
    try:
        with lock(output):
            done = merge_cohort(
                maps,
                output,
                journal=Journal(output / "journal" / "merge.jsonl"),
                labels=labels,
                label_map=label_map,
                rules=rules,
                teacher=PseudoSource(),
                executor=executor,
                refused=refused,
            )
    finally:
        executor.close()
    return output, done


def _by_case(root: Path, key: str) -> tuple[dict[str, Path], list[Outcome]]:
    """Label maps below a folder by case id; two of one id are refused, both named."""
    paths: dict[str, list[Path]] = {}
    for path in find_images(root):
        paths.setdefault(case_id(path), []).append(path)
    twice = [
        Outcome(case, error=f"{key} holds several files of this id: {', '.join(map(str, several))}")
        for case, several in paths.items()
        if len(several) > 1
    ]
    return {case: several[0] for case, several in paths.items() if len(several) == 1}, twice


def _plain(value: Any) -> Any:
    """Plain values of a config node; None stays None."""
    return None if value is None else OmegaConf.to_container(value, resolve=True)
