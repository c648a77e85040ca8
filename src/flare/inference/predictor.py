"""A trained network as a library object: loaded once, then from volume to segmentation, case after case."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from flare.core.classes import ClassList
from flare.core.geometry import Shape, Spacing, Volume, pad_to
from flare.core.preprocessing import Intensity, normalise, preprocess
from flare.inference.blend import Accumulator, Blended, average_over_flips, covered_box, flips
from flare.inference.body import find_body
from flare.inference.components import keep_largest
from flare.inference.hardware import autocast_type, choose_device
from flare.inference.restore import interpolated_axes, restore_labels
from flare.inference.settings import InferenceSettings
from flare.inference.visits import Verdict, judge_flare22, walk
from flare.inference.windows import Row, Start, plan_windows, window_slices
from flare.models.rebuild import load_network

Network = Callable[[torch.Tensor], torch.Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What one case came to.

    Attributes:
        segmentation: `(Z, Y, X)` uint8 class ids, in the input's own grid and voxel order.
        windows: Windows that the network looked at.
        uncovered_body_vox: Voxels of the body on the network's grid that no counted window saw.
        body_found: Whether there was a body; without, nothing is known to be uncovered.
        seconds: Wall time by stage.
    """

    segmentation: np.ndarray
    windows: int
    uncovered_body_vox: int
    body_found: bool
    seconds: dict[str, float]


