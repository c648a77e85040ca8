"""Rules that select pseudo labels, against brute force; what a round gives them, notes and tabulates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv, read_json
from flare.core.volumes import read_image, read_labels
from flare.data.cache import Stored
from flare.inference.predictor import Predictor
from flare.inference.settings import InferenceSettings
from flare.merging.merge import merge_maps
from flare.prepare.cohort import Cohort
from flare.report.agreement import kept_labels
from flare.rounds.label import build_training_set
from flare.rounds.selection import Flare22, Judged, fit
from flare.rounds.settings import RoundSettings
from flare.rounds.views import dropped_cases
from flare.runs.folders import round_of
from flare.runs.work import LocalExecutor
from small_predictor import predictor
from tiny_round import LIVER, SPLEEN, TINY, configuration, write_cohort

RULES = ("confidence", "round_disagreement", "flip_disagreement")
GIVEN = {"confidence": "confidence", "round_disagreement": "previous", "flip_disagreement": "unflipped"}
SHAPE = (2, 3, 4)
# class id -> source: organ 1 is the annotation's, 2 the teacher's, 3 is no target, the tumor the teacher's
SOURCES = {1: "ground_truth", 2: "mo@1", 3: "none", 9: "mo@1"}


def judged(by: str, action: str, **changes: Any) -> Judged:
    return Judged(**{"by": by, "action": action, "right": 0.9, "least": 0.5, "threshold": None, **changes})


def provenance(sources: dict[int, str]) -> dict[str, Any]:
    names = {"ground_truth": {}} if "ground_truth" in sources.values() else {}
    classes = {f"class {c}": {"id": c, "source": s} for c, s in sources.items()}
    return {"sources": {**names, "mo@1": {}}, "classes": classes}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = [0, 0, 1, 2, 3, 9]
    pseudo = rng.choice(ids, SHAPE).astype(np.uint8)
    changed = rng.random(SHAPE) < 0.4
    return {
        "pseudo": pseudo,
        "labels": np.where(rng.random(SHAPE) < 0.2, rng.choice(ids, SHAPE), pseudo).astype(np.uint8),
        "other": np.where(changed, rng.choice(ids, SHAPE), pseudo).astype(np.uint8),
        "confidence": rng.integers(0, 256, SHAPE).astype(np.uint8),
        "thresholds": {str(c): int(rng.integers(0, 257)) for c in (0, 1, 2, 9) if rng.random() < 0.8},
        "sources": SOURCES if draw(st.booleans()) else dict.fromkeys((1, 2, 3, 9), "mo@1"),
        "by": draw(st.sampled_from(RULES)),
    }


def ask(rule: Judged, case: dict[str, Any]) -> tuple[float, np.ndarray | None]:
    other = case["confidence" if case["by"] == "confidence" else "other"]
    evidence = {"pseudo": case["pseudo"], GIVEN[case["by"]]: other, "thresholds": case["thresholds"]}
    assert set(rule.needs) == set(evidence)
    return rule("a", case["labels"], provenance(case["sources"]), **evidence)


def is_pseudo(case: dict[str, Any], v: tuple[int, ...]) -> bool:
    """The label is the teacher's own, and its class was not taken from elsewhere."""
    c = int(case["labels"][v])
    return c == case["pseudo"][v] and (c == 0 or case["sources"][c] == "mo@1")


def score(case: dict[str, Any], v: tuple[int, ...]) -> int:
    if case["by"] == "confidence":
        return int(case["confidence"][v])
    return 255 if case["pseudo"][v] == case["other"][v] else 0


def score_of_class(case: dict[str, Any], c: int) -> float:
    own = [v for v in np.ndindex(*SHAPE) if case["pseudo"][v] == c]
    if case["by"] == "confidence":
        return sum(score(case, v) for v in own) / len(own)
    both = sum(case["other"][v] == c for v in own)
    return 255 * 2 * both / (len(own) + int((case["other"] == c).sum()))


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_voxels_below_their_class_threshold_are_masked_where_they_are_the_teachers(case: Any) -> None:
    weight, mask = ask(judged(case["by"], "ignore"), case)
    assert weight == 1
    for v in np.ndindex(*SHAPE):
        limit = case["thresholds"].get(str(case["labels"][v]), 0)
        assert mask[v] == (is_pseudo(case, v) and score(case, v) < limit)


