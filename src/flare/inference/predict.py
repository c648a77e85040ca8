"""What inference does to cases: read, segment, write, and measure where that is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare.core.errors import FlareError
from flare.core.files import remove_partial, sha256
from flare.core.geometry import Geometry, Volume
from flare.core.preprocessing import Preprocessed
from flare.core.volumes import read_image, write_labels
from flare.inference.measure import ResourceSampler
from flare.inference.settings import InferenceSettings
from flare.runs.journal import Journal, resume_cases
from flare.runs.outcomes import Outcome
from flare.runs.work import Executor

if TYPE_CHECKING:
    from flare.inference.predictor import Prediction, Predictor

Row = dict[str, Any]
log = logging.getLogger(__name__)


def predict_case(
    case: str,
    image: Path,
    target: Path,
    checkpoint: Path,
    digest: str,
    settings: InferenceSettings,
    components: tuple[int, ...],
) -> Row:
    """Read, segment and write one case.

    With `settings.measure` the network is loaded anew, as in the challenge, where every case starts a
    container; the start of Python and the imports are not counted.

    Args:
        case: Its id.
        image: File or DICOM folder.
        target: File to write.
        checkpoint: The network.
        digest: Hash of the checkpoint: a changed file is loaded anew.
        settings: How to predict.
        components: Ids of the classes of which only the largest component is kept.

    Returns:
        What `inference.csv` says of the case.
    """
    if not settings.measure:
        return segment_case(case, image, target, load_predictor(checkpoint, digest, settings), components)[1]
    from flare.inference.engines import choose_device

    load_predictor.cache_clear()
    with ResourceSampler(gpu=choose_device(settings.device).type == "cuda") as sampler:
        row = segment_case(case, image, target, load_predictor(checkpoint, digest, settings), components)[1]
    return row | sampler.usage()


def segment_case(
    case: str,
    image: Path,
    target: Path,
    predictor: Predictor,
    components: tuple[int, ...],
    cached: Path | None = None,
) -> tuple[Volume, Row]:
    """Read, segment and write, and say how long each took.

    Args:
        case: Its id.
        image: File or DICOM folder.
        target: File to write.
        predictor: The network.
        components: Ids of the classes of which only the largest component is kept.
        cached: The image as it lies in the cache. It is read instead of `image` where it is what the
            predictor would make of it; a network of another grid or interpolation starts from the image.

    Returns:
        The segmentation, and what `inference.csv` says of the case.
    """
    started = time.perf_counter()
    found: Preprocessed | Volume | None = None
    if cached is not None:
        from flare.data.cache import read_preprocessed  # the store: only where there is one

        found = read_preprocessed(cached, predictor.spacing_mm, predictor.interpolation)
    found = found or read_image(image, case)
    read = time.perf_counter() - started
    if isinstance(found, Volume):
        prediction = predictor.predict(found, components=components)
    else:
        prediction = predictor.predict_array(found, components=components)
    geometry = found.geometry
    written = time.perf_counter()
    write_prediction(target, prediction, geometry)
    seconds = {"read": read, **prediction.seconds, "write": time.perf_counter() - written}
    row = {
        "case": case,
        "size": "x".join(str(size) for size in reversed(geometry.shape)),
        "windows": prediction.windows,
        "body_found": prediction.body_found,
        "uncovered_body_vox": prediction.uncovered_body_vox,
        "seconds": round(sum(seconds.values()), 3),
        **{f"{stage}_s": round(value, 3) for stage, value in seconds.items()},
    }
    return Volume(prediction.segmentation, geometry), row


def write_prediction(target: Path, prediction: Prediction, geometry: Geometry) -> None:
    """Write what was predicted, in the case's own geometry; all predictions of a network go through here."""
    write_labels(target, prediction.segmentation, geometry)


@lru_cache(maxsize=1)
def load_predictor(checkpoint: Path, digest: str, settings: InferenceSettings) -> Predictor:
    """Load a network once per process; a file with another hash counts as another."""
    from flare.inference.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint, settings)


@dataclass
class Predicted:
    """What became of a set of cases.

    Attributes:
        rows: One row per segmented case, by case id: windows, uncovered body voxels, seconds by stage, and
            with `settings.measure` the efficiency.
        failures: Cases that could not be segmented, with the reason.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)


def segmentation_path(output: Path, case: str) -> Path:
    """Say where a case's segmentation lies."""
    return output / f"{case}.nii.gz"


def predict_cases(
    checkpoint: Path,
    images: Mapping[str, Path],
    output: Path,
    *,
    settings: InferenceSettings,
    executor: Executor,
    journal: Journal,
    components: tuple[int, ...] = (),
) -> Predicted:
    """Segment cases into `<case>.nii.gz`, in each image's own geometry.

    Args:
        checkpoint: The network.
        images: Case id to image.
        output: Folder of the segmentations.
        settings: How to predict.
        executor: Where the cases run.
        journal: What is done; a case whose image, checkpoint and settings are unchanged is left alone,
            unless its efficiency is asked for and was not measured.
        components: Ids of the classes of which only the largest component is kept.

    Returns:
        Rows and failures; of a refused image no segmentation is left.

    Raises:
        FlareError: If the checkpoint is missing.
    """
    if not checkpoint.is_file():
        raise FlareError(f"checkpoint={checkpoint}: no such file")
    digest = sha256(checkpoint)
    shared = {"checkpoint": checkpoint, "digest": digest, "settings": settings, "components": components}
    known = [case for case in images if case in journal]
    done = resume_cases(
        predict_case,
        {
            case: {"case": case, "image": image, "target": segmentation_path(output, case), **shared}
            for case, image in images.items()
        },
        inputs={case: {"image": image, "checkpoint": digest} for case, image in images.items()},
        config={"settings": settings.identity(), "components": sorted(components)},
        outputs=lambda case: {"segmentation": segmentation_path(output, case)},
        journal=journal,
        executor=executor,
        description="predict",
        again=[case for case in known if settings.measure and "time_s" not in journal.values(case)],
        alone=lambda count: count == 1 or one_by_one(settings),
        before=lambda _: remove_partial(output),
    )
    rows = [done.values[case] for case in sorted(done.values)]
    report_coverage(rows)
    return Predicted(rows, done.failures)


def one_by_one(settings: InferenceSettings) -> bool:
    """Whether cases must not run side by side: on a GPU, and to measure."""
    from flare.inference.engines import choose_device

    return settings.measure or choose_device(settings.device).type == "cuda"


def report_coverage(rows: list[Row]) -> None:
    """Say where no body was found, and where some of it was not looked at."""
    for row in rows:
        if not row["body_found"]:
            log.warning("case %s: no body found, all of the volume counts as body", row["case"])
    uncovered = [row["case"] for row in rows if row["uncovered_body_vox"]]
    if uncovered:
        log.warning(
            "%d of %d cases have body outside all windows, which becomes background: %s",
            len(uncovered),
            len(rows),
            ", ".join(uncovered[:10]) + (", ..." if len(uncovered) > 10 else ""),
        )
