"""File to file: what a case costs by `infer.py` and by nnU-Net v2's command, on one network and real CT.

    make bench-infer

All commands take turns, each from a cold start to the written labels, and each row is compared with the peer
of the same turn. The peer runs at its defaults but for mirroring: nnUNetv2_predict_from_modelfolder
--disable_tta. CPU seconds are those of all processes of a command and hardly depend on what else the machine
does. Memory is the largest sum of the resident memory of these processes, looked at every 0.1 s. With
`--folder F --images` the network is written and nothing run: `python -m flare.plan checkpoint=F/ours.ckpt`
then fits the plan that `fast` predicts with.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from flare.core.heap import SETTINGS

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("FLARE_DATA", ROOT.parent / "shared" / "data"))
SPACING, PATCH = (4.0, 1.2, 1.2), (32, 128, 192)
INTENSITY = {"lower": -900.0, "upper": 300.0, "mean": 20.0, "std": 150.0}
PEER, KEPT = "nnU-Net v2", "nnU-Net v2, heap kept"
AS_PEER = ("inference.average=logits", "restore=nnunet")
# what a row adds to `infer.py ... tta=none`
OURS = {
    "dense, float32, torch": ("inference=dense", "inference.precision=32", *AS_PEER),
    "dense, float32, OpenVINO": ("inference=dense", "inference.precision=32", "engine=openvino", *AS_PEER),
    "fast, float32, OpenVINO": ("inference=fast", "inference.precision=32", "engine=openvino"),
    "dense, bfloat16, OpenVINO": ("inference=dense", "inference.precision=bf16", "engine=openvino", *AS_PEER),
    "fast, bfloat16, OpenVINO": ("inference=fast", "inference.precision=bf16", "engine=openvino"),
}
# nnU-Net's own plans: linear in plane, nearest slice
EXPORT = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
# glibc's memory settings that `infer.py` sets for itself, see docs/benchmarks.md
HEAP = {name: str(value) for name, (_, _, value) in SETTINGS.items()}
Row = dict[str, Any]


def main() -> None:
    """Let all commands take turns on each scan and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    scans = [DATA / "torso_512" / "torso_0000.nii.gz", DATA / "crlm" / "crlm_1004_0000.nii.gz"]
    parser.add_argument("--images", type=Path, nargs="*", default=scans)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="medium")
    parser.add_argument("--weights", type=Path, help="checkpoint of ours with the weights; default: random")
    told = "where both forms of the network and all segmentations go; a network that is there is taken"
    parser.add_argument("--folder", type=Path, help=f"{told}; default: a temporary one")
    parser.add_argument("--rows", nargs="+", default=[PEER, KEPT, *OURS], choices=[PEER, KEPT, *OURS])
    parser.add_argument("--csv", type=Path, help="every run goes here as it ends")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "model" / "plans.json").exists():
            write_network(chosen.model, chosen.weights, folder)
        for image in chosen.images:
            place = folder / image.name.removesuffix(".nii.gz")
            (place / "in").mkdir(parents=True, exist_ok=True)
            link = place / "in" / "case_0000.nii.gz"
            link.unlink(missing_ok=True)
            link.symlink_to(image.resolve())
            found = take_turns(chosen, folder, place)
            print(f"\n{image.name}\n\n{table(found)}", flush=True)


def take_turns(chosen: argparse.Namespace, folder: Path, place: Path) -> dict[str, list[Row]]:
    """Run every row once a turn, in alternating order."""
    found: dict[str, list[Row]] = {name: [] for name in chosen.rows}
    for turn in range(chosen.turns):
        for name in chosen.rows if turn % 2 == 0 else reversed(chosen.rows):
            output = place / f"{turn}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
            shutil.rmtree(output, ignore_errors=True)  # a finished case would be recognised
            row = {"image": place.name, "turn": turn + 1, "row": name, **run(name, folder, place, output)}
            found[name].append(row | {"labels": str(output / "case.nii.gz")})
            print(row, file=sys.stderr, flush=True)
            if chosen.csv:
                is_new = not chosen.csv.exists()
                with chosen.csv.open("a", newline="") as stream:
                    writer = csv.DictWriter(stream, row)
                    if is_new:
                        writer.writeheader()
                    writer.writerow(row)
    return found


