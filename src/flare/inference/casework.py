"""What inference does to one case: read, segment, write, and measure where that is asked for."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare.images import read_image, write_labels
from flare.inference.sampler import ResourceSampler
from flare.inference.settings import InferenceSettings

if TYPE_CHECKING:
    from flare.inference.predictor import Predictor

Row = dict[str, Any]


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

    def work() -> Row:
        return _predict(case, image, target, load_predictor(checkpoint, digest, settings), components)

    if not settings.measure:
        return work()
    from flare.inference.hardware import choose_device

    load_predictor.cache_clear()
    with ResourceSampler(gpu=choose_device(settings.device).type == "cuda") as sampler:
        row = work()
    return row | sampler.usage()


def _predict(case: str, image: Path, target: Path, predictor: Predictor, components: tuple[int, ...]) -> Row:
    """Read, segment and write, and say how long each took."""
    started = time.perf_counter()
    volume = read_image(image, case)
    read = time.perf_counter() - started
    prediction = predictor.predict(volume, components=components)
    written = time.perf_counter()
    write_labels(target, prediction.segmentation, volume.geometry)
    seconds = {"read": read, **prediction.seconds, "write": time.perf_counter() - written}
    return {
        "case": case,
        "size": "x".join(str(size) for size in reversed(volume.geometry.shape)),
        "windows": prediction.windows,
        "body_found": prediction.body_found,
        "uncovered_body_vox": prediction.uncovered_body_vox,
        "seconds": round(sum(seconds.values()), 3),
        **{f"{stage}_s": round(value, 3) for stage, value in seconds.items()},
    }


@lru_cache(maxsize=1)
def load_predictor(checkpoint: Path, digest: str, settings: InferenceSettings) -> Predictor:
    """Load a network once per process.

    Args:
        checkpoint: The file.
        digest: Its hash, so that a file that changed counts as another.
        settings: How to predict.

    Returns:
        The predictor.
    """
    from flare.inference.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint, settings)
