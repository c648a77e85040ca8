"""The labels of a round: by `merge_labels.py round=...`, from cached arrays, selected; what is done again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from flare.core.cases import Case, write_index
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json, write_json
from flare.core.geometry import Geometry
from flare.core.preprocessing import Intensity, Preprocessed
from flare.core.volumes import read_labels, write_image, write_labels
from flare.data.cache import Stored
from flare.inference.predictor import Predictor
from flare.prepare.cohort import Cohort
from flare.rounds.label import build_training_set, known_classes, merge
from flare.rounds.label_case import select
from flare.rounds.settings import RoundSettings, TrainingSet
from flare.runs.work import LocalExecutor
from tiny_round import LIVER, TINY, TUMOR, configuration, write_cohort

pytestmark = pytest.mark.slow

GRID = Geometry((3, 4, 5), (5.0, 0.8, 0.7), (10.0, -20.0, 30.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
HERE = LocalExecutor(workers=0, retries=0)


def volume(**boxes: int) -> np.ndarray:
    """Organs by column: `x0=1` puts class 1 into the first."""
    array = np.zeros(GRID.shape, dtype=np.uint8)
    for name, class_id in boxes.items():
        array[:, :, int(name[1:])] = class_id
    return array


def weights(training: TrainingSet) -> dict[str, float]:
    return {case: arrays.weight for case, arrays in training.items.items()}


def known(training: TrainingSet) -> dict[str, tuple[int, ...] | None]:
    return {case: arrays.known for case, arrays in training.items.items()}


class Copy:
    """A network that says: the class is the intensity."""

    spacing_mm, interpolation = (5.0, 0.8, 0.7), "linear"

    def predict(self, image: Preprocessed, *, components: tuple[int, ...]) -> SimpleNamespace:
        found = image.orientation.invert(image.array).astype(np.uint8)
        return SimpleNamespace(
            segmentation=found,
            windows=1,
            network_vox=1,
            body_found=True,
            uncovered_body_vox=0,
            seconds={},
            confidence=None,
        )


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Teachers copy the image; gives the round of the teacher for every case that is predicted."""
    calls: list[str] = []

    def load(checkpoint: Path, *_: Any) -> Copy:
        calls.append(checkpoint.parent.parent.name)
        return Copy()

    monkeypatch.setattr("flare.rounds.label_case.load_predictor", load)
    return calls


@pytest.fixture
def a_round(
    tmp_path: Path, config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, predicted: list[str]
) -> Callable[..., Any]:
    """A run whose round `mot2` has three training cases."""
    monkeypatch.setattr("flare.rounds.label.read_teacher", lambda _: None)
    cases = []
    for case, truth in (("full", volume(x0=1, x1=1)), ("tumor", volume(x0=14)), ("none", None)):
        label = None if truth is None else tmp_path / "truth" / f"{case}.nii.gz"
        if label is not None:
            write_labels(label, truth, GRID)
        present = () if truth is None else tuple(int(c) for c in np.unique(truth) if c)
        kind = "unlabeled" if truth is None else "tumor" if 14 in present else "partial"
        image = tmp_path / f"{case}.nii.gz"
        put_image(image, volume(x1=1, x2=1, x4=3))
        cases.append(Case(case, image, label, "train", kind, present, present))
    cases.append(Case("held_out", tmp_path / "h.nii.gz", None, "validation", "unlabeled", (), ()))
    write_index(tmp_path / "outputs" / "cache" / "phantom" / "index.csv", cases)
    run = tmp_path / "outputs" / "r"
    for teacher, content in (("mot1", b"weights"), ("mot", b"earlier")):
        (run / "rounds" / teacher / "checkpoints").mkdir(parents=True)
        (run / "rounds" / teacher / "checkpoints" / "last.ckpt").write_bytes(content)

    def start(*overrides: str) -> dict[str, Any]:
        given = ["name=r", f"paths.outputs={tmp_path / 'outputs'}", "round=mot2", "executor.workers=0"]
        given += ["data.checks.size=warn"]  # the images are of a few voxels
        return merge(config("merge_labels", *given, *overrides))

    return start


