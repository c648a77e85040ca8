"""Merging of cases, and of two plain folders: maps brought to one grid, merged, written with provenance."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flare.core import class_files, volumes
from flare.core.cases import Source, case_rule, read_sources, source_of
from flare.core.classes import IGNORE, ClassList
from flare.core.errors import CaseError, FlareError
from flare.core.files import read_json, remove_partial, write_csv, write_json, write_text
from flare.core.geometry import Volume
from flare.merging.maps import drawn_classes
from flare.merging.provenance import GROUND_TRUTH, SUMMARY, TABLE, provenance_row, summarise
from flare.merging.rules import merge_labels, taken_alone
from flare.merging.settings import MergeSettings, PseudoSource
from flare.runs import folders, locks
from flare.runs.journal import Journal, Resumed, require_own, resume_cases
from flare.runs.work import Executor, Outcome

Row = dict[str, Any]
FOLDERS = ("ground_truth", "pseudo", "output")


def merge_maps(
    case: str,
    truth: Volume | None,
    pseudo: Volume | None,
    settings: MergeSettings,
    *,
    declared: Collection[int] | None,
    source: PseudoSource,
    organs: np.ndarray | None = None,
) -> tuple[Volume, Row]:
    """Merge what there is of one case: both maps on the pseudo labels' grid, or the only one as it is.

    `truth` is the annotation, and `declared` are the class ids that its source declares to annotate; None if
    it does not say. `pseudo` is a prediction, made by `source`; `organs` is what an earlier organ round's
    teacher gives, on the prediction's grid. With the merged labels comes their provenance, as the sidecar has
    it. A case without a map, or with grids that differ, is refused.
    """
    classes, rules = settings.classes, settings.rules
    sources = {} if truth is None else {GROUND_TRUTH: {"kind": GROUND_TRUTH}}
    if pseudo is None:
        if truth is None:
            raise CaseError(case, "expected ground truth or pseudo labels, given neither")
        merged, grid = taken_alone(truth.array, GROUND_TRUTH, classes), truth.geometry
    else:
        sources[source.name] = source.to_config()
        annotated = None
        if truth is not None:
            truth = volumes.match_grid(truth, pseudo, case, "pseudo labels and ground truth")
            drawn = drawn_classes(truth.array)
            # an empty label file tells nothing, whatever its source declares
            annotated = drawn | set(declared or ()) if drawn else drawn
        merged = merge_labels(
            None if truth is None else truth.array,
            pseudo.array,
            rules,
            classes=classes,
            spacing_mm=pseudo.geometry.spacing_mm,
            annotated=annotated,
            teacher=source.name,
            organs=organs,
        )
        grid = pseudo.geometry
    told = {"case": case, "rules": rules.to_config(), "sources": sources, **merged.origin}
    return Volume(merged.labels, grid), told


def write_merged(outputs: Mapping[str, Path], labels: Volume, told: Row, classes: ClassList) -> None:
    """Write labels, `classes.ignore` for `IGNORE`, and sidecar; a case of the list's name is refused."""
    if outputs["provenance"].name == class_files.CLASSES:
        reason = f"its sidecar would be the folder's {class_files.CLASSES}; give the case another name"
        raise CaseError(told["case"], reason)
    array = np.where(labels.array == IGNORE, classes.ignore or IGNORE, labels.array)
    volumes.write_labels(outputs["labels"], array, labels.geometry)
    write_json(outputs["provenance"], told)


def merged_files(folder: Path, case: str) -> dict[str, Path]:
    """The files of a merged case."""
    return {"labels": folder / f"{case}.nii.gz", "provenance": folder / f"{case}.json"}


def tell_merged(folder: Path, cases: Iterable[str], classes: ClassList) -> None:
    """Write `provenance.csv` and `.md` of all cases that are merged, now or earlier, beside their labels."""
    sidecars = [read_json(merged_files(folder, case)["provenance"]) for case in cases]
    write_csv(folder / TABLE, [provenance_row(told, classes) for told in sidecars])
    write_text(folder / SUMMARY, summarise(sidecars, classes))


