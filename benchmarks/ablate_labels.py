"""What labels, rounds and selections are worth on the phantom, at equal iterations, over seeds.

    python benchmarks/ablate_labels.py --iterations 2400 --seeds 1 2 3 --arms mo naive partial

Each run is `iterate.py experiment=ablate_labels` in a process of its own with one thread, `--jobs` of them
side by side, and is scored on the phantom's test cases. An arm's rounds share its iterations evenly. A run
that is done is read; one that was killed resumes. Of the same trainings the averaged weights are scored as
`<arm> ema`, and the largest component of each organ alone as `<arm> largest`. Left in `--out`: the runs,
`study-<iterations>.md` and `.csv`.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_table import Detections, Runs, detection_table, tables, write_study
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from flare.core.classes import ClassList
from flare.core.errors import CONF, FlareError
from flare.core.files import read_json, write_json
from flare.evaluation.summary import only_learned, read_scores
from flare.runs.folders import RunFolder

ROOT = Path(__file__).parents[1]
EPOCH = 50  # iterations
SHARE = 0.2  # of the classes of a case, whose pseudo labels are corrupted
EIGHT = ("mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3")
THREE = ("partial", "partial1", "partial2")
EXCUSED = ("naive",)  # that it never learns an organ is what it is shown for
# how the same trainings are scored once more: a checkpoint, and overrides of inference
VARIANTS = {"ema": ("ema", ()), "largest": ("last", ("inference.components=organs",))}
log = logging.getLogger("ablate_labels")


@dataclass(frozen=True)
class Arm:
    """What is trained: the last of its rounds is scored."""

    rounds: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    targets: str = "organs_tumor"  # of its last round
    # its last round alone is trained, behind those of `ours`, on corrupted pseudo labels
    corrupted: bool = False


ARMS = {
    "mo": Arm(("mo",), targets="organs"),
    "naive": Arm(("partial",), ("loss.partial=none",)),
    "partial": Arm(("partial",)),
    "ours": Arm(THREE),
    "paper": Arm(EIGHT),
    "ours_warm": Arm(THREE, ("round.init=teacher",)),
    "paper_warm": Arm(EIGHT, ("round.init=teacher",)),
    "corrupted": Arm(THREE, corrupted=True),
    **{
        f"corrupted_{rule}": Arm(THREE, (f"select={rule}",), corrupted=True)
        for rule in ("confidence", "round_disagreement", "flip_disagreement", "flare22")
    },
}
PAIRS = (
    ("partial", "mo"),
    ("partial", "naive"),
    ("ours", "paper"),
    ("ours", "partial"),
    ("ours_warm", "paper_warm"),
    ("corrupted", "ours"),
    *((arm, "corrupted") for arm in ARMS if arm.startswith("corrupted_")),
)


@dataclass(frozen=True)
class Study:
    """Where runs lie and how long each arm trains."""

    out: Path
    iterations: int  # of all rounds of an arm together
    more: tuple[str, ...]  # further overrides of every run

    def name(self, arm: str, seed: int) -> str:
        """The name of a run."""
        return f"{arm}-{self.iterations}-{seed}"

    def epochs(self, arm: str) -> int:
        """How long each round of an arm trains."""
        epochs, rest = divmod(self.iterations, EPOCH * len(ARMS[arm].rounds))
        if rest or not epochs:
            told = f"{len(ARMS[arm].rounds)} rounds of whole epochs of {EPOCH}"
            raise FlareError(f"--iterations {self.iterations}: {arm} has {told}; expected a multiple")
        return epochs

    def command(self, arm: str, seed: int) -> list[str]:
        """What trains and scores a run."""
        own = ARMS[arm]
        rounds = own.rounds[-1:] if own.corrupted else own.rounds
        script = [str(ROOT / "iterate.py")]
        if own.corrupted:
            script = [str(ROOT / "benchmarks/corrupted.py"), own.rounds[-2], str(SHARE), str(seed)]
        length = [f"trainer.max_epochs={self.epochs(arm)}", f"trainer.limit_train_batches={EPOCH}"]
        named = [f"name={self.name(arm, seed)}", f"seed={seed}", f"rounds=[{','.join(rounds)}]"]
        return [sys.executable, *script, *self.shared, *named, *length, *own.overrides]

    @property
    def shared(self) -> list[str]:
        """Overrides of every command of the study."""
        return ["experiment=ablate_labels", f"paths.outputs={self.out}", *self.more]

    def scores(self, arm: str, seed: int) -> dict[str, Path]:
        """Scores of a run on the test cases by how it is scored; "" is as every round is."""
        folder = self.out / self.name(arm, seed)
        last = RunFolder(folder).round(ARMS[arm].rounds[-1]).root / "test" / "metrics.csv"
        return {"": last} | {name: folder / name / "metrics.csv" for name in VARIANTS}

    def is_done(self, arm: str, seed: int) -> bool:
        """Whether a run of this very command is complete."""
        noted = self.out / self.name(arm, seed) / "ablation.json"
        return noted.exists() and read_json(noted)["command"] == self.command(arm, seed)[1:]


def run_arm(study: Study, cfg: DictConfig, arm: str, seed: int) -> None:
    """Train and score one run; what is done of it is left alone."""
    if not study.is_done(arm, seed):
        train_arm(study, arm, seed)
    folder, scores = study.out / study.name(arm, seed), study.scores(arm, seed)
    checkpoints = RunFolder(folder).round(ARMS[arm].rounds[-1]).checkpoints
    tests = {key: f"{cfg.data.root}/{cfg.data[key]}" for key in ("test_images", "test_labels")}
    for name, (kind, overrides) in VARIANTS.items():
        if scores[name].exists():
            continue
        place = scores[name].parent
        segment = [
            f"checkpoint={checkpoints / kind}.ckpt",
            f"input={tests['test_images']}",
            f"output={place}",
        ]
        score = [f"predictions={place}", f"references={tests['test_labels']}"]
        score += [f"protocol={cfg.data.scoring.protocol}"]
        for script, own in (("infer", [*segment, *overrides]), ("evaluate", score)):
            command = [sys.executable, str(ROOT / f"{script}.py"), *study.shared, *own]
            call(command, folder.with_suffix(".log"))


def train_arm(study: Study, arm: str, seed: int) -> None:
    """Train the rounds of one run and score the last, or go on with them."""
    folder, started = study.out / study.name(arm, seed), time.monotonic()
    for name in VARIANTS:  # of an earlier training
        shutil.rmtree(folder / name, ignore_errors=True)
    if ARMS[arm].corrupted:
        for name in ARMS[arm].rounds[:-1]:  # its teachers, trained on pseudo labels as they are
            ours = study.out / study.name("ours", seed) / "rounds" / name
            shutil.copytree(ours, folder / "rounds" / name, symlinks=True, dirs_exist_ok=True)
    call(study.command(arm, seed), folder.with_suffix(".log"))
    seconds = round(time.monotonic() - started)
    write_json(folder / "ablation.json", {"command": study.command(arm, seed)[1:], "seconds": seconds})
    log.info("%s: %d s", folder.name, seconds)


def call(command: Sequence[str], to: Path) -> None:
    """Run a command with one thread, its messages added to a file; a failure ends the study."""
    threads = {f"{key}_NUM_THREADS": "1" for key in ("OMP", "MKL", "OPENBLAS", "BLOSC")}
    with to.open("a") as messages:
        done = subprocess.run(
            command, env={**os.environ, **threads}, stdout=messages, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise FlareError(f"{' '.join(command)}: ended with {done.returncode}, see {to}")


def read_runs(study: Study, seeds: Sequence[int], classes: ClassList) -> tuple[Runs, Detections]:
    """Scores of every run that is done, and what its tumors come to, of arms in their order.

    What else an arm's trainings are scored by follows it, as `<arm> ema`.
    """
    runs: dict[str, dict[int, Any]] = {}
    tumors: dict[str, dict[int, Any]] = {}
    for arm, own in ARMS.items():
        for seed in (s for s in seeds if study.is_done(arm, s)):
            for variant, path in study.scores(arm, seed).items():
                if not path.exists():
                    continue
                name = f"{arm} {variant}".strip()
                runs.setdefault(name, {})[seed] = only_learned(read_scores(path), classes, own.targets)
                # tests without a tumor count where the round is scored alone
                if not variant and classes.tumor in classes.outputs(own.targets):
                    found = read_json(path.with_name("summary.json"))["lesions"]
                    tumors.setdefault(name, {})[seed] = found
    return runs, tumors


def main() -> None:
    """Do what is left of the study, then write its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "outputs/ablate-labels")
    parser.add_argument(
        "--iterations", type=int, default=3600, help="of each arm, all rounds together (3600)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--arms", nargs="*", choices=ARMS, default=list(ARMS), help="in this order; none: read"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--more", nargs="*", default=[], help="further overrides of every run")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    study = Study(given.out.absolute(), given.iterations, tuple(given.more))
    study.out.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", study.shared)
    for arm in given.arms:
        study.epochs(arm)
    if given.arms:
        call([sys.executable, str(ROOT / "prepare.py"), *study.shared], study.out / "prepare.log")
    with ThreadPoolExecutor(given.jobs) as pool:
        done = [pool.submit(run_arm, study, cfg, arm, seed) for arm in given.arms for seed in given.seeds]
    classes = ClassList.from_config(cfg.classes)
    runs, tumors = read_runs(study, given.seeds, classes)
    pairs = [*PAIRS, *((f"{a} largest", f"{b} largest") for a, b in PAIRS)]
    pairs += [(f"{arm} {variant}", arm) for arm in ARMS for variant in VARIANTS]
    excused = [name for name in runs if name.split()[0] in EXCUSED]
    markdown, rows = tables(runs, pairs, classes, excused)
    markdown += "\n" + detection_table(tumors)
    write_study(study.out / f"study-{study.iterations}", markdown, rows)
    print(markdown)
    for future in done:
        future.result()  # a run that failed is told after the table of those that did not


if __name__ == "__main__":
    main()
