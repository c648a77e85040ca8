"""A trained network as a library object: loaded once, then from volume to segmentation, case after case."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from flare.core.classes import ClassList
from flare.core.geometry import Box, Shape, Spacing, Volume, pad_to
from flare.core.preprocessing import Intensity, Preprocessed, normalise, preprocess
from flare.inference import adaptive, exported, measure, restore, runtimes, windows
from flare.inference.blend import Accumulator, gaussian_weights
from flare.inference.engines import Engine, average_over_flips, choose_device, flips
from flare.inference.largest import keep_largest
from flare.inference.restore import Blended, Way
from flare.inference.settings import InferenceSettings, say_once
from flare.inference.windows import Plan, Row, Start, Verdict, find_body, window_slices
from flare.models import names, zoo
from flare.runs.work import steps

log = logging.getLogger(__name__)
# windows, the padded array that they look at, and where in it the first voxel of the volume lies
Placed = tuple[Plan, np.ndarray, Shape]


@dataclass(frozen=True)
class Prediction:
    """What one case came to."""

    segmentation: np.ndarray  # `(Z, Y, X)` uint8 class ids, in the input's own grid and voxel order
    windows: int  # windows that the network looked at
    uncovered_body_vox: int  # voxels of the body on the network's grid that no counted window saw
    # whether there was a body; without, nothing is known to be uncovered. Of mere air no window is looked at,
    # and all is background.
    body_found: bool
    seconds: dict[str, float]  # wall time by stage
    # class name to volume, of every class that the network knows
    volumes_ml: dict[str, float] = field(default_factory=dict)
    # `(C, Z, Y, X)` float16 on the same grid, before any largest component is kept, of the classes asked for;
    # channels as in `Predictor.outputs` if all are, None if none is
    probabilities: np.ndarray | None = None
    # `(Z, Y, X)` uint8, 255 times the probability of each voxel's label; None if not asked for
    confidence: np.ndarray | None = None
    low_resolution: Volume | None = None  # labels on the network's grid, in RAS order; None if not asked for
    network_vox: int = 0  # voxels that the network was given, in all windows and flips


@dataclass
class Predictor:
    """Predicts cases with one network."""

    engine: Engine  # maps `(B, 1, Z, Y, X)` float32 to `(B, C, Z, Y, X)` logits, see `engines`
    _: KW_ONLY
    classes: ClassList
    outputs: tuple[int, ...]  # class id of each channel, background first
    spacing_mm: Spacing  # the network's grid along Z, Y, X
    interpolation: str  # how images are resampled to it: `linear`, `cubic` or `nnunet`
    intensity: Intensity  # the training cohort's foreground statistics
    patch_size: Shape  # window along Z, Y, X, which may be larger than a patch of the training
    mirror_axes: tuple[int, ...]  # axes (0 = Z) along which the network was trained to be flipped
    # everything else that can be chosen; `device` is where patches are given to the engine
    settings: InferenceSettings
    activation: str = "softmax"  # of what the outputs are logits; of `sigmoid` a class needs more than a half

    def __post_init__(self) -> None:
        self.device = choose_device(self.settings.device)
        self.flips = flips(self.settings.tta, self.mirror_axes)
        self._process_bytes = psutil.Process().memory_info().rss  # with libraries and weights
        self._ids = np.asarray(self.outputs, dtype=np.uint8)
        self._cleaned = tuple(self.classes.organs) if self.settings.components == "organs" else ()
        self._tubes = frozenset(self.classes.tubes)
        if self.settings.name == "flare22" and not self._tubes:
            log.warning("classes: none has tube=true, so that inference=flare22 narrows its search nowhere")

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, settings: InferenceSettings | None = None, **choices: Any
    ) -> "Predictor":
        """Load a file that training or export wrote, by default to predict as the paper does.

        `choices` are single fields of the settings, as `tta="none"` or `device="cpu"`. A file that is none of
        ours, and a choice that is none, are refused.
        """
        path, settings = Path(path), replace(settings or InferenceSettings(), **choices)
        device = choose_device(settings.device)
        if kind := exported.format_of(path):
            carried = vars(exported.read_exported(path, kind))
            return cls.from_carried(exported.open_exported(path, kind, settings, device), carried, settings)
        network, checkpoint = zoo.load_network(path, settings.networks)
        engine = runtimes.build_engine(settings.engine, network, device=device, precision=settings.precision)
        return cls.from_carried(engine, vars(checkpoint), settings, getattr(network, "divisors", None))

    @classmethod
    def from_carried(
        cls,
        engine: Engine,
        carried: Mapping[str, Any],
        settings: InferenceSettings,
        divisors: adaptive.Divisors = None,
    ) -> "Predictor":
        """Make the predictor of a network by what its checkpoint carries, or will carry.

        The size of a window is a multiple of the network's `divisors`, see `window_size`.
        """
        classes = ClassList.from_config(carried["classes"])
        return cls(
            engine,
            classes=classes,
            outputs=classes.outputs(carried["targets"]),
            spacing_mm=tuple(carried["spacing_mm"]),
            interpolation=settings.interpolation or carried["interpolation"],
            intensity=Intensity.from_dict(carried["intensity"]),
            patch_size=adaptive.window_size(tuple(carried["patch_size"]), settings.window, divisors),
            mirror_axes=tuple(carried["mirror_axes"]),
            settings=settings,
            activation=names.activation_of(carried.get("config") or {}),
        )

    def predict(
        self,
        scan: Volume | Preprocessed,
        *,
        components: tuple[int, ...] = (),
        probabilities: bool | Sequence[int] = False,
        low_resolution: bool = False,
    ) -> Prediction:
        """Segment a CT in HU, any voxel order, on its own grid.

        It may be on the network's grid already, at the predictor's spacing and by its interpolation. Of the
        classes in `components`, and those that the settings name, only the largest component is kept.
        Probabilities, of all outputs or of some class ids, take 2 bytes a channel and voxel of the volume:
        0.8 GB for 15 channels of 100 slices of 512 x 512. `low_resolution` asks for labels on the network's
        grid. Without such maps no more of them is held than a patch's depth.
        """
        watch = measure.Stopwatch()
        case = scan
        if isinstance(case, Volume):
            case = preprocess(case, self.spacing_mm, self.interpolation)
        asked = self.outputs if probabilities is True else tuple(probabilities or ())
        watch.lap("preprocess")
        plan, body, is_found = self._place(case)
        watch.lap("plan")
        linear = restore.interpolated_axes(self.settings.restore, self.spacing_mm, case.ras.spacing_mm)
        is_whole = bool(asked or low_resolution or self.settings.confidence)
        room = self.room_mb(case, 1 + self.settings.confidence + 2 * len(asked), is_whole=is_whole)
        way = Way(linear, self.outputs, room, self._finish)
        cleaned = (*components, *self._cleaned)
        with steps("windows", sum(map(len, plan[0]))) as step:
            blended = self.average(plan, case.array.shape, step)
            if is_whole:
                blended.whole()
            segmentation, sure = self._labels(blended, case, way, cleaned)
            blended.finish()
        maps = self._probabilities(blended, case, way, asked) if asked else None
        low = Volume(self._low(blended, cleaned), case.grid) if low_resolution else None
        # plane by plane, since counting takes eight bytes a voxel
        counts = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in segmentation], axis=0)
        ml = math.prod(case.ras.spacing_mm) / 1000
        volumes = {self.classes.name_of(i): float(counts[i] * ml) for i in self.outputs if i}
        watch.lap("restore", "network", blended.seconds)
        unseen = 0 if body is None else int(np.count_nonzero(body & ~blended.of_volume(blended.covered)))
        told = blended.visited, unseen, is_found, watch.seconds, volumes
        vox = blended.passes * math.prod(self.patch_size)
        return Prediction(segmentation, *told, maps, sure, low, network_vox=vox)

    def room_mb(self, case: Preprocessed, kept: int = 1, *, is_whole: bool = False) -> float:
        """Give what `memory_mb` leaves beside a case; say so if it is nothing, and go on."""
        sums = len(self.outputs) + 1 if self.device.type == "cpu" else 0
        how = {"is_whole": is_whole, "is_open": self.settings.asks_what_is_open}
        expected = measure.expected_bytes(case, self.patch_size, sums, kept, **how)
        needed, bound = (self._process_bytes + expected) / 2**20, self.settings.memory_mb
        if needed > bound:
            say_once(f"inference.memory_mb={bound:g}: about {needed:.0f} are needed; nothing is skipped")
        return max(bound - needed, 0)

    def _labels(
        self, blended: Blended, case: Preprocessed, way: Way, components: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Give the labels in the case's own grid and voxel order, and their confidence if it is asked for.

        Of some classes the largest component alone is kept.
        """
        own = np.zeros(case.geometry.shape, np.uint8)
        restore.restore_labels(blended, case.ras.shape, way, into=case.orientation.apply(own))
        own = keep_largest(own, components) if components else own
        if not self.settings.confidence:
            return own, None
        sure = restore.restore_confidence(blended, case.orientation.apply(own), way)
        return own, np.ascontiguousarray(case.orientation.invert(sure))

    def _low(self, blended: Blended, components: tuple[int, ...]) -> np.ndarray:
        """Give the labels on the network's grid, `(Z, Y, X)` uint8, background where no window was."""
        winners = (blended.values.max(0).indices * blended.covered).to(torch.uint8)
        return keep_largest(self._ids[blended.of_volume(winners)], components)

    def _probabilities(
        self, blended: Blended, case: Preprocessed, way: Way, asked: tuple[int, ...]
    ) -> np.ndarray:
        """Give `(C, Z, Y, X)` float16 of some classes in the case's own grid and voxel order."""
        maps = np.empty((len(asked), *case.geometry.shape), dtype=np.float16)
        channels = zip(map(self.outputs.index, asked), map(case.orientation.apply, maps), strict=True)
        restore.restore_probabilities(blended, dict(channels), way)
        return maps

    def _place(self, case: Preprocessed) -> tuple[Placed, np.ndarray | None, bool]:
        """Place the windows: of `fast` on the body's box alone, of mere air none.

        With them come the body and whether there is one: `dense`, which sees all, searches it in thin air.
        """
        rule = self.settings.body
        searches = self.settings.name != "dense" or windows.is_air(case.array, rule)
        body = find_body(case.array, self.spacing_mm, rule) if searches else None
        if searches and body is None and windows.is_air(case.array, rule):
            return ((), np.empty((0, 0, 0), np.float32), (0, 0, 0)), None, False
        box: Box = (slice(None), slice(None), slice(None))
        if body is not None and self.settings.name == "fast":
            box = windows.body_box(body, self.patch_size)
        array = normalise(case.array[box], self.intensity)
        rows, padded, before = self.plan(array, None if body is None else body[box])
        z, y, x = (at - (span.start or 0) for at, span in zip(before, box, strict=True))
        return (rows, padded, (z, y, x)), body, body is not None or not searches

    def plan(self, array: np.ndarray, body: np.ndarray | None) -> Placed:
        """Place the windows on an array `(Z, Y, X)` of normalised intensities, padded to the patch.

        With the plan come the padded array (0 is the cohort's mean) and the voxels of padding before it.
        """
        padded, offsets = pad_to(array, self.patch_size)
        inside = None if body is None else pad_to(body, self.patch_size)[0]
        rows = windows.plan_windows(self.settings, padded.shape, patch=self.patch_size, body=inside)
        if self.settings.adaptive:
            rows = adaptive.sparsest_first(rows, self.patch_size, inside)
        return rows, padded, offsets

    def average(self, plan: Placed, shape: Shape, step: Callable[[], None] = lambda: None) -> Accumulator:
        """Lay out the averages over what `plan` gave for a volume of this shape.

        The network looks at windows, and `step` is called for each, as planes are asked for.
        """
        rows, padded, offsets = plan
        volume = torch.from_numpy(padded)[None, None]
        decisions = None
        if self.settings.asks_what_is_open and rows:
            central = gaussian_weights(self.patch_size).to(self.device)
            decisions = adaptive.Decisions(padded.shape, central, self.settings)
        always = len(self.flips) if self.settings.flips_where == "all" else 1

        def look(start: Start) -> torch.Tensor:
            averages.visited += 1
            step()
            z, y, x = window_slices(start, self.patch_size)
            patch = volume[:, :, z, y, x].to(self.device)
            averages.passes += always
            maps, rest = average_over_flips(self._maps, patch, self.flips[:always])[0], self.flips[always:]
            if decisions is None or not decisions.note(start, self._as_probabilities(maps)) or not rest:
                return maps
            averages.passes += len(rest)
            total = maps * always  # a copy: the maps may be the engine's
            total += average_over_flips(self._maps, patch, rest)[0] * len(rest)
            return total.div_(len(self.flips))

        if decisions is not None and self.settings.adaptive:
            visits = adaptive.walk_open(rows, look, decisions)
        else:
            visits = windows.walk(rows, look, self._judge if self.settings.name == "flare22" else None)
        place = dict[str, Any](offsets=offsets, shape=shape, device=self.device)
        averages = Accumulator(visits, rows, self.patch_size, channels=len(self.outputs), **place)
        return averages

    def _maps(self, patch: torch.Tensor) -> torch.Tensor:
        """Ask the engine: `(1, C, Z, Y, X)` float32 probabilities or logits."""
        logits = self.engine(patch).float()
        if self.activation == "sigmoid":
            logits = torch.cat((torch.zeros_like(logits[:, :1]), logits[:, 1:]), dim=1)  # the threshold
        return self._activate(logits, 1) if self.settings.average == "probabilities" else logits

    def _activate(self, logits: torch.Tensor, axis: int) -> torch.Tensor:
        """Turn logits into probabilities along the axis of the classes."""
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(axis)

    def _as_probabilities(self, maps: torch.Tensor) -> torch.Tensor:
        """Make maps `(C, ...)` that are averaged, or are to be, probabilities."""
        return self._activate(maps, 0) if self.settings.average == "logits" else maps

    def _finish(self, maps: torch.Tensor) -> torch.Tensor:
        """Make averaged maps `(C, ...)` probabilities; of sigmoids the background is what no class has."""
        maps = self._as_probabilities(maps)
        if self.activation == "sigmoid":
            maps[0] = 1 - maps[1:].amax(0)
        return maps

    def _judge(self, row: Row, maps: torch.Tensor) -> Verdict:
        """Ask the rule of `flare22` about the central window of a row."""
        return windows.judge_flare22(row, self._ids[maps.max(0).indices.cpu().numpy()], self._tubes)