@dataclass(frozen=True)
class FolderSettings:
    """Two folders of label maps, searched recursively and named by a rule, that are merged into a third."""

    merge: MergeSettings
    sources: tuple[Source, ...]
    ground_truth: Path
    pseudo: Path
    output: Path
    case_id: str = "leaf"

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "FolderSettings":
        """Read what `merge_labels.py` is given; refuse a missing folder and an output within an input."""
        merge = MergeSettings.from_config(cfg, cfg)
        truth, pseudo, output = (Path(str(cfg[key])).expanduser().absolute() for key in FOLDERS)
        for key, root in zip(FOLDERS, (truth, pseudo), strict=False):
            if not root.exists():
                raise FlareError(f"{key}={cfg[key]}: no such folder")
            if root == output or root in output.parents:
                raise FlareError(f"output={cfg.output}: expected a folder outside of {key}={cfg[key]}")
        sources = read_sources(folders.plain_config(cfg.data.sources), merge.classes)
        return cls(merge, sources, truth, pseudo, output, case_rule(cfg.data.case_id))


def merge_folders(settings: FolderSettings, executor: Executor) -> Resumed:
    """Merge two plain folders, matched by case id, into a third; only what is new or changed is done again.

    Two empty folders are refused, and an output in use or with foreign files under the results' names.
    """
    output = settings.output
    rule, roots = settings.case_id, (settings.ground_truth, settings.pseudo)
    found = [volumes.find_images(root) for root in roots]
    names = [{volumes.strip_extension(path.name) for path in paths} for paths in found]
    truths, bad_truths = volumes.unique_cases(found[0], known=names[1], rule=rule, root=roots[0])
    known = names[0] | truths.keys()
    pseudos, bad_pseudos = volumes.unique_cases(found[1], known=known, rule=rule, root=roots[1])
    refused = {case: f"pseudo: {reason}" for case, reason in bad_pseudos.items()}
    refused |= {case: f"ground_truth: {reason}" for case, reason in bad_truths.items()}
    if not truths and not pseudos and not refused:
        raise FlareError(f"ground_truth={roots[0]} and pseudo={roots[1]} hold no label map")
    jobs: dict[str, Row] = {}
    for case in sorted({*truths, *pseudos} - refused.keys()):
        files = {"truth": truths.get(case), "pseudo": pseudos.get(case)}
        declared = source_of(settings.sources, case, [files["truth"]]).annotates
        own = {"settings": settings.merge, "outputs": merged_files(output, case)}
        jobs[case] = {"case": case, "declared": declared, **files, **own}
    journal = Journal(output / "journal" / "merge.jsonl")
    require_own(journal, {case: merged_files(output, case) for case in jobs})
    with locks.lock(output):
        remove_partial(output, below=True)
        for case in refused:
            for path in merged_files(output, case).values():
                if not journal.is_foreign(case, path):
                    path.unlink(missing_ok=True)
        class_files.write_classes(output, settings.merge.classes)
        done = resume_cases(
            merge_case,
            jobs,
            inputs={c: {k: job[k] for k in ("truth", "pseudo") if job[k]} for c, job in jobs.items()},
            config=lambda case: {**settings.merge.identity, "declared": jobs[case]["declared"]},
            outputs=lambda case: merged_files(output, case),
            journal=journal,
            executor=executor,
            description="merging labels",
        )
        done.failures.extend(Outcome(case, error=reason) for case, reason in refused.items())
        tell_merged(output, done.values, settings.merge.classes)
        return done


def merge_case(
    case: str,
    truth: Path | None,
    pseudo: Path | None,
    declared: Collection[int] | None,
    settings: MergeSettings,
    outputs: Mapping[str, Path],
) -> None:
    """Merge the files of a case (`merge_maps`) into labels and sidecar; if refused, write nothing."""
    classes, label_map = settings.classes, settings.label_map
    annotation = None if truth is None else volumes.read_labels(truth, classes, label_map, case)
    guess = None if pseudo is None else volumes.read_labels(pseudo, classes, case=case)
    merged = merge_maps(case, annotation, guess, settings, declared=declared, source=PseudoSource())
    write_merged(outputs, *merged, classes)