def put_image(path: Path, array: np.ndarray) -> None:
    write_image(path, array.astype(np.int16), GRID)


def test_a_round_merges_its_teachers_predictions(tmp_path: Path, a_round: Any, labels: ClassList) -> None:
    done = a_round()
    folder = tmp_path / "outputs" / "r" / "rounds" / "mot2" / "labels"
    assert done["output"] == folder
    assert sorted(done["merged"]) == ["full", "none", "tumor"]
    found = {c: read_labels(folder / f"{c}.nii.gz", labels).array for c in done["merged"]}
    np.testing.assert_array_equal(found["full"], volume(x0=1, x1=1, x4=3))
    np.testing.assert_array_equal(found["tumor"], volume(x0=14, x1=1, x2=1, x4=3))
    np.testing.assert_array_equal(found["none"], volume(x1=1, x2=1, x4=3))
    told = read_json(folder / "full.json")
    (teacher,) = (s for s in told["sources"].values() if s["kind"] == "teacher")
    assert teacher["round"] == "mot1"
    assert teacher["checkpoint_sha256"].startswith("9a129038d9a0")  # of b"weights"
    assert told["classes"]["spleen"]["source"] == "mot1@9a129038d9a0"


def test_a_round_again_finds_everything_done(tmp_path: Path, a_round: Any, predicted: list[str]) -> None:
    a_round()
    assert a_round()["merged"] == []
    put_image(tmp_path / "none.nii.gz", volume(x1=2))
    assert a_round()["merged"] == ["none"]
    (tmp_path / "outputs" / "r" / "rounds" / "mot2" / "predictions" / "full.nii.gz").unlink()
    assert a_round()["merged"] == ["full"]
    assert len(predicted) == 3 + 1 + 1
    (tmp_path / "outputs" / "r" / "rounds" / "mot1" / "checkpoints" / "last.ckpt").write_bytes(b"other")
    assert sorted(a_round()["merged"]) == ["full", "none", "tumor"]


def test_other_rules_or_ground_truth_merge_again_and_predict_nothing(
    tmp_path: Path, a_round: Any, predicted: list[str], labels: ClassList
) -> None:
    a_round()
    done = len(predicted)
    assert sorted(a_round("dilation_mm=0.5")["merged"]) == ["full", "none", "tumor"]
    write_labels(tmp_path / "truth" / "full.nii.gz", volume(x0=1), GRID)
    assert a_round("dilation_mm=0.5")["merged"] == ["full"]
    folder = tmp_path / "outputs" / "r" / "rounds" / "mot2" / "labels"
    found = read_labels(folder / "full.nii.gz", labels).array
    np.testing.assert_array_equal(found, volume(x0=1, x4=3))
    assert len(predicted) == done