def run(name: str, folder: Path, place: Path, output: Path) -> Row:
    """Run one command to its end; give seconds, CPU seconds and the largest memory of its processes."""
    environment = dict(os.environ)
    if name in OURS:
        files = [f"checkpoint={folder / 'ours.ckpt'}", f"input={place / 'in'}", f"output={output}"]
        where = [f"hydra.run.dir={place / 'hydra'}", "tta=none"]
        command = [sys.executable, str(ROOT / "infer.py"), *files, *where, *OURS[name]]
    else:
        command = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder"))]
        command += ["-i", str(place / "in"), "-o", str(output), "-m", str(folder / "model"), "-f", "0"]
        command += ["--disable_tta", "-device", "cpu", "--disable_progress_bar"]
        environment |= HEAP if name == KEPT else {}
        environment |= dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), str(folder))
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak: list[float] = [0.0]
    watch = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watch.start()
    _, said = process.communicate()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    watch.join()
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{said.decode()[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {"s": round(seconds, 1), "cpu_s": round(cpu_s, 1), "peak_mb": round(peak[0])}
    told = output / "inference.csv"
    if told.exists():
        (own,) = csv.DictReader(told.open())
        row["windows"], row["network_s"] = int(own["windows"]), float(own["network_s"])
    return {"windows": None, "network_s": None} | row


def _watch(pid: int, peak: list[float]) -> None:
    """Keep the largest sum of the resident memory of a process and those below it, in MB."""
    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total / 2**20)
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return


def table(found: dict[str, list[Row]]) -> str:
    """Medians of the rows, and medians over the turns of the ratios to the peer of the same turn."""
    peer = PEER if PEER in found else KEPT
    head = ["command", "windows", "s", "times as fast", "CPU s", "by CPU s", "network, share of s", "peak MB"]
    head += ["foreground as the peer's %", "its mean Dice %"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, runs in found.items():
        cells = [name, runs[0]["windows"] or ""]
        for key in ("s", "cpu_s"):
            ratios = [a[key] / b[key] for a, b in zip(found.get(peer, runs), runs, strict=True)]
            cells += [f"{statistics.median(r[key] for r in runs):.0f}", f"{statistics.median(ratios):.2f}"]
        shares = [r["network_s"] / r["s"] for r in runs if r["network_s"] is not None]
        cells += [f"{100 * statistics.median(shares):.0f} %" if shares else ""]
        cells += [f"{statistics.median(r['peak_mb'] for r in runs):.0f}"]
        cells += agreement(found[peer][0]["labels"], runs[0]["labels"]) if name != peer else ["", ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def agreement(peer: str, ours: str) -> list[str]:
    """Of the voxels that either calls foreground the share with equal labels; the mean Dice over classes."""
    import nibabel
    import numpy as np

    a, b = (np.asarray(nibabel.load(path).dataobj) for path in (peer, ours))
    foreground = (a != 0) | (b != 0)
    if not foreground.any():
        return ["no foreground", ""]
    classes = np.union1d(a[foreground], b[foreground])
    dice = [2 * np.sum((a == c) & (b == c)) / (np.sum(a == c) + np.sum(b == c)) for c in classes if c]
    return [f"{100 * np.mean(a[foreground] == b[foreground]):.2f}", f"{100 * np.mean(dice):.2f}"]


def write_network(model: str, weights: Path | None, folder: Path) -> None:
    """Write a network as a checkpoint of ours and as a model folder of nnU-Net v2."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from flare.cli import CONF
    from flare.convert.foreign import ConvertSettings, write_checkpoint
    from flare.convert.layout import Foreign
    from flare.convert.nnunet import export_folder
    from flare.core.classes import ClassList
    from flare.runs.checkpoints import load_checkpoint

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model={model}"])
    torch.manual_seed(0)
    trained = load_checkpoint(weights) if weights else None
    state = trained.state_dict if trained else instantiate(cfg.model.net).state_dict()
    intensity = trained.intensity if trained else INTENSITY
    values = {"spacing_mm": list(SPACING), "patch_size": list(PATCH), "intensity": intensity}
    values |= {"mirror_axes": [0, 1, 2], "interpolation": "nnunet"}
    path = folder / "ours.ckpt"
    write_checkpoint(
        Foreign(dict(state), {}, values),
        path,
        ConvertSettings(ClassList.from_config(cfg.classes), "organs_tumor"),
    )
    export_folder(path, folder / "model", fold=0)
    plans = folder / "model" / "plans.json"
    content = json.loads(plans.read_text())
    for configuration in content["configurations"].values():
        configuration["resampling_fn_probabilities"] = "resample_data_or_seg_to_shape"
        configuration["resampling_fn_probabilities_kwargs"] = EXPORT
    plans.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
