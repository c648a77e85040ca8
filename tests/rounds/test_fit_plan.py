"""`python -m flare.plan`: which plan is chosen, and from the command to `infer.py`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json, sha256
from flare.core.volumes import read_image
from flare.inference.predict import infer
from flare.inference.windows import even_starts
from flare.prepare.cohort import prepare_cohort
from flare.rounds import fit_plan
from flare.rounds.fit_plan import cheapest, is_on_front, told
from tiny_round import LIVER, SHAPE, SPLEEN, configuration, write_case

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint_0_1.ckpt"
MOST = {"organ_points": 0.2, "tumor_points": 0.5}


def row(setting: str, vox: float, organ: float | None, tumor: float | None) -> dict[str, Any]:
    return {"setting": setting, "network_vox": vox, "organ_DSC": organ, "tumor_DSC": tumor}


TABLE = [
    row("dense", 100, 80.00, 50.0),
    row("dear", 120, 90.00, 60.0),
    row("good", 60, 79.85, 49.6),
    row("at both bounds", 55, 79.80, 49.5),
    row("as cheap", 55, 80.00, 50.0),
    row("organs lost", 50, 79.79, 50.0),
    row("tumor lost", 45, 80.00, 49.4),
    row("unscored", 30, 80.00, None),
]


def test_the_cheapest_within_the_bounds_is_chosen() -> None:
    assert cheapest(TABLE, MOST)["setting"] == "at both bounds"
    assert cheapest(TABLE, {**MOST, "organ_points": 0.3})["setting"] == "organs lost"
    assert cheapest(TABLE, {**MOST, "tumor_points": 1})["setting"] == "tumor lost"
    assert cheapest(TABLE, dict.fromkeys(MOST, 0))["setting"] == "as cheap"
    assert cheapest([TABLE[0], *TABLE[5:]], MOST)["setting"] == "dense"


def test_what_the_reference_does_not_score_does_not_count() -> None:
    organs = [{**each, "tumor_DSC": None} for each in TABLE]
    assert cheapest(organs, MOST)["setting"] == "unscored"
    assert cheapest(organs[:7], MOST)["setting"] == "tumor lost"


def beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    pairs = [(other["network_vox"], one["network_vox"])]
    pairs += [(one[key], other[key]) for key in ("organ_DSC", "tumor_DSC")]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(values: list[tuple[int, int, int]]) -> None:
    rows = [row("", *each) for each in values]
    for each in rows:
        assert is_on_front(each, rows) == (not any(beats(other, each) for other in rows))


# of each change: share of the voxels that it leaves, and points that it loses
EFFECTS = {
    "overlap": (0.5, 0.1), "adaptive": (0.6, 0.05), "window": (0.9, -0.3), "open_share": (0.8, 0.35),
    "tta": (4.0, -0.5), "plane_overlap": (0.95, 0.0),
}  # fmt: skip


class Known:
    """A trial whose results are typed: shares multiply, points add up."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start, self.tried = start, {"dense": {}}

    def measure(self, changes: Mapping[str, Any], name: str) -> None:
        assert name not in self.tried
        self.tried[name] = {key: value for key, value in changes.items() if key not in self.start}

    def table(self) -> list[dict[str, Any]]:
        rows = [row("dense", 100, 80, None)]
        for name, changes in list(self.tried.items())[1:]:
            effects = [EFFECTS[key] for key in changes]
            share = float(np.prod([effect[0] for effect in effects]))
            rows.append(row(name, 80 * share, 80 - sum(effect[1] for effect in effects), None))
        return rows


def test_changes_are_combined_while_that_makes_it_cheaper() -> None:
    start = {"name": "fast"}
    trial = Known(start)
    candidates = {told(c): c for c in ({}, *({key: True} for key in EFFECTS))}
    for name, changes in candidates.items():
        trial.measure({**start, **changes}, name)
    alone = len(trial.tried)
    fit_plan._combine(trial, start, candidates, MOST)
    # alone `overlap` is the cheapest allowed one. With `adaptive` 0.15 points are lost; with
    # `open_share` too many; `window` gains points, `plane_overlap` saves a little. Flips make nothing cheaper
    assert list(trial.tried)[alone:] == [
        "overlap=True adaptive=True",
        "overlap=True adaptive=True open_share=True",
        "overlap=True adaptive=True window=True",
        "overlap=True adaptive=True window=True plane_overlap=True",
    ]
    best = cheapest(trial.table(), MOST)
    assert best["setting"] == "overlap=True adaptive=True window=True plane_overlap=True"
    assert best["network_vox"] == pytest.approx(80 * 0.5 * 0.6 * 0.9 * 0.95)


