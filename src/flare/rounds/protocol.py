"""The paper's Tables 2 and 3: what trainings are, how long they took and at what cost, the paper's beside."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flare.core.files import read_csv, read_json
from flare.evaluation.published import published
from flare.evaluation.tables import write_compared
from flare.rounds.settings import RoundSettings

TRAININGS = (
    "Trainings. Multiply-adds (G) are of one patch, all heads, in convolutions and matrix products; with "
    "norms five more for each normalised element. Hours are training without validation; energy is "
    "hours x watts of GPUs and host, CO2 energy x the grid's (report.energy)"
)


def write_protocol(rounds: Sequence[RoundSettings], stem: Path, *, has_paper: bool) -> None:
    """Write `<stem>.csv`, a row a round and the paper's two, and the same as `.md` and `.tex`."""
    rows = [protocol_row(item) for item in rounds]
    write_compared(rows, published()["table2"] * has_paper, rows[0], stem, TRAININGS, best="")


def protocol_row(item: RoundSettings) -> dict[str, Any]:
    """What a round's training is, and what it took; None where that is not known."""
    training, energy, path = item.training, item.config.report.energy, item.folder.training_csv
    machine = item.folder.root / "environment.json"
    known: dict[str, Any] = read_json(machine) if machine.exists() else {}
    curve = read_csv(path) if path.exists() else []
    devices, network = known.get("devices", 1), known.get("network", {})
    patches = training.trainer["limit_train_batches"] * training.patches.batch_size * devices
    speeds = [float(row["patches_per_s"]) for row in curve if row["patches_per_s"]]
    hours = sum(patches / speed for speed in speeds) / 3600 if speeds and "device" in known else None
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