@settings(max_examples=150, deadline=None)
@given(case=cases(), action=st.sampled_from(["weight", "drop"]), least=st.sampled_from([0.0, 0.5, 0.7]))
def test_cases_are_judged_by_their_classes_and_ground_truth_never_dropped(
    case: Any, action: str, least: float
) -> None:
    weight, mask = ask(judged(case["by"], action, least=least), case)
    limits = case["thresholds"]
    own = [v for v in np.ndindex(*SHAPE) if is_pseudo(case, v)]
    present = {int(case["labels"][v]) for v in own}
    failed = {c for c in present if round(score_of_class(case, c)) < limits.get(str(c), 0)}
    if case["sources"] is SOURCES:
        assert weight == 1
        assert {v for v in np.ndindex(*SHAPE) if mask[v]} == {v for v in own if case["labels"][v] in failed}
        return
    assert mask is None
    share = 1 - len(failed - {0}) / max(len(present - {0}), 1)
    assert weight == (pytest.approx(share) if action == "weight" else float(share >= least))


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 9), st.integers(0, 9)), max_size=8),
    right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
)
def test_a_fitted_threshold_parts_labels_that_are_right_often_enough(counts: Any, right: float) -> None:
    entries = [[5, s, n, min(good, n)] for s, n, good in counts]
    found = fit([entries[::2], entries[1::2]], right)
    if not entries:
        assert found == {}
        return
    threshold = found[5]

    def gain(low: int, high: int) -> float:
        return sum(good - right * n for _, s, n, good in entries if low <= s < high)

    best = max(gain(t, 256) for t in range(257))
    assert threshold == min(t for t in range(257) if gain(t, 256) > best - 1e-6)
    # what the docstring says of it
    assert all(gain(low, threshold) < 1e-6 for low in range(threshold))
    assert all(gain(threshold, high) > -1e-6 for high in range(threshold, 257))


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_what_is_counted_for_the_fit_is_every_voxel_that_can_be_told(case: Any) -> None:
    rule = judged(case["by"], "ignore")
    truth, where = case["labels"], case["confidence"] % 3 > 0
    evidence = {"pseudo": case["pseudo"], GIVEN[case["by"]]: case["other"]}
    if case["by"] == "confidence":
        evidence = {"pseudo": case["pseudo"], "confidence": case["confidence"]}
    expected: dict[tuple[int, int], list[int]] = {}
    for v in np.ndindex(*SHAPE):
        if where[v]:
            entry = expected.setdefault((int(case["pseudo"][v]), score(case, v)), [0, 0])
            entry[0] += 1
            entry[1] += int(truth[v] == case["pseudo"][v])
    found = rule.count(truth, where, **evidence)
    assert {(c, s): [n, good] for c, s, n, good in found} == expected


def test_without_another_map_everything_stays() -> None:
    labels = np.ones(SHAPE, np.uint8)
    rule = judged("round_disagreement", "drop")
    told = provenance(dict.fromkeys((1, 2), "mo@1"))
    assert rule("a", labels, told, pseudo=labels, previous=None, thresholds={"1": 256}) == (1.0, None)
    assert rule.count(labels, labels > 0, pseudo=labels, previous=None) == []


