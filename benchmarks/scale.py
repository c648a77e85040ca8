"""How the steps over all cases grow: seconds and memory a step, at 4,000 cases and more.

    python benchmarks/scale.py
    python benchmarks/scale.py --cases 4000 --rounds mo mo1 mo2 mt mot mot1 mot2 mot3

The cohort has the shares of FLARE23's: 55 % of its training cases annotate some classes. Its images are tiny,
and links to 20 of them. What steps do to the voxels of a case is done of one case of each kind (`Cloned`);
others get its files, and notes of their own. So all else, which is what is measured, is as in a cohort of
real scans: files, paths, journals, sidecars, tables. Each step is a process of its own.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SHAPE, SPACING_MM = (12, 20, 20), (10.0, 9.0, 9.0)  # z, y, x
# the classes that each of 20 kinds of training cases annotates: organs, some of them tumors, or nothing
ORGANS, TUMOR = tuple(range(1, 14)), 14
KINDS = [ORGANS] * 2 + [(TUMOR, 1, 2, 3)] * 7 + [(1, 2, 5)] * 2 + [()] * 9
HELD_OUT = 100  # one validation case for so many training cases
SETTINGS = [
    *("data=flare23", "name=scale", "trainer=cpu", "trainer.precision=32", "inference.precision=32"),
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.check_val_every_n_epoch=1"),
    *(f"data.spacing_mm={list(SPACING_MM)}", "data.patch_size=[8,16,16]", "data.workers=0", "tta=none"),
    "model.net.features=[4,6,8]",
    "model.net.strides=[[1,1,1],[2,2,2],[2,2,2]]",
    "model.net.encoder_kernels=[[3,3,3],[3,3,3],[3,3,3]]",
    "model.net.decoder_kernels=[[3,3,3],[3,3,3]]",
]


def make_cohort(root: Path, cases: int) -> None:
    """Write a cohort of so many training cases, links to few files, in the challenge's folders."""
    import numpy as np

    from flare.core.geometry import Geometry
    from flare.core.volumes import write_image, write_labels

    grid = Geometry(SHAPE, SPACING_MM, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    rng = np.random.default_rng(0)
    for kind, annotated in enumerate(KINDS):
        array = rng.integers(-100, 200, SHAPE).astype(np.int16)
        write_image(root / "originals" / f"{kind}_0000.nii.gz", array, grid)
        labels = np.zeros(SHAPE, np.uint8)
        for place, c in enumerate(annotated):
            labels[place % 12, 3:11, 3 + 8 * (place // 12) :][:, :8] = c
        write_labels(root / "originals" / f"{kind}.nii.gz", labels, grid)
    for number in range(cases):
        kind = number % len(KINDS)
        folder, case = "imagesTr2200" if KINDS[kind] else "unlabelTr1800", f"case_{number:06}"
        link(root / "originals" / f"{kind}_0000.nii.gz", root / folder / f"{case}_0000.nii.gz")
        if KINDS[kind]:
            link(root / "originals" / f"{kind}.nii.gz", root / "labelsTr2200" / f"{case}.nii.gz")
    for number in range(0, cases // HELD_OUT * len(KINDS), len(KINDS)):
        link(root / "originals" / "0_0000.nii.gz", root / "imagesVal" / f"held_{number:06}_0000.nii.gz")
        link(root / "originals" / "0.nii.gz", root / "labelsVal" / f"held_{number:06}.nii.gz")


def link(file: Path, name: Path) -> None:
    """Give a file a further name."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    os.link(file, name)


class Cloned:
    """An executor that does one case of each kind, in this process, and gives its files to the others."""

    workers = 0

    def __init__(self, **_: Any) -> None:
        """Take what an executor takes; none of it matters here."""

    def run(self, function: Callable[..., Any], jobs: Mapping[str, dict[str, Any]]) -> Iterator[Any]:
        """Yield one outcome a case."""
        from dataclasses import replace

        from flare.runs.work import attempt

        clone = CLONED.get(function.__name__)
        done: dict[str, tuple[dict[str, Any], Any]] = {}  # kind -> its job and outcome
        for case, job in jobs.items():
            kind = f"{case.partition('_')[0]} {int(case.rpartition('_')[2]) % len(KINDS)}"
            own = job.get("job", job)
            if clone is None or kind not in done:
                outcome = attempt(case, function, job)
                if outcome.error is None:
                    done[kind] = own, outcome
                yield outcome
            else:
                yield replace(done[kind][1], case_id=case, value=clone(case, own, *done[kind]))

    def alone(self) -> "Cloned":
        """Give one that works on one case at a time, as this one does."""
        return self

    def close(self) -> None:
        """Let go of nothing."""


def _cached(case: str, job: Mapping[str, Any], of: Mapping[str, Any], outcome: Any) -> Any:
    """Give a case what was cached of another."""
    for name, path in job["outputs"].items():
        link(of["outputs"][name], path)
    return outcome.value


def _labelled(case: str, job: Mapping[str, Any], of: Mapping[str, Any], outcome: Any) -> Any:
    """Give a case prediction, labels and sidecar of another."""
    ours, theirs = job["job"], of["job"]
    value = dict(outcome.value)
    if ours.labeller is not None:
        value["prediction"] = {**value["prediction"], "case": case}
        link(theirs.prediction, ours.prediction)
        ours.note.record(case, *ours.known, {"segmentation": ours.prediction}, value["prediction"])
    for name, path in ours.outputs.items():
        if name == "provenance":
            told = json.loads(theirs.outputs[name].read_text())
            path.write_text(json.dumps({**told, "case": case}, indent=1) + "\n")
        else:
            link(theirs.outputs[name], path)
    return value


def _predicted(case: str, job: Mapping[str, Any], of: Mapping[str, Any], outcome: Any) -> Any:
    """Give a case the segmentation of another."""
    link(of["target"], job["target"])
    return {**outcome.value, "case": case}


def _same(case: str, job: Mapping[str, Any], of: Mapping[str, Any], outcome: Any) -> Any:
    """Give a case the value of another."""
    return outcome.value


# what works on voxels, by the name of its function
CLONED = {"read_case": _cached, "label_case": _labelled, "predict_case": _predicted, "score_files": _same}


def configuration(root: Path, *overrides: str, script: str = "iterate") -> Any:
    """Compose a script's configuration; gives it and its overrides."""
    from hydra import compose, initialize_config_dir

    from flare.core.errors import CONF

    line = [*SETTINGS, f"data.root={root}", f"paths.outputs={root}/outputs", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, line), line


def list_files(root: Path, rounds: str) -> None:
    """List the files of the cohort."""
    from flare.prepare.index import build_index
    from flare.prepare.settings import PrepareSettings

    build_index(PrepareSettings.from_config(configuration(root)[0]).files)


def prepare(root: Path, rounds: str) -> None:
    """Prepare the cohort, or find it prepared."""
    from flare.prepare.cohort import prepare_cohort

    prepare_cohort(configuration(root)[0])


def analyse(root: Path, rounds: str) -> None:
    """Tell what the labels annotate, from what the journal of the cohort has counted."""
    from flare.prepare.analysis import analyse_labels, print_label_analysis, write_label_analysis
    from flare.prepare.index import build_index
    from flare.prepare.read import count_cases
    from flare.prepare.settings import PrepareSettings

    settings = PrepareSettings.from_config(configuration(root)[0])
    entries = build_index(settings.files).entries
    values, _ = count_cases(settings, entries, {})
    analysis = analyse_labels(entries, values, settings.classes)
    write_label_analysis(root / "outputs" / "analysis.csv", analysis, settings.classes)
    print_label_analysis(analysis.cases, settings.classes, analysis.table)


def plan(root: Path, rounds: str) -> None:
    """Read every header and propose what to train with."""
    from flare.prepare.cohort import read_headers
    from flare.prepare.planning import plan_cohort

    headers, _ = read_headers(configuration(root)[0])
    headers = [{"shape": (120, 512, 512), "spacing_mm": (2.5, 0.8, 0.8)} for _ in headers]
    plan_cohort(headers, outputs=15, memory_gb=16)


def iterate(root: Path, rounds: str) -> None:
    """Do all rounds."""
    from flare.cli import iterate_rounds

    iterate_rounds(*configuration(root, f"rounds={rounds}"))


def merge_tables(root: Path, rounds: str) -> None:
    """Write the tables of merged labels of the last round that has any, anew."""
    from flare.core.classes import ClassList
    from flare.merging.merge import tell_merged

    folder = max((root / "outputs" / "scale" / "rounds").glob("*/labels"), key=os.path.getmtime)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))
    tell_merged(folder, cases, ClassList.from_config(configuration(root)[0].classes))


def score_tables(root: Path, rounds: str) -> None:
    """Sum up scores and lesions of as many cases as the cohort has."""
    import numpy as np

    from flare.core.classes import ClassList
    from flare.core.files import write_csv
    from flare.evaluation.lesions import Lesion, detection
    from flare.evaluation.summary import intervals, metrics_columns, read_scores, summarise

    classes = ClassList.from_config(configuration(root)[0].classes)
    rng, columns = np.random.default_rng(0), metrics_columns(classes)
    cases = [path.name for path in (root / "labelsTr2200").iterdir()]
    rows = [
        {"Name": case, **dict(zip(columns[1:], rng.random(len(columns)), strict=False))} for case in cases
    ]
    write_csv(root / "outputs" / "metrics.csv", rows, columns)
    found = read_scores(root / "outputs" / "metrics.csv")
    summarise(found, classes)
    intervals(found, classes)
    sides = [("reference", True), ("prediction", True), ("prediction", False)]
    detection(
        {
            case: [Lesion(side, 1.0, 12.0, "Liver", hit, 0.5, float(rng.random())) for side, hit in sides]
            for case in cases
        }
    )


def report(root: Path, rounds: str) -> None:
    """Write table and report of the finished run anew."""
    for name in ("journal/report.jsonl", "report.html"):
        (root / "outputs" / "scale" / name).unlink(missing_ok=True)
    iterate(root, rounds)


# the steps, by name, in their order: a function here, or the command line of `iterate.py`
STEPS: dict[str, Callable[[Path, str], None] | list[str]] = {
    "list files": list_files,
    "dry run, nothing prepared": ["dry_run=true"],
    "dry run, nothing prepared, again": ["dry_run=true"],
    "prepare, without voxels": prepare,
    "prepare again": prepare,
    "label analysis": analyse,
    "read headers and plan": plan,
    "dry run, prepared": ["dry_run=true"],
    "dry run, prepared, again": ["dry_run=true"],
    "rounds, without voxels": iterate,
    "second start of the finished run": [],
    "dry run of the finished run": ["dry_run=true"],
    "merging tables": merge_tables,
    "score tables": score_tables,
    "tables and report": report,
}


def measure(root: Path, step: str, rounds: str) -> dict[str, float]:
    """Do a step in a process of its own; gives seconds and the peak of its memory in MB, imports included."""
    what = STEPS[step]
    if callable(what):
        command = [sys.executable, str(HERE), "--step", step, "--folder", str(root), "--rounds", rounds]
    else:
        own = [*SETTINGS, f"data.root={root}", f"paths.outputs={root}/outputs", f"rounds={rounds}", *what]
        command = [sys.executable, "-c", "from flare.cli import iterate; iterate()", *own]
    started = time.perf_counter()
    with (root / "log.txt").open("a") as log:
        log.write(f"\n{step}\n")
        log.flush()
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{step}: failed, see {root / 'log.txt'}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": used.ru_utime + used.ru_stime,
        "mb": used.ru_maxrss / 1024,
    }


def table(found: Mapping[int, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Lines of a Markdown table; growth is the exponent between the last two sizes: 1 is linear, 2 square."""
    sizes = sorted(found)
    heads = [f"{n:,}: s | CPU s | MB" for n in sizes]
    yield f"| step | {' | '.join(heads)} | growth |"
    yield "|---" * (3 * len(sizes) + 2) + "|"
    for step in found[sizes[0]]:
        there = [found[n][step] for n in sizes if step in found[n]]
        cells = [f"{f['seconds']:.1f} | {f['cpu_s']:.1f} | {f['mb']:.0f}" for f in there]
        cells += ["- | - | -"] * (len(sizes) - len(there))
        growth = "-"
        if len(there) > 1:
            (a, b), (n, m) = (f["cpu_s"] for f in there[-2:]), sizes[len(there) - 2 : len(there)]
            growth = f"{math.log(b / a) / math.log(m / n):.2f}"
        yield f"| {step} | {' | '.join(cells)} | {growth} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the cohorts, do the steps, print the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, nargs="+", default=[4000, 40000, 100000])
    parser.add_argument("--rounds", nargs="+", default=["mo", "mo1"])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), metavar="STEP")
    parser.add_argument("--folder", type=Path, default=Path("outputs/scale"))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    rounds = ",".join(given.rounds).strip("[]")
    if given.step:
        from flare.runs import work

        work.LocalExecutor = Cloned  # not by the configuration, which decides what is done again
        what = STEPS[given.step]
        assert callable(what)
        return what(given.folder, f"[{rounds}]")
    found: dict[int, dict[str, dict[str, float]]] = {}
    for n in given.cases:
        root = (given.folder / str(n)).absolute()
        if not (root / "originals").exists():
            make_cohort(root, n)
        found[n] = {}
        for step in given.steps:
            found[n][step] = measure(root, step, f"[{rounds}]")
            print(n, step, {k: round(v, 1) for k, v in found[n][step].items()}, flush=True)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
