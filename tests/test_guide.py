"""The guide's ten commands, as printed, on a cohort in nnU-Net's layout with four classes of its own."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from challenge_reference import nsd
from flare.core.files import read_csv, read_json
from flare.prepare.settings import PrepareSettings
from tiny_run import NETWORK, ROOT, SETTINGS, configuration, counts, script

LABELS = {"background": 0, "spleen": 1, "liver": 2, "Kidneys": 3, "tumor": 4}
FROM_PHANTOM = {3: 1, 1: 2, 2: 3, 13: 3, 14: 4}  # kidneys are one class here
COHORT = counts(organs_complete=3, tumor=3, partial=1, unlabeled=1, validation=1, test=2)
# what makes the networks tiny; the commands are the guide's
TINY = [
    *(s for s in SETTINGS if s.startswith(("data.", "trainer.")) and "phantom" not in s and s not in NETWORK),
    *("data.workers=0", "trainer=cpu", "model=tiny", *NETWORK, "data.augmentation.mirror.probability=0"),
]
MORE = {"prepare": ["data.spacing_mm=[10,9,9]"], "train": TINY, "iterate": TINY, "infer": ["tta=none"]}


def write_dataset(root: Path, made: Path) -> None:
    """The phantom's cases as nnU-Net names and numbers them."""
    settings = PrepareSettings.from_config(
        configuration("prepare", [*SETTINGS, COHORT, f"paths.outputs={made}"])
    )
    assert settings.generator is not None
    settings.generator.make(settings.executor)
    table = np.zeros(256, np.uint8)
    table[list(FROM_PHANTOM)] = list(FROM_PHANTOM.values())
    splits = {"imagesTr2200": "Tr", "unlabelTr1800": "Tr", "imagesVal": "Tr", "imagesTs": "Ts"}
    labels = {"labelsTr2200": "Tr", "labelsVal": "Tr", "labelsTs": "Ts"}
    for name, split in splits.items():
        for path in (made / "data" / "phantom-demo-0" / name).rglob("*.nii.gz"):
            (root / f"images{split}").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / f"images{split}" / path.name)
    for name, split in labels.items():
        (root / f"labels{split}").mkdir(parents=True, exist_ok=True)
        for path in (made / "data" / "phantom-demo-0" / name).rglob("*.nii.gz"):
            given = sitk.ReadImage(str(path))
            image = sitk.GetImageFromArray(table[sitk.GetArrayFromImage(given)])
            image.CopyInformation(given)
            sitk.WriteImage(image, str(root / f"labels{split}" / path.name))
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 8, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))


def commands() -> list[list[str]]:
    """The guide's ten commands, each as its words."""
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8").partition("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^python .*", text, re.MULTILINE)]


def scores_by_hand(reference: Path, prediction: Path, class_id: int) -> tuple[float, float] | None:
    """DSC and NSD at 3 mm of one class, from the files alone; None where the reference lacks it."""
    images = [sitk.ReadImage(str(path)) for path in (reference, prediction)]
    r, p = (sitk.GetArrayFromImage(image) == class_id for image in images)
    if not r.any():
        return None
    if not p.any():
        return 0.0, 0.0
    dsc = 2 * (r & p).sum() / (r.sum() + p.sum())
    spacing = tuple(images[0].GetSpacing()[::-1])
    return dsc, nsd(r, p, spacing, 3.0) if dsc >= 0.2 else 0.0  # the challenge's rule for hopeless classes


@pytest.mark.long
@pytest.mark.slow
def test_the_ten_commands_lead_from_nnunet_files_to_a_scored_test_set(tmp_path: Path) -> None:
    root = tmp_path / "data" / "Dataset123_Mine"
    write_dataset(root, tmp_path / "made")
    found = commands()
    assert len(found) == 10
    for _, file, *words in found:
        name = file.removesuffix(".py")
        words = [w.replace("/data/Dataset123_Mine", str(root)) for w in words]
        own = [w for w in MORE.get(name, []) if w != "model=tiny" or "model=small" not in words]
        words = ["model=tiny" if w == "model=small" else w for w in words]
        done = script(name, *words, "executor.workers=0", *own, cwd=tmp_path)
        assert done.returncode == 0, f"{file} {words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    between = 0
    for output in ("first", "segmentations"):
        rows = read_csv(tmp_path / output / "metrics.csv")
        assert len(rows) == 2
        for row in rows:
            for class_id, short in enumerate(("spleen", "liver", "Kidneys", "tumor"), start=1):
                files = (
                    root / "labelsTs" / f"{row['Name']}.nii.gz",
                    tmp_path / output / f"{row['Name']}.nii.gz",
                )
                expected = scores_by_hand(*files, class_id)
                given = (row[f"{short}_DSC"], row[f"{short}_NSD"])
                assert given == ("", "") if expected is None else True
                if expected is not None:
                    assert [float(v) for v in given] == pytest.approx(expected, abs=1e-4), (
                        output,
                        row,
                        short,
                    )
                    between += 0 < expected[0] < 1
    assert between  # else the check would compare zeros
    assert set(read_json(tmp_path / "completed" / "classes.json")) == {"spleen", "liver", "kidneys", "tumor"}
    assert len(list((tmp_path / "completed").glob("*.nii.gz"))) == len(list((root / "imagesTr").iterdir()))
    table = read_csv(tmp_path / "outputs" / "mine" / "table5.csv")
    assert [row["round"] for row in table] == ["mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3"]
    assert (tmp_path / "outputs" / "mine" / "report.html").is_file()