def test_a_fixed_threshold_needs_no_fit() -> None:
    rule = judged("confidence", "ignore", threshold=0.5)
    assert rule.needs == ("pseudo", "confidence")
    labels = np.array([[[2, 2, 0]]], np.uint8)
    told = provenance({2: "mo@1"})
    _, mask = rule("a", labels, told, pseudo=labels, confidence=np.array([[[127, 128, 5]]], np.uint8))
    assert mask.tolist() == [[[True, False, True]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "luck"}, r"labels\.select\.by=luck: expected one of confidence, round_disagreement"),
        ({"action": "burn"}, r"labels\.select\.action=burn: expected one of ignore, weight, drop"),
        ({"right": 1.5}, r"labels\.select\.right=1\.5: expected a number from 0 to 1"),
        ({"threshold": -1}, r"labels\.select\.threshold=-1: expected a number from 0 to 1"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FlareError, match=message):
        judged(**{"by": "confidence", "action": "ignore", **changes})


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 99))
def test_flare22s_uncertainty_is_its_notebooks(case: Any, seed: int) -> None:
    ite3, ite2 = case["pseudo"], case["other"]
    ite1 = np.random.default_rng(seed).choice([0, 1, 2], SHAPE).astype(np.uint8)
    ite2[0, 0, 0] = ite3[0, 0, 0] = 1  # the notebook divides by the foreground
    expected2 = np.sum(ite1 != ite2) / np.sum(ite2 > 0)
    expected3 = np.sum(ite2 != ite3) / np.sum(ite3 > 0)
    rule, told = Flare22(0.5), provenance({1: "mo@1"})
    found = rule.uncertainty(told, pseudo=ite3, previous=ite2, earlier=ite1)
    assert found == pytest.approx((expected2 + expected3) / 2)
    assert rule.uncertainty(told, pseudo=ite3, previous=ite2, earlier=None) == pytest.approx(expected3)
    assert rule.uncertainty(told, pseudo=ite3, previous=None, earlier=None) is None
    assert rule.uncertainty(provenance(SOURCES), pseudo=ite3, previous=ite2, earlier=ite1) is None


def test_flare22_drops_as_many_of_the_most_uncertain_as_its_winner() -> None:
    uncertain = {f"case{i}": (i * 7919) % 2000 / 2000 for i in range(2000)}
    dropped = Flare22(0.038).dropped(uncertain)
    assert len(dropped) == 76
    assert min(uncertain[c] for c in dropped) > max(u for c, u in uncertain.items() if c not in dropped)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def by_intensity(shift: float) -> Any:
    """A network that says liver above an intensity, spleen around another, else background."""

    def network(patch: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, 15, *patch.shape[2:]), -9.0)
        logits[:, 0], logits[:, LIVER] = 0.0, (patch[:, 0] - 45 - shift) / 10
        logits[:, SPLEEN] = 1 - (patch[:, 0] - 40).abs() / 10
        return logits

    return network


@pytest.fixture
def taught(
    cohort: Cohort, tmp_path: Path, labels: ClassList, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RoundSettings]:
    """Settings of round `mo2`, whose teacher `mo1` learned from `mo`; the earlier one sees less liver."""
    asked: list[str] = []

    def load(checkpoint: Path, digest: str, inference: InferenceSettings) -> Predictor:
        asked.append(f"{round_of(checkpoint).root.name} {inference.tta}")
        return predictor(
            by_intensity(30 if checkpoint.read_bytes() == b"mo" else 0),
            labels,
            inference,
            outputs=tuple(range(15)),
            spacing_mm=(3.0, 2.0, 2.0),
        )

    for name in ("load_predictor", "load_several"):
        monkeypatch.setattr(f"flare.rounds.label_case.{name}", load)

    def build(*overrides: str) -> RoundSettings:
        asked.clear()
        given = ["round=mo2", "model=tiny", *TINY[3:7], "tta=tta4", *overrides]
        settings = RoundSettings.from_config(configuration(cohort.folder.root.parent, tmp_path, *given))
        for name, source in {"mo": "ground_truth", "mo1": "hybrid"}.items():
            folder = settings.run.round(name)
            folder.last.parent.mkdir(parents=True, exist_ok=True)
            folder.last.write_bytes(name.encode())
            cfg = {"round": {"teacher": "mo", "checkpoint": None}, "labels": {"source": source}}
            cfg["labels"]["targets"] = "organs"
            OmegaConf.save(OmegaConf.create(cfg), folder.config)
        return settings

    build.asked = asked  # type: ignore[attr-defined]
    return build


