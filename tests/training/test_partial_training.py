"""Trainings on cases that annotate some classes alone: what reaches the loss, and what their networks say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flare.core.volumes import read_image, read_labels
from flare.data.loaders import Batch
from flare.inference.predictor import Predictor
from flare.training.module import SegmentationModule
from tiny_round import LIVER, SPLEEN, TUMOR, train_tiny, write_cohort

pytestmark = pytest.mark.slow


def test_each_sample_comes_with_what_its_case_tells_and_sigmoids_are_validated_as_they_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"case0": (LIVER,), "case1": (), "case2": (LIVER, TUMOR)}
    seen: dict[str, set[int]] = {}
    step = SegmentationModule.training_step

    def training_step(self: SegmentationModule, batch: Batch, number: int) -> torch.Tensor:
        for case, told in zip(batch["case"], batch["known"], strict=True):
            seen[case] = set(told.nonzero().flatten().tolist())
        return step(self, batch, number)

    monkeypatch.setattr(SegmentationModule, "training_step", training_step)
    cohort = write_cohort(tmp_path)
    given = ("round=partial", "model=tiny", "loss.partial=masked")
    told, folder = train_tiny(cohort, tmp_path / "out", *given, known=known)
    assert seen == {case: {0, *ids} for case, ids in known.items() if case in seen}
    assert len(seen) > 1
    predictor = Predictor.from_checkpoint(folder.last, device="cpu", tta="none")
    assert predictor.activation == "sigmoid"
    (held_out,) = (case for case in cohort.cases if case.split == "validation")
    found = predictor.predict(read_image(held_out.image, held_out.id), probabilities=True)
    assert found.probabilities is not None
    above = found.probabilities[1:].max(0) > 0.5
    clear = np.abs(found.probabilities[1:].max(0) - 0.5) > 1e-3  # of half precision
    np.testing.assert_array_equal((found.segmentation > 0)[clear], above[clear])
    assert held_out.label is not None
    truth = read_labels(held_out.label, predictor.classes).array
    pairs = [(truth == organ, found.segmentation == organ) for organ in (LIVER, SPLEEN)]
    scores = [2 * np.sum(a & b) / (a.sum() + b.sum()) for a, b in pairs]
    assert told["metrics"]["val/dsc_mean"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert max(scores) > 0
