"""The paper's Tables 2 and 3: what trainings are, how long they took and at what cost, the paper's beside."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from flare.core.files import read_csv, read_json
from flare.evaluation.published import published
from flare.evaluation.tables import write_compared
from flare.prepare.cohort import Foreseen
from flare.prepare.read import duration, estimate, size
from flare.rounds.graph import teachers_of
from flare.rounds.label import makes_labels
from flare.rounds.settings import RoundSettings
from flare.runs.folders import round_of
from flare.runs.journal import Journal

TRAININGS = (
    "Trainings. Multiply-adds (G) are of one patch, all heads, in convolutions and matrix products; with "
    "norms five more for each normalised element. Hours are training without validation; energy is "
    "hours x watts of GPUs and host, CO2 energy x the grid's (report.energy)"
)


def write_protocol(rounds: Sequence[RoundSettings], stem: Path, *, has_paper: bool) -> None:
    """Write `<stem>.csv`, a row a round and the paper's two, and the same as `.md` and `.tex`."""
    rows = [protocol_row(item) for item in rounds]
    write_compared(rows, published()["table2"] * has_paper, rows[0], stem, TRAININGS, best="")


def measured(item: RoundSettings) -> tuple[dict[str, Any], list[float]]:
    """What a round's training noted of its machine, and by epoch the seconds of a step, if it has any."""
    machine = item.folder.root / "environment.json"
    known: dict[str, Any] = read_json(machine) if machine.exists() else {}
    curve = read_csv(item.folder.training_csv, may_lack=True) if "device" in known else []
    batch = item.training.patches.batch_size * known.get("devices", 1)
    return known, [batch / float(speed) for row in curve if (speed := row["patches_per_s"])]


def protocol_row(item: RoundSettings) -> dict[str, Any]:
    """What a round's training is, and what it took; None where that is not known."""
    training, energy = item.training, item.config.report.energy
    known, steps = measured(item)
    devices, network = known.get("devices", 1), known.get("network", {})
    hours = training.trainer["limit_train_batches"] * sum(steps) / 3600 if steps else None
    watts = [energy.host_watts]
    if known.get("device") == "cuda":
        gpus = [*known["gpus"], *[""] * devices][:devices]  # what no driver tells of stays unknown
        watts += [energy.gpu_watts or (re.findall(r"([\d.]+) W", gpu) or [None])[0] for gpu in gpus]
    kwh = None if hours is None or None in watts else hours * sum(map(float, watts)) / 1000
    costs = {"hours": hours, "energy_kwh": kwh, "co2_kg": kwh and kwh * energy.grid_kg_per_kwh}
    return {
        "round": item.name,
        "model": item.config.model.name,
        "optimizer": training.optimizer["_target_"].rpartition(".")[2],
        "lr": str(training.optimizer.get("lr")),
        "batch": str(training.patches.batch_size),
        "patch": "x".join(map(str, training.patches.patch_size)),
        "epochs": str(training.trainer["max_epochs"]),
        **{key: network.get(key) for key in ("parameters_m", "multiply_adds_g", "with_norms_g")},
        **{key: None if value is None else round(value, 4) for key, value in costs.items()},
    }


def foresee(rounds: Sequence[RoundSettings], cohort: Foreseen, workers: int) -> list[str]:
    """Tell about what the cache and each round take, from its beginning, in a line each.

    Disk is by the sizes of images. Hours are by what the round has measured, or else one of `rounds` with the
    same network and patches, and by held-out cases of its teacher; none are told where nothing is measured.
    """
    images = {case.id: case.image for case in cohort.cases if case.split == "train"}
    work = partial(estimate, spacing_mm=rounds[0].prepared.spacing_mm, workers=workers, is_cached=True)
    whole, todo = work(images.values()), work([images[case] for case in cohort.pending if case in images])
    told = f"{todo.cases} to read, about {duration(todo.seconds)}" if todo.cases else "all are read"
    lines = [f"cache: about {size(whole.disk_bytes)} for {whole.cases} training cases, {told}"]
    noted = {item.name: measured(item) for item in rounds}
    for item in rounds:
        own, chosen = item.training, item.train_cases(cohort.cases)
        alike = [r for r in rounds if (r.training.net, r.training.patches) == (own.net, own.patches)]
        by = next((r.name for r in (item, *alike) if noted[r.name][1]), None)
        told = "training not measured"
        if by is not None:
            known, steps = noted[by]
            time = duration(own.trainer["max_epochs"] * own.trainer["limit_train_batches"] * fmean(steps))
            told = f"training {time} on {known['devices']} x {known['device']} (measured in {by})"
        if makes_labels(item):
            told += f", labels about {size(whole.label_bytes * len(chosen) / max(whole.cases, 1))}"
        for teacher in teachers_of(item)[:1] if item.is_hybrid else ():
            journal = Journal(round_of(teacher.checkpoint).journal("predict-validation"))
            seconds = [journal.values(case)["seconds"] for case in journal.cases()]
            time = duration(len(chosen) * fmean(seconds)) if seconds else "not measured"
            told += f", {len(chosen)} predictions one at a time {time}"
        lines.append(f"round {item.name}: {told}")
    return lines