def label(settings: RoundSettings, cohort: Cohort) -> dict[str, Any]:
    """Make the labels of a round: by case id its sidecar."""
    build_training_set(settings, cohort.cases, LocalExecutor(workers=0, retries=0))
    return {path.stem: read_json(path) for path in sorted(settings.folder.labels.glob("case*.json"))}


def maps_of(settings: RoundSettings, case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was predicted and merged, and what is trained on, all on one grid; the cache turns x and y."""
    folder = settings.folder
    found = [
        read_labels(place / f"{case}.nii.gz", settings.classes).array
        for place in (folder.predictions, folder.labels)
    ]
    return found[0], found[1], Stored(folder.cached(case))[:][:, ::-1, ::-1]


def own(told: dict[str, Any], pseudo: np.ndarray, merged: np.ndarray) -> np.ndarray:
    taken = [c["id"] for c in told["classes"].values() if c["source"] not in ("ground_truth", "none")]
    return (merged == pseudo) & np.isin(merged, [0, *taken])


def test_confidence_is_kept_fitted_applied_and_told(taught: Any, cohort: Cohort) -> None:
    settings = taught("select=confidence", "labels.select.right=0.97")
    sidecars = label(settings, cohort)
    assert set(taught.asked) == {"mo1 tta4"}
    limits = read_json(settings.folder.thresholds)
    assert set(limits) <= {str(LIVER), str(SPLEEN)}  # the annotation covers no other class
    assert 0 < limits[str(LIVER)] <= 256
    totals: dict[str, list[int]] = {}
    for case, told in sidecars.items():
        pseudo, merged, trained = maps_of(settings, case)
        confidence = read_image(settings.folder.confidence / f"{case}.nii.gz").array
        limit = np.array([limits.get(str(c), 0) for c in range(256)])
        mask = own(told, pseudo, merged) & (confidence < limit[merged])
        np.testing.assert_array_equal(trained, np.where(mask, 255, merged))
        assert told["classes"]["spleen"]["source"] == "ground_truth"
        assert not mask[merged == SPLEEN].any()
        assert mask[merged == LIVER].any()
        threshold, voxels, kept = told["selection"]["classes"]["liver"]
        assert threshold == round(limits[str(LIVER)] / 255, 3)
        assert [voxels, voxels - kept] == [(own(told, pseudo, merged) & (merged == LIVER)).sum(), mask.sum()]
        totals = {"liver": [n + m for n, m in zip(totals.get("liver", [0, 0]), (voxels, kept), strict=True)]}
    rows = {row["class"]: row for row in read_csv(settings.folder.selection)}
    (line,) = kept_labels([rows["liver"]]).axes[0].lines  # type: ignore[union-attr]
    assert line.get_ydata() == pytest.approx([100 * totals["liver"][1] / totals["liver"][0]])
    assert [int(rows["liver"][k]) for k in ("voxels", "kept", "cases", "weighed", "dropped")] == [
        *totals["liver"],
        3,
        0,
        0,
    ]
    assert "spleen" not in rows
    taught.asked.clear()
    assert label(settings, cohort) == sidecars
    plain = label(taught("select=none"), cohort)
    assert taught.asked == []  # a prediction is as good without a use for its confidence
    assert not any("selection" in told for told in plain.values())


@pytest.mark.parametrize(
    ("rule", "folder", "who"),
    [("round_disagreement", "previous", "mo tta4"), ("flip_disagreement", "unflipped", "mo1 none")],
)
def test_what_another_map_gives_otherwise_is_masked(
    taught: Any, cohort: Cohort, rule: str, folder: str, who: str
) -> None:
    settings = taught(f"select={rule}", "labels.select.threshold=1")
    sidecars = label(settings, cohort)
    assert set(taught.asked) == {"mo1 tta4", who}
    for case, told in sidecars.items():
        pseudo, merged, trained = maps_of(settings, case)
        place = settings.folder.root / "selection" / folder / "predictions"
        other = read_labels(place / f"{case}.nii.gz", settings.classes).array
        mask = own(told, pseudo, merged) & (pseudo != other)
        np.testing.assert_array_equal(trained, np.where(mask, 255, merged))
        assert mask.any() == (rule == "round_disagreement")
    taught.asked.clear()
    label(settings, cohort)
    assert taught.asked == []
    settings.run.round("mo").last.write_bytes(b"mo, trained again")
    label(settings, cohort)
    assert set(taught.asked) == ({"mo tta4"} if rule == "round_disagreement" else set())


def test_a_first_round_has_nothing_to_disagree_with(taught: Any, cohort: Cohort) -> None:
    settings = taught("round=mo1", "select=round_disagreement")
    for case in label(settings, cohort):
        _, merged, trained = maps_of(settings, case)
        np.testing.assert_array_equal(trained, merged)


def test_thresholds_need_a_labelled_validation_case(taught: Any, cohort: Cohort) -> None:
    settings = taught("select=confidence")
    train = [case for case in cohort.cases if case.split == "train"]
    with pytest.raises(FlareError, match=r"labels\.select: no labelled validation case to fit thresholds on"):
        build_training_set(settings, train, LocalExecutor(workers=0, retries=0))


def test_a_selection_of_somebody_elses_is_given_what_it_names(taught: Any, cohort: Cohort) -> None:
    settings = taught("labels.select={_target_: outside_selection.Unsure}")
    assert settings.labels.needs == {"confidence", "pseudo", "unflipped"}
    for case in label(settings, cohort):
        _, merged, trained = maps_of(settings, case)
        confidence = read_image(settings.folder.confidence / f"{case}.nii.gz").array
        np.testing.assert_array_equal(trained, np.where(confidence < 128, 255, merged))
    assert {row["weighed"] for row in read_csv(settings.folder.selection)} == {"3"}


def test_ground_truth_alone_is_not_judged(taught: Any) -> None:
    settings = taught("select=confidence", "labels.source=ground_truth", "labels.confidence=true")
    assert settings.labels.select is None
    assert not settings.labels.inference.confidence


def test_confidence_can_be_kept_without_a_selection(taught: Any, cohort: Cohort) -> None:
    label(taught(), cohort)
    settings = taught("labels.confidence=true")
    label(settings, cohort)
    assert len(taught.asked) == 3  # it had not been kept
    assert len(list(settings.folder.confidence.glob("*.nii.gz"))) == 3


def test_flare22_drops_over_the_whole_round(taught: Any, cohort: Cohort) -> None:
    settings = taught("select=flare22", "labels.select.drop=0.5")
    found = {case: {"weight": 1.0, "selection": {"uncertainty": u}} for case, u in (("a", 0.4), ("b", 0.1))}
    assert dropped_cases(settings, found | {"c": {"weight": 0, "selection": {"uncertainty": None}}}) == {
        "a",
        "c",
    }
    told = label(settings, cohort)
    assert {t["selection"]["uncertainty"] for t in told.values()} == {None}  # all have ground truth


def test_a_pseudo_tumor_is_judged_in_the_map_of_the_last_organ_round(
    taught: Any, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = taught("labels.targets=organs_tumor", "labels.tumor_inside=voxel")
    seen = []
    monkeypatch.setattr(
        "flare.rounds.label_case.merge_maps",
        lambda *a, organs, **k: seen.append(organs) or merge_maps(*a, **k),
    )
    label(settings, cohort)
    place = settings.folder.root / "selection" / "organs" / "predictions"
    expected = [read_labels(path, settings.classes).array for path in sorted(place.glob("*.nii.gz"))]
    np.testing.assert_array_equal(seen, expected)
    assert set(taught.asked) == {"mo1 tta4", "mo tta4"}