def test_a_prediction_outlives_a_merge_that_fails(
    tmp_path: Path, a_round: Any, predicted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = tmp_path / "truth" / "full.nii.gz"
    kept = truth.read_bytes()
    truth.write_bytes(b"no image")
    with pytest.raises(FlareError, match=r"1 failed.*\n  full: "):
        a_round()
    folder = tmp_path / "outputs" / "r" / "rounds" / "mot2" / "labels"
    assert sorted(p.name for p in folder.glob("*.nii.gz")) == ["none.nii.gz", "tumor.nii.gz"]
    truth.write_bytes(kept)
    assert a_round()["merged"] == ["full"]
    assert len(predicted) == 3

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError("no 4 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("flare.rounds.label_case.merge_maps", fails)
        said = r"^round=mot2, labelling: 3 of 3 cases .*executor\.max_failed.* 3 x MemoryError: no 4 GiB"
        with pytest.raises(FlareError, match=said):
            a_round("rule=gt_first", "restore=nearest")
    assert len(predicted) == 6
    assert (folder / "full.nii.gz").exists()
    assert sorted(a_round("rule=gt_first", "restore=nearest")["merged"]) == ["full", "none", "tumor"]
    assert len(predicted) == 6


@pytest.mark.parametrize("place", ["predictions", "labels"])
def test_labels_corrected_by_hand_stop_a_round_before_work(
    tmp_path: Path, a_round: Any, predicted: list[str], place: str
) -> None:
    a_round()
    corrected = tmp_path / "outputs" / "r" / "rounds" / "mot2" / place / "none.nii.gz"
    write_labels(corrected, volume(x0=5), GRID)
    kept, count = corrected.read_bytes(), len(predicted)
    with pytest.raises(FlareError, match=rf"{place}: holds 1 files .*none\.nii\.gz.*None is overwritten"):
        a_round("restore=nearest")
    assert corrected.read_bytes() == kept
    assert len(predicted) == count


def test_cases_without_ground_truth_are_labelled_by_a_teacher_of_their_own(
    tmp_path: Path, a_round: Any, predicted: list[str]
) -> None:
    a_round()
    assert predicted == ["mot1"] * 3
    # of the authors: the others keep their teacher, and their labels
    assert a_round("round.unlabeled_teacher=mot")["merged"] == ["none"]
    assert predicted[3:] == ["mot"]
    rounds = tmp_path / "outputs" / "r" / "rounds"
    rows = {r["case"]: r["sources"] for r in read_csv(rounds / "mot2" / "labels" / "provenance.csv")}
    hybrid = "ground_truth + mot1@9a129038d9a0"
    assert rows == {"full": hybrid, "tumor": hybrid, "none": "mot@2a51d3547c23"}  # of b"earlier"
    (told,) = read_json(rounds / "mot2" / "labels" / "none.json")["sources"].values()
    assert told["round"] == "mot"
    assert told["checkpoint_sha256"].startswith("2a51d3547c23a8de")
    for teacher, redone in (("mot", ["none"]), ("mot1", ["full", "tumor"])):
        (rounds / teacher / "checkpoints" / "last.ckpt").write_bytes(b"anew")
        assert sorted(a_round("round.unlabeled_teacher=mot")["merged"]) == redone


def test_the_cases_of_one_teacher_follow_each_other(a_round: Any, predicted: list[str]) -> None:
    """Else a worker would load both networks over and over."""
    a_round("round.unlabeled_teacher=mot")
    assert predicted == ["mot1", "mot1", "mot"]


def test_an_image_that_is_refused_leaves_no_old_labels(tmp_path: Path, a_round: Any) -> None:
    a_round()
    folder = tmp_path / "outputs" / "r" / "rounds" / "mot2"
    (tmp_path / "none.nii.gz").write_bytes(b"no image")
    with pytest.raises(FlareError, match=r"none: "):
        a_round()
    for place in ("labels", "predictions"):
        assert sorted(p.name for p in (folder / place).glob("*.nii.gz")) == ["full.nii.gz", "tumor.nii.gz"]


def test_a_round_without_teacher_is_refused(tmp_path: Path, a_round: Any) -> None:
    with pytest.raises(FlareError, match=r"round=mot needs its teacher's checkpoint"):
        a_round("round=mot")
    with pytest.raises(
        FlareError, match=r"round\.checkpoint=nowhere: no such file|nowhere, which does not exist"
    ):
        a_round("round.checkpoint=nowhere")


def test_a_checkpoint_named_by_hand_is_named_by_its_hash(tmp_path: Path, a_round: Any) -> None:
    (tmp_path / "other.ckpt").write_bytes(b"weights")
    a_round(f"round.checkpoint={tmp_path / 'other.ckpt'}")
    told = read_json(tmp_path / "outputs" / "r" / "rounds" / "mot2" / "labels" / "full.json")
    assert told["classes"]["spleen"]["source"] == "checkpoint@9a129038d9a0"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def network(patch: torch.Tensor) -> torch.Tensor:
    """Looks different from each side, and says something everywhere."""
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(15, 1, 3, 3, 3)).astype(np.float32))
    return torch.nn.functional.conv3d(patch, weights, padding=1)