# --- from the command to infer.py


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases for training and two for validation, prepared, and a checkpoint of such a training."""
    root = tmp_path_factory.mktemp("cohort")
    for seed, split in enumerate(("Tr2200", "Tr2200", "Val", "Val")):
        write_case(root, f"case{seed}", seed, split=split)
    prepare_cohort(configuration(root, root))
    shutil.copy(CHECKPOINT, root / "last.ckpt")
    return root


@pytest.fixture
def command(cohort: Path, config: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    def compose(script: str, *overrides: str) -> DictConfig:
        own = [f"data.root={cohort}", f"paths.cache={cohort / 'cache'}", f"paths.outputs={cohort / 'out'}"]
        shared = [f"checkpoint={cohort / 'last.ckpt'}", "executor.workers=0", "inference.precision=32"]
        grid = ["data=flare23", "data.spacing_mm=[3,2,2]", "inference.body.minimum_ml=1"]
        grid += ["data.scoring.protocol=present"]
        return config(script, *grid, *own, *shared, *overrides)

    return compose


CANDIDATES = "candidates=[{overlap: 0, plane_overlap: 0}, {window: [1.5, 1, 1]}, {adaptive: true}]"


@pytest.mark.slow
def test_a_plan_is_measured_stored_resumed_and_used(cohort: Path, command: Any) -> None:
    best = fit_plan.main(command("plan", CANDIDATES, "organ_points=100", "tumor_points=100"))
    folder = cohort / "last.plan"
    rows = read_csv(folder / "plan.csv")
    assert [r["setting"] for r in rows[:5]] == [
        "reference name=dense,overlap=0.5,tta=none".replace(",", " "),
        "start", "overlap=0 plane_overlap=0", "window=[1.5,1,1]", "adaptive=True",
    ]  # fmt: skip
    patch = read_plan_patch(cohort)
    windows = np.prod([len(even_starts(n, p, 0.5)) for n, p in zip(SHAPE, patch, strict=True)])
    assert (float(rows[0]["windows"]), float(rows[0]["network_vox"])) == (windows, windows * np.prod(patch))
    assert {r["cases"] for r in rows} == {"2"}
    sizes = [float(r["network_vox"]) / float(r["windows"]) for r in rows[1:5]]
    assert sizes == pytest.approx([8 * 16 * 16, 8 * 16 * 16, 12 * 16 * 16, 8 * 16 * 16])
    # everything is allowed: the fewest voxels win
    fewest = min(rows, key=lambda r: float(r["network_vox"]))
    assert [r["setting"] for r in rows if r["chosen"] == "True"] == [best["setting"]] == [fewest["setting"]]
    for r in rows:
        assert float(r["organ_DSC"]) == pytest.approx(organ_points(cohort, folder, r["setting"]), abs=0.02)
    assert (folder / "plan.png").stat().st_size > 5000
    plan = read_json(cohort / "last.plan.json")
    assert plan["checkpoint_sha256"] == sha256(cohort / "last.ckpt")
    assert plan["plan"]["row"]["setting"] == plan["plan"]["name"] == best["setting"]
    assert plan["plan_at_patch"]["settings"]["window"] is None

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("case*.nii.gz")}
    assert len(before) == 2 * len(rows)
    fit_plan.main(command("plan", CANDIDATES))
    assert {path: path.stat().st_mtime_ns for path in before} == before

    settings = read_json(cohort / "last.plan.json")["plan"]
    given = [f"input={cohort / 'imagesVal'}", f"output={cohort / 'fast'}", "inference=fast"]
    used = infer(command("infer", *given))["cases"]
    assert {r["plan"] for r in used} == {settings["name"]}
    assert sum(r["network_vox"] for r in used) == pytest.approx(2 * settings["row"]["network_vox"])
    assert {r["plan"] for r in read_csv(cohort / "fast" / "inference.csv")} == {settings["name"]}


@pytest.mark.slow
def test_a_case_that_fails_is_named_and_left_out(cohort: Path, command: Any, tmp_path: Path) -> None:
    image = cohort / "imagesVal" / "case3_0000.nii.gz"
    sound = image.read_bytes()
    image.write_bytes(sound[:200])
    one = ["candidates=[]", f"output={tmp_path}"]
    try:
        with pytest.raises(
            FlareError, match=r"^plan: 1 failed, the rest is done\n  case3: .*case3_0000\.nii\.gz"
        ):
            fit_plan.main(command("plan", *one))
    finally:
        image.write_bytes(sound)
    assert [r["cases"] for r in read_csv(tmp_path / "plan.csv")] == ["1", "1"]
    assert len(list(tmp_path.rglob("case*.nii.gz"))) == 2


def read_plan_patch(cohort: Path) -> tuple[int, ...]:
    from flare.runs.checkpoints import load_checkpoint

    return load_checkpoint(cohort / "last.ckpt").patch_size


def organ_points(cohort: Path, folder: Path, setting: str) -> float:
    """Mean DSC of liver and spleen, in points, from the files."""
    (place,) = [f for f in folder.iterdir() if f.name == fit_plan.folder_name(setting)]
    scores: dict[int, list[float]] = {LIVER: [], SPLEEN: []}
    for path in sorted((place / "predictions").glob("*.nii.gz")):
        found, truth = read_image(path).array, read_image(cohort / "labelsVal" / path.name).array
        for organ, of_organ in scores.items():
            sides = found == organ, truth == organ
            of_organ.append(2 * np.sum(sides[0] & sides[1]) / (np.sum(sides[0]) + np.sum(sides[1])))
    return 100 * float(np.mean([np.mean(each) for each in scores.values()]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("candidates=[{overlap: 1}]", r"^inference\.overlap=1: expected a fraction"),
        ("candidates=[{centre: body}]", r"^candidates=.*: expected a list, each a section of tta, name, "),
        ("candidates=[0.1]", r"^candidates=.*: expected a list, each a section of"),
        ("reference={name: quick}", r"^inference\.name=quick: expected one of"),
        ("inference.window=[1.5,1,1]", r"^reference: expected window=null"),
        ("organ_points=-1", r"^organ_points=-1: expected a number, 0 or more"),
        ("checkpoint=net.xml", r"^checkpoint=net\.xml: takes windows of one size"),
        ("checkpoint=none.ckpt", r"^checkpoint=none\.ckpt: no such file"),
        ("data.cache=nowhere", r"index\.csv does not exist: run `python prepare\.py`"),
    ],
)
def test_what_means_nothing_is_refused_before_any_work(command: Any, override: str, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        fit_plan.main(command("plan", override))
