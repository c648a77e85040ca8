"""A run's folder as two rounds would leave it, with invented predictions and without a training."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from flare.cli import CONF
from flare.core.cases import Case, select_cases
from flare.core.classes import ClassList
from flare.core.files import write_csv
from flare.core.volumes import read_image, read_labels, write_labels
from flare.evaluation.tables import AblationRow, table5
from flare.merging.merge import merge_maps, merged_files, tell_merged, write_merged
from flare.merging.settings import PseudoSource
from flare.prepare.cohort import Cohort, prepare_cohort
from flare.report.facts import ReportSettings
from flare.rounds.graph import compose_rounds, plan_rounds
from flare.rounds.protocol import write_protocol
from flare.rounds.score import Results, Trained, held_out, score_split
from flare.rounds.settings import RoundSettings
from flare.runs.folders import RoundFolder, RunFolder, record_environment, run_folder
from flare.runs.journal import Journal
from flare.runs.work import LocalExecutor
from tiny_round import TINY, write_case

SECONDS = {
    "read_s": 0.1,
    "preprocess_s": 0.1,
    "plan_s": 0.1,
    "network_s": 1.5,
    "restore_s": 0.1,
    "write_s": 0.1,
}


@dataclass
class Made:
    """What `write_report` takes."""

    cfg: DictConfig
    rounds: list[RoundSettings]
    cohort: Cohort
    run: RunFolder
    results: Results

    def arguments(self) -> tuple[Any, ...]:
        trained = Trained(self.rounds, self.cohort, self.run, LocalExecutor(workers=0, retries=0))
        return ReportSettings.from_config(self.cfg), trained, self.results


def make_run(root: Path, names: tuple[str, ...] = ("mot", "mot1"), held_out_cases: int = 1) -> Made:
    """Three training cases with their truth; every round predicts the truth moved by one voxel."""
    for seed in range(3):
        write_case(root, f"case{seed}", seed)
    for seed in range(held_out_cases):
        write_case(root, f"held_out{seed}", 9 + seed, split="Val")
    shutil.copytree(root / "labelsTr2200", root / "truth")
    overrides = [*TINY, f"data.root={root}", f"paths.outputs={root / 'out'}", f"paths.cache={root / 'cache'}"]
    overrides += ["name=made", "data.scoring.protocol=present"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("iterate", overrides)
    cohort, rounds, run = prepare_cohort(cfg), compose_rounds(names, overrides), run_folder(cfg)
    record_environment(run.root, cfg)
    write_csv(run.root / "plan.csv", plan_rounds(rounds, cohort.cases))
    rows = [_leave_round(item, cohort.cases, run.round(item.name)) for item in rounds]
    write_protocol(rounds, run.root / "table2", has_paper=True)
    if held_out_cases:
        rows.append(AblationRow("atlas", None, rows[-1].summary))
    else:
        rows = []
    table = table5(rows, ClassList.from_config(cfg.classes), run.root / "table5") if rows else []
    return Made(cfg, rounds, cohort, run, Results(table, [], held_out_cases))


def _leave_round(item: RoundSettings, cases: list[Case], folder: RoundFolder) -> AblationRow:
    chosen = select_cases(cases, item.labels.cases)
    for case in chosen:
        _predict(case, folder.predictions)
    if item.is_hybrid:
        _merge(item, chosen, folder)
    curve = [
        {"epoch": n, "train/loss": 1 - n / 4, "val/dsc_mean": n / 4, "patches_per_s": 5.0} for n in range(3)
    ]
    write_csv(folder.training_csv, curve)
    scored = held_out(cases, "validation")
    journal = Journal(folder.journal("predict-validation"))
    for case in scored:
        path = _predict(case, folder.root / "validation" / "predictions")
        values = {"case": case.id, "windows": 4, "seconds": 2.0, **SECONDS}
        journal.record(case.id, {}, {}, {"segmentation": path}, values)
    executor = LocalExecutor(workers=0, retries=0)
    summary, _ = score_split(item, scored, folder.root / "validation", executor)
    return AblationRow(str(item.name), len(chosen), summary, item.labels.targets)


def _merge(item: RoundSettings, cases: list[Case], folder: RoundFolder) -> None:
    """Merge the predictions of a round as it would."""
    merge = item.labels.merge
    for case in cases:
        assert case.label is not None
        pseudo = read_labels(folder.predictions / f"{case.id}.nii.gz", merge.classes)
        source = PseudoSource(item.teacher_of(case), "0" * 64)
        truth = read_labels(case.label, merge.classes)
        made = merge_maps(case.id, truth, pseudo, merge, declared=case.annotated, source=source)
        write_merged(merged_files(folder.labels, case.id), *made, merge.classes)
    tell_merged(folder.labels, [case.id for case in cases], merge.classes)


def _predict(case: Case, folder: Path) -> Path:
    """The annotation moved by one voxel along Y."""
    assert case.label is not None
    volume = read_image(case.label)
    path = folder / f"{case.id}.nii.gz"
    write_labels(path, np.roll(volume.array, 1, axis=1), volume.geometry)
    return path
