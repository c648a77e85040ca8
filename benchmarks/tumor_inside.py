"""What `labels.tumor_inside` makes of a run's pseudo tumors: their agreement with the phantom's truth.

    python benchmarks/tumor_inside.py outputs/demo outputs/data/phantom-demo-0 mot1

The pseudo labels of a round whose teacher knows tumors are merged anew with the annotations, by component, by
voxel inside the map that the last organ round's network makes now, and by voxel inside the hull. Cases whose
annotation has no tumor are compared: in the others the annotation answers. `--constrain` judges the pseudo
tumors of cases without annotation as well (`labels.constrain_unlabeled=true`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from flare.core.classes import ClassList
from flare.core.files import sha256
from flare.core.volumes import read_labels, read_scan
from flare.inference.components import fitted_classes
from flare.inference.predictor import Predictor
from flare.merging.merge import merge_maps
from flare.merging.settings import MergeRules, MergeSettings, PseudoSource
from flare.runs.folders import RunFolder

RULES = {
    "component": ("component", False),
    "voxel, organ round": ("voxel", True),
    "voxel, hull": ("voxel", False),
}


def main() -> None:
    """Print a row a rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("round")
    parser.add_argument("--organs", default="mo2", help="the organ round (mo2)")
    parser.add_argument("--constrain", action="store_true")
    given = parser.parse_args()
    folder, organ_round = (RunFolder(given.run).round(name) for name in (given.round, given.organs))
    cfg = OmegaConf.load(folder.config)
    classes = ClassList.from_config(cfg.classes)
    keys = ("targets", "rule", "dilation_mm", "tumor_inside_fraction")
    rules = {key: cfg.labels[key] for key in keys} | {"constrain_unlabeled": given.constrain}
    fitted = fitted_classes(organ_round.components, sha256(organ_round.last), classes)
    predictor = Predictor.from_checkpoint(organ_round.last, tta=cfg.tta)
    found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in RULES}
    for path in sorted(folder.predictions.glob("*.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        label = given.data / cfg.data.labels / path.name
        drawn = read_labels(label, classes) if label.exists() else None
        if drawn is not None and (drawn.array == classes.tumor).any():
            continue
        truth = read_labels(given.data / "truth" / path.name, classes).array == classes.tumor
        image, _ = read_scan(next(given.data.glob(f"*/{case}_0000.nii.gz")), case)
        organs = predictor.predict(image, components=fitted).segmentation
        pseudo = read_labels(path, classes)
        for name, (inside, is_mapped) in RULES.items():
            settings = MergeSettings(classes, None, MergeRules(**rules, tumor_inside=inside))
            merged, _ = merge_maps(
                case,
                drawn,
                pseudo,
                settings,
                declared=None,
                source=PseudoSource(),
                organs=organs if is_mapped else None,
            )
            ours = merged.array == classes.tumor
            found[name].append((int(ours.sum()), int((ours & truth).sum()), int(truth.sum())))
    print(f"{given.round}: {len(found['component'])} cases without an annotated tumor")
    print(
        "| tumor_inside | tumor voxels | of these right | true ones | DSC, all voxels | DSC, mean of cases |"
    )
    print("|---|---|---|---|---|---|")
    for name, counts in found.items():
        voxels, right, true = map(sum, zip(*counts, strict=True))
        dice = np.mean([2 * r / (v + t) for v, r, t in counts if t])
        pooled = 2 * right / (voxels + true)
        print(f"| {name} | {voxels} | {right} | {true} | {100 * pooled:.1f} | {100 * dice:.1f} |")


if __name__ == "__main__":
    main()
