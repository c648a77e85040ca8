"""Parts of a user's own, from outside the package, that the seams take by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from flare.core.classes import ClassList
from flare.core.geometry import Spacing
from flare.runs.work import Job, Outcome, attempt


class Threads:
    """An executor that is no class of ours: a pool of threads, asked for nothing beyond the protocol."""

    ran: ClassVar[list[tuple[str, int]]] = []  # function and workers, once a case

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, function: Callable[..., Any], jobs: Mapping[str, Job]) -> Iterator[Outcome]:
        with ThreadPoolExecutor(self.workers, thread_name_prefix="outside") as pool:
            futures = [pool.submit(self._noted, case, function, job) for case, job in jobs.items()]
            for future in as_completed(futures):
                yield future.result()

    def _noted(self, case: str, function: Callable[..., Any], job: Job) -> Outcome:
        assert threading.current_thread().name.startswith("outside")
        self.ran.append((function.__name__, self.workers))
        return attempt(case, function, job)

    def alone(self) -> Threads:
        return Threads(1)

    def close(self) -> None:
        pass


def bright_engine(network: nn.Module, *, device: torch.device, precision: str) -> Callable[..., torch.Tensor]:
    """An engine that never calls the network: by NumPy, what is brighter than the mean is the first class."""
    built.append((type(network).__name__, device.type, precision))

    def run(patches: torch.Tensor) -> torch.Tensor:
        array = patches.numpy()
        logits = np.full((len(array), 15, *array.shape[2:]), -9, np.float32)
        logits[:, 0], logits[:, 1] = 0, array[:, 0]
        return torch.from_numpy(logits)

    return run


built: list[tuple[str, str, str]] = []  # what engines were built from


class Volumes:
    """A score: volumes of a class on both sides, none where the reference lacks it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self, reference: np.ndarray, prediction: np.ndarray, *, spacing_mm: Spacing, classes: ClassList
    ) -> dict[str, float | None]:
        ml, wanted = np.prod(spacing_mm) / 1000, classes.id_of(self.name)
        volumes = [np.count_nonzero(side == wanted) * ml for side in (reference, prediction)]
        return {
            f"{self.name}_reference_ml": volumes[0] or None,
            f"{self.name}_prediction_ml": volumes[1] if volumes[0] else float("nan"),
        }


def agreement(reference: np.ndarray, prediction: np.ndarray, *, weight: float, **_: Any) -> dict[str, float]:
    """A score that is a function."""
    return {"agreement": weight * float(np.mean(reference == prediction))}


def known_share(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """A loss that asks what is known of a sample."""
    return logits.mean() * known.float().mean()