class Predictor:
    """Predicts cases with one network.

    Args:
        network: Maps `(B, 1, Z, Y, X)` float32 to `(B, C, Z, Y, X)` logits; any callable.
        labels: The class list.
        outputs: Class id of each channel, background first.
        spacing_mm: The network's grid along Z, Y, X.
        interpolation: How images are resampled to it: `linear`, `cubic` or `nnunet`.
        intensity: The training cohort's foreground statistics.
        patch_size: Window along Z, Y, X.
        mirror_axes: Axes (0 = Z) along which the network was trained to be flipped.
        settings: Everything else that can be chosen.
    """

    def __init__(
        self,
        network: Network,
        *,
        classes: ClassList,
        outputs: tuple[int, ...],
        spacing_mm: Spacing,
        interpolation: str,
        intensity: Intensity,
        patch_size: Shape,
        mirror_axes: tuple[int, ...],
        settings: InferenceSettings,
    ) -> None:
        self.network = network
        self.outputs = outputs
        self.spacing_mm, self.interpolation, self.intensity = spacing_mm, interpolation, intensity
        self.patch_size, self.settings = patch_size, settings
        self.flips = flips(settings.tta, mirror_axes)
        self.device = choose_device(settings.device)
        self.autocast_type = autocast_type(settings.precision, self.device)
        self._ids = np.asarray(outputs, dtype=np.uint8)
        self._cleaned = tuple(classes.organs) if settings.components == "organs" else ()
        self._tubes = frozenset(classes.tubes)
        if settings.name == "flare22" and not self._tubes:
            log.warning("classes: none has tube=true, so that inference=flare22 narrows its search nowhere")

    @classmethod
    def from_checkpoint(cls, path: Path, settings: InferenceSettings) -> Predictor:
        """Load a round's checkpoint.

        Args:
            path: File that training wrote.
            settings: How to predict.

        Returns:
            A predictor with the network on its device.

        Raises:
            FlareError: If the file is no checkpoint of ours.
        """
        network, checkpoint = load_network(path, settings.networks)
        return cls(
            network.to(choose_device(settings.device)),
            classes=checkpoint.class_list,
            outputs=checkpoint.outputs,
            spacing_mm=checkpoint.spacing_mm,
            interpolation=checkpoint.interpolation,
            intensity=Intensity.from_dict(checkpoint.intensity),
            patch_size=checkpoint.patch_size,
            mirror_axes=checkpoint.mirror_axes,
            settings=settings,
        )

    def predict(self, volume: Volume, *, components: tuple[int, ...] = ()) -> Prediction:
        """Segment a volume.

        Args:
            volume: CT in HU, any voxel order.
            components: Ids of the classes of which only the largest component is kept, beside those of the
                settings.

        Returns:
            The segmentation on the volume's own grid, and how it came about.
        """
        watch = Stopwatch()
        case = preprocess(volume, self.spacing_mm, self.interpolation)
        array = normalise(case.array, self.intensity)
        watch.lap("preprocess")
        body = find_body(case.array, self.spacing_mm, self.settings.body)
        rows, padded, offsets = self.plan(array, body)
        watch.lap("plan")
        blended, windows = self.blend(rows, padded, offsets, case.array.shape)
        watch.lap("network")
        segmentation = restore_labels(
            blended,
            case.ras.shape,
            linear=interpolated_axes(self.settings.restore, self.spacing_mm, case.ras.spacing_mm),
            outputs=self.outputs,
            memory_mb=self.settings.memory_mb,
        )
        if components := (*components, *self._cleaned):
            segmentation = keep_largest(segmentation, components)
        segmentation = np.ascontiguousarray(case.orientation.invert(segmentation))
        watch.lap("restore")
        unseen = 0 if body is None else int(np.count_nonzero(body & ~blended.full_coverage()))
        return Prediction(segmentation, windows, unseen, body is not None, watch.seconds)

    def plan(self, array: np.ndarray, body: np.ndarray | None) -> tuple[tuple[Row, ...], np.ndarray, Shape]:
        """Pad an array to the patch and place the windows.

        Args:
            array: `(Z, Y, X)` float32, normalised, on the network's grid.
            body: `(Z, Y, X)` bool, or None.

        Returns:
            The plan, the padded array (0 is the cohort's mean), and the voxels of padding before it.
        """
        padded, offsets = pad_to(array, self.patch_size)
        rows = plan_windows(
            self.settings.name,
            padded.shape,
            patch=self.patch_size,
            overlap=self.settings.overlap,
            body=None if body is None else pad_to(body, self.patch_size)[0],
            centre=self.settings.centre,
            extend=self.settings.extend,
        )
        return rows, padded, offsets

    @torch.inference_mode()
    def blend(
        self, rows: tuple[Row, ...], padded: np.ndarray, offsets: Shape, shape: Shape
    ) -> tuple[Blended, int]:
        """Run the network over a plan and average what its windows say.

        Args:
            rows: The plan.
            padded: `(Z, Y, X)` float32 array that the plan is for.
            offsets: Voxels of padding before the volume.
            shape: `(Z, Y, X)` of the volume.

        Returns:
            The averaged maps without padding, and the number of windows visited.
        """
        volume = torch.from_numpy(padded)[None, None]
        visited = 0

        def look(start: Start) -> torch.Tensor:
            nonlocal visited
            visited += 1
            z, y, x = window_slices(start, self.patch_size)
            patch = volume[:, :, z, y, x].to(self.device)
            return average_over_flips(self._maps, patch, self.flips)[0]

        accumulator = Accumulator(
            covered_box(rows, self.patch_size),
            self.patch_size,
            channels=len(self.outputs),
            weighted=sum(len(row) for row in rows) > 1,
            device=self.device,
        )
        for start, maps in walk(rows, look, self._judge if self.settings.name == "flare22" else None):
            accumulator.add(start, maps)
        return accumulator.blend(offsets, shape), visited

    def average_maps(self, array: np.ndarray) -> np.ndarray:
        """Give the averaged maps of a preprocessed array, for comparison with other predictors.

        Args:
            array: `(Z, Y, X)` float32, normalised, on the network's grid; all of it counts as body.

        Returns:
            `(C, Z, Y, X)` float32 probabilities or logits, 0 where no window was.
        """
        rows, padded, offsets = self.plan(array, None)
        return self.blend(rows, padded, offsets, array.shape)[0].full_values()

    def _maps(self, patch: torch.Tensor) -> torch.Tensor:
        """Call the network: `(1, C, Z, Y, X)` float32 probabilities or logits."""
        enabled = self.autocast_type is not None
        with torch.autocast(self.device.type, dtype=self.autocast_type or torch.bfloat16, enabled=enabled):
            logits = self.network(patch)
        logits = logits.float()
        return logits.softmax(1) if self.settings.average == "probabilities" else logits

    def _judge(self, row: Row, maps: torch.Tensor) -> Verdict:
        """Ask the rule of `flare22` about the central window of a row."""
        return judge_flare22(row, self._ids[maps.max(0).indices.cpu().numpy()], self._tubes)


@dataclass
class Stopwatch:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Close a stage."""
        now = time.perf_counter()
        self.seconds[stage] = now - self.started
        self.started = now
