"""Two plain folders of label maps, merged into a third."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flare.core.cases import Source, read_sources, source_of
from flare.core.errors import FlareError
from flare.core.files import remove_partial
from flare.core.volumes import find_images, read_labels, strip_extension, unique_cases
from flare.merging.merge import MergedFolder, merge_maps, merged_files, write_merged
from flare.merging.settings import MergeSettings, PseudoSource, plain
from flare.runs.folders import lock
from flare.runs.journal import Journal, resume_cases
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor

FOLDERS = ("ground_truth", "pseudo", "output")


@dataclass(frozen=True)
class FolderSettings:
    """Two plain folders of label maps, merged into a third.

    Args:
        merge: How to merge.
        sources: What sources of labels declare to annotate.
        ground_truth: Folder of annotations, searched recursively.
        pseudo: Folder of predictions, searched recursively.
        output: Where the merged labels go.
    """

    merge: MergeSettings
    sources: tuple[Source, ...]
    ground_truth: Path
    pseudo: Path
    output: Path

    @classmethod
    def from_config(cls, cfg: DictConfig) -> FolderSettings:
        """Read the configuration of `merge_labels.py`.

        Raises:
            FlareError: If a folder is not there, or the output would lie in an input.
        """
        merge = MergeSettings.from_config(cfg, cfg)
        truth, pseudo, output = (Path(str(cfg[key])).expanduser().absolute() for key in FOLDERS)
        for key, root in zip(FOLDERS, (truth, pseudo), strict=False):
            if not root.exists():
                raise FlareError(f"{key}={cfg[key]}: no such folder")
            if root == output or root in output.parents:
                raise FlareError(f"output={cfg.output}: expected a folder outside of {key}={cfg[key]}")
        return cls(merge, read_sources(plain(cfg.data.sources), merge.classes), truth, pseudo, output)


def merge_folders(settings: FolderSettings, executor: Executor) -> MergedFolder:
    """Merge two plain folders, matched by case id, into a third; only what is new or changed is done again.

    Raises:
        FlareError: If both folders are empty, or another process writes to the output.
    """
    output = settings.output
    found = [find_images(root) for root in (settings.ground_truth, settings.pseudo)]
    names = [{strip_extension(path.name) for path in paths} for paths in found]
    truths, bad_truths = unique_cases(found[0], known=names[1])
    pseudos, bad_pseudos = unique_cases(found[1], known=names[0])
    refused = {case: f"pseudo: {reason}" for case, reason in bad_pseudos.items()}
    refused |= {case: f"ground_truth: {reason}" for case, reason in bad_truths.items()}
    if not truths and not pseudos and not refused:
        raise FlareError(
            f"ground_truth={settings.ground_truth} and pseudo={settings.pseudo} hold no label map"
        )
    jobs: dict[str, dict[str, Any]] = {
        case: {
            "case": case,
            "truth": (truth := truths.get(case)),
            "pseudo": pseudos.get(case),
            "declared": source_of(settings.sources, case, [truth]).annotates,
            "settings": settings.merge,
            "outputs": merged_files(output, case),
        }
        for case in sorted({*truths, *pseudos} - refused.keys())
    }
    with lock(output):
        for case in refused:
            for path in merged_files(output, case).values():
                path.unlink(missing_ok=True)
        done = resume_cases(
            merge_case,
            jobs,
            inputs={c: {k: job[k] for k in ("truth", "pseudo") if job[k]} for c, job in jobs.items()},
            config=lambda case: {**settings.merge.identity(), "declared": jobs[case]["declared"]},
            outputs=lambda case: merged_files(output, case),
            journal=Journal(output / "journal" / "merge.jsonl"),
            executor=executor,
            description="merging labels",
            before=lambda _: remove_partial(output),
        )
        done.failures.extend(Outcome(case, error=reason) for case, reason in refused.items())
        return MergedFolder.told(output, done, settings.merge.classes)


def merge_case(
    case: str,
    truth: Path | None,
    pseudo: Path | None,
    declared: Collection[int] | None,
    settings: MergeSettings,
    outputs: Mapping[str, Path],
) -> None:
    """Merge the files of one case and write labels and sidecar.

    Args:
        case: The case id.
        truth: Annotation, if there is one.
        pseudo: Pseudo labels, if there are any.
        declared: Class ids that the annotation's source declares; None if it does not say.
        settings: How to merge.
        outputs: See `merged_files`.

    Raises:
        CaseError: If a file is bad or the grids differ; nothing is written.
    """
    annotation = None if truth is None else read_labels(truth, settings.classes, settings.label_map, case)
    guess = None if pseudo is None else read_labels(pseudo, settings.classes, None, case)
    merged = merge_maps(case, annotation, guess, settings, declared=declared, source=PseudoSource())
    write_merged(outputs, *merged)