@pytest.fixture
def taught(
    cohort: Cohort, tmp_path: Path, labels: ClassList, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RoundSettings]:
    """Settings of round `mo1` on the tiny cohort; `grid` and `order` are those of its teacher's network."""

    def build(
        *overrides: str, grid: tuple[float, ...] = (3.0, 2.0, 2.0), order: str = "linear"
    ) -> RoundSettings:
        given = ["round=mo1", "model=tiny", *TINY[3:7], *overrides]
        settings = RoundSettings.from_config(configuration(cohort.folder.root.parent, tmp_path, *given))
        checkpoint = settings.run.round("mo").last
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(b"weights")
        predictor = Predictor(
            network,
            classes=labels,
            outputs=tuple(range(15)),
            spacing_mm=grid,  # type: ignore[arg-type]
            interpolation=order,
            intensity=Intensity(-100, 200, 50, 60),
            patch_size=(8, 16, 16),
            mirror_axes=(0, 1, 2),
            settings=settings.labels.inference,
        )
        monkeypatch.setattr("flare.rounds.label_case.load_predictor", lambda *_: predictor)
        return settings

    return build


def files(settings: RoundSettings) -> dict[str, np.ndarray]:
    """The voxels of everything that labelling leaves."""
    root = settings.folder.root
    maps = {p.relative_to(root).as_posix(): p for p in root.rglob("*.nii.gz")}
    found = {name: read_labels(path, settings.classes).array for name, path in maps.items()}
    return found | {p.name: Stored(p)[:] for p in root.rglob("*.b2nd")}


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the cases whose image is read from its file."""
    from flare.inference import predict

    seen: list[str] = []
    read = predict.volumes.read_scan
    monkeypatch.setattr(
        predict.volumes, "read_scan", lambda path, case: seen.append(case) or read(path, case)
    )
    return seen


def test_a_cached_case_is_labelled_from_its_array_as_from_its_file(
    taught: Any, cohort: Cohort, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = taught("name=cached", "tta=tta4")
    from_cache = build_training_set(settings, cohort.cases, HERE)
    assert read_files == []
    with monkeypatch.context() as patch:
        patch.setattr("flare.data.cache.read_preprocessed", lambda *_: None)
        other = taught("name=filed", "tta=tta4")
        from_file = build_training_set(other, cohort.cases, HERE)
    assert sorted(read_files) == ["case0", "case1", "case2"]
    one, two = files(settings), files(other)
    assert len(one) == 9
    assert one.keys() == two.keys()
    assert len(np.unique(one["predictions/case0.nii.gz"])) > 5
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert from_cache.key == from_file.key
    assert weights(from_cache) == dict.fromkeys(["case0", "case1", "case2"], 1.0)


@pytest.mark.parametrize(("grid", "order"), [((4.0, 3.0, 3.0), "linear"), ((3.0, 2.0, 2.0), "cubic")])
def test_a_teacher_of_another_grid_or_interpolation_predicts_from_the_file(
    taught: Any, cohort: Cohort, read_files: list[str], grid: tuple[float, ...], order: str
) -> None:
    settings = taught(grid=grid, order=order)
    items = build_training_set(settings, cohort.cases, HERE).items
    assert sorted(read_files) == ["case0", "case1", "case2"]
    for case, arrays in items.items():
        assert Stored(arrays.label).shape == Stored(arrays.image).shape
        shape = read_labels(settings.folder.labels / f"{case}.nii.gz", settings.classes).array.shape
        assert shape == (12, 24, 28)  # the scan's own


def test_a_stale_array_is_not_taken_for_the_image(taught: Any, cohort: Cohort, read_files: list[str]) -> None:
    settings = taught()
    case = next(c for c in cohort.cases if c.id == "case1")
    now = case.image.stat()
    try:
        os.utime(case.image, ns=(now.st_atime_ns, now.st_mtime_ns + 1_000_000_000))
        training = build_training_set(settings, cohort.cases, HERE)
        assert read_files == ["case1"]
        assert list(training.items) == ["case0", "case2"]
        assert [(f.case_id, f.is_fault) for f in training.failures] == [("case1", True)]
    finally:
        os.utime(case.image, ns=(now.st_atime_ns, now.st_mtime_ns))


def test_a_selection_of_somebody_elses_weighs_drops_and_masks(taught: Any, cohort: Cohort) -> None:
    plain = build_training_set(taught("name=all"), cohort.cases, HERE)
    chosen = "{_target_: outside_selection.Trust, weights: {case0: 0.25, case1: 0}, unsure: aorta}"
    settings = taught("name=selected", f"labels.select={chosen}")
    found = build_training_set(settings, cohort.cases, HERE)
    assert weights(found) == {"case0": 0.25, "case2": 1.0}
    assert list(found.items) == ["case0", "case2"]
    assert found.key != plain.key
    aorta = settings.classes.id_of("aorta")
    for case in ("case0", "case2"):
        whole, masked = Stored(plain.items[case][1]), Stored(found.items[case][1])
        assert (whole[:] == aorta).any()
        np.testing.assert_array_equal(masked[:], np.where(whole[:] == aorta, 255, whole[:]))
        assert set(masked.foreground_classes) == set(whole.foreground_classes) - {aorta}
        # the label file itself stays what was merged
        merged = read_labels(settings.folder.labels / f"{case}.nii.gz", settings.classes).array
        assert (merged == aorta).any()
    again = build_training_set(settings, cohort.cases, HERE)
    assert again == found


def test_another_selection_predicts_nothing_again(
    taught: Any, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_training_set(taught(), cohort.cases, HERE)
    settings = taught("labels.select={_target_: outside_selection.one_in_two, _partial_: true}")
    monkeypatch.setattr("flare.rounds.label_case.load_predictor", None)
    assert set(weights(build_training_set(settings, cohort.cases, HERE)).values()) == {0.5}


def test_ground_truth_is_selected_as_well(taught: Any, cohort: Cohort) -> None:
    chosen = "{_target_: outside_selection.Trust, weights: {case2: 0}}"
    settings = taught("labels.source=ground_truth", "labels.targets=organs_tumor", f"labels.select={chosen}")
    found = build_training_set(settings, cohort.cases, HERE)
    assert list(found.items) == ["case0", "case1"]
    for case, arrays in found.items.items():
        np.testing.assert_array_equal(Stored(arrays.label)[:], Stored(cohort.folder.labels(case))[:])
        assert Stored(arrays.label).foreground_classes == (LIVER, 3, TUMOR)
    assert not settings.folder.predictions.exists()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("{_target_: outside_selection.Absent}", r"^labels\.select: outside_selection\.Absent refuses it: "),
        ("{_target_: outside_selection.Trust}", r"^labels\.select: outside_selection\.Trust refuses it: "),
        ("{weights: {}}", r"^labels\.select: expected a section with a _target_$"),
    ],
)
def test_a_selection_that_cannot_be_built_is_refused_before_any_work(
    taught: Any, chosen: str, message: str
) -> None:
    with pytest.raises(FlareError, match=message):
        taught(f"labels.select={chosen}")


def test_what_a_selection_gives_is_checked(taught: Any, cohort: Cohort) -> None:
    given = {"_target_": "outside_selection.nonsense", "_partial_": True}
    labels = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(
        FlareError, match=r"^labels\.select: expected a weight of 0 or more, given -1\.0 for a$"
    ):
        select(given, "a", labels, {"case": "weight_1"})
    with pytest.raises(
        FlareError, match=r"^labels\.select: expected a boolean mask \(2, 3, 4\), given uint8"
    ):
        select(given, "a", labels, {"case": "mask_1"})
    everything = "{_target_: outside_selection.Trust, weights: {case0: 0, case1: 0, case2: 0}}"
    with pytest.raises(FlareError, match=r"labels\.select drops every case"):
        build_training_set(taught(f"labels.select={everything}"), cohort.cases, HERE)


def test_ground_truth_tells_what_it_annotates(taught: Any, cohort: Cohort) -> None:
    declared = [replace(c, annotated=(LIVER, 2, 3, TUMOR)) if c.id == "case1" else c for c in cohort.cases]
    given = ("labels.source=ground_truth", "labels.targets=organs_tumor")
    plain = taught(*given)
    assert known(build_training_set(plain, cohort.cases, HERE)) == dict.fromkeys(["case0", "case1", "case2"])
    # every class is known to it, whatever sources declare
    keys = {build_training_set(plain, cases, HERE).key for cases in (cohort.cases, declared)}
    assert len(keys) == 1
    partial = taught(*given, "loss.partial=marginal")
    found, other = (build_training_set(partial, cases, HERE) for cases in (cohort.cases, declared))
    assert known(found) == dict.fromkeys(["case0", "case1", "case2"], (LIVER, 3, TUMOR))
    assert known(other) == {**known(found), "case1": (LIVER, 2, 3, TUMOR)}
    assert len({found.key, other.key, *keys}) == 3


@pytest.mark.parametrize(
    ("loss", "asks"),
    [
        ("torch.nn.CrossEntropyLoss", False),
        ("outside.known_share", True),
        ("flare.models.losses.DiceCELoss", False),  # a file of before there was the key
    ],
)
def test_a_loss_of_somebody_elses_is_told_if_it_takes_what_is_known(
    taught: Any, cohort: Cohort, loss: str, asks: bool
) -> None:
    settings = taught("labels.source=ground_truth")
    own = replace(settings, training=replace(settings.training, loss={"_target_": loss}))
    cases = [case for case in cohort.cases if case.split == "train"]
    assert known_classes(own, cases) == ({c.id: c.annotated for c in cases} if asks else {})


@pytest.mark.parametrize(
    ("trust", "expected"),
    [
        ("all", {"case0": {1, 2, 3}, "case1": {2, 3}, "case2": {2, 14}}),
        ("[spleen]", {"case0": {1, 3}, "case1": {3}, "case2": {14}}),
        ("[]", {"case0": {1}, "case1": set(), "case2": {14}}),
    ],
)
def test_hybrid_labels_tell_what_truth_annotates_and_trusted_teachers_learned(
    taught: Any, cohort: Cohort, monkeypatch: pytest.MonkeyPatch, trust: str, expected: dict[str, set[int]]
) -> None:
    settings = taught("labels.targets=organs_tumor", "loss.partial=marginal", f"labels.trust_pseudo={trust}")
    organs = SimpleNamespace(outputs=(0, 1, 2, 3))  # of a teacher without tumors
    monkeypatch.setattr("flare.runs.checkpoints.load_checkpoint", lambda _: organs)
    origin = {
        "case0": {"liver": "ground_truth", "right_kidney": "mo@1", "spleen": "mo@1", "tumor": "mo@1"},
        "case1": {"liver": "none", "right_kidney": "mo@1", "spleen": "mo@1", "tumor": "none"},
        # an annotation that is taken alone names itself as the source of what it does not annotate
        "case2": {
            "liver": "ground_truth",
            "right_kidney": "mo@1",
            "spleen": "ground_truth",
            "tumor": "ground_truth",
        },
    }
    annotated = {"case0": (1,), "case1": (), "case2": (14,)}
    names = settings.classes
    for case, of in origin.items():
        entries = {c: {"id": names.id_of(c), "source": of.get(c, "none")} for c in names.names}
        write_json(settings.folder.labels / f"{case}.json", {"classes": entries})
    cases = [replace(c, annotated=annotated[c.id]) for c in cohort.cases if c.split == "train"]
    assert {case: set(ids) for case, ids in known_classes(settings, cases).items()} == expected


@pytest.mark.parametrize("given", ["none", "[lever]", "1"])
def test_trust_in_no_class_of_the_list_is_refused(taught: Any, given: str) -> None:
    with pytest.raises(FlareError, match=r"^labels\.trust_pseudo"):
        taught(f"labels.trust_pseudo={given}")
