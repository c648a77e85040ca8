"""What is kept of a case beside its labels: probabilities, labels on the network's grid, volumes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from flare.core.errors import FlareError
from flare.core.files import atomic
from flare.core.volumes import strip_extension, write_labels

if TYPE_CHECKING:
    from flare.runs.checkpoints import Checkpoint

KINDS = ("probabilities", "low_resolution", "volumes")


@dataclass(frozen=True)
class Saving:
    """What is saved beside the labels, and of which classes; by default nothing, and of all."""

    kinds: tuple[str, ...] = ()  # some of `KINDS`
    only: tuple[int, ...] = ()  # class ids; in labels the others become background. Empty: all

    @classmethod
    def from_config(cls, cfg: DictConfig, checkpoint: "Checkpoint") -> "Saving":
        """Read `save` and `only`, a name or a list each; a class that the network lacks is refused."""
        names = {checkpoint.class_list.name_of(i): i for i in checkpoint.outputs if i}
        chosen: dict[str, list[str]] = {}
        for key, known in (("save", KINDS), ("only", tuple(names))):
            given = cfg[key] if isinstance(cfg[key], list | ListConfig) else [cfg[key]]
            chosen[key] = [str(name) for name in given if name is not None]
            if unknown := [name for name in chosen[key] if name not in known]:
                raise FlareError(f"{key}={','.join(unknown)}: expected some of {', '.join(known)}")
        return cls(tuple(chosen["save"]), tuple(names[name] for name in chosen["only"]))

    def identity(self) -> dict[str, Any]:
        """Give what journals note of it; nothing of the default, so that finished cases stay done."""
        found = {"save": sorted(self.kinds), "only": sorted(self.only)}
        return {key: value for key, value in found.items() if value}

    def paths(self, segmentation: Path) -> dict[str, Path]:
        """Name the files of a case, by kind, from where its labels lie; each kind has a folder of its own."""
        folder, case = segmentation.parent, strip_extension(segmentation.name)
        ends = {"probabilities": "npz", "low_resolution": "nii.gz"}
        kinds = [kind for kind in ends if kind in self.kinds]
        return {kind: folder.with_name(f"{folder.name}_{kind}") / f"{case}.{ends[kind]}" for kind in kinds}

    def asked(self) -> dict[str, Any]:
        """Give the arguments that ask `Predictor.predict` for it."""
        how = {"probabilities": self.only or True, "low_resolution": True}
        return {key: value for key, value in how.items() if key in self.kinds}

    def of_chosen(self, labels: np.ndarray) -> np.ndarray:
        """Leave the chosen classes alone in a label map."""
        if not self.only:
            return labels
        kept = np.arange(256, dtype=np.uint8)
        kept[~np.isin(kept, self.only)] = 0
        return kept[labels]

    def write(self, prediction: Any, segmentation: Path, names: Mapping[int, str]) -> dict[str, Any]:
        """Write what is kept of a `Prediction`; `names` are those of the outputs, by class id, in order.

        Gives what the case's row gets: `volumes_ml`, by class, if they are asked for.
        """
        paths, ids = self.paths(segmentation), self.only or tuple(names)
        if path := paths.get("probabilities"):
            maps = zip(ids, prediction.probabilities, strict=True)
            with atomic(path) as temporary:
                np.savez_compressed(temporary, **{names[i]: array for i, array in maps})
        if path := paths.get("low_resolution"):
            low = prediction.low_resolution
            write_labels(path, self.of_chosen(low.array), low.geometry)
        volumes = {names[i]: round(prediction.volumes_ml[names[i]], 3) for i in ids if i}
        return {"volumes_ml": volumes} if "volumes" in self.kinds else {}
